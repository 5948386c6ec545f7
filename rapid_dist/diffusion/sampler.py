"""Samplers that go from any noise level down to any other.

Letters: x the state, D the clean estimate, s_i the noise levels of the path. All are solvers of the
probability-flow equation dx/ds = (x - D(x; s)) / s (Karras et al. 2022, Eq. 1 with s(t) = t). With
churn a little fresh noise is added before every interval, which makes up for the errors of those
before it (their Algorithm 2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from rapid_dist.diffusion.compute import Precision
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError

Solver = Literal["ddim", "heun", "dpmpp"]


FreshNoise = Callable[[int], torch.Tensor]  # Interval -> standard normals of the state's shape.


@dataclass(frozen=True, kw_only=True)
class ChurnConfig:
    """Stochastic sampling (Karras et al. 2022, Algorithm 2); off by default.

    It costs no evaluation. Their values, and where DPDM found its best FID on MNIST, are amounts of
    some tens to a hundred for as many intervals or more, within levels of 0.05 to 50.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    amount: float = 0.0  # S_churn, shared out among the intervals; 0 = deterministic.
    least_level: float = 0.0  # S_min: below it no noise is added,
    most_level: float | None = None  # S_max: nor above it; null = no limit.
    noise: float = 1.0  # S_noise: stddev of what is added, against what the level rises by.

    def __post_init__(self) -> None:
        if not (0 <= self.amount < math.inf and 0 < self.noise < math.inf):
            raise ConfigError(
                "sampling.churn.amount must not be negative and sampling.churn.noise positive, got "
                f"{self.amount} and {self.noise}. The defaults are 0 and 1."
            )
        if self.least_level < 0 or not self.least_level < (self.most_level or math.inf):
            raise ConfigError(
                "sampling.churn.least_level must lie between 0 and sampling.churn.most_level, got "
                f"{self.least_level} and {self.most_level}."
            )

    def raised(self, level: float, num_intervals: int) -> float:
        """Returns the level that the state is noised up to before an interval that begins there."""
        if not self.least_level <= level <= (self.most_level or math.inf):
            return level
        return level * (1 + min(self.amount / num_intervals, math.sqrt(2) - 1))

    def check(self, solver: Solver) -> None:
        """Refuses a solver that could not be churned.

        Raises:
          ConfigError: it looks back on an estimate from before the fresh noise.
        """
        if self.amount and solver == "dpmpp":
            raise ConfigError(
                f"sampling.churn.amount is {self.amount}, but sampling.solver='dpmpp' looks back "
                "on estimates from before the fresh noise. Use 'heun' or 'ddim'."
            )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How images are drawn. ``source`` says where a sample enters the late steps."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: Literal["prior", "query", "uniform", "noise"] = "prior"
    count: int = 1000
    solver: Solver = "dpmpp"
    churn: ChurnConfig = field(default_factory=ChurnConfig)  # Of the private model's steps.
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
        self.churn.check(self.solver)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    state: torch.Tensor,
    labels: torch.Tensor,
    levels: Sequence[float],
    *,
    solver: Solver = "dpmpp",
    guidance: float = 1.0,
    churn: ChurnConfig | None = None,
    fresh: FreshNoise | None = None,
) -> torch.Tensor:
    """Takes a state at ``levels[0]`` to ``levels[-1]``.

    ``ddim`` is the deterministic DDIM step (Song et al. 2021), ``dpmpp`` DPM-Solver++(2M) with data
    prediction (Lu et al. 2022, Algorithm 2), ``heun`` Algorithm 1 of Karras et al. (2022). The
    first two evaluate the network once an interval, Heun twice but for an interval that ends at 0.

    Args:
      state: float32 [B, C, H, W], the state at ``levels[0]``.
      labels: int64 [B]; ``denoiser.no_label`` for none.
      levels: descending; the last may be 0.
      fresh: what churn adds before an interval, for those that are churned; a sample's noise must
        be its own, or its image would depend on the batch. Not asked for without churn.

    Raises:
      ConfigError: the solver cannot be churned.
    """
    churn = churn or ChurnConfig()
    churn.check(solver)

    def clean(x: torch.Tensor, level: float) -> torch.Tensor:
        noise_level = torch.full((len(x),), level, device=x.device)
        estimate: torch.Tensor = denoiser(x, noise_level, labels)
        if guidance != 1.0:
            bare = denoiser(x, noise_level, torch.full_like(labels, denoiser.no_label))
            estimate = bare + guidance * (estimate - bare)
        return estimate

    x = state
    previous: tuple[float, torch.Tensor] | None = None  # Level and estimate, one interval ago.
    for interval, (level, following) in enumerate(pairwise(levels)):
        raised = churn.raised(level, len(levels) - 1)
        if raised > level:
            assert fresh is not None, "Whoever asks for churn brings its noise."
            x = x + math.sqrt(raised**2 - level**2) * churn.noise * fresh(interval)
            level = raised
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
