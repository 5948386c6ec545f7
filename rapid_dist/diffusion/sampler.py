"""Samplers that go from any noise level down to any other.

Letters: x the state, D the clean estimate, s_i the noise levels of the path. All are solvers of the
probability-flow equation dx/ds = (x - D(x; s)) / s (Karras et al. 2022, Eq. 1 with s(t) = t).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from rapid_dist.diffusion.compute import Precision
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError

Solver = Literal["ddim", "heun", "dpmpp"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How images are drawn. ``source`` says where a sample enters the late steps."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: Literal["prior", "query", "uniform", "noise"] = "prior"
    count: int = 1000
    solver: Solver = "dpmpp"
    late_intervals: int = 16  # Intervals from the split step to 0 (private model).
    early_intervals: int = 16  # Intervals from 1000 to the query step (public model).
    top_m: int = 1  # A query is answered by one of its so many nearest trajectories, drawn evenly.
    guidance: float = 1.0  # 1 = none; above 1 each interval costs twice the evaluations.
    batch_size: int = 256
    seed: int = 0
    precision: Precision = "fp32"  # Of the network; auto = bf16 where the device has it.

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch_size < 1:
            raise ConfigError(
                "sampling.count and sampling.batch_size must be at least 1, got "
                f"{self.count} and {self.batch_size}."
            )
        if self.late_intervals < 1 or self.early_intervals < 1:
            raise ConfigError(
                "sampling.late_intervals and sampling.early_intervals must be at least 1, got "
                f"{self.late_intervals} and {self.early_intervals}."
            )
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(
                f"sampling.precision must be auto, fp32 or bf16, got {self.precision!r}."
            )
        if self.top_m < 1:
            raise ConfigError(
                f"sampling.top_m must be at least 1, got {self.top_m}. 1 takes the nearest."
            )
        if self.guidance < 0:
            raise ConfigError(f"sampling.guidance must not be negative, got {self.guidance}.")


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    state: torch.Tensor,
    labels: torch.Tensor,
    levels: Sequence[float],
    *,
    solver: Solver = "dpmpp",
    guidance: float = 1.0,
) -> torch.Tensor:
    """Takes a state at ``levels[0]`` to ``levels[-1]``.

    ``ddim`` is the deterministic DDIM step (Song et al. 2021), ``dpmpp`` DPM-Solver++(2M) with data
    prediction (Lu et al. 2022, Algorithm 2), ``heun`` Algorithm 1 of Karras et al. (2022). The
    first two evaluate the network once an interval, Heun twice but for an interval that ends at 0.

    Args:
      state: float32 [B, C, H, W], the state at ``levels[0]``.
      labels: int64 [B]; ``denoiser.no_label`` for none.
      levels: descending; the last may be 0.
    """

    def clean(x: torch.Tensor, level: float) -> torch.Tensor:
        noise_level = torch.full((len(x),), level, device=x.device)
        estimate: torch.Tensor = denoiser(x, noise_level, labels)
        if guidance != 1.0:
            bare = denoiser(x, noise_level, torch.full_like(labels, denoiser.no_label))
            estimate = bare + guidance * (estimate - bare)
        return estimate

    x = state
    previous: tuple[float, torch.Tensor] | None = None  # Level and estimate, one interval ago.
    for level, following in pairwise(levels):
        estimate = clean(x, level)
        ratio = following / level
        if solver == "heun":
            slope = (x - estimate) / level
            ahead = x + (following - level) * slope
            if following > 0:
                slope = (slope + (ahead - clean(ahead, following)) / following) / 2
                ahead = x + (following - level) * slope
            x = ahead
        elif solver == "dpmpp" and previous is not None and following > 0:
            last_level, last_estimate = previous
            step = torch.tensor(level / following).log()  # h_i = lambda_{i+1} - lambda_i
            last_step = torch.tensor(last_level / level).log()
            weight = float(step / (2 * last_step))
            x = ratio * x + (1 - ratio) * ((1 + weight) * estimate - weight * last_estimate)
        else:
            x = ratio * x + (1 - ratio) * estimate
        previous = (level, estimate)
    return x
