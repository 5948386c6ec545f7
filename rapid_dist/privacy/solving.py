"""Solves one unknown of a mechanism for a budget, by bisection on the PLD.

Every solution is on the safe side: its epsilon, at the fine discretisation, is at most the
budget's. Searches begin with a coarse discretisation and end with the fine one.
"""

import math
from collections.abc import Callable, Sequence

from rapid_dist.errors import BudgetError, ConfigError
from rapid_dist.privacy.mechanism import DpSgdEvent, Event
from rapid_dist.privacy.pld import COARSE, FINE, pld_epsilon
from rapid_dist.privacy.settings import Budget

_TOLERANCE = 2e-4  # Of epsilon, left unspent.
_LEAST_NOISE, _MOST_NOISE = 0.2, 2.0**20
_LEAST_RATE = 1e-9
_MOST_STEPS = 10_000_000

EpsilonAt = Callable[[float, float], float]  # (value of the unknown, discretisation) -> epsilon


def solve_noise_multiplier(
    *, sample_rate: float, steps: int, budget: Budget, others: Sequence[Event] = ()
) -> float:
    """Returns the least noise with which ``steps`` steps and ``others`` meet the budget.

    For one full-batch Gaussian query: sample_rate 1, steps 1.
    """

    def epsilon_at(noise: float, interval: float) -> float:
        step = DpSgdEvent(sample_rate=sample_rate, noise_multiplier=noise, steps=steps)
        return pld_epsilon([*others, step], budget.delta, interval)

    if epsilon_at(_LEAST_NOISE, COARSE) <= budget.epsilon:
        raise ConfigError(
            f"epsilon={budget.epsilon} is met with a noise_multiplier below {_LEAST_NOISE}, "
            "which is hardly noise. Lower epsilon, or take more steps or a larger batch."
        )
    bad, good = _LEAST_NOISE, 1.0
    while epsilon_at(good, COARSE) > budget.epsilon:
        bad, good = good, good * 2
        if good > _MOST_NOISE:
            raise _unaffordable("noise_multiplier", budget, others)
    return _frontier(epsilon_at, good, bad, budget.epsilon)


def solve_sample_rate(
    *, noise_multiplier: float, steps: int, budget: Budget, others: Sequence[Event] = ()
) -> float:
    """Returns the largest sample rate with which ``steps`` steps and ``others`` meet the budget."""

    def epsilon_at(rate: float, interval: float) -> float:
        step = DpSgdEvent(sample_rate=rate, noise_multiplier=noise_multiplier, steps=steps)
        return pld_epsilon([*others, step], budget.delta, interval)

    if epsilon_at(_LEAST_RATE, COARSE) > budget.epsilon:
        raise _unaffordable("sample_rate", budget, others)
    if epsilon_at(1.0, FINE) <= budget.epsilon:
        return 1.0
    return _frontier(epsilon_at, _LEAST_RATE, 1.0, budget.epsilon)


def solve_steps(
    *,
    sample_rate: float,
    noise_multiplier: float,
    budget: Budget,
    others: Sequence[Event] = (),
    at_most: int = _MOST_STEPS,
) -> int:
    """Returns the largest number of steps, up to ``at_most``, that meets the budget; maybe 0."""

    def fits(steps: int, interval: float) -> bool:
        step = DpSgdEvent(sample_rate=sample_rate, noise_multiplier=noise_multiplier, steps=steps)
        return pld_epsilon([*others, step], budget.delta, interval) <= budget.epsilon

    if at_most == 0 or not fits(1, FINE):
        return 0
    good, limit = 1, at_most + 1
    while 2 * good < limit and fits(2 * good, COARSE):
        good *= 2
    good = largest_that(lambda steps: fits(steps, COARSE), good, min(2 * good, limit))
    # The coarse answer is a few steps low. Go up from there at the fine discretisation.
    bad, stride = good + 1, 1
    while bad < limit and fits(bad, FINE):
        good, bad, stride = bad, bad + 2 * stride, 2 * stride
    return largest_that(lambda steps: fits(steps, FINE), good, min(bad, limit))


def largest_that(fits: Callable[[int], bool], good: int, bad: int) -> int:
    """Returns the largest whole number below ``bad`` that fits, given that ``good`` does."""
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _frontier(epsilon_at: EpsilonAt, good: float, bad: float, target: float) -> float:
    """Returns a value between ``good``, which fits, and ``bad``, with epsilon just below target."""
    tolerance = _TOLERANCE * min(1.0, target)
    good = _narrow(lambda value: epsilon_at(value, COARSE), good, bad, target, tolerance)
    # Fine epsilons are lower, so their frontier lies a little further towards `bad`.
    edge, share = good, 0.01
    while edge != bad and epsilon_at(edge, FINE) <= target:
        good = edge
        edge = good * (bad / good) ** share if share < 1 else bad
        share *= 2
    return _narrow(lambda value: epsilon_at(value, FINE), good, edge, target, tolerance)


def _narrow(
    epsilon_of: Callable[[float], float], good: float, bad: float, target: float, tolerance: float
) -> float:
    """Bisects on the logarithm, with interpolated guesses while they serve."""
    low, high = epsilon_of(good), epsilon_of(bad)
    assert low <= target, "A search starts from a value that fits."
    if high <= target:  # Of a small epsilon a coarse discretisation may think too ill.
        return bad
    for turn in range(60):
        if target - low <= tolerance:
            break
        share = 0.5
        if turn % 3 != 2 and high < math.inf:  # Every third turn halves, whatever the curve.
            share = min(max((target - tolerance / 2 - low) / (high - low), 0.001), 0.999)
        guess = good * (bad / good) ** share
        epsilon = epsilon_of(guess)
        if epsilon <= target:
            good, low = guess, epsilon
        else:
            bad, high = guess, epsilon
    return good


def _unaffordable(unknown: str, budget: Budget, others: Sequence[Event]) -> BudgetError:
    spent = pld_epsilon(others, budget.delta)
    return BudgetError(
        f"No {unknown} meets epsilon={budget.epsilon} at delta={budget.delta}: other releases "
        f"already cost {spent:.4f}. Raise epsilon, or lower prior_share or the steps."
    )
