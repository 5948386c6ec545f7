"""The noise is Gaussian, of the stddev that was priced, and never the same twice."""

import itertools

import numpy as np
import scipy.stats
import torch

from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.noise import CHUNK, add_noise_

FALSE_ALARM = 1e-6  # Chance that correct noise fails one of these tests under a fresh key.
KEY = SecretKey(bytes(KEY_BYTES))  # Fixed, so that a test gives the same result every time.
STDDEV = 3.0
NUM_VALUES = 2 * CHUNK + 1_000


def _noise(step: int = 0, attempt: int = 1, purpose: str = "noise") -> np.ndarray:
    flat = torch.zeros(NUM_VALUES)
    return add_noise_(flat, STDDEV, KEY, step, attempt, purpose).double().numpy()


def _stddev_p_value(claimed: float, values: np.ndarray) -> float:
    """Two-sided: sum of squares / claimed^2 is chi-square with len(values) degrees."""
    statistic = float((values**2).sum()) / claimed**2
    law = scipy.stats.chi2(len(values))
    return 2 * min(law.cdf(statistic), law.sf(statistic))


def _shape_p_value(values: np.ndarray) -> float:
    return float(scipy.stats.kstest(values, scipy.stats.norm(0, STDDEV).cdf).pvalue)


def _independence_p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of n independent normal pairs is close to N(0, 1 / n)."""
    correlation = np.corrcoef(one, other)[0, 1]
    return 2 * float(scipy.stats.norm.sf(abs(correlation) * len(one) ** 0.5))


def test_noise_has_the_stddev_that_was_priced() -> None:
    assert _stddev_p_value(STDDEV, _noise()) > FALSE_ALARM


def test_the_stddev_test_would_notice_one_percent_too_little() -> None:
    assert _stddev_p_value(STDDEV, 0.99 * _noise()) < FALSE_ALARM


def test_the_stddev_test_would_notice_noise_divided_over_two_workers() -> None:
    assert _stddev_p_value(STDDEV, _noise() / 2**0.5) < FALSE_ALARM


def test_noise_is_gaussian_around_zero() -> None:
    assert _shape_p_value(_noise()) > FALSE_ALARM


def test_the_shape_test_would_notice_other_noise_of_the_same_stddev() -> None:
    rng = np.random.default_rng(0)
    laplace = rng.laplace(0, STDDEV / 2**0.5, NUM_VALUES)
    shifted = _noise() + 0.02 * STDDEV
    assert _shape_p_value(laplace) < FALSE_ALARM
    assert _shape_p_value(shifted) < FALSE_ALARM


def test_the_tails_are_as_long_as_a_gaussians() -> None:
    beyond = int((np.abs(_noise()) > 4 * STDDEV).sum())
    chance = 2 * scipy.stats.norm.sf(4)
    assert scipy.stats.binomtest(beyond, NUM_VALUES, chance).pvalue > FALSE_ALARM


def test_the_tail_test_would_notice_a_cut() -> None:
    cut = np.clip(_noise(), -4 * STDDEV, 4 * STDDEV)
    beyond = int((np.abs(cut) > 4 * STDDEV).sum())
    chance = 2 * scipy.stats.norm.sf(4)
    assert scipy.stats.binomtest(beyond, NUM_VALUES, chance).pvalue < FALSE_ALARM


def test_steps_attempts_and_purposes_have_independent_noise() -> None:
    streams = [_noise(), _noise(step=1), _noise(attempt=2), _noise(purpose="prior")]
    for one, other in itertools.combinations(streams, 2):
        assert _independence_p_value(one, other) > FALSE_ALARM


def test_chunks_have_independent_noise() -> None:
    noise = _noise()
    assert _independence_p_value(noise[:CHUNK], noise[CHUNK : 2 * CHUNK]) > FALSE_ALARM
    assert _independence_p_value(noise[:-1], noise[1:]) > FALSE_ALARM  # Neighbours, too.


def test_the_independence_test_would_notice_a_stream_that_is_partly_reused() -> None:
    one, other = _noise(), _noise(step=1)
    mixed = 0.02 * one + (1 - 0.02**2) ** 0.5 * other
    assert _independence_p_value(one, mixed) < FALSE_ALARM


def _repeated_chunks(attempts: list[int]) -> int:
    """How many of the chunks of 5 steps in each attempt were seen before."""
    chunks = [
        part.tobytes()
        for attempt, step in itertools.product(attempts, range(5))
        for part in np.split(_noise(step, attempt)[: 2 * CHUNK], 2)
    ]
    return len(chunks) - len(set(chunks))


def test_no_chunk_of_noise_is_ever_repeated() -> None:
    assert _repeated_chunks(attempts=[1, 2]) == 0


def test_the_repeat_test_would_notice_a_restart_with_the_old_attempt_number() -> None:
    assert _repeated_chunks(attempts=[1, 1]) == 10
