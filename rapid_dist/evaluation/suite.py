"""Everything that is measured about one set of samples and its controls.

    quality = evaluate(samples, labels, controls, train, held_out, config, seed)

All of it is measured against private records, so all of it is an internal result (P13): it goes
into the run's ``internal/`` folder and its internal report, never into a bundle. The controls
are measured exactly as the samples are; a method that does not beat them is reported as such.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from rapid_dist.data.images import Int64Array, PrivateImages, UInt8Array
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.classifiers import ClassifierConfig, ClassifierScores, train_and_score
from rapid_dist.evaluation.fidelity import Extractor, Fidelity, PixelExtractor, compare
from rapid_dist.evaluation.memorisation import Memorisation, memorisation
from rapid_dist.evaluation.mobilenet import open_mobilenet

INTERNAL = (
    "Internal: measured against private records without a privacy mechanism. Not for release."
)


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


@dataclass(frozen=True, kw_only=True)
class SetQuality:
    """The figures of one set of synthetic images."""

    num_images: int
    classifiers: ClassifierScores | None  # None where images have no labels.
    fidelity: Fidelity
    memorisation: Memorisation

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as nested dictionaries."""
        return {
            "num_images": self.num_images,
            "classifiers": self.classifiers.to_json() if self.classifiers else None,
            "fidelity": self.fidelity.to_json(),
            "memorisation": self.memorisation.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The figures of a generator beside those of its controls; internal."""

    samples: SetQuality
    controls: dict[str, SetQuality]
    extractor: str
    fidelity_images: int  # Of each set, the same for all, or the distances would not compare.
    seed: int

    @property
    def lead(self) -> float | None:
        """Returns mean accuracy less that of the best control; None where there is none."""
        rivals = [c.classifiers.mean for c in self.controls.values() if c.classifiers]
        if self.samples.classifiers is None or not rivals:
            return None
        return self.samples.classifiers.mean - max(rivals)

    def to_json(self) -> dict[str, Any]:
        """Returns everything for ``internal/quality.json``, with its warning first."""
        return {
            "notice": INTERNAL,
            "fidelity_label": "FID-like, not FID",
            "extractor": self.extractor,
            "fidelity_images": self.fidelity_images,
            "seed": self.seed,
            "samples": self.samples.to_json(),
            "controls": {name: control.to_json() for name, control in self.controls.items()},
            "lead_over_best_control": self.lead,
        }


def open_extractor(config: EvaluationConfig, data_root: Path | None = None) -> Extractor:
    """Returns the extractor that the settings name."""
    if config.features == "pixels":
        return PixelExtractor()
    if data_root is None:
        raise ConfigError(
            "evaluation.features='mobilenet' is read from below data.root, which is not set. "
            "Set it, or use 'pixels'."
        )
    return open_mobilenet(data_root)


def evaluate(
    samples: UInt8Array,
    labels: Int64Array,
    controls: Mapping[str, tuple[UInt8Array, Int64Array]],
    train: PrivateImages,
    held_out: PrivateImages,
    config: EvaluationConfig,
    seed: int,
    extractor: Extractor | None = None,
    on_set: Callable[[], None] | None = None,
) -> Quality:
    """Measures samples uint8 [n, C, S, S] with labels int64 [n], and each control likewise.

    Args:
      controls: other images and labels by name, such as the references as they are.
      train: what the generator was trained on; only its distances are used.
      held_out: real images that nothing was trained or chosen on.
      extractor: of the FID-like figures; pixels by default. Memorisation is always in pixels,
        where a copy is at distance 0.
      on_set: called whenever one set has been measured.
    """
    extractor = extractor or PixelExtractor()
    pixels = PixelExtractor()
    sets = {"": (samples, labels), **controls}
    # One number for all sets: a Frechet distance falls with the number of images.
    count = min(config.fidelity_images, len(held_out), *(len(s[0]) for s in sets.values()))
    real_features = extractor(_some(held_out.images, count, seed))
    train_pixels = pixels(train.images)
    held_out_pixels = pixels(_some(held_out.images, config.memorisation_images, seed))

    def measure(images: UInt8Array, of_labels: Int64Array) -> SetQuality:
        num_classes = held_out.spec.num_classes
        found = SetQuality(
            num_images=len(images),
            classifiers=train_and_score(
                images, of_labels, held_out, num_classes, seed, config.classifiers
            )
            if num_classes > 1
            else None,
            fidelity=compare(
                real_features, extractor(_some(images, count, seed)), neighbors=config.neighbors
            ),
            memorisation=memorisation(
                pixels(_some(images, config.memorisation_images, seed)),
                train_pixels,
                held_out_pixels,
            ),
        )
        if on_set is not None:
            on_set()
        return found

    measured = {name: measure(*images_and_labels) for name, images_and_labels in sets.items()}
    return Quality(
        samples=measured.pop(""),
        controls=measured,
        extractor=extractor.name,
        fidelity_images=count,
        seed=seed,
    )


def _some(images: UInt8Array, count: int, seed: int) -> UInt8Array:
    """Returns ``count`` images drawn without replacement, or all if there are fewer."""
    if len(images) <= count:
        return images
    rows = np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))
    chosen: UInt8Array = images[rows]
    return chosen
