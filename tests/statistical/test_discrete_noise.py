"""Secure noise has the discrete Gaussian's law, exactly, from streams that never meet."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch

from rapid_dist.privacy.discrete import CipherStream, ExactSampler
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.mechanism import UNITS
from rapid_dist.privacy.noise import CHUNK, FastNoise, SecureNoise

FALSE_ALARM = 1e-6  # Chance that a correct sampler fails one of these tests under a fresh key.
KEY = SecretKey(bytes(KEY_BYTES))  # Fixed, so that a test gives the same result every time.
NUM_VALUES = 200_000
ALWAYS = 1.0  # Doubt with which every comparison is made in whole numbers.


def _sampler(*parts: int, **options: float) -> ExactSampler:
    return ExactSampler(CipherStream(KEY.derive("test", *parts)), **options)


def _chi_square_p_value(values: np.ndarray, weights: np.ndarray) -> float:
    """Values -h..h against their weights; rarer ones than 1e-4 are taken together."""
    half = len(weights) // 2
    chances = weights / weights.sum()
    seen = np.bincount(np.clip(values, -half, half) + half, minlength=len(weights))
    common = chances >= 1e-4
    expected = np.append(chances[common], chances[~common].sum()) * len(values)
    observed = np.append(seen[common], seen[~common].sum())
    return float(scipy.stats.chisquare(observed, expected).pvalue)


def _gaussian_weights(scale: float) -> np.ndarray:
    places = np.arange(-20 * int(scale) - 20, 20 * int(scale) + 21)
    return np.exp(-(places**2) / (2 * scale**2))


@pytest.mark.parametrize("scale", [1, 2, 3, 5, 11])
def test_small_scales_have_the_exact_chances(scale: int) -> None:
    values = _sampler(scale).gaussian(scale, NUM_VALUES)
    assert _chi_square_p_value(values, _gaussian_weights(scale)) > FALSE_ALARM


@pytest.mark.parametrize("scale", [1, 3])
def test_comparisons_in_whole_numbers_have_the_exact_chances(scale: int) -> None:
    values = _sampler(scale, 1, doubt=ALWAYS).gaussian(scale, 4_000)
    assert _chi_square_p_value(values, _gaussian_weights(scale)) > FALSE_ALARM


def test_the_chances_test_would_notice_a_rounded_gaussian() -> None:
    rounded = np.rint(np.random.default_rng(0).standard_normal(NUM_VALUES)).astype(np.int64)
    assert _chi_square_p_value(rounded, _gaussian_weights(1)) < FALSE_ALARM


def test_the_chances_test_would_notice_two_chances_for_zero() -> None:
    values = _sampler(0).gaussian(2, NUM_VALUES)
    doubled = np.append(values, np.zeros((values == 0).sum() // 20, np.int64))
    assert _chi_square_p_value(doubled, _gaussian_weights(2)) < FALSE_ALARM


@pytest.mark.parametrize("scale", [2**22, 3 * 2**21, 2**22 * 7 + 1, 2**40 + 12_345])
def test_large_scales_have_the_stddev_shape_and_tails_of_a_gaussian(scale: int) -> None:
    values = _sampler(scale).gaussian(scale, NUM_VALUES) / scale
    assert min(_p_values(values)) > FALSE_ALARM


def _p_values(values: np.ndarray) -> tuple[float, float, float]:
    """(stddev, shape, tails) of values that should be standard normal."""
    law, statistic = scipy.stats.chi2(len(values)), float((values**2).sum())
    stddev = 2 * min(law.cdf(statistic), law.sf(statistic))
    shape = float(scipy.stats.kstest(values, scipy.stats.norm.cdf).pvalue)
    beyond, chance = int((np.abs(values) > 3.5).sum()), 2 * scipy.stats.norm.sf(3.5)
    return stddev, shape, float(scipy.stats.binomtest(beyond, len(values), chance).pvalue)


def test_the_stddev_test_would_notice_two_percent() -> None:
    values = _sampler(7).gaussian(2**22, NUM_VALUES) / 2**22
    assert _p_values(0.98 * values)[0] < FALSE_ALARM
    assert _p_values(values + 0.03)[1] < FALSE_ALARM
    assert _p_values(np.clip(values, -3.5, 3.5))[2] < FALSE_ALARM


def _coin_p_value(x: Fraction, tossed_at: Fraction, count: int, doubt: float) -> float:
    sampler = _sampler(9, doubt=doubt)
    heads = sampler.coins(np.full(count, float(tossed_at)), lambda place: tossed_at)
    return float(scipy.stats.binomtest(int(heads.sum()), count, float(np.exp(-float(x)))).pvalue)


@pytest.mark.parametrize("x", [Fraction(0), Fraction(1, 1000), Fraction(2, 3), Fraction(5)])
@pytest.mark.parametrize(("count", "doubt"), [(NUM_VALUES, 2.0**-36), (3_000, ALWAYS)])
def test_a_coin_of_chance_exp_of_minus_x_has_that_chance(
    x: Fraction, count: int, doubt: float
) -> None:
    assert _coin_p_value(x, x, count, doubt) > FALSE_ALARM


def test_the_coin_test_would_notice_five_percent_in_the_exponent() -> None:
    x = Fraction(2, 3)
    assert _coin_p_value(x, x * Fraction(105, 100), NUM_VALUES, 2.0**-36) < FALSE_ALARM


@pytest.mark.parametrize(("count", "doubt"), [(NUM_VALUES, 2.0**-36), (3_000, ALWAYS)])
def test_the_geometric_law_has_the_exact_chances(count: int, doubt: float) -> None:
    values = _sampler(11, doubt=doubt).geometric(count)
    assert _chi_square_p_value(values, _geometric_weights()) > FALSE_ALARM


def _geometric_weights() -> np.ndarray:
    places = np.arange(-40, 41)
    return np.where(places >= 0, np.exp(-places.astype(float)), 0.0)


def test_the_geometric_test_would_notice_a_cut_at_four() -> None:
    cut = np.minimum(_sampler(11).geometric(NUM_VALUES), 4)
    assert _chi_square_p_value(cut, _geometric_weights()) < FALSE_ALARM


def _noise(step: int = 0, attempt: int = 1, purpose: str = "noise") -> np.ndarray:
    noise = SecureNoise(1.0, 1.0, KEY, attempt, purpose)
    return noise.release(torch.zeros(CHUNK + 50_000, dtype=torch.int64), step).double().numpy()


def _independence_p_value(one: np.ndarray, other: np.ndarray) -> float:
    correlation = np.corrcoef(one, other)[0, 1]
    return 2 * float(scipy.stats.norm.sf(abs(correlation) * len(one) ** 0.5))


def test_steps_attempts_purposes_kinds_and_chunks_have_independent_noise() -> None:
    fast = FastNoise(1.0, KEY, 1).release(torch.zeros(CHUNK + 50_000), 0).double().numpy()
    first = _noise()
    streams = [first, _noise(step=1), _noise(attempt=2), _noise(purpose="prior"), fast]
    for one, other in itertools.combinations(streams, 2):
        assert _independence_p_value(one, other) > FALSE_ALARM
    assert _independence_p_value(first[:50_000], first[CHUNK:]) > FALSE_ALARM
    assert _independence_p_value(first[:-1], first[1:]) > FALSE_ALARM


def test_the_independence_test_would_notice_a_stream_that_is_partly_reused() -> None:
    one, other = _noise(), _noise(step=1)
    assert _independence_p_value(one, 0.02 * one + other) < FALSE_ALARM


def test_secure_noise_has_the_stddev_that_was_priced() -> None:
    noise = SecureNoise(0.3, 1.7, KEY, 1).release(torch.zeros(CHUNK, dtype=torch.int64), 5)
    assert min(_p_values(noise.double().numpy() / (0.3 * 1.7))) > FALSE_ALARM
    assert int(UNITS * 1.7) != UNITS * 1.7  # The scale was rounded up.
