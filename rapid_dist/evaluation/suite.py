"""Everything that is measured about one set of samples and its controls.

    yardstick = Yardstick(train, held_out, config, seed, smallest_set=2_000)
    quality = yardstick.quality(yardstick.measure(images, labels), controls={...})

    quality = evaluate(samples, labels, controls, train, held_out, config, seed)  # In one go.

Every set is measured on its own, so several processes can share the sets. All of it is measured
against private records, so all of it is an internal result (P13): it goes into the run's
``internal/`` folder and its internal report, never into a bundle. The controls are measured exactly
as the samples are; a method that does not beat them is reported as such.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from rapid_dist.data.images import Int64Array, PrivateImages, UInt8Array
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.balance import ClassBalance, Judge
from rapid_dist.evaluation.classifiers import ClassifierScores, train_and_score
from rapid_dist.evaluation.fidelity import Extractor, Fidelity, PixelExtractor, compare
from rapid_dist.evaluation.inception import NAME as INCEPTION
from rapid_dist.evaluation.inception import open_inception
from rapid_dist.evaluation.memorisation import Memorisation, memorisation
from rapid_dist.evaluation.mobilenet import open_mobilenet
from rapid_dist.evaluation.settings import EvaluationConfig

INTERNAL = (
    "Internal: measured against private records without a privacy mechanism. Not for release."
)


@dataclass(frozen=True, kw_only=True)
class SetQuality:
    """The figures of one set of synthetic images."""

    num_images: int
    classifiers: ClassifierScores | None  # None where images have no labels.
    fidelity: Fidelity
    memorisation: Memorisation
    balance: ClassBalance | None = None  # Where it was asked for, of images with labels.

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as nested dictionaries."""
        return {
            "num_images": self.num_images,
            "classifiers": self.classifiers.to_json() if self.classifiers else None,
            "fidelity": self.fidelity.to_json(),
            "memorisation": self.memorisation.to_json(),
            **({"balance": self.balance.to_json()} if self.balance else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads ``to_json``; every figure comes back to the bit."""
        scores, balance = content["classifiers"], content.get("balance")
        return cls(
            num_images=content["num_images"],
            classifiers=None if scores is None else ClassifierScores.from_json(scores),
            fidelity=Fidelity(**content["fidelity"]),
            memorisation=Memorisation(**content["memorisation"]),
            balance=None if balance is None else ClassBalance(**balance),
        )


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
            "fidelity_label": "FID" if self.extractor == INCEPTION else "FID-like, not FID",
            "extractor": self.extractor,
            "fidelity_images": self.fidelity_images,
            "seed": self.seed,
            "samples": self.samples.to_json(),
            "controls": {name: control.to_json() for name, control in self.controls.items()},
            "lead_over_best_control": self.lead,
        }


def open_extractor(
    config: EvaluationConfig, data_root: str | Path | None = None, device: str = "cpu"
) -> Extractor:
    """Returns the extractor that the settings name, of those that need no public image."""
    if config.features == "pixels":
        return PixelExtractor()
    if config.features == "inception":
        assert config.inception_weights is not None  # The settings have checked that.
        return open_inception(Path(config.inception_weights), device)
    assert config.features == "mobilenet", "A classifier of public classes is opened by its bytes."
    if data_root is None:
        raise ConfigError(
            "evaluation.features='mobilenet' is read from below data.root, which is not set. "
            "Set it, or use 'pixels'."
        )
    return open_mobilenet(data_root, device)


class Yardstick:
    """The private records that image sets are held against, and how; one for all sets of a run."""

    def __init__(
        self,
        train: PrivateImages,
        held_out: PrivateImages,
        config: EvaluationConfig,
        seed: int,
        *,
        smallest_set: int,
        extractor: Extractor | None = None,
        device: str = "cpu",
    ) -> None:
        """Computes once what every set is compared with.

        Args:
          train: what the generator was trained on; only its distances are used.
          held_out: real images that nothing was trained or chosen on.
          smallest_set: images of the smallest set that will be measured.
          extractor: of the FID-like figures; pixels by default. Memorisation is always in pixels,
            where a copy is at distance 0.
          device: where networks are trained.
        """
        self._held_out, self._config, self._seed = held_out, config, seed
        self._device = device
        self._extractor, self._pixels = extractor or PixelExtractor(), PixelExtractor()
        # One number for all sets: a Frechet distance falls with the number of images.
        self._count = min(config.fidelity_images, len(held_out), smallest_set)
        self._real_features = self._extractor(_some(held_out.images, self._count, seed))
        self._train_pixels = self._pixels(train.images)
        some = _some(held_out.images, config.memorisation_images, seed)
        self._held_out_pixels = self._pixels(some)
        self._judge: Judge | None = None
        if config.class_balance and held_out.spec.num_classes > 1:
            self._judge = Judge(train, held_out, config.classifiers, seed, device)

    def measure(self, images: UInt8Array, labels: Int64Array) -> SetQuality:
        """Measures images uint8 [n, C, S, S] with labels int64 [n]; no other set matters to it."""
        config, seed, num_classes = self._config, self._seed, self._held_out.spec.num_classes
        classifiers = None
        if num_classes > 1:
            classifiers = train_and_score(
                images, labels, self._held_out, num_classes, seed, config.classifiers, self._device
            )
        return SetQuality(
            num_images=len(images),
            classifiers=classifiers,
            fidelity=compare(
                self._real_features,
                self._extractor(_some(images, self._count, seed)),
                neighbors=config.neighbors,
                seed=seed,
            ),
            memorisation=memorisation(
                self._pixels(_some(images, config.memorisation_images, seed)),
                self._train_pixels,
                self._held_out_pixels,
            ),
            balance=None if self._judge is None else self._judge.look(images, labels),
        )

    def quality(self, samples: SetQuality, controls: Mapping[str, SetQuality]) -> Quality:
        """Puts the sets that were measured beside each other."""
        return Quality(
            samples=samples,
            controls=dict(controls),
            extractor=self._extractor.name,
            fidelity_images=self._count,
            seed=self._seed,
        )


def evaluate(
    samples: UInt8Array,
    labels: Int64Array,
    controls: Mapping[str, tuple[UInt8Array, Int64Array]],
    train: PrivateImages,
    held_out: PrivateImages,
    config: EvaluationConfig,
    seed: int,
    extractor: Extractor | None = None,
) -> Quality:
    """Measures samples uint8 [n, C, S, S] with labels int64 [n], and each control likewise.

    Args:
      controls: other images and labels by name, such as the references as they are.
      train: as for ``Yardstick``, and so is the rest.
    """
    smallest = min([len(samples), *(len(images) for images, _ in controls.values())])
    yardstick = Yardstick(train, held_out, config, seed, smallest_set=smallest, extractor=extractor)
    measured = {name: yardstick.measure(*images) for name, images in controls.items()}
    return yardstick.quality(yardstick.measure(samples, labels), measured)


def _some(images: UInt8Array, count: int, seed: int) -> UInt8Array:
    """Returns ``count`` images drawn without replacement, or all if there are fewer."""
    if len(images) <= count:
        return images
    rows = np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))
    chosen: UInt8Array = images[rows]
    return chosen
