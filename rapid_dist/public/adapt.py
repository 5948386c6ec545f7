"""Adaptation of the public denoiser to the private classes, by the private prior alone.

The noised class-by-cluster histogram is the output of a DP mechanism, so everything computed from
it and from public images is post-processing and costs nothing. References drawn from the prior
carry *private* class labels; a few hundred steps on them give the network the private classes
before the first DP-SGD step, which is then left with what the references do not say.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from rapid_dist.data.images import to_unit
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.diffusion.seeds import generator_for
from rapid_dist.errors import ConfigError
from rapid_dist.public.fit import DrawRows, noised_rows
from rapid_dist.retrieval.jitter import JitterConfig, jittered
from rapid_dist.retrieval.prior import TrajectoryPrior


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How D_pub is adapted; ``steps`` = 0 leaves it out."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 1e-3
    ema_decay: float = 0.99
    whole_schedule_share: float = 0.25  # Rows drawn over the whole schedule; the rest over 0..v.

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise ConfigError(
                "adapt.steps must not be negative and adapt.batch_size at least 1, got "
                f"{self.steps} and {self.batch_size}."
            )
        if self.learning_rate <= 0 or not 0 <= self.ema_decay < 1:
            raise ConfigError(
                "adapt.learning_rate must be positive and adapt.ema_decay in [0, 1), got "
                f"{self.learning_rate} and {self.ema_decay}."
            )
        if not 0 <= self.whole_schedule_share <= 1:
            raise ConfigError(
                f"adapt.whole_schedule_share must be in [0, 1], got {self.whole_schedule_share}."
            )

    @property
    def checkpoint_every(self) -> int:
        return max(1, self.steps // 4)


def prior_rows(
    prior: TrajectoryPrior,
    images_of_entries: np.ndarray,
    schedule: ScheduleConfig,
    denoiser: Denoiser,
    *,
    split_step: int,
    whole_share: float,
    jitter: JitterConfig,
) -> DrawRows:
    """Returns a source of rows: a uniform private class, a reference from its prior, its label.

    Args:
      images_of_entries: uint8 [E, C, H, W], the reference image of every entry.
    """
    levels = torch.from_numpy(schedule.levels()).float()

    def draw(generator: torch.Generator, count: int) -> Rows:
        labels = torch.randint(prior.num_classes, (count,), generator=generator)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        entries = prior.draw(labels.numpy(), seed, np.arange(count))
        streams = [generator_for(seed, "jitter", row) for row in range(count)]
        variants = jittered(to_unit(images_of_entries[entries]), streams, jitter)
        clean = denoiser.encode(variants, generator)
        whole = torch.rand(count, generator=generator) < whole_share
        highest = torch.where(whole, schedule.num_steps, split_step)
        step = 1 + (torch.rand(count, generator=generator) * highest).long()
        level = levels[torch.minimum(step, highest)]
        return noised_rows(clean, level, labels, denoiser, generator)

    return draw
