"""What may be spent, and the settings that say how."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.mechanism import NoiseKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The (epsilon, delta) that everything one run releases must meet together."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf"):
            raise ConfigError(
                f"epsilon must be positive and finite, got {self.epsilon}. From 1 to 10 is usual."
            )
        if not 0 < self.delta < 1:
            raise ConfigError(
                f"delta must be in (0, 1), got {self.delta}. Choose it below 1 / num_records."
            )


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """The promise, and how its cost is divided.

    Of ``noise_multiplier``, ``steps`` and ``expected_batch`` exactly one is None: ``plan``
    solves it, so that prior and training *composed* meet the budget.

    ``prior_share`` = s fixes the private prior's noise: the noised histogram, if it were all
    that is ever released, would cost epsilon * s at the same delta. Because privacy loss
    composes more slowly than it adds, training then keeps more than epsilon * (1 - s).
    s = 0: no prior. s = 1: the prior takes everything, and no training step is allowed.
    ``candidate_share`` = c divides the prior's epsilon E in turn: a second histogram that would
    cost c E by itself, and a first whose noise makes both together cost E.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    epsilon: float
    delta: float
    # A record is replaced by nothing (zero-out): the number of records is public.
    relation: Literal["zero_out"] = "zero_out"
    unit: Literal["record", "group"] = "record"
    prior_share: float = 0.1
    prior_noise: float | None = None  # The prior's noise stddev, instead of prior_share.
    # Of the prior's epsilon: for a second round of votes, among images made from the first.
    candidate_share: float = 0.0
    # Noise stddev of the counts of near-duplicates by public source; null = they are not released.
    contamination_noise: float | None = None
    max_grad_norm: float = 1.0
    expected_batch: float | None = 256
    steps: int | None = 500
    noise_multiplier: float | None = None
    reserve_steps: int = 0  # Paid for in the plan; spent when a crash repeats steps.
    # fast: Philox normals in float32. secure: discrete Gaussian on whole numbers; it and
    # the batches come from a cipher.
    noise: NoiseKind = "fast"

    def __post_init__(self) -> None:
        _ = self.budget
        if self.relation != "zero_out":
            raise ConfigError(f"relation must be 'zero_out', got {self.relation!r}.")
        if self.unit not in ("record", "group"):
            raise ConfigError(f"unit must be 'record' or 'group', got {self.unit!r}.")
        if self.noise not in ("fast", "secure"):
            raise ConfigError(f"noise must be 'fast' or 'secure', got {self.noise!r}.")
        if not 0 <= self.prior_share <= 1:
            raise ConfigError(f"prior_share must be in [0, 1], got {self.prior_share}.")
        if not 0 <= self.candidate_share < 1:
            raise ConfigError(f"candidate_share must be in [0, 1), got {self.candidate_share}.")
        if self.candidate_share and (self.prior_share == 0 or self.prior_noise is not None):
            raise ConfigError(
                f"candidate_share={self.candidate_share} is a share of the prior's epsilon, which "
                f"prior_share={self.prior_share} and prior_noise={self.prior_noise} do not say. "
                "Give a prior_share and no prior_noise, or set candidate_share to 0."
            )
        for name in (
            "prior_noise", "contamination_noise", "max_grad_norm", "expected_batch", "steps",
            "noise_multiplier",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be positive and finite, got {value}.")
        if self.reserve_steps < 0:
            raise ConfigError(f"reserve_steps must not be negative, got {self.reserve_steps}.")
        self._check_one_unknown()

    @property
    def budget(self) -> Budget:
        return Budget(epsilon=self.epsilon, delta=self.delta)

    @property
    def has_training(self) -> bool:
        return self.prior_noise is not None or self.prior_share < 1

    @property
    def unknown(self) -> str:
        """The name of the one setting that ``plan`` solves."""
        open_settings = self._open_settings()
        assert len(open_settings) == 1
        return open_settings[0]

    def _open_settings(self) -> list[str]:
        names = ("noise_multiplier", "steps", "expected_batch")
        return [name for name in names if getattr(self, name) is None]

    def _check_one_unknown(self) -> None:
        open_settings = self._open_settings()
        if not open_settings:
            raise ConfigError(
                f"noise_multiplier={self.noise_multiplier}, steps={self.steps} and "
                f"expected_batch={self.expected_batch} leave nothing to solve for "
                f"epsilon={self.epsilon}. Set exactly one of them to null."
            )
        if len(open_settings) > 1:
            raise ConfigError(
                f"{' and '.join(open_settings)} are null, but one budget can solve only one. "
                "Give all but one a value."
            )
