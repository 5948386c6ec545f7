"""How much privacy a run can have had, given how many of its canaries were guessed right.

m canaries are each in the data or not, by a fair coin; whoever looks at the release says of r of
them whether they were in, and is right on v. The more (epsilon, delta), or the trade-off curve f,
promises, the fewer right guesses it allows.

- (epsilon, delta) alone: Steinke, Nasr, Jagielski (2023, arXiv 2305.08846), theorem 5.2.
- The whole curve f: Mahloujifar, Melis, Chaudhuri (2024, arXiv 2410.22235), theorem and recursion.
  A curve promises more than one of its points, so it is refuted by less.

Both hold whatever the canaries do to one another; with thousands of them in one run they are far
from tight. They find gross faults and prove nothing about small ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import binom

_HALVINGS = 30


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """What came of one run: ``correct`` of ``made`` guesses, on ``canaries`` fair coins."""

    canaries: int  # m
    made: int  # r; for the others the guesser passed. Fixed before the scores were seen.
    correct: int  # v

    def __post_init__(self) -> None:
        assert 0 <= self.correct <= self.made <= self.canaries


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A trade-off curve f, as the (epsilon, delta) pairs it consists of; both float64 [G].

    Fewer pairs promise less, so leaving some out can hide a fault and never invents one.
    """

    epsilons: np.ndarray
    deltas: np.ndarray

    def least_type_one(self, found: float) -> float:
        """Returns the least chance of a false alarm at which a test can find a share ``found``.

        The inverse of 1 - f. Of each pair (epsilon, delta), two lines bound f from below:
        1 - delta - e^epsilon a and e^-epsilon (1 - delta - a).
        """
        steep = (found - self.deltas) * np.exp(-self.epsilons)
        flat = 1 - self.deltas - np.exp(self.epsilons) * (1 - found)
        return max(0.0, float(steep.max()), float(flat.max()))


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Returns the most likely that (epsilon, delta)-DP makes so many right guesses, or more."""
    made, correct = guesses.made, guesses.correct
    share = float(expit(epsilon))  # Of right guesses against randomised response.
    tail = float(binom.sf(correct - 1, made, share))
    fewer = np.arange(1, correct + 1)
    # Delta can lift an outcome that is i short of v; the more it is short, the dearer per canary.
    lifted = binom.sf(correct - fewer - 1, made, share) - tail
    alpha = float(np.max(lifted / fewer, initial=0.0))
    return min(1.0, tail + 2 * guesses.canaries * delta * alpha)


def epsilon_lower_bound(guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
    """Returns the largest epsilon that the guesses refute at ``delta``, 0 if they refute none.

    Chance that it exceeds the epsilon of a mechanism that is (epsilon, delta)-DP: at most
    1 - confidence.
    """
    return largest_refuted(lambda epsilon: p_value(guesses, epsilon, delta) <= 1 - confidence)


def refutes(guesses: Guesses, curve: Curve, confidence: float = 0.95) -> bool:
    """Whether no mechanism with this trade-off curve gives so many right guesses.

    Chance that a mechanism with the curve is refuted: at most 1 - confidence.

    Let p_j be the chance of exactly j right guesses. For every i the curve binds the right guesses
    of outcomes above i, R = sum_{j > i} j p_j / m, to the wrong ones of outcomes from i on,
    H = sum_{j >= i} (r - j) p_j / m, by R <= 1 - f(H). Beginning with the smallest tail that would
    not be a surprise, each bound asks for more below it; a total above r / m cannot be.
    """
    made, correct, canaries = guesses.made, guesses.correct, guesses.canaries
    tail = 1 - confidence
    right, wrong = tail * correct / canaries, tail * (made - correct) / canaries
    for below in range(correct - 1, -1, -1):
        more = max(wrong, curve.least_type_one(right))
        if more == wrong:
            break  # Then nothing changes any more.
        right = min(1.0, right + below / (made - below) * (more - wrong))
        wrong = more
    return right + wrong > made / canaries


def largest_refuted(is_refuted: Callable[[float], bool]) -> float:
    """Returns the largest epsilon that is refuted, from below; 0 if none is."""
    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low
