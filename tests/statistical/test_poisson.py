"""Batches are Poisson samples: every record on its own coin, at every step."""

import numpy as np
import pytest
import scipy.stats

from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.poisson import CipherPoissonSampler, PoissonSampler

FALSE_ALARM = 1e-6  # Chance that a correct sampler fails one of these tests under a fresh key.
KEY = SecretKey(bytes(KEY_BYTES))  # Fixed, so that a test gives the same result every time.
NUM_RECORDS = 200
STEPS = 1_500
RATE = 0.1

Sampler = type[PoissonSampler]
of_both_kinds = pytest.mark.parametrize("kind", [PoissonSampler, CipherPoissonSampler])


def _poisson(rate: float = RATE, attempt: int = 1, kind: Sampler = PoissonSampler) -> np.ndarray:
    """bool [STEPS, NUM_RECORDS]: who was in which batch."""
    sampler = kind(KEY, NUM_RECORDS, rate, attempt)
    drawn = np.zeros((STEPS, NUM_RECORDS), bool)
    for step in range(STEPS):
        drawn[step, sampler.batch(step)] = True
    return drawn


def _fixed_size() -> np.ndarray:
    """The false friend: batches of one size, which amplify privacy less than Poisson ones."""
    rng = np.random.default_rng(0)
    drawn = np.zeros((STEPS, NUM_RECORDS), bool)
    for batch in drawn:
        batch[rng.choice(NUM_RECORDS, int(RATE * NUM_RECORDS), replace=False)] = True
    return drawn


def _twins() -> np.ndarray:
    """The fault of workers with one seed: records enter in pairs that always go together."""
    half = np.random.default_rng(0).random((STEPS, NUM_RECORDS // 2)) < RATE
    return np.concatenate([half, half], axis=1)


def _rate_p_value(drawn: np.ndarray) -> float:
    return float(scipy.stats.binomtest(int(drawn.sum()), drawn.size, RATE).pvalue)


def _evenness_p_value(drawn: np.ndarray) -> float:
    """Chi-square over records: sum (count - Tq)^2 / (Tq(1 - q)), N degrees."""
    expected, variance = STEPS * RATE, STEPS * RATE * (1 - RATE)
    statistic = float(((drawn.sum(0) - expected) ** 2).sum()) / variance
    law = scipy.stats.chi2(NUM_RECORDS)
    return 2 * min(law.cdf(statistic), law.sf(statistic))


def _size_variance_p_value(drawn: np.ndarray) -> float:
    """Binomial(N, q) sizes have variance Nq(1 - q); (n - 1) s^2 / that is near chi-square."""
    statistic = (STEPS - 1) * np.var(drawn.sum(1), ddof=1) / (NUM_RECORDS * RATE * (1 - RATE))
    law = scipy.stats.chi2(STEPS - 1)
    return 2 * min(law.cdf(statistic), law.sf(statistic))


def _least_pair_p_value(drawn: np.ndarray) -> float:
    """The most suspicious of all pairs of records, times their number (Bonferroni)."""
    together = (drawn.T.astype(np.int64) @ drawn)[np.triu_indices(NUM_RECORDS, 1)]
    law = scipy.stats.binom(STEPS, RATE**2)
    tails = 2 * np.minimum(law.cdf(together), law.sf(together - 1))
    return float(min(1.0, tails.min() * len(tails)))


def _steps_p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Two independent draws share Binomial(n, q^2) inclusions."""
    return float(scipy.stats.binomtest(int((one & other).sum()), one.size, RATE**2).pvalue)


@of_both_kinds
def test_records_are_drawn_at_the_claimed_rate(kind: Sampler) -> None:
    assert _rate_p_value(_poisson(kind=kind)) > FALSE_ALARM


def test_the_rate_test_would_notice_a_rate_of_0_105() -> None:
    assert _rate_p_value(_poisson(rate=0.105)) < FALSE_ALARM


@of_both_kinds
def test_no_record_is_drawn_more_often_than_another(kind: Sampler) -> None:
    assert _evenness_p_value(_poisson(kind=kind)) > FALSE_ALARM


def test_the_evenness_test_would_notice_a_favoured_tenth() -> None:
    drawn = _poisson()
    drawn[:, :20] |= _poisson(attempt=2)[:, :20] & _poisson(rate=0.5, attempt=3)[:, :20]
    assert _evenness_p_value(drawn) < FALSE_ALARM


@of_both_kinds
def test_pairs_of_records_are_drawn_together_at_the_squared_rate(kind: Sampler) -> None:
    assert _least_pair_p_value(_poisson(kind=kind)) > FALSE_ALARM


def test_the_pair_test_would_notice_records_that_go_together() -> None:
    assert _rate_p_value(_twins()) > FALSE_ALARM  # Each record on its own looks right.
    assert _least_pair_p_value(_twins()) < FALSE_ALARM


@of_both_kinds
def test_batch_sizes_vary_as_poisson_sampling_says(kind: Sampler) -> None:
    assert _size_variance_p_value(_poisson(kind=kind)) > FALSE_ALARM


def test_the_size_test_would_notice_batches_of_one_size() -> None:
    assert _rate_p_value(_fixed_size()) > FALSE_ALARM  # Each record on its own looks right.
    assert _size_variance_p_value(_fixed_size()) < FALSE_ALARM


@of_both_kinds
def test_steps_and_attempts_draw_independently(kind: Sampler) -> None:
    drawn = _poisson(kind=kind)
    assert _steps_p_value(drawn[:-1], drawn[1:]) > FALSE_ALARM
    assert _steps_p_value(drawn, _poisson(attempt=2, kind=kind)) > FALSE_ALARM


def test_the_two_kinds_draw_independently() -> None:
    assert _steps_p_value(_poisson(), _poisson(kind=CipherPoissonSampler)) > FALSE_ALARM


def test_the_independence_test_would_notice_a_replayed_attempt() -> None:
    assert _steps_p_value(_poisson(), _poisson()) < FALSE_ALARM


@of_both_kinds
@pytest.mark.parametrize("rate", [0.002, 0.01])
def test_empty_batches_come_as_often_as_they_should_and_are_yielded(
    rate: float, kind: Sampler
) -> None:
    sampler = kind(KEY, NUM_RECORDS, rate, attempt=1)
    sizes = [len(sampler.batch(step)) for step in range(STEPS)]
    chance = (1 - rate) ** NUM_RECORDS
    assert len(sizes) == STEPS
    assert sizes.count(0) > 0
    assert scipy.stats.binomtest(sizes.count(0), STEPS, chance).pvalue > FALSE_ALARM


def test_the_empty_batch_test_would_notice_that_they_are_skipped() -> None:
    chance = (1 - 0.01) ** NUM_RECORDS
    assert scipy.stats.binomtest(0, STEPS, chance).pvalue < FALSE_ALARM


@of_both_kinds
def test_a_large_sparse_draw_is_as_even_as_a_small_one(kind: Sampler) -> None:
    # numpy draws small samples of large populations by another algorithm.
    sampler = kind(KEY, 60_000, 0.005, attempt=1)
    drawn = np.concatenate([sampler.batch(step) for step in range(300)])
    counts = np.histogram(drawn, bins=60, range=(0, 60_000))[0]
    expected, variance = 300 * 1_000 * 0.005, 300 * 1_000 * 0.005 * 0.995
    statistic = float(((counts - expected) ** 2).sum()) / variance
    law = scipy.stats.chi2(60)
    assert 2 * min(law.cdf(statistic), law.sf(statistic)) > FALSE_ALARM
