"""Epsilon by the libraries' own accountants, fed event by event.

Held against the product's accounting, of which it uses nothing: the events go to dp_accounting's
``PLDAccountant``, and to Opacus' PRV and RDP, through the doors that these have for everybody.

Secure noise is discrete, the libraries' is not. What that costs is worked out here once more, from
the ratios of the two laws (docs/privacy.md, section 7), by Chernoff's bound instead of the
product's closed one. It is smaller: the product may claim more, and must not claim less.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from opacus.accountants import PRVAccountant, RDPAccountant

from rapid_dist.audit.one_run import Curve
from rapid_dist.privacy.mechanism import (
    MOST_VALUES,
    UNITS,
    DiscreteDpSgdEvent,
    DiscreteGaussianEvent,
    DpSgdConfig,
    DpSgdEvent,
    Event,
    RetrievalConfig,
)

_GRID = 300  # Points of a curve; fewer promise less.
_SMALLEST_DELTA = 1e-9  # Where a curve ends.
_UNLIKELY = 1100.0  # A chance of exp(-this) is lost in any delta, for any epsilon below 1,000.
_SPARE = 1 - 1e-12  # Of delta; the rest pays for that chance.


def steps_of(mechanism: DpSgdConfig, steps: int) -> DpSgdEvent:
    """Returns what so many steps release, from the constants that the other checks measure by.

    Not asked of the mechanism, which tells the ledger: it might say something else there.
    """
    rate = mechanism.expected_batch / mechanism.num_records
    noise = mechanism.noise_multiplier
    if mechanism.noise == "fast":
        return DpSgdEvent(sample_rate=rate, noise_multiplier=noise, steps=steps)
    return DiscreteDpSgdEvent(
        sample_rate=rate, noise_multiplier=noise, steps=steps, units=UNITS, values=MOST_VALUES
    )


def rounds_of(mechanism: RetrievalConfig, rounds: int) -> DpSgdEvent:
    """Returns what so many rounds of a private index release: each is priced as a step."""
    rate, noise = mechanism.sample_rate, mechanism.noise_multiplier
    if mechanism.noise == "fast":
        return DpSgdEvent(sample_rate=rate, noise_multiplier=noise, steps=rounds)
    return DiscreteDpSgdEvent(
        sample_rate=rate, noise_multiplier=noise, steps=rounds, units=UNITS, values=MOST_VALUES
    )


def pld_epsilon(events: Sequence[Event], delta: float, interval: float = 1e-4) -> float:
    """Returns epsilon by privacy-loss distributions, pessimistic at this discretisation."""
    return _pld_epsilon(tuple(events), delta, interval)


def prv_epsilon(events: Sequence[Event], delta: float) -> float:
    """Returns epsilon by Opacus' PRV accountant, its stated error included."""
    return _prv_epsilon(tuple(events), delta)


@lru_cache(maxsize=64)
def _pld_epsilon(events: tuple[Event, ...], delta: float, interval: float) -> float:
    price = discreteness(events)
    return price + float(_pld(events, interval).get_epsilon(_less(delta, price)))


@lru_cache(maxsize=64)
def _prv_epsilon(events: tuple[Event, ...], delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = _history(events)
    price = discreteness(events)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return price + float(accountant.get_epsilon(_less(delta, price), eps_error=0.01))


def rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Returns epsilon by Opacus' RDP accountant, an upper bound that is looser."""
    accountant = RDPAccountant()
    accountant.history = _history(events)
    price = discreteness(events)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return price + float(accountant.get_epsilon(_less(delta, price)))


def trade_off(events: Sequence[Event], interval: float = 1e-3) -> Curve:
    """Returns the trade-off curve that the events promise together, as pairs (epsilon, delta)."""
    accountant = _pld(events, interval)
    grid = np.linspace(0.0, float(accountant.get_epsilon(_SMALLEST_DELTA)), _GRID)
    deltas = np.array([accountant.get_delta(float(epsilon)) for epsilon in grid])
    price = discreteness(events)
    more = 1.0 if price == 0 else math.exp(price) / _SPARE
    return Curve(epsilons=grid + price, deltas=np.minimum(1.0, deltas * more))


def discreteness(events: Sequence[Event]) -> float:
    """Returns what it adds to epsilon that noise is discrete: 0 for events of Gaussian noise.

    Of n noise values of parameter s the likelihoods differ, from the rounded Gaussian's, by at most
    exp(n / 24 s^2) in one direction, and in the other by exp(S / 24 s^4) where S is the sum of
    their squares, but for Z^n, which is 1. Chernoff: S / s^2 passes n (1 + d), on the real line,
    with a chance of at most exp(-n (d - log(1 + d)) / 2). A rounded value is at most 1/2 longer.
    """
    counts: Counter[int] = Counter()
    for event in events:
        if isinstance(event, DiscreteGaussianEvent | DiscreteDpSgdEvent):
            steps = event.steps if isinstance(event, DiscreteDpSgdEvent) else 1
            counts[math.ceil(event.noise_multiplier * event.units)] += steps * event.values
    price = 0.0
    for scale, count in counts.items():
        if count == 0:
            continue
        low, high = 0.0, 1.0
        while count * (high - math.log1p(high)) / 2 < _UNLIKELY:
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            enough = count * (middle - math.log1p(middle)) / 2 >= _UNLIKELY
            low, high = (low, middle) if enough else (middle, high)
        # (|x| + 1/2)^2 <= (1 + 1/s) x^2 + (1 + s) / 4.
        squares = (1 + 1 / scale) * count * (1 + high) + count * (1 + scale) / (4 * scale**2)
        price += (count + squares) / (24 * scale**2)
    return price


def _less(delta: float, price: float) -> float:
    """The delta that is left to the libraries' mechanism."""
    return delta if price == 0 else delta * _SPARE * math.exp(-price)


def _pld(events: Sequence[Event], interval: float) -> PLDAccountant:
    relation = NeighboringRelation.REPLACE_SPECIAL
    accountant = PLDAccountant(relation, value_discretization_interval=interval)
    for noise, rate, steps in _history(events):
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    return accountant


def _history(events: Sequence[Event]) -> list[tuple[float, float, int]]:
    """(noise multiplier, sample rate, steps) of runs of equal events, in order."""
    history: list[tuple[float, float, int]] = []
    for event in events:
        rate, steps = 1.0, 1
        if isinstance(event, DpSgdEvent):
            rate, steps = event.sample_rate, event.steps
        if history and history[-1][:2] == (event.noise_multiplier, rate):
            steps += history.pop()[2]
        history.append((event.noise_multiplier, rate, steps))
    return history
