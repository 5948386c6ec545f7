"""The private index of DP-RDM: what one unit moves, what is charged before, and what leaves."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from rapid_dist.data.images import PrivateImages
from rapid_dist.errors import BudgetError, ConfigError, DataError
from rapid_dist.privacy.accounting import epsilons, plan_retrieval
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent, GaussianEvent, RetrievalConfig, RetrievalEvent
from rapid_dist.privacy.settings import PrivacyConfig
from rapid_dist.private.index import PrivateIndex, bounded, nearest_sums
from tests.fakes import MemoryStorage
from tests.models import CLASSES, KEY, FixedBatch, private_images

FALSE_ALARM = 1e-6  # Chance that a correct index fails a test of its noise under a fresh key.
DIM, RECORDS, K = 6, 12, 2
EVERYBODY = tuple(range(RECORDS))


def _mechanism(**changes: Any) -> RetrievalConfig:
    settings = {
        "num_records": RECORDS, "sample_rate": 0.5, "steps": 4, "neighbors": K,
        "noise_multiplier": 1.5,
    }  # fmt: skip
    return RetrievalConfig(**{**settings, **changes})


def _embeddings(seed: int = 0, count: int = RECORDS) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _index(
    embeddings: np.ndarray | None = None,
    *,
    present: tuple[int, ...] | None = EVERYBODY,
    images: PrivateImages | None = None,
    charged: list[int] | None = None,
    attempt: int = 1,
    **changes: Any,
) -> PrivateIndex:
    return PrivateIndex(
        private_images(RECORDS) if images is None else images,
        _embeddings() if embeddings is None else embeddings,
        _mechanism(**changes),
        num_classes=CLASSES,
        key=KEY,
        attempt=attempt,
        charge=([] if charged is None else charged).append,
        sampler=None if present is None else FixedBatch(*present),
    )


def _questions(seed: int = 3) -> np.ndarray:
    return _embeddings(seed, CLASSES)


def _sums(embeddings: np.ndarray, present: list[int], k: int = K, **changes: Any) -> np.ndarray:
    labels = private_images(RECORDS).labels
    rows = bounded(embeddings)
    return nearest_sums(rows, rows, labels, np.array(present, np.int64), _questions(), k, **changes)


def _hostile() -> np.ndarray:
    """Opposite neighbours: the nearest of a class is +u, the next is -u, both of length 1."""
    found = _embeddings()
    question = _questions()
    for label in range(CLASSES):
        away = np.roll(question[label], 1)
        away -= away @ question[label] * question[label]  # Sideways: both are equally near.
        away /= np.linalg.norm(away)
        own = np.arange(label, RECORDS, CLASSES)
        found[own] = -question[label]
        found[own[0]], found[own[1]] = away, -away
    return found


def _largest_move(embeddings: np.ndarray, k: int, sums: Any = _sums) -> float:
    """What leaving any one record out of any of many samples moves the sums by, at most."""
    rng, largest = np.random.default_rng(1), 0.0
    samples = [list(EVERYBODY)] + [
        np.flatnonzero(rng.random(RECORDS) < 0.6).tolist() for _ in range(20)
    ]
    for sample in samples:
        whole = sums(embeddings, sample, k)
        for gone in sample:
            left = sums(embeddings, [other for other in sample if other != gone], k)
            largest = max(largest, float(np.linalg.norm(whole - left)))
    return largest


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_record_moves_a_whole_round_by_two_at_most(k: int) -> None:
    for embeddings in (_hostile(), _embeddings(), 50 * _embeddings(5), -_hostile()):
        assert _largest_move(embeddings, k) <= 2.0


def test_the_bound_of_two_is_reached_where_one_record_leaves_and_its_opposite_enters() -> None:
    assert _largest_move(_hostile(), 1) > 1.99


def _divided_by_found(embeddings: np.ndarray, present: list[int], k: int) -> np.ndarray:
    """The fault: a mean over the number found, times k to be compared with sums."""
    labels = private_images(RECORDS).labels[present]
    found = np.minimum(k, np.bincount(labels, minlength=CLASSES))
    sums: np.ndarray = _sums(embeddings, present, k) * (k / np.maximum(1, found))[:, None]
    return sums


def _unbounded(embeddings: np.ndarray, present: list[int], k: int) -> np.ndarray:
    labels = private_images(RECORDS).labels
    return nearest_sums(
        embeddings, embeddings, labels, np.array(present, np.int64), _questions(), k
    )


def test_the_test_of_the_bound_notices_other_mechanisms() -> None:
    assert _largest_move(_hostile(), 5, _divided_by_found) > 2.0
    assert _largest_move(50 * _hostile(), 2, _unbounded) > 2.0


def test_a_record_moves_the_answer_of_its_own_class_alone() -> None:
    whole = _sums(_embeddings(), list(EVERYBODY))
    for gone in EVERYBODY:
        left = _sums(_embeddings(), [other for other in EVERYBODY if other != gone])
        moved = np.flatnonzero((whole != left).any(axis=1))
        assert set(moved) <= {gone % CLASSES}


def test_an_answer_is_the_mean_of_the_nearest_of_the_class_divided_by_k() -> None:
    labels, embeddings, questions = private_images(RECORDS).labels, _embeddings(), _questions()
    found = _index(noise_multiplier=1e-6).answer(0, questions)
    for label in range(CLASSES):
        own = np.flatnonzero(labels == label)
        order = np.argsort(np.linalg.norm(embeddings[own] - questions[label], axis=1))
        expected = embeddings[own[order[:K]]].sum(axis=0) / K
        np.testing.assert_allclose(found[label], expected, atol=1e-3)


def test_too_few_records_are_divided_by_k_all_the_same() -> None:
    found = _index(present=(0,), noise_multiplier=1e-6).answer(0, _questions())
    np.testing.assert_allclose(found[0], _embeddings()[0] / K, atol=1e-3)
    np.testing.assert_allclose(found[1:], 0, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_record_without_a_finite_embedding_is_in_no_sum(bad: float) -> None:
    embeddings = _embeddings()
    embeddings[4, 2] = bad
    others = tuple(record for record in EVERYBODY if record != 4)
    expected = _index(present=others).answer(0, _questions())
    assert np.array_equal(_index(embeddings).answer(0, _questions()), expected)


def test_a_round_is_charged_before_anything_is_looked_up() -> None:
    class Looks(FixedBatch):
        def batch(self, step: int) -> np.ndarray:
            happened.append("sampled")
            return super().batch(step)

    happened: list[Any] = []
    index = PrivateIndex(
        private_images(RECORDS), _embeddings(), _mechanism(), num_classes=CLASSES, key=KEY,
        attempt=1, charge=happened.append, sampler=Looks(0, 1),
    )  # fmt: skip
    index.answer(3, _questions())
    assert happened == [3, "sampled"]


def test_an_empty_sample_is_a_charged_round_of_noise_alone() -> None:
    charged: list[int] = []
    found = _index(present=(), charged=charged).answer(2, _questions())
    assert charged == [2]
    assert np.isfinite(found).all()
    assert (found != 0).all()


def _keeper(rounds: int, reserve: int = 0) -> tuple[LedgerKeeper, Ledger]:
    mechanism = _mechanism(steps=rounds)
    budget = PrivacyConfig(
        epsilon=epsilons([mechanism.event(rounds + reserve)], 1e-3).reported, delta=1e-3
    ).budget
    ledger = Ledger.open(MemoryStorage(), "secret")
    return LedgerKeeper(ledger, "run", budget, mechanism.event(), rounds, reserve), ledger


def test_the_round_after_the_last_is_refused_and_leaves_no_entry() -> None:
    keeper, ledger = _keeper(3)
    attempt = keeper.begin_attempt().number
    index = PrivateIndex(
        private_images(RECORDS), _embeddings(), _mechanism(steps=3), num_classes=CLASSES, key=KEY,
        attempt=attempt, charge=lambda step: keeper.charge(step, attempt),
    )  # fmt: skip
    for step in range(3):
        index.answer(step, _questions())
    entries = len(ledger.entries())
    with pytest.raises(BudgetError, match="not among the 3 planned"):
        index.answer(3, _questions())
    with pytest.raises(BudgetError, match="would pass epsilon"):
        keeper.charge(2, attempt)
    assert len(ledger.entries()) == entries
    assert all(type(event) is RetrievalEvent for event in ledger.events("run"))


def test_one_noise_is_never_given_with_two_sums() -> None:
    """Else the difference of two answers of a round would be without noise."""
    charged: list[int] = []
    index = _index(charged=charged)
    index.answer(0, _questions())
    with pytest.raises(BudgetError, match="Round 0 was answered in this attempt"):
        index.answer(0, -_questions())
    assert charged == [0]
    other = _index(attempt=2).answer(0, _questions())
    assert not np.array_equal(other, _index(attempt=1).answer(0, _questions()))


def test_the_ledger_reads_back_what_it_was_told_of_rounds() -> None:
    storage = MemoryStorage()
    for noise in ("fast", "secure"):
        event = _mechanism(noise=noise).event()
        ledger = Ledger.open(storage, "secret")
        ledger.append("step", f"run-{noise}", attempt=ledger.begin_attempt(f"run-{noise}"), step=0,
                      event=event)  # fmt: skip
        assert Ledger.open(storage, "secret").events(f"run-{noise}") == [event]


def test_a_round_costs_what_a_step_of_the_same_rate_and_noise_costs() -> None:
    step = DpSgdEvent(sample_rate=0.5, noise_multiplier=1.5, steps=4)
    assert epsilons([_mechanism().event(4)], 1e-3) == epsilons([step], 1e-3)


def test_sampling_makes_a_round_cheaper_than_a_look_at_everybody() -> None:
    sampled = epsilons([_mechanism().event()], 1e-3).reported
    assert sampled < 0.8 * epsilons([GaussianEvent(noise_multiplier=1.5)], 1e-3).reported


@pytest.mark.parametrize("contamination", [None, 30.0])
def test_a_plan_pays_for_all_rounds_its_reserve_and_the_counts(contamination: float | None) -> None:
    config = PrivacyConfig(
        epsilon=2.0, delta=1e-3, reserve_steps=2, contamination_noise=contamination
    )
    solved = plan_retrieval(config, 500, sample_rate=0.3, rounds=8, neighbors=10)
    assert solved.retrieval is not None
    assert solved.stepped is solved.retrieval
    assert solved.dp_sgd is None
    assert solved.prior is None
    assert solved.events == (*solved.queries, solved.retrieval.event(10))
    assert 1.9 < epsilons(solved.events, 1e-3).reported <= 2.0
    assert solved.retrieval.answer_stddev == 2 * solved.retrieval.noise_multiplier / 10


def _p_values(values: np.ndarray, stddev: float) -> tuple[float, float]:
    law = scipy.stats.chi2(len(values))
    statistic = float((values**2).sum()) / stddev**2
    shape = scipy.stats.kstest(values, scipy.stats.norm(0, stddev).cdf).pvalue
    return 2 * min(law.cdf(statistic), law.sf(statistic)), float(shape)


def _noise_of(noise: str, rounds: int = 100) -> np.ndarray:
    index = _index(present=(), noise=noise)
    return np.concatenate([index.answer(step, _questions()).ravel() for step in range(rounds)])


@pytest.mark.parametrize("noise", ["fast", "secure"])
def test_answers_carry_the_noise_that_was_priced(noise: str) -> None:
    values = _noise_of(noise).astype(np.float64)
    assert min(_p_values(values, _mechanism().answer_stddev)) > FALSE_ALARM


def test_the_test_of_the_noise_notices_a_sensitivity_of_one() -> None:
    halved = _noise_of("fast").astype(np.float64) / 2
    assert min(_p_values(halved, _mechanism().answer_stddev)) < FALSE_ALARM


def test_no_two_answers_have_the_same_noise() -> None:
    answers = [
        _index(present=(), attempt=attempt).answer(step, _questions())
        for attempt in (1, 2)
        for step in (0, 1)
    ]
    values = np.concatenate([answer.ravel() for answer in answers])
    assert len(np.unique(values)) == len(values)


def test_secure_answers_are_sums_of_whole_numbers_that_two_records_bound() -> None:
    exact = _index(noise_multiplier=1e-4).answer(0, _questions())
    whole = _index(noise_multiplier=1e-4, noise="secure").answer(0, _questions())
    np.testing.assert_allclose(whole, exact, atol=1e-3)


def test_a_group_sends_one_of_its_images_and_every_one_at_times() -> None:
    groups = np.array([0] * 9 + [1, 2, 2], np.int64)
    images = private_images(RECORDS, groups)
    index = _index(present=(0, 1, 2), images=images, num_records=3)
    sent = [index._images_of(np.arange(3), step) for step in range(60)]
    assert all(len(one) == 3 for one in sent)
    assert set(np.concatenate(sent).tolist()) == set(EVERYBODY)
    assert all(set(groups[one]) == {0, 1, 2} for one in sent)


def test_a_groups_image_does_not_depend_on_other_groups() -> None:
    groups = np.arange(RECORDS, dtype=np.int64) // 3
    index = _index(images=private_images(RECORDS, groups), num_records=4)
    for step in range(10):
        together = index._images_of(np.arange(4), step)
        alone = [int(index._images_of(np.array([unit]), step)[0]) for unit in range(4)]
        assert together.tolist() == sorted(alone)


def test_a_plan_for_another_number_of_units_is_refused() -> None:
    with pytest.raises(DataError, match="The plan is for 13"):
        _index(num_records=13)


def test_questions_of_another_shape_are_refused_before_they_are_charged() -> None:
    charged: list[int] = []
    with pytest.raises(ConfigError, match="A round asks"):
        _index(charged=charged).answer(0, _questions()[:, :3])
    assert charged == []


def test_an_index_does_not_show_what_it_holds() -> None:
    assert repr(_index()) == "PrivateIndex(hidden)"
