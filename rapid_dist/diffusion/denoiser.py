"""A diffusers U-Net behind the preconditioning of Karras et al. (2022).

D(x; s) = c_skip x + c_out F(c_in x; c_noise), with F the network and s the noise level (their
Table 1, column "EDM"). Shapes: B rows, C channels, H = W pixels.

It works on images, or on the latents of an autoencoder that it carries along: ``encode`` leads from
images to what it denoises, ``decode`` back, and without an autoencoder neither does anything.

What is stored is what diffusers opens: ``unet/`` and, with an autoencoder, ``vae/`` in its own
layout, weights in safetensors, and ``denoiser.json`` with the few numbers around them. No pickle is
written or read.
"""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers import UNet2DModel
from torch import nn
from torch.nn import functional

from rapid_dist.diffusion.autoencoder import Autoencoder
from rapid_dist.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the network; public and private denoiser are the same in every field."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    widths: tuple[int, ...] = (32, 64)  # Channels of each resolution, finest first.
    # Self-attention at each resolution; the middle block always has it.
    attention: tuple[bool, ...] = (False, True)
    layers_per_block: int = 1
    patch: int = 1  # Pixels on a side that are folded into channels before the network.
    head_width: int = 16  # Channels of one attention head.
    norm_groups: int = 8
    label_drop: float = 0.1  # Chance that a training row loses its label (guidance).

    def __post_init__(self) -> None:
        for name in ("layers_per_block", "patch", "head_width", "norm_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"network.{name} must be at least 1, got {getattr(self, name)}.")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(
                f"network.widths must hold at least one positive width, got {self.widths}."
            )
        if len(self.widths) != len(self.attention):
            raise ConfigError(
                "network.attention must say yes or no for each of network.widths, got "
                f"{len(self.attention)} values for {len(self.widths)} widths."
            )
        for width in self.widths:
            if width % self.norm_groups or width % self.head_width:
                raise ConfigError(
                    f"network.widths has {width}, which network.norm_groups={self.norm_groups} and "
                    f"network.head_width={self.head_width} must both divide."
                )
            # What a block is told of noise level and label is one value a channel, which a norm of
            # that channel alone would take away again.
            if width == self.norm_groups:
                raise ConfigError(
                    f"network.widths has {width}, as many as network.norm_groups: the network "
                    "would hear nothing of noise level and label. Halve network.norm_groups."
                )
        if not 0 <= self.label_drop < 1:
            raise ConfigError(f"network.label_drop must be in [0, 1), got {self.label_drop}.")


class Denoiser(nn.Module):
    """Estimates the clean image from a noised one; counts its own evaluations.

    ``evaluations`` is the number of rows that went through the network since the last reset.
    With ``precision`` "bf16" the U-Net runs under autocast; what surrounds it, its parameters and
    its estimate stay float32.
    """

    unet: Any  # UNet2DModel: half of its methods are untyped, and torch's __getattr__ hides more.

    def __init__(
        self,
        config: NetworkConfig,
        *,
        channels: int,
        size: int,
        num_classes: int,
        data_std: float = 0.5,
        autoencoder: Autoencoder | None = None,
    ) -> None:
        """
        Args:
          channels, size: of images; with an autoencoder they must be its own.
        """
        super().__init__()
        if autoencoder is not None:
            if (channels, size, size) != autoencoder.image_shape:
                raise ConfigError(
                    f"The autoencoder is for images of {autoencoder.image_shape}, these have "
                    f"{(channels, size, size)}. Use one that was made for them."
                )
            channels, size = autoencoder.channels, autoencoder.size
        scale = config.patch * 2 ** (len(config.widths) - 1)
        if size % scale:
            what = "Images" if autoencoder is None else "Latents"
            raise ConfigError(
                f"{what} of {size} pixels do not divide by network.patch * 2^(resolutions - 1) = "
                f"{scale}. Use fewer network.widths or a smaller network.patch."
            )
        self.config = config
        self.autoencoder = autoencoder
        self.channels = channels
        self.size = size
        self.num_classes = num_classes
        self.data_std = data_std
        self.evaluations = 0
        self.precision: Literal["fp32", "bf16"] = "fp32"
        folded = channels * config.patch**2
        self.unet = UNet2DModel(  # type: ignore[no-untyped-call]
            sample_size=size // config.patch,
            in_channels=folded,
            out_channels=folded,
            layers_per_block=config.layers_per_block,
            block_out_channels=config.widths,
            down_block_types=tuple(
                "AttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention
            ),
            up_block_types=tuple(
                "AttnUpBlock2D" if attends else "UpBlock2D"
                for attends in reversed(config.attention)
            ),
            attention_head_dim=config.head_width,
            norm_num_groups=config.norm_groups,
            num_class_embeds=num_classes + 1,  # The last one stands for "no label".
        )

    @property
    def no_label(self) -> int:
        """The label index that stands for "no label"."""
        return self.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of images, whatever is denoised."""
        if self.autoencoder is not None:
            return self.autoencoder.image_shape
        return (self.channels, self.size, self.size)

    def encode(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Images float32 [n, C, H, W] in [-1, 1] -> what is denoised; row by row.

        Args:
          generator: for the draw from the posterior that a row for training is, where the
            autoencoder says so; without one it is the posterior's mean.
        """
        if self.autoencoder is None:
            return images
        if generator is None:
            return self.autoencoder.encode(images)
        return self.autoencoder.rows_for_training(images, generator)

    def decode(self, clean: torch.Tensor) -> torch.Tensor:
        """What was denoised -> images float32 [n, C, H, W], about [-1, 1]; row by row."""
        return clean if self.autoencoder is None else self.autoencoder.decode(clean)

    def forward(
        self, noised: torch.Tensor, noise_level: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """float32 [B, C, H, W], float32 [B], int64 [B] -> clean estimate float32 [B, C, H, W]."""
        self.evaluations += len(noised)
        level = noise_level.reshape(-1, 1, 1, 1)
        total = (level**2 + self.data_std**2).sqrt()
        scaled = noised / total
        if self.config.patch > 1:
            scaled = functional.pixel_unshuffle(scaled, self.config.patch)
        # diffusers' sinusoidal embedding expects times of the order of 1000.
        times = 100.0 * noise_level.log()
        with torch.autocast(noised.device.type, torch.bfloat16, self.precision == "bf16"):
            raw = self.unet(scaled, times, class_labels=labels, return_dict=False)[0]
        raw = raw.float()
        if self.config.patch > 1:
            raw = functional.pixel_shuffle(raw, self.config.patch)
        skip = self.data_std**2 / total**2
        out = level * self.data_std / total
        estimate: torch.Tensor = skip * noised + out * raw
        return estimate

    def with_classes(self, num_classes: int, *, seed: int) -> Self:
        """Returns a copy for other classes; only the table of class embeddings is new.

        The new rows are drawn around the mean of the old ones with their spread, so that the class
        pathway which public training has built stays in use; "no label" keeps its row.
        """
        old = self.unet.class_embedding.weight.detach()
        generator = torch.Generator().manual_seed(seed)
        classes = old[:-1] if len(old) > 1 else old
        spread = classes.std(dim=0) if len(classes) > 1 else torch.zeros_like(classes[0])
        drawn = torch.randn(num_classes, old.shape[1], generator=generator).to(old)
        return self._with_table(torch.cat([classes.mean(dim=0) + spread * drawn, old[-1:]]))

    def without_labels(self, num_classes: int) -> Self:
        """Returns a copy that takes labels of ``num_classes`` classes and heeds none of them."""
        no_label = self.unet.class_embedding.weight.detach()[-1:]
        return self._with_table(no_label.expand(num_classes + 1, -1).clone())

    def _with_table(self, table: torch.Tensor) -> Self:
        clone = copy.deepcopy(self)
        clone.num_classes = len(table) - 1
        clone.unet.class_embedding = nn.Embedding(len(table), table.shape[1], _weight=table)
        clone.unet.register_to_config(num_class_embeds=len(table))
        clone.evaluations = 0
        return clone


def weights_of(level: torch.Tensor, data_std: float) -> torch.Tensor:
    """The loss weight of Karras et al. (2022), Table 1: 1 / c_out(s)^2."""
    return (level**2 + data_std**2) / (level * data_std) ** 2


def save_denoiser(denoiser: Denoiser, directory: Path) -> None:
    """Writes ``unet/``, ``vae/`` if there is one (diffusers layout), and ``denoiser.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    denoiser.unet.save_pretrained(directory / "unet", safe_serialization=True)
    facts: dict[str, Any] = {
        "network": asdict(denoiser.config),
        "channels": denoiser.channels,
        "size": denoiser.size,
        "num_classes": denoiser.num_classes,
        "data_std": denoiser.data_std,
    }
    if denoiser.autoencoder is not None:
        denoiser.autoencoder.save_vae(directory)
        facts["channels"], facts["size"], _ = denoiser.image_shape
        facts["autoencoder"] = denoiser.autoencoder.facts()
    (directory / "denoiser.json").write_text(json.dumps(facts, indent=2))


def load_denoiser(directory: Path) -> Denoiser:
    """Reads what ``save_denoiser`` wrote.

    Raises:
      CheckpointError: the folder does not hold a whole denoiser.
    """
    try:
        facts = json.loads((directory / "denoiser.json").read_text())
        network: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in facts.pop("network").items()
        }
        space = facts.pop("autoencoder", None)
        autoencoder = None if space is None else Autoencoder.opened(directory, space)
        denoiser = Denoiser(NetworkConfig(**network), autoencoder=autoencoder, **facts)
        unet = UNet2DModel.from_pretrained(  # type: ignore[no-untyped-call]
            directory / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        denoiser.unet.load_state_dict(unet.state_dict())
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory} does not hold a whole denoiser ({error}). Train again, or restore it."
        ) from error
    return denoiser
