"""Settings of the evaluation, apart from what measures: whoever reads them loads none of it."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rapid_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """How the three classifiers are trained; the defaults are never tuned to a result."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    logistic_iterations: int = 200
    hidden_width: int = 256
    steps: int = 1_000
    batch_size: int = 128
    learning_rate: float = 2e-3  # Of Adam, at its highest; warmed up, then lowered to zero.
    label_smoothing: float = 0.1  # Synthetic labels are sometimes wrong; this forgives them.

    def __post_init__(self) -> None:
        for name in ("logistic_iterations", "hidden_width", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}.")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured, and on how many images."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    features: Literal["pixels", "mobilenet"] = "pixels"
    fidelity_images: int = 2_000  # At most, of each set; figures depend on it.
    memorisation_images: int = 1_000  # At most, of samples and of held-out records.
    neighbors: int = 5
    controls: bool = True  # False leaves the controls out, which a comparison never should.
    classifiers: ClassifierConfig = field(default_factory=ClassifierConfig)

    def __post_init__(self) -> None:
        for name in ("fidelity_images", "memorisation_images", "neighbors"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"evaluation.{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.neighbors >= self.fidelity_images:
            raise ConfigError(
                f"evaluation.neighbors must be below evaluation.fidelity_images, got "
                f"{self.neighbors} and {self.fidelity_images}. 5 is usual."
            )
