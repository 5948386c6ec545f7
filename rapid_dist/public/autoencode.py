"""The autoencoder whose latents diffusion may work in: trained here or anybody's, always public.

Ours learns on the pretrain split to give an image back, with a light pull of its posterior towards
the standard normal (Kingma and Welling 2014, Eq. 10, weighted as in Rombach et al. 2022). Of
either kind the latents' mean and spread are measured on public images, and on no others (P10).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from rapid_dist.collective import Collective
from rapid_dist.data.images import PublicImages, to_unit
from rapid_dist.diffusion.autoencoder import (
    Autoencoder,
    Posterior,
    VaeConfig,
    new_vae,
    open_vae,
    vae_shape,
)
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.compute import device_of
from rapid_dist.errors import ConfigError
from rapid_dist.public.fit import OnStep, fit

_ROWS_AT_ONCE = 256  # Images between two sums of the statistics.


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Which autoencoder, and how ours is trained."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    network: VaeConfig = field(default_factory=VaeConfig)  # Of ours.
    steps: int = 1000
    batch_size: int = 128  # Of all workers together.
    learning_rate: float = 2e-3
    ema_decay: float = 0.99
    kl_weight: float = 1e-4
    checkpoint_every: int = 200
    # Of a row that trains a denoiser: the posterior's mean, or a draw of its own. References and
    # queries are always the mean.
    posterior: Posterior = "mean"
    statistics_images: int = 4096  # Public images that the latents' mean and spread are taken of.
    # Somebody's AutoencoderKL in place of ours: the folder that has its config.json, or a hub id.
    # It must have been made without the private data; the network and training above do nothing.
    source: str | None = None
    subfolder: str = ""
    revision: str | None = None
    hub: bool = False  # Whether a source may be downloaded.
    licence: str = ""  # Of the source; its weights are part of a released bundle.

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"autoencoder.{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.statistics_images < 2:
            raise ConfigError(
                f"autoencoder.statistics_images must be at least 2, got {self.statistics_images}."
            )
        if self.learning_rate <= 0 or self.kl_weight < 0 or not 0 <= self.ema_decay < 1:
            raise ConfigError(
                "autoencoder.learning_rate must be positive, kl_weight not negative and ema_decay "
                f"in [0, 1), got {self.learning_rate}, {self.kl_weight} and {self.ema_decay}."
            )
        if self.posterior not in ("mean", "sample"):
            raise ConfigError(
                f"autoencoder.posterior must be mean or sample, got {self.posterior!r}."
            )
        if self.source is not None and not self.licence:
            raise ConfigError(
                f"autoencoder.source is {self.source!r}, whose weights will be part of what is "
                "released. Say under which licence in autoencoder.licence."
            )

    def latent_shape(self, size: int) -> tuple[int, int]:
        """Returns (channels, side) of the latents of images of ``size`` pixels a side.

        Raises:
          ConfigError: the size does not divide, or the source is not there.
        """
        channels, halvings = self.network.latent_channels, len(self.network.widths) - 1
        if self.source is not None:
            channels, halvings = vae_shape(
                self.source, subfolder=self.subfolder, revision=self.revision, hub=self.hub
            )
        if size % 2**halvings:
            raise ConfigError(
                f"Images of {size} pixels do not divide by 2^{halvings}, the autoencoder's "
                "halvings. Give autoencoder.network fewer widths, or another data.private.size."
            )
        return channels, size // 2**halvings


def make_autoencoder(config: AutoencoderConfig, *, channels: int, size: int) -> Autoencoder:
    """Returns the source's autoencoder, or an untrained one of our own."""
    if config.source is None:
        vae = new_vae(config.network, channels=channels, size=size)
    else:
        vae = open_vae(
            config.source, subfolder=config.subfolder, revision=config.revision, hub=config.hub
        )
    return Autoencoder(vae, channels=channels, size=size, posterior=config.posterior)


def train_autoencoder(
    autoencoder: Autoencoder,
    images: PublicImages,
    config: AutoencoderConfig,
    *,
    seed: int,
    collective: Collective,
    checkpoints: Checkpoints | None,
    on_step: OnStep,
) -> None:
    """Trains in place, where the autoencoder is; leaves the EMA weights, frozen; see ``fit``."""
    vae, device = autoencoder.vae.requires_grad_(True), device_of(autoencoder)

    def loss_of(generator: torch.Generator, count: int) -> torch.Tensor:
        chosen = torch.randint(len(images), (count,), generator=generator)
        clean = to_unit(images.images[chosen.numpy()]).to(device)
        noise = torch.randn(count, *autoencoder.shape, generator=generator).to(device)
        return reconstruction_loss(autoencoder, clean, noise, config.kl_weight)

    fit(
        list(vae.parameters()),
        loss_of,
        config,
        seed=seed,
        collective=collective,
        checkpoints=checkpoints,
        on_step=on_step,
    )
    vae.requires_grad_(False)


def reconstruction_loss(
    autoencoder: Autoencoder, images: torch.Tensor, noise: torch.Tensor, kl_weight: float
) -> torch.Tensor:
    """Mean squared error of what comes back, plus the weighted pull, a pixel and a latent each.

    Args:
      images: float32 [n, C, S, S] in [-1, 1].
      noise: standard normal [n, c, s, s]: the draw from the posterior.
    """
    vae = autoencoder.vae
    posterior = vae.encode(images).latent_dist
    mean, std = posterior.mean, posterior.std
    back = vae.decode(mean + std * noise).sample
    pull = 0.5 * (mean.square() + posterior.var - 1 - posterior.logvar)
    loss: torch.Tensor = (back - images).square().mean() + kl_weight * pull.mean()
    return loss


@torch.no_grad()
def measure_latents(
    autoencoder: Autoencoder, images: PublicImages, count: int, *, seed: int, data_std: float
) -> None:
    """Takes mean and spread of at most ``count`` public images' latents, and scales by them.

    One spread for all channels: a channel that says little stays small.
    """
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    autoencoder.vae.register_to_config(latents_mean=None, latents_std=None)
    parts = [
        autoencoder.encode(to_unit(images.images[part.numpy()])).double()
        for part in torch.split(rows, _ROWS_AT_ONCE)
    ]
    latents = torch.cat(parts)
    mean = latents.mean(dim=(0, 2, 3))
    spread = (latents - mean.view(1, -1, 1, 1)).square().mean().sqrt()
    autoencoder.set_statistics(mean.tolist(), float(spread), data_std)
