"""Pretraining of the public denoiser: its settings, and its rows out of the pretrain split."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from rapid_dist.data.images import PublicImages, to_unit
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import ConfigError
from rapid_dist.public.fit import DrawRows, noised_rows


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

    def draw(generator: torch.Generator, count: int) -> Rows:
        chosen = torch.randint(len(images), (count,), generator=generator)
        clean = denoiser.encode(to_unit(images.images[chosen.numpy()]), generator)
        level = levels[torch.randint(1, max_step + 1, (count,), generator=generator)]
        return noised_rows(clean, level, labels[chosen], denoiser, generator)

    return draw
