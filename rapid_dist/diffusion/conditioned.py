"""A denoiser that is told an embedding instead of a class (DP-RDM, Lebensold et al. 2024).

The embedding, such as the mean of an image's neighbours, goes through a small network and is
added to the time embedding, where diffusers adds that of a class (``class_embed_type`` "identity").
So the U-Net is diffusers' own and opens there. Once the embeddings are known that images will be
made from, ``for_embeddings`` gives the plain denoiser with a class for each of them.

Letters: B rows, C channels, H = W pixels, D dimensions of an embedding, A embeddings.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from rapid_dist.diffusion.denoiser import Denoiser, NetworkConfig
from rapid_dist.errors import CheckpointError

_WEIGHTS, _FACTS = "conditioner.safetensors", "conditioned.json"


class EmbeddingDenoiser(Denoiser):
    """A denoiser whose "labels" are embeddings, float32 [B, D]; a row of zeros says nothing."""

    def __init__(
        self,
        config: NetworkConfig,
        *,
        channels: int,
        size: int,
        embedding_dim: int,
        data_std: float = 0.5,
    ) -> None:
        super().__init__(config, channels=channels, size=size, num_classes=1, data_std=data_std)
        self.embedding_dim = embedding_dim
        width = self.unet.class_embedding.embedding_dim
        self.unet.class_embedding = nn.Identity()
        self.unet.register_to_config(class_embed_type="identity", num_class_embeds=None)
        self.conditioner = nn.Sequential(
            nn.Linear(embedding_dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.nothing = nn.Parameter(torch.zeros(width))

    @classmethod
    def begun_from(cls, denoiser: Denoiser, embedding_dim: int, *, seed: int) -> Self:
        """Returns one with the U-Net of a denoiser of classes; only the condition is new."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            begun = cls(
                denoiser.config,
                channels=denoiser.channels,
                size=denoiser.size,
                embedding_dim=embedding_dim,
                data_std=denoiser.data_std,
            )
        weights = denoiser.unet.state_dict()
        table = weights.pop("class_embedding.weight")
        begun.unet.load_state_dict(weights)
        with torch.no_grad():
            begun.nothing.copy_(table[-1])  # What "no label" was.
        return begun

    def forward(
        self, noised: torch.Tensor, noise_level: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """float32 [B, C, H, W], [B] and [B, D] -> clean estimate float32 [B, C, H, W]."""
        return super().forward(noised, noise_level, self.condition(labels))

    def condition(self, embeddings: torch.Tensor) -> torch.Tensor:
        """float32 [B, D] -> what is added to the time embedding, float32 [B, width]."""
        said = (embeddings != 0).any(dim=1, keepdim=True)
        found: torch.Tensor = torch.where(said, self.conditioner(embeddings), self.nothing)
        return found

    @torch.no_grad()
    def for_embeddings(self, embeddings: torch.Tensor) -> Denoiser:
        """Embeddings float32 [A, D] -> the plain denoiser whose class a stands for the a-th."""
        plain = Denoiser(
            self.config,
            channels=self.channels,
            size=self.size,
            num_classes=len(embeddings),
            data_std=self.data_std,
        )
        table = torch.cat([self.condition(embeddings), self.nothing[None]])  # The last: no label.
        plain.unet.load_state_dict({**self.unet.state_dict(), "class_embedding.weight": table})
        return plain


def save_conditioned(denoiser: EmbeddingDenoiser, directory: Path) -> None:
    """Writes ``unet/`` (diffusers layout) and what makes conditions; no pickle."""
    directory.mkdir(parents=True, exist_ok=True)
    denoiser.unet.save_pretrained(directory / "unet", safe_serialization=True)
    own = {**denoiser.conditioner.state_dict(prefix="conditioner."), "nothing": denoiser.nothing}
    save_file(
        {name: weight.detach().contiguous() for name, weight in own.items()}, directory / _WEIGHTS
    )
    facts = {
        "network": asdict(denoiser.config),
        "channels": denoiser.channels,
        "size": denoiser.size,
        "embedding_dim": denoiser.embedding_dim,
        "data_std": denoiser.data_std,
    }
    (directory / _FACTS).write_text(json.dumps(facts, indent=2))


def load_conditioned(directory: Path) -> EmbeddingDenoiser:
    """Reads what ``save_conditioned`` wrote.

    Raises:
      CheckpointError: the folder does not hold a whole one.
    """
    try:
        facts = json.loads((directory / _FACTS).read_text())
        network: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in facts.pop("network").items()
        }
        denoiser = EmbeddingDenoiser(NetworkConfig(**network), **facts)
        unet = UNet2DModel.from_pretrained(  # type: ignore[no-untyped-call]
            directory / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        denoiser.unet.load_state_dict(unet.state_dict())
        own = load_file(directory / _WEIGHTS)
        missing, extra = denoiser.load_state_dict(own, strict=False)
        if extra or any(not name.startswith("unet.") for name in missing):
            raise KeyError(f"{_WEIGHTS} does not fit")
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory} does not hold a whole denoiser ({error}). Train again, or restore it."
        ) from error
    return denoiser
