"""Pretraining of the public denoiser on the pretrain split (design, section 3, step 1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rapid_dist.collective import Collective
from rapid_dist.data.images import PublicImages, to_unit
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import ConfigError
from rapid_dist.public.fit import DrawRows, OnStep, fit_denoiser


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How D_pub is trained. Conditioned on the public data's own labels, so that the class
    pathway exists before private training begins."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    ema_decay: float = 0.999
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pretrain.{name} must be at least 1, got {getattr(self, name)}.")
        if self.learning_rate <= 0 or not 0 <= self.ema_decay < 1:
            raise ConfigError(
                "pretrain.learning_rate must be positive and pretrain.ema_decay in [0, 1), got "
                f"{self.learning_rate} and {self.ema_decay}."
            )


def public_rows(
    images: PublicImages, schedule: ScheduleConfig, denoiser: Denoiser, max_step: int
) -> DrawRows:
    """Returns a source of rows: a uniform image at a uniform step of 1..max_step."""
    levels = torch.from_numpy(schedule.levels()).float()
    labels = torch.from_numpy(images.labels)
    drop = denoiser.config.label_drop

    def draw(generator: torch.Generator, count: int) -> Rows:
        chosen = torch.randint(len(images), (count,), generator=generator)
        clean = to_unit(images.images[chosen.numpy()])
        level = levels[torch.randint(1, max_step + 1, (count,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        dropped = torch.rand(count, generator=generator) < drop
        return Rows(
            noised=clean + level.view(-1, 1, 1, 1) * noise,
            noise_level=level,
            labels=torch.where(dropped, torch.tensor(denoiser.no_label), labels[chosen]),
            clean=clean,
        )

    return draw


def pretrain(
    denoiser: Denoiser,
    images: PublicImages,
    config: PretrainConfig,
    schedule: ScheduleConfig,
    *,
    seed: int,
    collective: Collective,
    checkpoints: Checkpoints | None,
    on_step: OnStep,
) -> None:
    """Trains ``denoiser`` in place on public images over the whole schedule."""
    fit_denoiser(
        denoiser,
        public_rows(images, schedule, denoiser, schedule.num_steps),
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        ema_decay=config.ema_decay,
        seed=seed,
        collective=collective,
        checkpoints=checkpoints,
        checkpoint_every=config.checkpoint_every,
        on_step=on_step,
    )
