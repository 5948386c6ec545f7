"""The fixed grid of noise levels on which every part of the method agrees.

A *step* is an integer 0..num_steps; step 0 is the clean image, step num_steps pure noise. The
state at a step is ``x_0 + level(step) * n`` with ``n`` standard normal (variance exploding). The
grid is that of Karras et al. (2022), Eq. 5, read upwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from rapid_dist.errors import ConfigError

LevelLaw = Literal["auto", "steps", "lognormal", "vp", "ve", "cosine"]
_BETA_MIN, _BETA_MAX = 0.1, 20.0  # Of the variance-preserving SDE (Song et al. 2021, Appendix C).


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Noise levels are in units of the image range [-1, 1]; all of them are public constants."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    num_steps: int = 1000
    noise_min: float = 0.01  # Noise level of step 1.
    noise_max: float = 40.0  # Noise level of step num_steps.
    rho: float = 7.0
    data_std: float = 0.5  # Declared, never measured on private data.

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ConfigError(f"schedule.num_steps must be at least 2, got {self.num_steps}.")
        if not 0 < self.noise_min < self.noise_max:
            raise ConfigError(
                "schedule.noise_min must lie between 0 and schedule.noise_max, got "
                f"{self.noise_min} and {self.noise_max}. The defaults are 0.01 and 40."
            )
        if not (self.rho > 0 and self.data_std > 0):
            raise ConfigError(
                "schedule.rho and schedule.data_std must be positive, got "
                f"{self.rho} and {self.data_std}. The defaults are 7 and 0.5."
            )

    def levels(self) -> np.ndarray:
        """Returns the noise level of every step, float64 [num_steps + 1], ascending from 0."""
        ramp = np.linspace(0.0, 1.0, self.num_steps)
        low, high = self.noise_min ** (1 / self.rho), self.noise_max ** (1 / self.rho)
        return np.concatenate([[0.0], (low + ramp * (high - low)) ** self.rho])

    def level(self, step: int) -> float:
        """Returns the noise level of one step."""
        if not 0 <= step <= self.num_steps:
            raise ConfigError(f"A step must be in 0..{self.num_steps}, got {step}.")
        return float(self.levels()[step])

    def step_law(
        self,
        top: int,
        log_level_mean: float | None,
        log_level_std: float,
        law: LevelLaw = "auto",
    ) -> np.ndarray:
        """Returns P(step <= t) for t in 1..top, float64 [top]: which steps training sees how often.

        ``auto`` is even over the steps, or lognormal where a mean is given. What a law says above
        ``top`` is cut off. Many steps lie at levels that hardly hide anything, and their rows teach
        little; the other laws put their weight elsewhere:

        ``lognormal``: ln(level) is normal (Karras et al. 2022, Table 1: mean -1.2, stddev 1.2).
        ``vp``: even over the time of the variance-preserving SDE (Song et al. 2021, Appendix C).
        ``ve``: even over ln(level), the variance-exploding SDE's time (likewise).
        ``cosine``: even over the angle of the cosine schedule, level = tan(angle), as networks that
        predict v are trained (Salimans & Ho 2022). Most of its weight is at high levels.

        The last three are distributions of Dockhorn et al. (2023) as well; loss weight and network
        stay those of EDM whatever the law.

        Raises:
          ConfigError: the law has no weight on any of these steps.
        """
        if law == "steps" or (law == "auto" and log_level_mean is None):
            return np.arange(1, top + 1) / top
        log_levels = np.log(self.levels()[1:])
        if law in ("auto", "lognormal"):
            assert log_level_mean is not None, "Settings without a mean are refused."
            density = np.exp(-0.5 * ((log_levels - log_level_mean) / log_level_std) ** 2)
            chances = (density * np.gradient(log_levels))[:top]
        else:
            # A step has the levels that are nearer to it than to another, by their logarithms.
            between = (log_levels[:-1] + log_levels[1:]) / 2
            edges = np.exp(np.concatenate([log_levels[:1], between, log_levels[-1:]]))
            chances = np.diff(_TIMES[law](edges))[:top]
        if not chances.sum() > 0:
            raise ConfigError(
                f"train.log_level_mean={log_level_mean} and train.log_level_std={log_level_std} "
                f"leave none of steps 1..{top} to train on: there ln(noise level) is between "
                f"{log_levels[0]:.3g} and {log_levels[top - 1]:.3g}. Choose a mean among those."
            )
        cumulated: np.ndarray = np.cumsum(chances) / chances.sum()
        cumulated[-1] = 1.0  # Whatever order the sums were made in.
        return cumulated

    def path(self, from_step: int, to_step: int, num_intervals: int) -> list[float]:
        """Returns ``num_intervals + 1`` noise levels that lead from one step down to another.

        The steps on the way are spread evenly over the grid, so the path from v to 0 is the end
        of a path from num_steps to 0 of the same density.
        """
        if not 0 <= to_step < from_step <= self.num_steps:
            raise ConfigError(
                f"A sampling path must go down within 0..{self.num_steps}, got {from_step} to "
                f"{to_step}."
            )
        if num_intervals < 1:
            raise ConfigError(f"A sampling path needs at least one interval, got {num_intervals}.")
        steps = np.linspace(from_step, to_step, num_intervals + 1).round().astype(int)
        levels = self.levels()
        return [float(levels[step]) for step in dict.fromkeys(steps.tolist())]


def _vp_time(level: np.ndarray) -> np.ndarray:
    """The time t at which level^2 = exp(t^2 (beta_max - beta_min) / 2 + t beta_min) - 1."""
    rise = _BETA_MAX - _BETA_MIN
    time: np.ndarray = (np.sqrt(_BETA_MIN**2 + 2 * rise * np.log1p(level**2)) - _BETA_MIN) / rise
    return time


# What a law is even over, as a rising function of the noise level; its scale does not matter.
_TIMES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "vp": _vp_time,
    "ve": np.log,
    "cosine": np.arctan,
}
