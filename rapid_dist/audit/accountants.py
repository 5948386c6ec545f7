"""Epsilon by the libraries' own accountants, fed event by event.

Held against the product's accounting, of which it uses nothing: the events go to dp_accounting's
``PLDAccountant``, and to Opacus' PRV and RDP, through the doors that these have for everybody.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from opacus.accountants import PRVAccountant, RDPAccountant

from rapid_dist.audit.one_run import Curve
from rapid_dist.privacy.mechanism import DpSgdEvent, Event

_GRID = 300  # Points of a curve; fewer promise less.
_SMALLEST_DELTA = 1e-9  # Where a curve ends.


def pld_epsilon(events: Sequence[Event], delta: float, interval: float = 1e-4) -> float:
    """Returns epsilon by privacy-loss distributions, pessimistic at this discretisation."""
    return _pld_epsilon(tuple(events), delta, interval)


def prv_epsilon(events: Sequence[Event], delta: float) -> float:
    """Returns epsilon by Opacus' PRV accountant, its stated error included."""
    return _prv_epsilon(tuple(events), delta)


@lru_cache(maxsize=64)
def _pld_epsilon(events: tuple[Event, ...], delta: float, interval: float) -> float:
    return float(_pld(events, interval).get_epsilon(delta))


@lru_cache(maxsize=64)
def _prv_epsilon(events: tuple[Event, ...], delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = _history(events)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return float(accountant.get_epsilon(delta, eps_error=0.01))


def rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Returns epsilon by Opacus' RDP accountant, an upper bound that is looser."""
    accountant = RDPAccountant()
    accountant.history = _history(events)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return float(accountant.get_epsilon(delta))


def trade_off(events: Sequence[Event], interval: float = 1e-3) -> Curve:
    """Returns the trade-off curve that the events promise together, as pairs (epsilon, delta)."""
    accountant = _pld(events, interval)
    grid = np.linspace(0.0, float(accountant.get_epsilon(_SMALLEST_DELTA)), _GRID)
    deltas = np.array([accountant.get_delta(float(epsilon)) for epsilon in grid])
    return Curve(epsilons=grid, deltas=deltas)


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
