"""The prior's query: one vote a record, noised before it leaves."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from rapid_dist.data.images import ImageSpec, PrivateImages
from rapid_dist.private.votes import _shared, noised_histogram
from tests.models import KEY, private_images

FALSE_ALARM = 1e-6  # Chance that a correct query fails a test of its noise under a fresh key.
CLASSES, CLUSTERS, NOISE = 3, 5, 2.0


def _histogram(
    images: PrivateImages, clusters: np.ndarray, attempt: int = 1, noise: float = NOISE
) -> np.ndarray:
    return noised_histogram(
        images,
        clusters,
        num_classes=CLASSES,
        num_clusters=CLUSTERS,
        noise_multiplier=noise,
        key=KEY,
        attempt=attempt,
    )


def _clusters(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, CLUSTERS, count)


def _without(images: PrivateImages, gone: np.ndarray) -> PrivateImages:
    kept = np.flatnonzero(~gone)
    spec = ImageSpec(
        name="secret", num_records=len(kept), channels=1, size=8, num_classes=3, licence="none"
    )
    groups = None if images.groups is None else images.groups[kept]
    return PrivateImages(
        images=images.images[kept], labels=images.labels[kept], groups=groups, spec=spec
    )


def test_counts_stand_in_the_cell_of_class_and_cluster() -> None:
    images, clusters = private_images(12), _clusters(12)
    expected = np.zeros((CLASSES, CLUSTERS))
    np.add.at(expected, (images.labels, clusters), 1)
    found = _histogram(images, clusters, noise=1e-4)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("label", [0, 1])
def test_a_record_without_finite_features_casts_no_vote(label: int) -> None:
    images, clusters = private_images(12), _clusters(12)
    victim = int(np.flatnonzero(images.labels == label)[0])
    gone = np.arange(12) == victim
    without = _histogram(_without(images, gone), clusters[~gone])
    assert np.array_equal(_histogram(images, np.where(gone, -1, clusters)), without)


def _sensitivity(images: PrivateImages, units: np.ndarray, clusters: np.ndarray) -> float:
    """The largest L2 change of the histogram when a unit's images go; the noise is frozen."""
    whole = _histogram(images, clusters)
    changes = [
        np.linalg.norm(whole - _histogram(_without(images, units == u), clusters[units != u]))
        for u in np.unique(units)
    ]
    return float(max(changes))


def test_one_record_moves_the_histogram_by_one_at_most() -> None:
    assert _sensitivity(private_images(12), np.arange(12), _clusters(12)) <= 1 + 1e-5


@pytest.mark.parametrize("clusters", [_clusters(12), np.zeros(12, np.int64)])
def test_a_group_moves_the_histogram_by_one_at_most(clusters: np.ndarray) -> None:
    groups = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4])
    assert _sensitivity(private_images(12, groups), groups, clusters) <= 1 + 1e-5


def test_the_sensitivity_test_would_notice_a_group_with_a_vote_an_image() -> None:
    groups = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4])
    assert _sensitivity(private_images(12), groups, np.zeros(12, np.int64)) > 2


def _naive(groups: np.ndarray, cells: np.ndarray, sizes: np.ndarray, num_cells: int) -> np.ndarray:
    """The fault of shares that are not exact: one over the size, added up in float32."""
    return np.bincount(cells, 1.0 / sizes[groups], minlength=num_cells)


def _moved_by_the_last(share: Callable[..., np.ndarray]) -> float:
    """The L1 change when one group goes from a cell of 4,096 votes and a third."""
    groups = np.append(np.arange(4_096), [4_096, 4_096, 4_096])
    cells = np.append(np.zeros(4_096, np.int64), [0, 1, 2])
    sizes = np.bincount(groups)
    whole, rest = (
        share(groups[kept], cells[kept], sizes, CLUSTERS).astype(np.float32)
        for kept in (groups >= 0, groups != 7)
    )
    return float(np.abs(whole - rest).sum())


def test_rounding_carries_no_group_over_its_one_vote() -> None:
    assert _moved_by_the_last(_shared) == 1


def test_the_rounding_test_would_notice_shares_that_are_rounded_in_the_sum() -> None:
    assert _moved_by_the_last(_naive) > 1


@pytest.mark.parametrize("size", [1, 3, 7, 100, 1_500])
def test_the_images_of_a_group_share_one_vote_by_their_cells(size: int) -> None:
    cells = np.random.default_rng(size).integers(0, CLUSTERS, size)
    found = _shared(np.zeros(size, np.int64), cells, np.array([size]), CLUSTERS)
    wanted = np.bincount(cells, minlength=CLUSTERS) / size
    assert found.sum() <= 1
    assert (found <= wanted).all()
    assert (found > wanted - 2.0**-10).all()


def test_an_image_without_finite_features_does_not_lend_its_share_to_others() -> None:
    groups = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3])
    images, clusters = private_images(12, groups), np.full(12, 2)
    clusters[0] = -1
    found = _histogram(images, clusters, noise=1e-4)
    assert found.sum() == pytest.approx(3.5, abs=0.01)


def _noise_p_value(histogram: np.ndarray, claimed: float) -> float:
    statistic = float((histogram**2).sum()) / claimed**2
    law = scipy.stats.chi2(histogram.size)
    return 2 * min(law.cdf(statistic), law.sf(statistic))


def _noise_alone(noise: float) -> np.ndarray:
    images, clusters = private_images(12), _clusters(12)
    counts = np.zeros((CLASSES, CLUSTERS))
    np.add.at(counts, (images.labels, clusters), 1)
    draws = [_histogram(images, clusters, a, noise) - counts for a in range(1, 401)]
    return np.stack(draws)


def test_the_histogram_carries_the_noise_that_was_priced() -> None:
    assert _noise_p_value(_noise_alone(NOISE), NOISE) > FALSE_ALARM


def test_the_noise_test_would_notice_a_tenth_too_little() -> None:
    assert _noise_p_value(_noise_alone(0.9 * NOISE), NOISE) < FALSE_ALARM


def test_an_attempt_that_asks_again_gets_other_noise() -> None:
    images, clusters = private_images(12), _clusters(12)
    one, other = _histogram(images, clusters), _histogram(images, clusters, attempt=2)
    assert (one != other).all()
    np.testing.assert_array_equal(one, _histogram(images, clusters))
