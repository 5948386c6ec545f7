"""What is released from the private data, as public constants.

A ``DpSgdConfig`` is the only source of the sampler's rate, the noise that is added and the
event that is accounted, so the three cannot disagree. Nothing here is read off the private
data: the number of records and the expected batch are declared, never counted.

q = sample_rate, T = steps, C = max_grad_norm, sigma = noise_multiplier (Abadi et al., 2016).
"""

from dataclasses import dataclass
from typing import ClassVar

from rapid_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianEvent:
    """One release of a sum with L2 sensitivity 1, under noise of stddev ``noise_multiplier``."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        _require_noise(self.noise_multiplier)


@dataclass(frozen=True, kw_only=True, slots=True)
class DpSgdEvent:
    """``steps`` Poisson-sampled Gaussian releases with the same constants."""

    sample_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _require_noise(self.noise_multiplier)
        if not 0 < self.sample_rate <= 1:
            raise ConfigError(f"sample_rate must be in (0, 1], got {self.sample_rate}.")
        if self.steps < 0:
            raise ConfigError(f"steps must not be negative, got {self.steps}.")


Event = GaussianEvent | DpSgdEvent


@dataclass(frozen=True, kw_only=True)
class DpSgdConfig:
    """DP-SGD with nothing left open: what ``plan`` returns and training runs."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    num_records: int  # Declared and public. A source that holds another number is refused.
    expected_batch: float  # Records in a step's batch on average; also what the sum is divided by.
    steps: int
    max_grad_norm: float  # L2 bound on one record's whole contribution to one step.
    noise_multiplier: float  # Noise stddev / max_grad_norm.

    def __post_init__(self) -> None:
        if self.num_records < 1:
            raise ConfigError(f"num_records must be at least 1, got {self.num_records}.")
        if not 0 < self.expected_batch <= self.num_records:
            raise ConfigError(
                f"expected_batch must be in (0, num_records={self.num_records}], "
                f"got {self.expected_batch}. Declare a smaller batch."
            )
        if self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}.")
        if not self.max_grad_norm > 0:
            raise ConfigError(f"max_grad_norm must be positive, got {self.max_grad_norm}.")
        _require_noise(self.noise_multiplier)

    @property
    def sample_rate(self) -> float:
        """Chance that a given record is in a given step's batch."""
        return self.expected_batch / self.num_records

    @property
    def noise_stddev(self) -> float:
        """Stddev of the noise on the *sum* of clipped gradients, before the division."""
        return self.noise_multiplier * self.max_grad_norm

    def event(self, steps: int = 1) -> DpSgdEvent:
        """Returns what ``steps`` steps release, for the ledger and the accountants."""
        return DpSgdEvent(
            sample_rate=self.sample_rate, noise_multiplier=self.noise_multiplier, steps=steps
        )


def _require_noise(noise_multiplier: float) -> None:
    if not 0 < noise_multiplier < float("inf"):
        raise ConfigError(
            f"noise_multiplier must be positive and finite, got {noise_multiplier}. "
            "There is no release without noise."
        )
