"""The bounds of the one-run audit hold, and the check finds gross faults and no right mechanism."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from rapid_dist.audit.accountants import pld_epsilon, trade_off
from rapid_dist.audit.empirical import (
    check_empirical,
    check_power,
    curve_lower_bound,
    guess,
    least_refuting,
)
from rapid_dist.audit.one_run import Curve, Guesses, epsilon_lower_bound, p_value, refutes
from rapid_dist.audit.subject import Subject
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import DpSgdConfig, GaussianEvent
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.step import PrivateStep
from tests.faults.subjects import small_subject

RUNS = 2_000
CONFIDENCE = 0.95
# Chance that a right bound fails a coverage test below on a fresh seed: that more than MOST of RUNS
# independent runs pass a bound that each passes with chance 0.05 at most.
FALSE_ALARM = 1e-6
MOST = int(binom.isf(FALSE_ALARM, RUNS, 1 - CONFIDENCE))


def _randomised_response(epsilon: float, canaries: int, runs: int, seed: int) -> list[Guesses]:
    """Every canary's bit is told truly with chance e^epsilon / (1 + e^epsilon): epsilon-DP."""
    right = np.random.default_rng(seed).binomial(canaries, 1 / (1 + np.exp(-epsilon)), runs)
    return [Guesses(canaries=canaries, made=canaries, correct=int(v)) for v in right]


def _point(epsilon: float, delta: float) -> Curve:
    return Curve(epsilons=np.array([epsilon]), deltas=np.array([delta]))


def _too_high(actual: float, claimed: float) -> int:
    """In how many runs the bound refutes ``claimed`` of a mechanism with epsilon ``actual``."""
    runs = _randomised_response(actual, 100, RUNS, seed=0)
    refuted = {g.correct for g in set(runs) if p_value(g, claimed, 0.0) <= 1 - CONFIDENCE}
    return sum(guesses.correct in refuted for guesses in runs)


def test_the_bound_is_below_the_true_epsilon_as_often_as_it_says() -> None:
    assert _too_high(actual=1.0, claimed=1.0) <= MOST


def test_the_coverage_test_would_notice_a_bound_that_is_a_little_too_high() -> None:
    assert _too_high(actual=1.0, claimed=0.8) > MOST


def test_the_bound_by_the_curve_is_below_the_true_epsilon_as_often_as_it_says() -> None:
    runs = _randomised_response(1.0, 100, RUNS, seed=1)
    counted = {v: refutes(Guesses(canaries=100, made=100, correct=v), _point(1.0, 0.0))
               for v in range(101)}  # fmt: skip
    assert sum(counted[guesses.correct] for guesses in runs) <= MOST
    lower = {v: refutes(Guesses(canaries=100, made=100, correct=v), _point(0.8, 0.0))
             for v in range(101)}  # fmt: skip
    assert sum(lower[guesses.correct] for guesses in runs) > MOST


def test_the_curve_of_many_gaussian_canaries_is_not_refuted_by_its_own_mechanism() -> None:
    """One noised bit each: independent canaries, each with exactly the Gaussian's curve."""
    rng, canaries, noise = np.random.default_rng(2), 200, 1.0
    curve = trade_off([GaussianEvent(noise_multiplier=noise)])

    def refuted(actual: float) -> int:
        count = 0
        for _ in range(200):
            coins = rng.random(canaries) < 0.5
            seen = coins + actual * rng.standard_normal(canaries) - 0.5
            right = int(((seen > 0) == coins).sum())
            count += refutes(Guesses(canaries=canaries, made=canaries, correct=right), curve)
        return count

    # Chance of more than this many of 200, each with 0.05 at most: 1e-6.
    most = int(binom.isf(FALSE_ALARM, 200, 1 - CONFIDENCE))
    assert refuted(noise) <= most
    assert refuted(noise / 3) > most  # The twin.


@pytest.mark.parametrize(("made", "correct"), [(100, 100), (1_000, 1_000), (30, 30)])
def test_without_delta_and_without_an_error_the_bound_is_in_closed_form(
    made: int, correct: int
) -> None:
    # All right has chance (1 + e^-epsilon)^-r, so epsilon = -log(0.05^(-1/r) - 1).
    guesses = Guesses(canaries=made, made=made, correct=correct)
    expected = -np.log((1 - CONFIDENCE) ** (-1 / made) - 1)
    assert epsilon_lower_bound(guesses, 0.0) == pytest.approx(expected, abs=1e-6)
    assert refutes(guesses, _point(expected - 1e-3, 0.0))
    assert not refutes(guesses, _point(expected + 1e-3, 0.0))


def test_the_p_value_is_the_theorems() -> None:
    """Steinke, Nasr, Jagielski (2023), theorem 5.2, summed term by term."""
    canaries, made, correct, epsilon, delta = 500, 40, 33, 0.7, 1e-4
    share = 1 / (1 + np.exp(-epsilon))
    chance = [float(binom.pmf(k, made, share)) for k in range(made + 1)]
    beta = sum(chance[correct:])
    alpha = max(sum(chance[correct - i : correct]) / i for i in range(1, correct + 1))
    guesses = Guesses(canaries=canaries, made=made, correct=correct)
    assert p_value(guesses, epsilon, delta) == pytest.approx(beta + 2 * canaries * delta * alpha)


def test_delta_lowers_the_bound_and_guesses_at_random_give_none() -> None:
    guesses = Guesses(canaries=1_000, made=300, correct=290)
    assert epsilon_lower_bound(guesses, 0.0) > epsilon_lower_bound(guesses, 1e-4) > 0
    assert epsilon_lower_bound(Guesses(canaries=1_000, made=300, correct=150), 1e-5) == 0
    assert not refutes(Guesses(canaries=1_000, made=300, correct=150), _point(0.0, 0.0))


def test_a_curve_is_the_one_of_the_gaussian_mechanism() -> None:
    """f(a) = Phi(Phi^-1(1 - a) - 1 / noise), from which least_type_one is its inverse."""
    from scipy.stats import norm

    curve = trade_off([GaussianEvent(noise_multiplier=0.8)])
    for found in (0.05, 0.3, 0.7, 0.95):
        exact = float(norm.cdf(norm.ppf(found) - 1 / 0.8))
        assert curve.least_type_one(found) == pytest.approx(exact, abs=2e-3)
        assert curve.least_type_one(found) <= exact + 1e-9  # Never more than is promised.


DIGITS = DpSgdConfig(
    num_records=1432, expected_batch=512, steps=140, max_grad_norm=1.0, noise_multiplier=2.11278
)
PNEUMONIA = DpSgdConfig(
    num_records=1600, expected_batch=256, steps=150, max_grad_norm=1.0, noise_multiplier=1.24907
)
MNIST = DpSgdConfig(
    num_records=60_000, expected_batch=1024, steps=250, max_grad_norm=1.0, noise_multiplier=0.54062
)


def _subject(**changes: object) -> Subject:
    keys = iter(range(1_000))
    return small_subject(
        mechanism=DIGITS,
        budget=Budget(epsilon=10, delta=1e-4),
        new_key=lambda: SecretKey(next(keys).to_bytes(32, "big")),
        **changes,
    )


class _WeakNoise(PrivateStep):
    """Adds a share of the noise that was priced."""

    share = 1.0

    def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
        own = {field.name: getattr(self, field.name) for field in fields(PrivateStep)}
        noise = self.share * self.mechanism.noise_multiplier
        own["mechanism"] = replace(self.mechanism, noise_multiplier=noise)
        return PrivateStep(**own).noised_gradient(denoiser, step)


class HalfNoise(_WeakNoise):
    """As when a record counts twice."""

    share = 0.5


class QuarterNoise(_WeakNoise):
    """As when each of 16 workers divides by the root of their number, and only one is counted."""

    share = 0.25


class NoNoise(_WeakNoise):
    share = 1e-6


def test_a_right_mechanism_passes_with_a_bound_far_below_its_epsilon() -> None:
    result = check_empirical(_subject(), "quick")  # Fails, if right, with chance 0.05 at most.
    assert result.passed, result
    assert result.value is not None
    assert result.value > 2
    assert result.statistic.startswith(f"epsilon > {result.value:.2f}: ")


@pytest.mark.parametrize("step_type", [HalfNoise, QuarterNoise, NoNoise])
def test_gross_faults_of_the_noise_pass_the_claimed_epsilon(step_type: type[PrivateStep]) -> None:
    result = check_empirical(_subject(step_type=step_type), "quick")
    assert not result.passed, result


@pytest.mark.parametrize("mechanism", [DIGITS, PNEUMONIA, MNIST])
def test_the_canaries_are_enough_to_refute_something(mechanism: DpSgdConfig) -> None:
    result = check_power(replace(_subject(), mechanism=mechanism), "quick")
    assert result.passed, result


def test_the_power_test_would_notice_that_canaries_are_too_few() -> None:
    """16,000, a fifth of them guessed: without any noise, and all guesses right, they pass."""
    curve = trade_off([DIGITS.event(DIGITS.steps)])
    assert least_refuting(16_000, 3_200, curve) is None
    needed = least_refuting(50_000, 10_000, curve)
    assert needed is not None
    assert needed > 9_000


def test_a_claim_that_nothing_can_refute_fails_the_check() -> None:
    hopeless = replace(DIGITS, noise_multiplier=0.6)  # epsilon of some 60.
    result = check_power(replace(_subject(), mechanism=hopeless), "quick")
    assert not result.passed


def test_the_bound_grows_with_the_true_epsilon_and_stays_below_it() -> None:
    bounds = []
    for noise in (6.0, 3.0, 1.5):
        mechanism = replace(DIGITS, noise_multiplier=noise)
        subject = replace(_subject(), mechanism=mechanism)
        bound = curve_lower_bound(guess(subject, 4_000), mechanism, 1e-4, CONFIDENCE)
        assert bound < pld_epsilon([mechanism.event(140)], 1e-4, 1e-3)
        bounds.append(bound)
    assert bounds == sorted(bounds)
    assert bounds[-1] > 0
