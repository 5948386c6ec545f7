"""Scores of synthetic images by what classifiers learn from them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapid_dist.data.images import ImageSpec, Int64Array, PrivateImages, UInt8Array
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.classifiers import (
    ClassifierScores,
    train_and_predict,
    train_and_score,
)
from rapid_dist.evaluation.settings import ClassifierConfig

QUICK = ClassifierConfig(logistic_iterations=50, hidden_width=16, steps=60, batch_size=32)


def _bars(
    num: int, seed: int, size: int = 8, channels: int = 1, num_classes: int = 4
) -> tuple[UInt8Array, Int64Array]:
    """Noise with one bright row; the row says the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    images = rng.integers(0, 120, (num, channels, size, size))
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 130
    return images.astype(np.uint8), labels


def _real(images: UInt8Array, labels: Int64Array, num_classes: int = 4) -> PrivateImages:
    num, channels, size, _ = images.shape
    spec = ImageSpec(
        name="bars",
        num_records=num,
        channels=channels,
        size=size,
        num_classes=num_classes,
        licence="none",
    )
    return PrivateImages(images=images, labels=labels, spec=spec)


@pytest.fixture(scope="module")
def real() -> PrivateImages:
    return _real(*_bars(400, seed=1))


def test_good_synthetic_images_teach_all_three_classifiers(real: PrivateImages) -> None:
    scores = train_and_score(*_bars(400, seed=2), real, 4, 0, QUICK)
    assert min(scores.logistic, scores.mlp, scores.cnn) > 0.9


def test_wrong_labels_teach_nothing(real: PrivateImages) -> None:
    images, labels = _bars(400, seed=2)
    unrelated = np.arange(400) // 4 % 4  # Every class of images carries each label equally often.
    assert np.bincount(4 * labels + unrelated).tolist() == [25] * 16
    scores = train_and_score(images, unrelated, real, 4, 0, QUICK)
    assert max(scores.logistic, scores.mlp, scores.cnn) < 0.5  # Chance is 0.25.


def test_the_mean_is_of_all_three() -> None:
    scores = ClassifierScores(logistic=0.3, mlp=0.6, cnn=0.9)
    assert scores.mean == pytest.approx(0.6)
    assert scores.to_json() == {
        "logistic": 0.3, "mlp": 0.6, "cnn": 0.9, "mean": scores.mean, "best": 0.9
    }  # fmt: skip


def test_scores_come_back_from_json() -> None:
    for picked in (None, 0.6):
        scores = ClassifierScores(logistic=0.3, mlp=0.6, cnn=0.9, picked=picked)
        assert ClassifierScores.from_json(scores.to_json()) == scores


def test_synthetic_images_choose_the_learning_rate_that_learns(real: PrivateImages) -> None:
    useless = ClassifierConfig(
        logistic_iterations=5, hidden_width=16, steps=60, batch_size=32, learning_rate=1e-7
    )
    bars = _bars(400, seed=2)
    assert train_and_score(*bars, real, 4, 0, useless).cnn < 0.6
    chosen = replace(useless, validation_share=0.2, more_rates=(2e-3,))
    scores = train_and_score(*bars, real, 4, 0, chosen)
    assert min(scores.mlp, scores.cnn) > 0.9
    assert scores.picked in (scores.logistic, scores.mlp, scores.cnn)


def test_real_images_choose_nothing(real: PrivateImages) -> None:
    """Real images with their labels shuffled: the same predictions, whatever the scores are."""
    config = replace(QUICK, validation_share=0.2, more_rates=(1e-4,), checkpoints=3)
    shuffled = replace(real, labels=np.random.default_rng(0).permutation(real.labels))
    bars = _bars(200, seed=2)
    honest = train_and_predict(*bars, real, 4, 0, config)
    for one, other in zip(honest, train_and_predict(*bars, shuffled, 4, 0, config), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_checkpoint_that_is_best_on_synthetic_images_is_kept(real: PrivateImages) -> None:
    # A rate far too high at the end of training is not what an earlier checkpoint was.
    images, labels = _bars(200, seed=2)
    wild = ClassifierConfig(
        logistic_iterations=1, hidden_width=16, steps=40, batch_size=16, learning_rate=0.5
    )
    last = train_and_score(images, labels, real, 4, 0, wild)
    kept = train_and_score(
        images, labels, real, 4, 0, replace(wild, validation_share=0.3, checkpoints=40)
    )
    assert kept.mlp > last.mlp


def test_the_same_seed_gives_the_same_scores_and_leaves_the_global_generator_alone(
    real: PrivateImages,
) -> None:
    # Hard enough that scores depend on the seed: noise with few steps.
    config = ClassifierConfig(logistic_iterations=1, hidden_width=4, steps=5, batch_size=8)
    state = torch.random.get_rng_state()
    first = train_and_score(*_bars(60, seed=3), real, 4, 0, config)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert train_and_score(*_bars(60, seed=3), real, 4, 0, config) == first
    assert train_and_score(*_bars(60, seed=3), real, 4, 1, config) != first


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (9, 3), (28, 1), (33, 1), (64, 3)])
def test_every_size_and_colour_can_be_scored(size: int, channels: int) -> None:
    config = ClassifierConfig(logistic_iterations=1, hidden_width=4, steps=2, batch_size=4)
    images, labels = _bars(12, seed=0, size=size, channels=channels)
    scores = train_and_score(images, labels, _real(images, labels), 4, 0, config)
    assert 0 <= scores.mean <= 1


def test_images_that_cannot_teach_are_refused(real: PrivateImages) -> None:
    images, labels = _bars(40, seed=0)
    with pytest.raises(ConfigError, match="at least 2 of the classes"):
        train_and_score(images, np.zeros_like(labels), real, 4, 0, QUICK)
    with pytest.raises(ConfigError, match="at least 2 of the classes"):
        train_and_score(images, labels + 1, real, 4, 0, QUICK)
    with pytest.raises(ConfigError, match="40 synthetic images but 39 labels"):
        train_and_score(images, labels[1:], real, 4, 0, QUICK)
    with pytest.raises(ConfigError, match="at one size"):
        train_and_score(images[:, :, :7, :7], labels, real, 4, 0, QUICK)
    with pytest.raises(ConfigError, match="num_classes=0"):
        train_and_score(images, labels, real, 0, 0, QUICK)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"label_smoothing": 1.0},
        {"validation_share": 0.6},
        {"more_rates": (1e-3,)},
    ],
)
def test_settings_that_cannot_train_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ClassifierConfig(**wrong)
