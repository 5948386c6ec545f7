"""Between images and the latents that diffusion may work in (Rombach et al., 2022).

A diffusers ``AutoencoderKL``, made from public images alone, frozen and in eval mode ever after.
Latents are shifted and scaled by statistics of *public* images, so that they have the ``data_std``
of the schedule: (z - latents_mean) * scaling_factor / latents_std, all three in the autoencoder's
own ``config.json``, in the sense in which diffusers reads them.

What is stored is what diffusers opens: ``vae/`` in its own layout, weights in safetensors. The few
numbers around it stand in ``autoencoder.json``, or with those of a denoiser whose latents these
are. No pickle is written or read.

Shapes: n images, C channels, S pixels a side; latents have c channels and s a side.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers import AutoencoderKL
from torch import nn

from rapid_dist.diffusion.compute import device_of
from rapid_dist.errors import CheckpointError, ConfigError

Posterior = Literal["mean", "sample"]

FILE, FOLDER = "autoencoder.json", "vae"
_PIXELS_AT_ONCE = 2**16  # Of one channel, in one pass: 64 images of 32 pixels a side.


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Shape of an autoencoder of our own."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    widths: tuple[int, ...] = (32, 64)  # Channels of each resolution, finest first.
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_groups: int = 8
    attention: bool = False  # In the middle, at the coarsest resolution.

    def __post_init__(self) -> None:
        for name in ("latent_channels", "layers_per_block", "norm_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"autoencoder.network.{name} must be at least 1, got {getattr(self, name)}."
                )
        if not self.widths or any(w < 1 or w % self.norm_groups for w in self.widths):
            raise ConfigError(
                f"autoencoder.network.widths is {self.widths}, each of which "
                f"norm_groups={self.norm_groups} must divide. Try [32, 64]."
            )


class Autoencoder(nn.Module):
    """A frozen autoencoder between images in [-1, 1] and latents of the schedule's spread.

    Guarantee: a row's latents, and a row's image, are functions of that row alone.
    """

    vae: Any  # AutoencoderKL: half of its methods are untyped, and torch's __getattr__ hides more.

    def __init__(
        self, vae: Any, *, channels: int, size: int, posterior: Posterior = "mean"
    ) -> None:
        super().__init__()
        halvings = len(vae.config.block_out_channels) - 1
        if size % 2**halvings:
            raise ConfigError(
                f"Images of {size} pixels do not divide by the autoencoder's 2^{halvings}. Use one "
                "with fewer resolutions, or another data.private.size."
            )
        if vae.config.in_channels not in (channels, 3) or (
            vae.config.out_channels != vae.config.in_channels
        ):
            raise ConfigError(
                f"The autoencoder takes {vae.config.in_channels} channels and gives "
                f"{vae.config.out_channels}, the images have {channels}. Use one for {channels} or "
                "3 channels."
            )
        vae.register_to_config(_name_or_path="")  # Where it was read is nobody's business.
        self.vae = vae.float().eval().requires_grad_(False)
        self.image_channels, self.image_size = channels, size
        self.channels: int = vae.config.latent_channels
        self.size = size // 2**halvings
        self.posterior: Posterior = posterior

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image's latents, (c, s, s)."""
        return (self.channels, self.size, self.size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.image_channels, self.image_size, self.image_size)

    def train(self, mode: bool = True) -> "Autoencoder":
        """Stays in eval mode: what it says of one image must not depend on others (P11)."""
        return super().train(False)

    def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and standard deviation of the latents' posterior, each [n, c, s, s].

        Differentiable, on the autoencoder's device.

        Args:
          images: float32 [n, C, S, S] in [-1, 1].
        """
        wanted = self.vae.config.in_channels
        found = self.vae.encode(images.expand(-1, wanted, -1, -1)).latent_dist
        mean, scale = self._scaling(images)
        return (found.mean - mean) * scale, found.std * scale

    @torch.no_grad()
    def encode(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [n, C, S, S] in [-1, 1] -> latents float32 [n, c, s, s], where the images are.

        Args:
          noise: standard normal [n, c, s, s], for a draw from the posterior; None gives its mean.
        """
        parts = [images.new_empty(0, *self.shape)]
        rows = self._rows_at_once()
        for start in range(0, len(images), rows):
            part = slice(start, start + rows)
            mean, std = self.moments(images[part].to(device_of(self)))
            if noise is not None:
                mean = mean + std * noise[part].to(mean.device)
            parts.append(mean.to(images.device))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents float32 [n, c, s, s] -> images float32 [n, C, S, S], about [-1, 1]."""
        mean, scale = self._scaling(latents)
        parts = [latents.new_empty(0, *self.image_shape)]
        for part in torch.split(latents, self._rows_at_once()):
            raw = part / scale + mean
            image = self.vae.decode(raw.to(device_of(self))).sample
            if image.shape[1] != self.image_channels:
                image = image.mean(dim=1, keepdim=True)
            parts.append(image.to(latents.device))
        return torch.cat(parts)

    def rows_for_training(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The latents of public images, a draw from the posterior if this autoencoder says so."""
        if self.posterior == "mean":
            return self.encode(images)
        return self.encode(images, torch.randn(len(images), *self.shape, generator=generator))

    def set_statistics(self, mean: Iterable[float], std: float, data_std: float) -> None:
        """Has latents come out with ``data_std``; what is given was measured on public images.

        Args:
          mean: of each channel.

        Raises:
          ConfigError: latents that are all alike, which no scale could bring there.
        """
        if not std > 0:
            raise ConfigError(
                f"The latents of the public images have standard deviation {std}: this autoencoder "
                "says nothing of them. Train it longer, or use another."
            )
        self.vae.register_to_config(
            latents_mean=[float(value) for value in mean],
            latents_std=[float(std)] * self.channels,
            scaling_factor=float(data_std),
        )

    def facts(self) -> dict[str, Any]:
        """Returns the numbers around the network, for ``opened``."""
        return {
            "channels": self.image_channels, "size": self.image_size, "posterior": self.posterior
        }  # fmt: skip

    def save_vae(self, directory: Path) -> None:
        """Writes ``vae/`` below a folder."""
        self.vae.save_pretrained(directory / FOLDER, safe_serialization=True)

    @classmethod
    def opened(cls, directory: Path, facts: dict[str, Any]) -> Self:
        """Reads ``vae/`` below a folder; what it raises is for whoever knows what the folder is."""
        vae = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
            directory / FOLDER, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        return cls(vae, **facts)

    def _scaling(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and factor of each channel, [1, c, 1, 1]; none before the statistics are set."""
        config = self.vae.config
        if config.latents_mean is None:
            return like.new_zeros(1, self.channels, 1, 1), like.new_ones(1, self.channels, 1, 1)
        mean = like.new_tensor(config.latents_mean).view(1, -1, 1, 1)
        return mean, config.scaling_factor / like.new_tensor(config.latents_std).view(1, -1, 1, 1)

    def _rows_at_once(self) -> int:
        return max(1, _PIXELS_AT_ONCE // self.image_size**2)


def new_vae(config: VaeConfig, *, channels: int, size: int) -> Any:
    """Returns an untrained AutoencoderKL for images of [channels, size, size]."""
    count = len(config.widths)
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=size,
        mid_block_add_attention=config.attention,
    )


def open_vae(
    source: str, *, subfolder: str = "", revision: str | None = None, hub: bool = False
) -> Any:
    """Opens anybody's AutoencoderKL from a folder, or from a hub where that is allowed.

    Weights are read from safetensors alone (P16). Statistics of latents that came with it are
    dropped: they are measured anew, on this recipe's public images.

    Raises:
      ConfigError: there is none at that place, or not one in safetensors.
    """
    place = _place(source, hub)
    try:
        vae = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
            place,
            subfolder=subfolder or None,
            revision=revision,
            use_safetensors=True,
            local_files_only=not hub,
            low_cpu_mem_usage=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"autoencoder.source={source!r} holds no AutoencoderKL with safetensors "
            f"({' '.join(str(error).split())[:200]}). Other weight files are not read."
            f"{_offline(hub)}"
        ) from error
    vae.register_to_config(latents_mean=None, latents_std=None)
    return vae


def vae_shape(
    source: str, *, subfolder: str = "", revision: str | None = None, hub: bool = False
) -> tuple[int, int]:
    """Returns (latent channels, halvings) of somebody's autoencoder, from its config.json alone."""
    place = _place(source, hub)
    try:
        found = AutoencoderKL.load_config(
            place,
            subfolder=subfolder or None,
            revision=revision,
            local_files_only=not hub,
        )
        return int(found["latent_channels"]), len(found["block_out_channels"]) - 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"autoencoder.source={source!r} has no config.json of an AutoencoderKL "
            f"({' '.join(str(error).split())[:200]}). Give its folder, or "
            f"autoencoder.subfolder.{_offline(hub)}"
        ) from error


def _place(source: str, hub: bool) -> str | Path:
    """Returns the folder of that name, or the name itself where it may be looked up elsewhere."""
    place = Path(source).expanduser()
    if place.is_dir():
        return place
    if not hub:
        raise ConfigError(
            f"autoencoder.source={source!r} is no folder here. Give the folder of a diffusers "
            "AutoencoderKL, or set autoencoder.hub to allow a download."
        )
    return source


def _offline(hub: bool) -> str:
    """Returns what a refusal has to add where a hub may be asked, and is not."""
    if not hub or os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("", "0", "false", "no", "off"):
        return ""
    return " HF_HUB_OFFLINE is set, as it is by default: export HF_HUB_OFFLINE=0 to ask the hub."


def save_autoencoder(autoencoder: Autoencoder, directory: Path) -> None:
    """Writes ``vae/`` (diffusers layout, safetensors) and ``autoencoder.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    autoencoder.save_vae(directory)
    (directory / FILE).write_text(json.dumps(autoencoder.facts(), indent=2))


def load_autoencoder(directory: Path) -> Autoencoder:
    """Reads what ``save_autoencoder`` wrote, frozen.

    Raises:
      CheckpointError: the folder does not hold a whole autoencoder.
    """
    try:
        return Autoencoder.opened(directory, json.loads((directory / FILE).read_text()))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory} does not hold a whole autoencoder ({error}). Train again, or restore it."
        ) from error
