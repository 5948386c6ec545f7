"""Extractors that are trained on public images, or read from a user's file; class balance."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from rapid_dist.data.images import ImageSpec, PrivateImages, PublicImages
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.balance import Judge, total_variation
from rapid_dist.evaluation.inception import open_inception
from rapid_dist.evaluation.public_classes import open_public_classifier, train_public_classifier
from rapid_dist.evaluation.settings import ClassifierConfig, EvaluationConfig

QUICK = ClassifierConfig(logistic_iterations=5, hidden_width=16, steps=60, batch_size=32)


def _bars(num: int, seed: int, num_classes: int = 4) -> tuple[np.ndarray, np.ndarray, ImageSpec]:
    """Noise with one bright row; the row says the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    images = rng.integers(0, 120, (num, 1, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 130
    spec = ImageSpec(
        name="bars", num_records=num, channels=1, size=8, num_classes=num_classes, licence="none"
    )
    return images.astype(np.uint8), labels, spec


def _real(num: int, seed: int) -> PrivateImages:
    images, labels, spec = _bars(num, seed)
    return PrivateImages(images=images, labels=labels, spec=spec)


def test_features_of_public_classes_tell_them_apart_and_are_the_same_again() -> None:
    images, labels, spec = _bars(200, seed=0)
    public = PublicImages(images=images, labels=labels, spec=spec)
    content = train_public_classifier(public, QUICK, seed=0)
    assert train_public_classifier(public, QUICK, seed=0) == content
    extract = open_public_classifier(content, "public-classes-0")
    fresh, classes, _ = _bars(80, seed=1)
    features = extract(fresh)
    assert extract.name == "public-classes-0"
    assert features.shape == (80, 128)
    means = np.stack([features[classes == label].mean(0) for label in range(4)])
    nearest = ((features[:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == classes).mean() > 0.9


def test_public_images_of_one_class_are_no_extractor() -> None:
    images, labels, _ = _bars(20, seed=0)
    spec = ImageSpec(name="x", num_records=20, channels=1, size=8, num_classes=1, licence="")
    one = PublicImages(images=images, labels=np.zeros_like(labels), spec=spec)
    with pytest.raises(ConfigError, match=r"public_classes.*has 1\."):
        train_public_classifier(one, QUICK, seed=0)


def test_a_judge_sees_which_classes_there_are() -> None:
    judge = Judge(_real(400, 0), _real(200, 1), QUICK, seed=0)
    images, labels, _ = _bars(100, seed=2)
    honest = judge.look(images, labels)
    assert honest.judge_accuracy > 0.9
    assert honest.total_variation < 0.05
    assert honest.agreement > 0.9
    shifted = judge.look(images, (labels + 1) % 4)  # As many of every class, and all wrong.
    assert shifted.total_variation < 0.05
    assert shifted.agreement < 0.1
    alone = judge.look(images[labels == 0], labels[labels == 0] * 0 + 1)
    assert alone.total_variation > 0.9


def test_total_variation_is_its_definition() -> None:
    asked, seen = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    assert total_variation(asked, seen, 4) == pytest.approx((0.25 + 0.5 + 0.25) / 2)
    assert total_variation(asked, asked, 4) == 0


def test_fid_without_its_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FID needs both"):
        EvaluationConfig(features="inception")
    with pytest.raises(ConfigError, match="FID needs both"):
        EvaluationConfig(inception_weights="x.safetensors")
    with pytest.raises(ConfigError, match="is missing, and FID is Inception's or none"):
        open_inception(tmp_path / "none.safetensors")
    pickled = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(2)}, pickled)
    with pytest.raises(ConfigError, match="does not hold the weights"):
        open_inception(pickled)
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="does not hold the weights"):
        open_inception(tmp_path / "other.safetensors")


class _Untrained(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """torch-fidelity's network with the weights it was made with: nothing is fetched."""

    def load_state_dict(self, *given: object, **more: object) -> None:  # type: ignore[override]
        return None


@pytest.mark.slow
def test_inception_has_2048_features_and_takes_grey_as_colour(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pth"
    torch.save({}, nothing)
    network = _Untrained("x", ["2048"], str(nothing))
    path = tmp_path / "inception.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    extract = open_inception(path)
    grey = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32), dtype=np.uint8)
    features = extract(grey)
    assert features.shape == (2, 2048)
    np.testing.assert_allclose(features, extract(grey.repeat(3, axis=1)), rtol=1e-4)
    expected = network(torch.from_numpy(grey.repeat(3, axis=1)))[0].numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-5)
