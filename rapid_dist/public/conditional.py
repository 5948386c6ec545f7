"""Public training of the retrieval-conditioned generator of DP-RDM (Lebensold et al. 2024).

Each row is told the mean embedding of the k nearest *other* public images of its image, under
Gaussian noise of the very scale that the private answers will have. So the network knows how far an
answer can be trusted, and no answer that it will ever see is private without noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from rapid_dist.data.images import PublicImages, to_unit
from rapid_dist.diffusion.conditioned import EmbeddingDenoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import ConfigError
from rapid_dist.public.fit import DrawRows
from rapid_dist.retrieval.exact import ExactSearch


@dataclass(frozen=True, kw_only=True)
class ConditionalConfig:
    """How the retrieval-conditioned generator is trained; it goes on from the public denoiser."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 1e-3
    ema_decay: float = 0.999
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"conditional.{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.learning_rate <= 0 or not 0 <= self.ema_decay < 1:
            raise ConfigError(
                "conditional.learning_rate must be positive and conditional.ema_decay in [0, 1), "
                f"got {self.learning_rate} and {self.ema_decay}."
            )


def neighbor_means(embeddings: np.ndarray, neighbors: int) -> np.ndarray:
    """Each row's mean over its nearest other rows, float32 [N, D] -> float32 [N, D].

    The sum is divided by ``neighbors``, also where there are fewer rows.
    """
    index = ExactSearch(embeddings)
    means = np.empty_like(embeddings)
    most = min(neighbors + 1, len(embeddings))
    for start in range(0, len(embeddings), 1024):
        rows = np.arange(start, min(start + 1024, len(embeddings)))
        _, found = index.search(embeddings[rows], most)
        for row, near in zip(rows.tolist(), found, strict=True):
            means[row] = embeddings[near[near != row][:neighbors]].sum(axis=0) / neighbors
    return means


def conditioned_rows(
    images: PublicImages,
    means: np.ndarray,
    noise: float,
    schedule: ScheduleConfig,
    denoiser: EmbeddingDenoiser,
) -> DrawRows:
    """Returns a source of rows: a uniform image, a uniform step, its neighbours' noised mean.

    Args:
      means: float32 [N, D], of every image's neighbours.
      noise: stddev of the noise on an answer.
    """
    levels = torch.from_numpy(schedule.levels()).float()
    known = torch.from_numpy(means)

    def draw(generator: torch.Generator, count: int) -> Rows:
        chosen = torch.randint(len(images), (count,), generator=generator)
        clean = to_unit(images.images[chosen.numpy()])
        level = levels[torch.randint(1, len(levels), (count,), generator=generator)]
        state_noise = torch.randn(clean.shape, generator=generator)
        told = known[chosen]
        told = told + noise * torch.randn(told.shape, generator=generator)
        dropped = torch.rand(count, generator=generator) < denoiser.config.label_drop
        return Rows(
            noised=clean + level.view(-1, 1, 1, 1) * state_noise,
            noise_level=level,
            labels=torch.where(dropped[:, None], torch.zeros(()), told),
            clean=clean,
        )

    return draw


def public_questions(
    references: PublicImages,
    features_of: Callable[[np.ndarray], np.ndarray],
    rounds: int,
    num_classes: int,
    seed: int,
) -> np.ndarray:
    """Returns what is asked: embeddings of public references, float32 [rounds, num_classes, D].

    All are fixed before the first answer, by a public seed.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(references), size=rounds * num_classes)
    found = features_of(references.images[chosen])
    return found.reshape(rounds, num_classes, -1).astype(np.float32)
