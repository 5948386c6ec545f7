"""The private score: one unit moves it by one at most, and it carries the noise that was priced."""

import numpy as np
import pytest
import scipy.stats

from rapid_dist.data.images import ImageSpec, PrivateImages
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.private.score import _shares, noised_score

FALSE_ALARM = 1e-6
LABELS = np.arange(40) % 4


def _held_out(groups: np.ndarray | None = None) -> PrivateImages:
    spec = ImageSpec(
        name="held", num_records=40, channels=1, size=8, num_classes=4, licence="",
        num_groups=None if groups is None else int(groups.max()) + 1,
    )  # fmt: skip
    images = np.zeros((40, 1, 8, 8), np.uint8)
    return PrivateImages(images=images, labels=LABELS, groups=groups, spec=spec)


def _key(seed: int) -> SecretKey:
    return SecretKey.from_bytes(seed.to_bytes(32, "big"))


def _score(predicted, noise=1e-6, seed=0, groups=None, kind="fast") -> float:
    return noised_score(
        _held_out(groups), predicted, noise_multiplier=noise, key=_key(seed), attempt=1, noise=kind
    )


@pytest.mark.parametrize("kind", ["fast", "secure"])
def test_it_counts_right_answers_each_classifier_a_share(kind) -> None:
    right, wrong = LABELS, (LABELS + 1) % 4
    noise = 1e-4
    assert _score([right, right, right], noise, kind=kind) == pytest.approx(40, abs=0.01)
    assert _score([right, wrong, wrong], noise, kind=kind) == pytest.approx(40 / 3, abs=0.05)
    assert _score([wrong, wrong, wrong], noise, kind=kind) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("group_size", [1, 3, 40])
def test_one_unit_is_worth_one_at_most(group_size) -> None:
    groups = None if group_size == 1 else np.arange(40, dtype=np.int64) // group_size
    answers = np.random.default_rng(0).random((200, 40)) < 0.7
    shares = [_shares(right.astype(float), groups) for right in answers]
    assert max(share.max() for share in shares) <= 1
    assert min(share.min() for share in shares) >= 0


def test_a_group_of_many_images_counted_one_by_one_would_be_worth_more() -> None:
    groups = np.zeros(40, dtype=np.int64)
    assert _shares(np.ones(40), groups).sum() == 1
    assert _shares(np.ones(40), None).sum() == 40  # The twin: what the group would weigh.


def _p_value(stddev: float) -> float:
    scores = np.array([_score([LABELS], noise=5.0, seed=seed) for seed in range(2_000)]) - 40
    return float(scipy.stats.kstest(scores / stddev, "norm").pvalue)


def test_the_score_carries_the_noise_that_was_priced() -> None:
    assert _p_value(5.0) > FALSE_ALARM
    assert _p_value(3.5) < FALSE_ALARM  # A noise less by a third.
