"""Settings of the evaluation, apart from what measures: whoever reads them loads none of it."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rapid_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """How the three classifiers are trained; the defaults are never tuned to a result.

    With a ``validation_share``, that part of the *synthetic* images trains nothing: it chooses each
    network's checkpoint and learning rate. Nothing is ever chosen on a real image.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    logistic_iterations: int = 200
    hidden_width: int = 256
    steps: int = 1_000
    batch_size: int = 128
    learning_rate: float = 2e-3  # Of Adam, at its highest; warmed up, then lowered to zero.
    label_smoothing: float = 0.1  # Synthetic labels are sometimes wrong; this forgives them.
    validation_share: float = 0.0  # Of the synthetic images; 0 = the last step is taken.
    checkpoints: int = 5  # Looks at them, evenly over the steps.
    more_rates: tuple[float, ...] = ()  # Other learning rates that are tried with them.

    def __post_init__(self) -> None:
        for name in ("logistic_iterations", "hidden_width", "steps", "batch_size", "checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not min(self.learning_rate, *self.more_rates, float("inf")) > 0:
            raise ConfigError(
                "learning_rate and all of more_rates must be positive, got "
                f"{self.learning_rate} and {self.more_rates}."
            )
        if not 0 <= self.validation_share <= 0.5:
            raise ConfigError(
                f"validation_share must be in [0, 0.5], got {self.validation_share}. 0.1 is usual."
            )
        if self.more_rates and not self.validation_share:
            raise ConfigError(
                f"more_rates={self.more_rates} are chosen between on synthetic images, but "
                "validation_share is 0. Set it to 0.1."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}.")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured, and on how many images."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # What fidelity is measured in: pixels; ImageNet's MobileNetV2 from below data.root; a small
    # classifier of the recipe's own public classes; or Inception, whose distance alone is FID.
    features: Literal["pixels", "mobilenet", "public_classes", "inception"] = "pixels"
    inception_weights: str | None = None  # A safetensors file, for features: inception.
    class_balance: bool = False  # Whether a classifier of real images looks for the classes asked.
    seed: int | None = None  # Of classifiers and subsets; None = the recipe's.
    fidelity_images: int = 2_000  # At most, of each set; figures depend on it.
    memorisation_images: int = 1_000  # At most, of samples and of held-out records.
    neighbors: int = 5
    controls: bool = True  # False leaves them out: never for a claim of quality.
    classifiers: ClassifierConfig = field(default_factory=ClassifierConfig)

    def __post_init__(self) -> None:
        for name in ("fidelity_images", "memorisation_images", "neighbors"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"evaluation.{name} must be at least 1, got {getattr(self, name)}."
                )
        if (self.features == "inception") != (self.inception_weights is not None):
            raise ConfigError(
                f"evaluation.features is {self.features!r} and evaluation.inception_weights is "
                f"{self.inception_weights!r}: FID needs both, 'inception' and the file of its "
                "weights; nothing else takes its place."
            )
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"evaluation.seed must not be negative, got {self.seed}.")
        if self.neighbors >= self.fidelity_images:
            raise ConfigError(
                f"evaluation.neighbors must be below evaluation.fidelity_images, got "
                f"{self.neighbors} and {self.fidelity_images}. 5 is usual."
            )
