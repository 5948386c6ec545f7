"""The suite measures samples and controls alike, and says that it is internal."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rapid_dist.data.images import ImageSpec, Int64Array, PrivateImages, UInt8Array
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.settings import ClassifierConfig, EvaluationConfig
from rapid_dist.evaluation.suite import Quality, Yardstick, evaluate, open_extractor

CONFIG = EvaluationConfig(
    fidelity_images=100,
    memorisation_images=50,
    neighbors=3,
    classifiers=ClassifierConfig(logistic_iterations=20, hidden_width=8, steps=30, batch_size=16),
)


def _halves(num: int, seed: int) -> tuple[UInt8Array, Int64Array]:
    """Noise that is bright in its upper half (class 0) or in its lower (class 1)."""
    images = np.random.default_rng(seed).integers(0, 120, (num, 1, 8, 8)).astype(np.uint8)
    labels = np.arange(num) % 2
    images[labels == 0, :, :4] += 130
    images[labels == 1, :, 4:] += 130
    return images, labels


def _private(num: int, seed: int, num_classes: int = 2) -> PrivateImages:
    images, labels = _halves(num, seed)
    spec = ImageSpec(
        name="halves", num_records=num, channels=1, size=8, num_classes=num_classes, licence="none"
    )
    labels = labels if num_classes else np.zeros_like(labels)
    return PrivateImages(images=images, labels=labels, spec=spec)


@pytest.fixture(scope="module")
def quality() -> Quality:
    images, labels = _halves(120, seed=0)
    controls = {
        "swapped labels": (images, 1 - labels),
        "noise": (np.random.default_rng(5).permuted(images, axis=3), labels),
        "few": (images[:80], labels[:80]),
    }
    return evaluate(images, labels, controls, _private(200, 1), _private(110, 2), CONFIG, seed=0)


def test_every_control_gets_the_figures_that_the_samples_get(quality: Quality) -> None:
    assert set(quality.controls) == {"swapped labels", "noise", "few"}
    written = quality.to_json()
    assert {frozenset(c) for c in written["controls"].values()} == {frozenset(written["samples"])}
    # Images are the same; only what labels teach differs.
    swapped = quality.controls["swapped labels"]
    assert swapped.fidelity == quality.samples.fidelity
    assert swapped.memorisation == quality.samples.memorisation
    assert quality.samples.classifiers is not None
    assert swapped.classifiers is not None
    assert quality.samples.classifiers.mean > 0.9
    assert swapped.classifiers.mean < 0.1


def test_all_sets_are_cut_to_one_number_for_the_frechet_distance(quality: Quality) -> None:
    assert quality.fidelity_images == 80


def test_the_lead_is_over_the_best_control_and_may_be_none(quality: Quality) -> None:
    means = [c.classifiers.mean for c in quality.controls.values() if c.classifiers]
    assert quality.samples.classifiers is not None
    assert quality.lead == quality.samples.classifiers.mean - max(means)
    assert replace(quality, controls={}).lead is None


def test_the_result_is_json_and_begins_with_its_warning(quality: Quality) -> None:
    written = json.loads(json.dumps(quality.to_json(), allow_nan=False))
    assert next(iter(written)) == "notice"
    assert "Not for release" in written["notice"]
    assert written["fidelity_label"] == "FID-like, not FID"
    assert written["extractor"] == "pixels"


def test_images_without_labels_are_measured_without_classifiers() -> None:
    images, labels = _halves(40, seed=0)
    found = evaluate(images, 0 * labels, {}, _private(50, 1, 0), _private(50, 2, 0), CONFIG, seed=0)
    assert found.samples.classifiers is None
    assert found.to_json()["samples"]["classifiers"] is None
    assert found.samples.fidelity.coverage > 0.5


def test_training_records_handed_out_as_samples_are_noticed() -> None:
    train = _private(200, 1)
    copies = evaluate(train.images, train.labels, {}, train, _private(110, 2), CONFIG, seed=0)
    assert copies.samples.memorisation.exact_copies == 50
    assert copies.samples.memorisation.closer_p_value < 1e-6


def test_settings_and_extractors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.neighbors"):
        EvaluationConfig(fidelity_images=5, neighbors=5)
    with pytest.raises(ConfigError, match=r"data\.root"):
        open_extractor(EvaluationConfig(features="mobilenet"))
    with pytest.raises(ConfigError, match="missing"):
        open_extractor(EvaluationConfig(features="mobilenet"), tmp_path)
    assert open_extractor(EvaluationConfig()).name == "pixels"


def test_networks_are_trained_where_the_workers_compute() -> None:
    """Nobody has a device of this name, so whoever is told of it says so."""
    train, held_out = _private(200, 1), _private(110, 2)
    judged = replace(CONFIG, class_balance=True)
    with pytest.raises(RuntimeError, match="nowhere"):
        Yardstick(train, held_out, judged, 0, smallest_set=50, device="nowhere")
    yardstick = Yardstick(train, held_out, CONFIG, 0, smallest_set=50, device="nowhere")
    with pytest.raises(RuntimeError, match="nowhere"):
        yardstick.measure(*_halves(120, seed=0))
