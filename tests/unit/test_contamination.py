"""Private images among the public ones: found, kept inside, acted on for a price alone (P15)."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats

from rapid_dist.config import load_recipe
from rapid_dist.data.images import ImageSpec, PublicImages, content_hashes
from rapid_dist.errors import ConfigError
from rapid_dist.privacy.accounting import plan
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.private.contamination import (
    ContaminationConfig,
    near,
    nearest_public,
    noised_votes,
    of_units,
    source_votes,
)
from rapid_dist.retrieval.duplicates import Nearest, nearest_of, prints_of
from rapid_dist.retrieval.features import pixel_features
from tests.fakes import ThreadWorkers
from tests.models import KEY

FALSE_ALARM = 1e-6  # Chance that correct counts fail a test of their noise under a fresh key.
NOISE = 20.0


def _unit_pixels(images: np.ndarray) -> np.ndarray:
    flat = pixel_features(images)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _smooth(count: int, seed: int, size: int = 16) -> np.ndarray:
    """Images of a few smooth waves, uint8 [count, 1, size, size]: nothing alike by chance."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[:size, :size] * (np.pi / size)
    waves = [np.cos(i * down) * np.cos(j * right) for i in range(4) for j in range(4)]
    mixed = np.einsum("nw,wij->nij", rng.normal(size=(count, 16)), np.stack(waves))
    pixels = 127.5 + 110 * np.tanh(mixed / 2)
    return pixels.round().astype(np.uint8)[:, None]


def _public(images: np.ndarray) -> PublicImages:
    spec = ImageSpec(
        name="open", num_records=len(images), channels=1, size=images.shape[-1], num_classes=0,
        licence="none",
    )  # fmt: skip
    return PublicImages(images=images, labels=np.zeros(len(images), np.int64), spec=spec)


def _nearest(asked: np.ndarray, others: np.ndarray) -> Nearest:
    first, second = (
        prints_of(images, content_hashes(images), _unit_pixels(images))
        for images in (asked, others)
    )
    return nearest_of(first, second, asked.shape[-1])


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "equal": lambda images: images.copy(),
    "a little darker": lambda images: (images * 0.993).round().astype(np.uint8),
    "under faint noise": lambda images: np.clip(
        images + np.random.default_rng(3).normal(0, 1, images.shape), 0, 255
    ).astype(np.uint8),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_and_nothing_else_is(kind: str) -> None:
    images, others = _smooth(30, 0), _smooth(200, 1)
    others[40:50] = COPIES[kind](images[:10])
    found = near(_nearest(images, others), ContaminationConfig())
    assert found[:10].all()
    assert not found[10:].any()


@pytest.mark.parametrize("measure", ["hash_distance", "feature_distance"])
def test_either_measure_finds_copies_by_itself(measure: str) -> None:
    images = _smooth(10, 0)
    found = _nearest(images, COPIES["a little darker"](images))
    alone: dict[str, Any] = {"hash_distance": None, "feature_distance": None}
    assert not near(found, ContaminationConfig(**alone)).any()
    alone[measure] = getattr(ContaminationConfig(), measure)
    assert near(found, ContaminationConfig(**alone)).all()


def test_an_image_without_finite_features_is_near_nothing_by_features() -> None:
    images = _smooth(4, 0)
    broken = _unit_pixels(images)
    broken[2] = np.nan
    asked = prints_of(images, content_hashes(images), broken)
    others = prints_of(images[3:], content_hashes(images[3:]), _unit_pixels(images[3:]))
    found = nearest_of(asked, others, 16)
    assert np.isinf(found.features[2])
    assert found.features[3] == 0


def _shared(images: np.ndarray, public: np.ndarray, workers: int) -> Nearest:
    """What all workers of a group find together, rows in order."""

    def task(collective: Any) -> Nearest:
        mine = np.array_split(np.arange(len(images)), workers)[collective.rank]
        return nearest_public(
            images[mine], _public(public), _unit_pixels, collective, lambda rows: None
        )

    parts = ThreadWorkers(workers).run(task)
    names = ("equal", "bits", "features")
    return Nearest(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


@pytest.mark.parametrize("workers", [2, 3, 50])
def test_any_number_of_workers_finds_the_same(workers: int) -> None:
    images, public = _smooth(20, 0), _smooth(90, 1)
    public[7] = images[5]
    alone, together = _shared(images, public, 1), _shared(images, public, workers)
    for name in ("equal", "bits", "features"):
        np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))


def test_one_record_changes_its_own_row_and_no_other() -> None:
    images, public = _smooth(20, 0), _smooth(90, 1)
    before = _shared(images, public, 1)
    for extreme in (
        public[3],
        np.zeros((1, 16, 16), np.uint8),
        np.full((1, 16, 16), 255, np.uint8),
    ):
        images[11] = extreme
        after = _shared(images, public, 1)
        others = np.arange(20) != 11
        for name in ("equal", "bits", "features"):
            np.testing.assert_array_equal(
                getattr(after, name)[others], getattr(before, name)[others]
            )


Votes = Callable[[np.ndarray], np.ndarray]


def _moved(votes: Votes, near_units: np.ndarray) -> float:
    """The largest L2 change of the votes when one unit is replaced by nothing."""
    whole = votes(near_units)
    changes = []
    for unit in range(len(near_units)):
        without = near_units.copy()
        without[unit] = False
        changes.append(float(np.linalg.norm(whole - votes(without))))
    return max(changes)


def _nears() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for sources in range(1, 8):
        yield rng.random((40, sources)) < 0.6
        yield np.ones((3, sources), bool)


def test_one_unit_moves_the_votes_by_one_at_most() -> None:
    assert max(_moved(source_votes, units) for units in _nears()) <= 1


def test_a_group_moves_the_votes_by_one_at_most_however_many_images_it_has() -> None:
    groups = np.repeat(np.arange(10), 4)
    for images in _nears():
        if len(images) == 40:
            units = of_units(images, groups, 10)
            np.testing.assert_array_equal(units, images.reshape(10, 4, -1).any(axis=1))
            assert _moved(source_votes, units) <= 1


def test_the_sensitivity_test_would_notice_a_whole_vote_for_every_source() -> None:
    assert max(_moved(lambda units: units.sum(axis=0), units) for units in _nears()) > 2


def test_the_sensitivity_test_would_notice_groups_that_vote_by_image() -> None:
    def by_image(units: np.ndarray) -> np.ndarray:
        return source_votes(np.repeat(units, 4, axis=0))

    assert max(_moved(by_image, units) for units in _nears()) > 3


def test_votes_lose_no_more_than_a_sixteenth_of_their_length() -> None:
    for sources in range(1, 8):
        votes = source_votes(np.ones((1, sources), bool))
        assert 1 - sources**0.5 / 16 < np.linalg.norm(votes) <= 1


def _noise_p_value(noise: np.ndarray, claimed: float) -> float:
    statistic = float((noise**2).sum()) / claimed**2
    law = scipy.stats.chi2(noise.size)
    return 2 * min(law.cdf(statistic), law.sf(statistic))


def _noise_alone(stddev: float, kind: Any) -> np.ndarray:
    votes = np.array([3.0, 0.0, 17.6875])
    draws = [
        noised_votes(votes, noise_multiplier=stddev, key=KEY, attempt=a, noise=kind) - votes
        for a in range(1, 2_001)
    ]
    return np.stack(draws)


@pytest.mark.parametrize("kind", ["fast", "secure"])
def test_the_counts_carry_the_noise_that_was_priced(kind: str) -> None:
    assert _noise_p_value(_noise_alone(NOISE, kind), NOISE) > FALSE_ALARM


def test_the_noise_test_would_notice_a_tenth_too_little() -> None:
    assert _noise_p_value(_noise_alone(0.9 * NOISE, "fast"), NOISE) < FALSE_ALARM


PRICED = ["contamination.policy=refuse", "privacy.contamination_noise=20"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["contamination.policy=ask"], ["contamination.policy", "'ask'"]),
        (["contamination.policy=refuse"], ["contamination_noise", "paid for", "refuse"]),
        (["contamination.policy=drop"], ["contamination_noise", "drop"]),
        (["privacy.contamination_noise=20"], ["accept", "null"]),
        ([*PRICED, "privacy.contamination_noise=0"], ["contamination_noise", "positive"]),
        ([*PRICED, "contamination.most_units=20"], ["most_units=20", "chance 0.16"]),
        ([*PRICED, "contamination.most_units=0"], ["contamination.most_units", "positive"]),
        (["contamination.hash_distance=1.5"], ["contamination.hash_distance", "1.5"]),
        (["contamination.feature_distance=-1"], ["contamination.feature_distance", "-1"]),
        (["contamination.most=3"], ["contamination.most", "Did you mean"]),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("digits", overrides)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message


def test_no_recipe_pays_for_counts_unless_it_says_so() -> None:
    recipe = load_recipe("digits")
    assert plan(recipe.privacy, recipe.num_units).contamination is None
    assert plan(recipe.privacy, recipe.num_units).queries == (
        plan(recipe.privacy, recipe.num_units).prior,
    )


@pytest.mark.parametrize("share", [0.15, 1.0])
def test_counts_are_planned_within_the_budget_and_take_their_part_of_it(share: float) -> None:
    shared = [f"privacy.prior_share={share}"]
    recipe, free = (load_recipe("digits", [*more, *shared]) for more in (PRICED, []))
    priced, whole = (plan(one.privacy, one.num_units) for one in (recipe, free))
    assert priced.contamination == GaussianEvent(noise_multiplier=20.0)
    assert priced.events[0] == priced.contamination
    assert priced.epsilons.reported <= 10
    if priced.dp_sgd is not None and whole.dp_sgd is not None:
        assert priced.dp_sgd.noise_multiplier > whole.dp_sgd.noise_multiplier
    elif priced.prior is not None and whole.prior is not None:
        assert priced.prior.noise_multiplier > whole.prior.noise_multiplier
