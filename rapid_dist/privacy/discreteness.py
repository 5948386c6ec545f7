"""What it costs that secure noise is a discrete Gaussian and not a rounded one.

Let R_s be N(0, s^2) rounded to the nearest whole number and Q_s the discrete Gaussian, Q_s(k)
proportional to exp(-k^2 / 2s^2). An integer sum plus R_s *is* the rounded Gaussian mechanism, so
it is as private as that, to the letter. What is added is Q_s. For s >= 16 and every k, with the
density f of N(0, s^2), u uniform in [-1/2, 1/2] and Z = sum_j f(j) in [1, 1 + 3 exp(-2 pi^2 s^2)]:

    R_s(k) / f(k) = E exp(-ku/s^2 - u^2/2s^2),     Q_s(k) = f(k) / Z,
    Q_s(k) / R_s(k) <= exp(1 / 24s^2)              by Jensen's inequality;
    R_s(k) / Q_s(k) <= Z exp(k^2 / 24s^4)          because sinh(y) / y <= exp(y^2 / 6).

A run's n noise values of one scale are independent of data, batches and keys of other purposes, so
take them as one vector. Over it the first ratio is at most exp(n / 24s^2). The second is at most
exp((3n + 4t) / 24s^2) unless sum k^2 > s^2 (5n/2 + 7t/2), which under R has a chance below
exp(-t): Laurent and Massart's bound P(chi^2_n > 2n + 3t) <= exp(-t), with |k| <= |x| + 1/2.
So from (epsilon', delta') of the Gaussian mechanism, in either order of two neighbours, for any S,

    Q(S | D) <= e^a1 R(S | D) <= e^a1 (e^epsilon' R(S | D') + delta')
             <= e^(epsilon' + a1 + a2) Q(S | D') + e^a1 (delta' + G exp(epsilon' + a2 - t)),

with a1 + a2 = sum over G scales of (n + t) / 6s^2. That sum is what is added to epsilon; delta' is
chosen a little below delta to pay for the rest. At noise multiplier 1 and 1,000 steps the sum is
1e-5 for a million weights, and 6e-4 for the 2^26 values that an entry pays for. Neither relation
nor subsampling comes in: the transcript is one function of data, coins and noise vector.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.mechanism import DiscreteDpSgdEvent, DiscreteGaussianEvent, Event

_T = 1000.0  # The failure's exponent, t above.
_SPARE = 1e-9  # Share of delta that pays for failures of chance exp(-t).
_MOST_EPSILON, _LEAST_DELTA, _MOST_SCALES = 800.0, 1e-60, 10**6  # For which _T and _SPARE do.


@dataclass(frozen=True, kw_only=True, slots=True)
class Discreteness:
    """The price of discrete noise: epsilon is to be taken at ``delta``, and added to."""

    delta: float
    epsilon: float

    def total(self, epsilon: float) -> float:
        """Returns the epsilon of the discrete mechanism, from the Gaussian one's at ``delta``."""
        if not self.epsilon:
            return epsilon
        total = epsilon + self.epsilon
        return total if total <= _MOST_EPSILON else math.inf


def discreteness(events: Sequence[Event], delta: float) -> Discreteness:
    """Returns what the discrete ones among ``events`` cost beyond the Gaussian accounting.

    Guarantees: without discrete events, nothing: delta as it is, and epsilon 0.
    """
    values: Counter[int] = Counter()
    for event in events:
        if isinstance(event, DiscreteGaussianEvent):
            values[event.scale] += event.values
        elif isinstance(event, DiscreteDpSgdEvent):
            values[event.scale] += event.values * event.steps
    if not values:
        return Discreteness(delta=delta, epsilon=0.0)
    if delta < _LEAST_DELTA or len(values) > _MOST_SCALES:
        raise ConfigError(
            f"Secure noise is accounted for delta of at least {_LEAST_DELTA:g}, got {delta}. "
            "Raise delta."
        )
    epsilon = math.fsum((n + _T) / (6 * scale**2) for scale, n in values.items())
    return Discreteness(delta=delta * (1 - _SPARE) * math.exp(-epsilon), epsilon=epsilon)
