"""The noise check's statistics: right ones seldom fail, as often as they say; wrong ones do."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from rapid_dist.audit.noise import check_noise
from rapid_dist.audit.releases import loop_releases, muted, repeated_windows, wide_release
from rapid_dist.audit.result import failed
from rapid_dist.audit.statistics import (
    Row,
    correlation_p_value,
    evenness_p_value,
    least_pair_p_value,
    overlap_p_value,
    shape_p_value,
    size_p_value,
    tail_p_value,
    variance_p_value,
)
from tests.faults.subjects import small_subject
from tests.models import mechanism

FALSE_ALARM = 1e-6  # Chance that right statistics fail the calibration under a fresh seed.
STDDEV, VALUES = 3.0, 400
STEPS, UNITS, RATE = 80, 24, 0.3


def _normal(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, STDDEV, VALUES)


def _drawn(rng: np.random.Generator) -> np.ndarray:
    return rng.random((STEPS, UNITS)) < RATE


STATISTICS: dict[str, Callable[[np.random.Generator], float]] = {
    "variance": lambda rng: variance_p_value(_normal(rng), STDDEV),
    "shape": lambda rng: shape_p_value(_normal(rng), STDDEV),
    "tail": lambda rng: tail_p_value(_normal(rng), STDDEV),
    "correlation": lambda rng: correlation_p_value(_normal(rng), _normal(rng), STDDEV),
    "evenness": lambda rng: evenness_p_value(_drawn(rng), RATE),
    "sizes": lambda rng: size_p_value(_drawn(rng), RATE),
    "overlap": lambda rng: overlap_p_value(_drawn(rng), _drawn(rng), RATE),
    "least pair": lambda rng: least_pair_p_value(_drawn(rng), RATE),
}


def _too_many_alarms(statistic: Callable[[np.random.Generator], float]) -> float:
    """P-value of the claim that the statistic alarms in 1% of the cases at most."""
    rng = np.random.default_rng(0)
    alarms = sum(statistic(rng) < 0.01 for _ in range(1_000))
    # 1.3%: chi-square is the law of squared binomials nearly, not quite.
    return float(scipy.stats.binomtest(alarms, 1_000, 0.013, alternative="greater").pvalue)


@pytest.mark.parametrize("name", list(STATISTICS))
def test_a_right_mechanism_fails_as_seldom_as_is_said(name: str) -> None:
    assert _too_many_alarms(STATISTICS[name]) > FALSE_ALARM


def test_the_calibration_would_notice_a_statistic_that_alarms_too_often() -> None:
    assert _too_many_alarms(lambda rng: variance_p_value(1.1 * _normal(rng), STDDEV)) < FALSE_ALARM


def test_short_layers_have_exact_correlations_too() -> None:
    def few(rng: np.random.Generator) -> float:
        return correlation_p_value(_normal(rng)[:2], _normal(rng)[:2], STDDEV)

    assert _too_many_alarms(few) > FALSE_ALARM


def test_a_row_fails_by_its_least_likely_test_alone() -> None:
    row = Row(check="noise", share=0.5)
    assert row.verdict("?", {"one": 0.5, "other": 2.6e-7}).passed
    assert not row.verdict("?", {"one": 0.5, "other": 2.4e-7}).passed
    assert row.verdict("?", {"one": 0.5}).false_alarm == 5e-7


def _float_noise(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def test_independent_noise_has_no_repeated_stretch_though_single_values_repeat() -> None:
    noise = _float_noise(400_000, 0)
    assert len(np.unique(np.abs(noise))) < len(noise)
    assert repeated_windows([noise, _float_noise(1_000, 1)])[0] == 0


def test_noise_on_a_coarse_grid_is_not_mistaken_for_repeats() -> None:
    coarse = np.round(100 * _float_noise(100_000, 0)) / 100
    assert repeated_windows([coarse])[0] == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_stretch_that_is_released_again_elsewhere_is_found(sign: int) -> None:
    first, second = _float_noise(50_000, 0), _float_noise(50_000, 1)
    second[1_234:1_334] = sign * first[40_000:40_100]
    repeats, width = repeated_windows([first, second])
    assert repeats == 100 - width + 1


def test_a_muted_loop_releases_noise_from_three_runs() -> None:
    subject = muted(small_subject())
    found = loop_releases(subject)
    assert [len(run) for run in (found.first, found.resumed, found.second)] == [2, 2, 3]
    releases = [*found.first, *found.resumed, *found.second]
    assert len({release.tobytes() for release in releases}) == len(releases)
    assert all(release.any() for release in releases)


@pytest.mark.parametrize("noise", ["fast", "secure"])
def test_a_network_wider_than_its_own_is_noised_in_several_chunks(noise: str) -> None:
    subject = muted(small_subject(mechanism=mechanism(noise=noise)))
    stddev = subject.mechanism.noise_stddev / subject.mechanism.expected_batch
    assert variance_p_value(wide_release(subject), stddev) > FALSE_ALARM


def test_the_product_passes_with_secure_noise() -> None:
    subject = small_subject(mechanism=mechanism(noise="secure"))
    assert failed(check_noise(subject, "quick")) == []
