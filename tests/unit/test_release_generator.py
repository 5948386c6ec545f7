"""A sample depends on its label, seed and id, and on nothing else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dist.diffusion.sampler import ChurnConfig
from rapid_dist.errors import ConfigError
from rapid_dist.release.bundle import BundleFacts, write_bundle
from rapid_dist.release.generator import Generator
from tests.bundles import tiny_bundle, tiny_references

LABELS = np.arange(150) % 2


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    directory = tmp_path_factory.mktemp("released") / "bundle"
    write_bundle(tiny_bundle(), directory)
    return Generator.open(directory)


@pytest.fixture(scope="module")
def images(generator: Generator) -> np.ndarray:
    return generator.generate(LABELS, seed=3)


def test_images_are_uint8_of_the_declared_shape(images: np.ndarray) -> None:
    assert images.dtype == np.uint8
    assert images.shape == (150, 1, 8, 8)


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_the_batch_size_changes_no_pixel(
    generator: Generator, images: np.ndarray, batch_size: int
) -> None:
    again = generator.generate(LABELS, seed=3, batch_size=batch_size)
    np.testing.assert_array_equal(again, images)


def test_workers_that_share_the_ids_draw_what_one_would(
    generator: Generator, images: np.ndarray
) -> None:
    parts = [
        generator.generate(LABELS[start:stop], seed=3, first_id=start)
        for start, stop in [(0, 1), (1, 70), (70, 150)]
    ]
    np.testing.assert_array_equal(np.concatenate(parts), images)


def test_the_comparison_would_notice_other_ids(generator: Generator, images: np.ndarray) -> None:
    shifted = generator.generate(LABELS[:20], seed=3, first_id=2)
    assert (shifted != images[:20]).any(axis=(1, 2, 3)).all()


def test_another_seed_gives_other_images(generator: Generator, images: np.ndarray) -> None:
    other = generator.generate(LABELS[:20], seed=4)
    assert (other != images[:20]).any(axis=(1, 2, 3)).all()


def test_the_label_reaches_the_network() -> None:
    generator = Generator(tiny_bundle(source="noise", from_step=1000))
    zeros, ones = np.zeros(8, np.int64), np.ones(8, np.int64)
    different = generator.generate(zeros, seed=0) != generator.generate(ones, seed=0)
    assert different.any(axis=(1, 2, 3)).all()


def test_samples_of_one_entry_differ_unless_its_own_noise_is_asked_for() -> None:
    labels = np.zeros(40, np.int64)  # Only three entries can be drawn.
    fresh = Generator(tiny_bundle()).generate(labels, seed=0)
    stored = Generator(tiny_bundle(noise="entry")).generate(labels, seed=0)
    assert len(np.unique(fresh, axis=0)) == 40
    assert len(np.unique(stored, axis=0)) <= 3


def test_references_are_the_images_that_sampling_enters_at(generator: Generator) -> None:
    shown = generator.references(LABELS, seed=3)
    known = {image.tobytes() for image in tiny_references().images[:3]}
    assert {image.tobytes() for image in shown} == known
    # Entered at the lowest noise level, a sample is all but its reference.
    barely = Generator(tiny_bundle(from_step=1, intervals=1)).generate(LABELS, seed=3)
    assert np.abs(barely.astype(int) - shown).max() <= 8


def test_network_evaluations_are_counted_not_asserted() -> None:
    counted = {}
    for solver in ("ddim", "heun", "dpmpp"):
        generator = Generator(tiny_bundle(solver=solver, intervals=5))
        generator.generate(LABELS[:70], seed=0)
        counted[solver] = generator.evaluations_per_image
    assert counted == {"ddim": 5, "heun": 9, "dpmpp": 5}


NO_CHURN, CHURN = ChurnConfig(), ChurnConfig(amount=4.0, least_level=0.05)


def _churned(churn: ChurnConfig = CHURN, **others: Any) -> Generator:
    return Generator(tiny_bundle(solver="heun", intervals=3, churn=churn, **others))


def test_a_churned_sample_does_not_depend_on_the_batch_or_the_worker() -> None:
    images = _churned().generate(LABELS, seed=3)
    np.testing.assert_array_equal(_churned().generate(LABELS, seed=3, batch_size=7), images)
    parts = [
        _churned().generate(LABELS[start:stop], seed=3, first_id=start)
        for start, stop in [(0, 1), (1, 70), (70, 150)]
    ]
    np.testing.assert_array_equal(np.concatenate(parts), images)


def test_every_sample_has_churn_of_its_own() -> None:
    """Started from one state, samples part ways by it; without it they would be one picture."""
    labels = np.zeros(40, np.int64)  # Only three entries can be drawn, each with one noise path.
    still = _churned(NO_CHURN, noise="entry").generate(labels, seed=0)
    churned = _churned(noise="entry").generate(labels, seed=0)
    assert len(np.unique(still, axis=0)) <= 3
    assert len(np.unique(churned, axis=0)) == 40


def test_a_bundle_keeps_its_churn_and_one_from_before_has_none(tmp_path: Path) -> None:
    write_bundle(tiny_bundle(solver="heun", intervals=3, churn=CHURN), tmp_path / "bundle")
    opened = Generator.open(tmp_path / "bundle").generate(LABELS[:9], seed=3)
    np.testing.assert_array_equal(opened, _churned().generate(LABELS[:9], seed=3))
    content = tiny_bundle(solver="heun").facts.to_json()
    del content["churn"]
    assert BundleFacts.from_json(content).churn == NO_CHURN


def test_progress_adds_up_to_the_number_of_images(generator: Generator) -> None:
    done: list[int] = []
    generator.generate(LABELS, seed=0, batch_size=64, on_batch=done.append)
    assert done == [64, 64, 22]


def test_labels_that_name_no_class_are_refused(generator: Generator) -> None:
    with pytest.raises(ConfigError, match=r"0\.\.1, got 0\.\.2\. The classes are zero, one"):
        generator.generate(np.array([0, 2]), seed=0)
    with pytest.raises(ConfigError, match="list of integers"):
        generator.generate(np.array([0.5]), seed=0)


def test_drawing_needs_none_of_the_training_vendors() -> None:
    code = (
        "import sys, rapid_dist.release.generator\n"
        "print({'ray', 'mlflow', 'opacus', 'faiss', 'dp_accounting', 'boto3', 'sklearn', "
        "'matplotlib'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "set()"
