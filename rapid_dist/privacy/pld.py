"""Privacy-loss distributions of what was released, composed exactly.

The number of record: dp_accounting's PLD, discretised pessimistically, for the zero-out relation
(``REPLACE_SPECIAL``: one record replaced by nothing, the number of records being public).
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.privacy_accountant import NeighboringRelation

from rapid_dist.privacy.mechanism import DpSgdEvent, Event, GaussianEvent

FINE = 1e-4  # Discretisation of the privacy loss behind every number that is reported.
COARSE = 1e-3  # Ten times faster, a little higher: where a search begins.


def pooled(events: Sequence[Event]) -> tuple[DpSgdEvent, ...]:
    """Returns the events with equal constants merged, in a fixed order.

    A Gaussian release is DP-SGD with sample rate 1, so that one kind of event remains.
    """
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        if isinstance(event, GaussianEvent):
            steps[1.0, event.noise_multiplier] += 1
        else:
            steps[event.sample_rate, event.noise_multiplier] += event.steps
    return tuple(
        DpSgdEvent(sample_rate=rate, noise_multiplier=noise, steps=count)
        for (rate, noise), count in sorted(steps.items())
        if count
    )


def pld_epsilon(events: Sequence[Event], delta: float, interval: float = FINE) -> float:
    """Returns the epsilon, at ``delta``, of everything in ``events`` together."""
    return _pooled_epsilon(pooled(events), delta, interval)


def pld_epsilons(events: Sequence[Event], delta: float, most_composed: int) -> list[float]:
    """Returns the epsilon after each of the events, one convolution an event.

    Of more than ``most_composed`` events only every few are composed; those between have the
    epsilon of the next that is, which is no lower than their own.
    """
    stride = max(1, -(-len(events) // most_composed))
    whole: Any = None
    found: list[float] = []
    for start in range(0, len(events), stride):
        part = events[start : start + stride]
        if merged := pooled(part):
            more = _composed(merged, FINE)
            whole = more if whole is None else whole.compose(more)
        found += [0.0 if whole is None else _epsilon(whole, delta)] * len(part)
    return found


@lru_cache(maxsize=256)
def _pooled_epsilon(events: tuple[DpSgdEvent, ...], delta: float, interval: float) -> float:
    return _epsilon(_composed(events, interval), delta) if events else 0.0


@lru_cache(maxsize=4)
def _composed(events: tuple[DpSgdEvent, ...], interval: float) -> Any:
    # Full-batch releases compose to one Gaussian in closed form: 1 / sigma^2 adds up.
    precision = sum(e.steps / e.noise_multiplier**2 for e in events if e.sample_rate == 1)
    parts = [_one_step(1.0, precision**-0.5, interval)] if precision else []
    parts += [
        _one_step(e.sample_rate, e.noise_multiplier, interval).self_compose(e.steps)
        for e in events
        if e.sample_rate < 1
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return whole


def _epsilon(whole: Any, delta: float) -> float:
    epsilon = float(whole.get_epsilon_for_delta(delta))
    return epsilon if not math.isnan(epsilon) else math.inf


@lru_cache(maxsize=32)
def _one_step(sample_rate: float, noise_multiplier: float, interval: float) -> Any:
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=sample_rate,
        neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
    )
