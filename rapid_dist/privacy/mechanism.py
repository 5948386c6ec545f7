"""What is released from the private data, as public constants.

A ``DpSgdConfig`` is the only source of the sampler's rate, the noise that is added and the
event that is accounted, so the three cannot disagree. Nothing here is read off the private
data: the number of records and the expected batch are declared, never counted.

q = sample_rate, T = steps, C = max_grad_norm, sigma = noise_multiplier (Abadi et al., 2016).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from rapid_dist.errors import ConfigError

NoiseKind = Literal["fast", "secure"]

# The grid of secure noise: C is this many units. A whole batch of micro-batches sums in int64, one
# micro-batch in int32, and every record's integers are exact in float32.
UNITS = 2**22
MOST_VALUES = 2**26  # The longest vector that an entry of secure noise in the ledger pays for.
_SCALES = (16, 2**48)  # For which drawing and accounting of the discrete Gaussian are proved.


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


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscreteGaussianEvent(GaussianEvent):
    """A ``GaussianEvent`` of whole numbers: an integer sum under discrete Gaussian noise."""

    units: int  # The L2 sensitivity of the integers.
    values: int  # At most so many integers are released.

    def __post_init__(self) -> None:
        _require_grid(self.noise_multiplier, self.units, self.values)

    @property
    def scale(self) -> int:
        """The noise's parameter, a whole number; rounded up, never down."""
        return grid_scale(self.noise_multiplier, self.units)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscreteDpSgdEvent(DpSgdEvent):
    """A ``DpSgdEvent`` of whole numbers: integer sums under discrete Gaussian noise."""

    units: int  # The L2 bound on one record's integers.
    values: int  # At most so many integers are released in a step.

    def __post_init__(self) -> None:
        DpSgdEvent.__post_init__(self)
        _require_grid(self.noise_multiplier, self.units, self.values)

    @property
    def scale(self) -> int:
        """The noise's parameter, a whole number; rounded up, never down."""
        return grid_scale(self.noise_multiplier, self.units)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalEvent(DpSgdEvent):
    """``steps`` rounds of questions to a Poisson-sampled index: accounted as what it is made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscreteRetrievalEvent(DiscreteDpSgdEvent):
    """A ``RetrievalEvent`` of whole numbers."""


Event = GaussianEvent | DpSgdEvent


def grid_scale(noise_multiplier: float, units: int = UNITS) -> int:
    """Returns the discrete Gaussian's parameter for a sensitivity of ``units`` integers."""
    return math.ceil(noise_multiplier * units)


def gaussian_event(noise_multiplier: float, noise: NoiseKind) -> GaussianEvent:
    """Returns what one query of sensitivity 1 releases."""
    if noise == "fast":
        return GaussianEvent(noise_multiplier=noise_multiplier)
    return DiscreteGaussianEvent(noise_multiplier=noise_multiplier, units=UNITS, values=MOST_VALUES)


@dataclass(frozen=True, kw_only=True)
class DpSgdConfig:
    """DP-SGD with nothing left open: what ``plan`` returns and training runs."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    num_records: int  # Declared and public. A source that holds another number is refused.
    expected_batch: float  # Records in a step's batch on average; also what the sum is divided by.
    steps: int
    max_grad_norm: float  # L2 bound on one record's whole contribution to one step.
    noise_multiplier: float  # Noise stddev / max_grad_norm.
    noise: NoiseKind = "fast"

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
        if self.noise == "fast":
            return DpSgdEvent(
                sample_rate=self.sample_rate, noise_multiplier=self.noise_multiplier, steps=steps
            )
        return DiscreteDpSgdEvent(
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            steps=steps,
            units=UNITS,
            values=MOST_VALUES,
        )


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Rounds of questions to a private index (DP-RDM, Lebensold et al. 2024), nothing left open.

    A round draws one Poisson sample of all units, and puts one public question to each class: the
    sum of the embeddings of its ``neighbors`` nearest records in the sample, each of length 1 at
    most. What leaves is that sum under noise, divided by ``neighbors``, whatever number was found.

    *Sensitivity.* Let S be the sample and S' = S without the one record x. If x is not among the
    nearest of its class, nothing changes. If it is, x leaves the sum, and the next nearest, if
    there is one, enters: the sum moves by |x| + |next| <= 2. Distances of other records and the
    order of ties do not depend on x. A record is in one class, so all other classes' sums stay, and
    the vector of all of them moves by 2 at most: a whole round costs what one question costs.

    *Amplification.* Given who else is in the sample, the round's sum is a vector a without x and b
    with it, ||a - b|| <= 2, and x is in with chance q, apart from the others. So the pair of
    outputs is N(a, s^2) against (1 - q) N(a, s^2) + q N(b, s^2), s = 2 z; in either order that is
    dominated by N(0, z^2) against (1 - q) N(0, z^2) + q N(1, z^2), and so is the mixture over the
    others by joint quasi-convexity: they are drawn alike on both sides. It is the pair of a step of
    DP-SGD with q and z, and what PLD, PRV and RDP take for it.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    num_records: int  # Units, declared and public.
    sample_rate: float
    steps: int  # Rounds; fixed before the first.
    neighbors: int  # k: what a sum is divided by.
    noise_multiplier: float  # Noise stddev on a sum / its sensitivity.
    noise: NoiseKind = "fast"

    def __post_init__(self) -> None:
        if min(self.num_records, self.steps, self.neighbors) < 1:
            raise ConfigError(
                "num_records, steps and neighbors must be at least 1, got "
                f"{self.num_records}, {self.steps} and {self.neighbors}."
            )
        _ = self.event()

    @property
    def sensitivity(self) -> float:
        """L2 bound on what one unit moves the vector of all sums of a round."""
        return 2.0

    @property
    def expected_batch(self) -> float:
        """Units in a round's sample on average."""
        return self.sample_rate * self.num_records

    @property
    def noise_stddev(self) -> float:
        """Stddev of the noise on a *sum* of embeddings, before the division."""
        return self.noise_multiplier * self.sensitivity

    @property
    def answer_stddev(self) -> float:
        """Stddev of the noise on an answer, the mean of embeddings."""
        return self.noise_stddev / self.neighbors

    def event(self, steps: int = 1) -> DpSgdEvent:
        """Returns what ``steps`` rounds release, for the ledger and the accountants."""
        rate, noise = self.sample_rate, self.noise_multiplier
        if self.noise == "fast":
            return RetrievalEvent(sample_rate=rate, noise_multiplier=noise, steps=steps)
        return DiscreteRetrievalEvent(
            sample_rate=rate, noise_multiplier=noise, steps=steps, units=UNITS, values=MOST_VALUES
        )


def _require_noise(noise_multiplier: float) -> None:
    if not 0 < noise_multiplier < float("inf"):
        raise ConfigError(
            f"noise_multiplier must be positive and finite, got {noise_multiplier}. "
            "There is no release without noise."
        )


def _require_grid(noise_multiplier: float, units: int, values: int) -> None:
    _require_noise(noise_multiplier)
    if units < 1 or values < 1:
        raise ConfigError(f"units and values must be at least 1, got {units} and {values}.")
    low, high = _SCALES
    if not low <= grid_scale(noise_multiplier, units) <= high:
        raise ConfigError(
            f"Secure noise needs noise_multiplier * {units} units in [{low}, {high}], got "
            f"noise_multiplier={noise_multiplier}. Use another noise_multiplier."
        )
