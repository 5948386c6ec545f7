"""What a release must be able to show; shapes no training, so it may change at any time."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rapid_dist.errors import ConfigError

PROFILES = ("quick", "full")


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """What ``rapid-dist release`` demands of a run, and what it puts beside the model."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # secure: only a run of which every release had secure noise (privacy.noise).
    noise: Literal["any", "secure"] = "any"
    # Most epsilon that all runs on the private data may have cost together; null = the run's own
    # budget, so that a second run on the same data has to be allowed for in words.
    dataset_epsilon: float | None = None
    audit_profile: Literal["quick", "full"] = "quick"  # The least that an audit must have been.
    audit_days: int = 30  # Days after which an audit is no longer recent.
    # looked: near-duplicates were looked for; decided: and a charged count decided on the sources.
    contamination: Literal["looked", "decided"] = "looked"
    # Licences of public sources that say none of their own, by source.
    licences: dict[str, str] = field(default_factory=dict)
    public_network: bool = True  # The public network goes into the bundle, beside the private one.
    synthetic: int = 0  # Images of a synthetic data set in the bundle; 0 = none.
    synthetic_seed: int = 0

    def __post_init__(self) -> None:
        if self.noise not in ("any", "secure"):
            raise ConfigError(f"release.noise must be 'any' or 'secure', got {self.noise!r}.")
        if self.audit_profile not in PROFILES:
            raise ConfigError(
                f"release.audit_profile must be 'quick' or 'full', got {self.audit_profile!r}."
            )
        if self.contamination not in ("looked", "decided"):
            raise ConfigError(
                f"release.contamination must be 'looked' or 'decided', got {self.contamination!r}."
            )
        if self.dataset_epsilon is not None and not 0 < self.dataset_epsilon < float("inf"):
            raise ConfigError(
                "release.dataset_epsilon must be positive and finite, got "
                f"{self.dataset_epsilon}. Use null for the run's own budget."
            )
        if self.audit_days < 1:
            raise ConfigError(f"release.audit_days must be at least 1, got {self.audit_days}.")
        if self.synthetic < 0 or self.synthetic_seed < 0:
            raise ConfigError(
                "release.synthetic and release.synthetic_seed must not be negative, got "
                f"{self.synthetic} and {self.synthetic_seed}."
            )
