"""What a run had spent after each of its releases.

A claim asks all accountants once, of everything together (accounting.py). To ask them after every
step of training would take minutes, so here the PLD is carried along, one convolution a release,
and PRV and RDP are asked after a few. Between those the margin that the PRV adds is interpolated.

Every value is at least the PLD's upper bound of what was spent until then, and the last one is the
claim's own. No claim, charge or refusal is made from the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rapid_dist.privacy.accounting import Epsilons, epsilons
from rapid_dist.privacy.discreteness import discreteness
from rapid_dist.privacy.mechanism import Event
from rapid_dist.privacy.pld import pld_epsilons

MOST_COMPOSED = 500  # Convolutions of one curve; 50 ms each.
CHECKED = 12  # Releases after which all accountants are asked; half a second each.


@dataclass(frozen=True, kw_only=True)
class Spend:
    """Epsilon over the releases of one run, in the order in which they were charged."""

    reported: Sequence[float]  # After 1, 2, ... releases; the last is what is claimed.
    checked: Mapping[int, Epsilons]  # By every accountant, after so many releases.


def spend(events: Sequence[Event], delta: float, *, most_composed: int = MOST_COMPOSED) -> Spend:
    """Returns what had been spent after each of ``events``, of which there is at least one."""
    counts = np.unique(np.linspace(1, len(events), CHECKED).round().astype(int))
    checked = {int(count): epsilons(events[:count], delta) for count in counts}
    # What discrete noise costs grows with every release: the whole run's is no less than a part's.
    discrete = discreteness(events, delta)
    gaussian = pld_epsilons(events, discrete.delta, most_composed)
    pld = np.array([discrete.total(epsilon) for epsilon in gaussian])
    asked = np.array([checked[int(count)].reported for count in counts])
    margin = np.maximum(0.0, asked - pld[counts - 1])
    reported = pld + np.interp(np.arange(1, len(events) + 1), counts, margin)
    reported[-1] = asked[-1]
    # Less is not spent by releasing more: what bounds a later epsilon bounds an earlier one.
    reported = np.minimum.accumulate(reported[::-1])[::-1]
    return Spend(reported=reported.tolist(), checked=checked)
