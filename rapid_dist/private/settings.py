"""Settings of private training. All are public constants of the mechanism or of its quality."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from rapid_dist.diffusion.compute import Precision
from rapid_dist.diffusion.schedule import LevelLaw
from rapid_dist.errors import ConfigError

Mode = Literal["full", "late", "surrogate"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How DP-SGD trains the private denoiser. What it costs is PrivacyConfig's."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    mode: Mode = "late"
    multiplicity: int = (
        1  # K: draws (step, noise, augmentation) a record, averaged before the clip.
    )
    images_per_group: int = 1  # J: images of a group (a patient) in a step, averaged likewise.
    # Where training begins: public weights, or scratch. auto = as the method does: dpdm from
    # scratch, every other from public weights.
    start: Literal["auto", "public", "scratch"] = "auto"
    # Which noise levels the rows have how often: evenly over the steps, lognormal, or evenly over
    # the time of another parameterisation. auto = lognormal where log_level_mean says where.
    level_law: LevelLaw = "auto"
    log_level_mean: float | None = None  # Of ln(noise level); EDM's is -1.2 (and the stddev 1.2).
    log_level_std: float = 1.0
    shift: int = 0  # Augmentation: each draw shifts the image by up to this many pixels.
    flip: bool = False  # Augmentation: each draw mirrors the image with chance 1/2.
    learning_rate: float = 1e-3
    warmup_steps: int = 5
    ema_decay: float = 0.95
    surrogate: Literal["cluster", "query"] = "cluster"  # Where mode surrogate takes x_v from.
    # all, attention, norm_bias, last_blocks, lora (low-rank adapters of attention), lora_all (of
    # every linear layer and convolution), or a regular expression.
    trainable: str = "all"
    blocks: int | None = None  # Only so many of the U-Net's blocks, from the end; null = all.
    lora_rank: int = 4
    # Units in one forward pass, J * K rows each; null = as many as runtime.memory_gb allows. Speed
    # and memory only: sums are rounded otherwise, and nothing else.
    micro_batch: int | None = 64
    # Of the network's forward and backward pass; auto = bf16 where the device has it. Norms, clip,
    # sum, noise and optimizer are fp32 whatever this says.
    precision: Precision = "auto"
    checkpoint_every: int = 25

    def __post_init__(self) -> None:
        if self.mode not in ("full", "late", "surrogate"):
            raise ConfigError(f"train.mode must be full, late or surrogate, got {self.mode!r}.")
        for name in (
            "multiplicity", "images_per_group", "micro_batch", "checkpoint_every", "blocks",
            "lora_rank",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"train.{name} must be at least 1, got {value}.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(
                f"train.precision must be auto, fp32 or bf16, got {self.precision!r}."
            )
        if self.shift < 0 or self.warmup_steps < 0:
            raise ConfigError(
                "train.shift and train.warmup_steps must not be negative, got "
                f"{self.shift} and {self.warmup_steps}."
            )
        if self.start not in ("auto", "public", "scratch"):
            raise ConfigError(f"train.start must be auto, public or scratch, got {self.start!r}.")
        self._check_level_law()
        if self.log_level_std <= 0:
            raise ConfigError(
                f"train.log_level_std must be positive, got {self.log_level_std}. 1 is usual."
            )
        if self.learning_rate <= 0 or not 0 <= self.ema_decay < 1:
            raise ConfigError(
                "train.learning_rate must be positive and train.ema_decay in [0, 1), got "
                f"{self.learning_rate} and {self.ema_decay}."
            )

    def _check_level_law(self) -> None:
        law, laws = self.level_law, get_args(LevelLaw)
        if law not in laws:
            raise ConfigError(f"train.level_law must be one of {', '.join(laws)}, got {law!r}.")
        if law == "lognormal" and self.log_level_mean is None:
            raise ConfigError(
                "train.level_law is 'lognormal', but train.log_level_mean is null. Give the mean "
                "of ln(noise level); -1.2 is usual."
            )
        if law not in ("auto", "lognormal") and self.log_level_mean is not None:
            raise ConfigError(
                f"train.log_level_mean is {self.log_level_mean}, but train.level_law={law!r} has "
                "none. Set it to null, or the law to 'lognormal'."
            )

    @property
    def rows_per_record(self) -> int:
        """Rows of the denoiser that one privacy unit owns in a step: J images times K draws."""
        return self.images_per_group * self.multiplicity
