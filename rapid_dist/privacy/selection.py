"""What a model costs because it was chosen: the price of a sweep, and the draw that it rests on.

Choosing the best of several runs on private data is a release of its own: the winner tells of all
runs that lost. Three promises (P12 in docs/privacy.md):

``public_proxy``       runs and scores saw public images alone: choosing costs nothing.
``per_trial``          every run may be seen: the price is the composition of all of them.
``repeat_and_select``  a secret random number of like runs, of which only the best leaves: Papernot
                       and Steinke (ICLR 2022, arXiv 2110.03620), Theorems 2 and 6, after Liu and
                       Talwar (STOC 2019). The price grows with the logarithm of the mean number.

A run here is a random recipe, drawn without looking at data, then private training and a noised
score. Given any recipe its Rényi divergence at order a is at most the largest over all recipes that
can be drawn, so the curve of a run is the pointwise maximum over them. A record is either in the
training part or held out, by its own content or by its source's own parts, so it is in the training
or in the score and never in both: of the two curves the larger counts.

Letters as in the paper: a order, K number of runs, gamma and eta of the truncated negative
binomial distribution.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import scipy.stats
from dp_accounting import (
    ComposedDpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import compute_delta, compute_epsilon

from rapid_dist.errors import BudgetError, ConfigError
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.discreteness import discreteness
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import (
    DiscreteDpSgdEvent,
    DiscreteGaussianEvent,
    Event,
)
from rapid_dist.privacy.pld import pooled

Promise = Literal["public_proxy", "per_trial", "repeat_and_select"]
RunsKind = Literal["geometric", "logarithmic", "poisson"]

ORDERS = (
    1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
    20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42,
    43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 80, 96,
    128, 192, 256, 512, 1024,
)  # fmt: skip
SELECTION = "selection.json"  # In a chosen model's run directory: its price, as plain values.
_SHAPES: dict[RunsKind, float] = {"geometric": 1.0, "logarithmic": 0.0, "poisson": math.inf}
_MOST_RUNS = 10_000  # Of the mean: nobody trains so many.
_LEAST_CHANCE = 1e-15  # Of a number of runs: below it rounding decides.
_AGREEMENT = 1e-6  # Relative, between our form of the theorems and the library's.


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """How the number of runs K of ``repeat_and_select`` is drawn; the draw itself is secret."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # geometric: eta = 1; logarithmic: eta = 0, the cheapest for one mean and the most spread;
    # poisson: cheap for small epsilons, and with chance exp(-mean) there is no run and no winner.
    kind: RunsKind = "geometric"
    mean: float = 8.0

    def __post_init__(self) -> None:
        if self.kind not in _SHAPES:
            raise ConfigError(
                f"sweep.runs.kind must be one of {', '.join(_SHAPES)}, got {self.kind!r}."
            )
        if not 1 < self.mean <= _MOST_RUNS:
            raise ConfigError(
                f"sweep.runs.mean must be above 1 and at most {_MOST_RUNS}, got {self.mean}. "
                "With one run there is nothing to choose."
            )

    @property
    def shape(self) -> float:
        """eta of the truncated negative binomial; infinity stands for Poisson."""
        return _SHAPES[self.kind]

    @property
    def gamma(self) -> float:
        """The halting parameter of this mean; never below the one that is priced."""
        if self.kind == "geometric":
            return 1 / self.mean
        assert self.kind == "logarithmic", "A Poisson distribution has no gamma."
        low, high = 0.0, 1.0  # The mean (1 - gamma) / (gamma ln(1/gamma)) falls in gamma.
        for _ in range(200):
            middle = (low + high) / 2
            if 0 < middle < 1 and (1 / middle - 1) / -math.log(middle) > self.mean:
                low = middle
            else:
                high = middle
        return high

    def draw(self, key: SecretKey) -> int:
        """Returns K, a function of a key that nobody else has; Poisson may give 0."""
        uniform = float(key.generator("number of runs").random())
        if self.kind == "poisson":
            return int(scipy.stats.poisson.ppf(uniform, self.mean))
        if self.kind == "geometric":
            return max(1, math.ceil(math.log1p(-uniform) / math.log1p(-self.gamma)))
        number, below = 1, 0.0
        chance = (1 - self.gamma) / -math.log(self.gamma)  # Of one run.
        while below + chance <= uniform and chance > _LEAST_CHANCE:
            below += chance
            chance *= (1 - self.gamma) * number / (number + 1)
            number += 1
        return number


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What one run of a sweep may release; ``score`` is of the held-out records alone."""

    training: tuple[Event, ...]
    score: tuple[Event, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Price:
    """The (epsilon, delta) of the chosen model because it was chosen. All of it is public."""

    promise: Promise
    epsilon: float
    delta: float
    trial_epsilon: float  # Of one trial by itself, as its plan and its ledger say.
    trials: int | None = None  # None where their number is secret.
    runs: RunsConfig | None = None
    accountant: str

    @property
    def sentence(self) -> str:
        """What may be said of the chosen model, in one sentence."""
        is_private = f"({_up(self.epsilon)}, {self.delta:g})-differentially private"
        if self.promise == "public_proxy":
            return (
                f"Choosing cost nothing: all {self.trials} trials saw public images alone, so a "
                f"model that the chosen recipe trains is {is_private}, as if nothing else had "
                "been tried."
            )
        if self.promise == "per_trial":
            return (
                f"Because it was chosen among {self.trials} trials on the private data, of which "
                f"each alone is within epsilon {_up(self.trial_epsilon)}, the chosen model is "
                f"{is_private}: everything that all trials released, composed ({self.accountant})."
            )
        assert self.runs is not None
        return (
            f"Because it is the best of a secret number of runs ({self.runs.kind}, mean "
            f"{self.runs.mean:g}), of which each alone is within epsilon "
            f"{_up(self.trial_epsilon)} and only this one leaves, the chosen model is "
            f"{is_private} ({self.accountant})."
        )


def price_public(epsilon: float, delta: float, trials: int) -> Price:
    """Returns the price of a choice that no private record had a part in: none."""
    return Price(
        promise="public_proxy",
        epsilon=epsilon,
        delta=delta,
        trial_epsilon=epsilon,
        trials=trials,
        accountant="no private record was looked at",
    )


def price_composition(
    done: Sequence[Candidate],
    delta: float,
    *,
    trial_epsilon: float,
    possible: Sequence[Candidate] = (),
) -> Price:
    """Returns the price of a choice among runs that may all be seen.

    Without ``possible`` the constants of the runs are taken as fixed beforehand (grid, random), and
    their privacy losses are composed as they are. A search that chose them by earlier scores gives
    everything that it could have chosen: at each order the largest Rényi divergence counts for
    every run, which holds for any such choice, and is composed over as many runs as there were.

    Args:
      done: the runs, each with all that it charged.
    """
    if not done:
        raise ConfigError("A sweep without a run has nothing to price. Run at least one trial.")
    if possible:
        curve = len(done) * _largest(possible)
        epsilon, said = _epsilon(curve, delta), "RDP over every choice that was open"
    else:
        training = [event for one in done for event in one.training]
        scores = [event for one in done for event in one.score]
        epsilon = max(epsilons(training, delta).reported, epsilons(scores, delta).reported)
        said = "PLD, checked by PRV"
    return Price(
        promise="per_trial",
        epsilon=epsilon,
        delta=delta,
        trial_epsilon=trial_epsilon,
        trials=len(done),
        accountant=said,
    )


def price_selection(
    possible: Sequence[Candidate],
    runs: RunsConfig,
    delta: float,
    *,
    trial_epsilon: float,
) -> Price:
    """Returns the price of the best of K runs, K secret, each drawn and run alike.

    Args:
      possible: everything that one run can be.

    Raises:
      BudgetError: dp_accounting prices the same choice higher, so no epsilon can be claimed.
      ConfigError: the noise is discrete: the theorem's price for it has not been worked out.
    """
    if not possible:
        raise ConfigError("No run of the sweep is possible. Widen sweep.space.")
    for one in possible:
        for event in (*one.training, *one.score):
            if isinstance(event, DiscreteGaussianEvent | DiscreteDpSgdEvent):
                raise ConfigError(
                    "sweep.promise=repeat_and_select is priced for privacy.noise=fast alone: what "
                    "discrete noise costs beside it is bounded for a known number of runs. Set "
                    "privacy.noise to fast, or choose another promise."
                )
    curve = _selected(_largest(possible), runs)
    epsilon = _epsilon(curve, delta)
    for one in possible:
        for part in (one.training, one.score):
            theirs = _library_epsilon(part, runs, delta)
            if theirs > epsilon * (1 + _AGREEMENT):
                raise BudgetError(
                    f"dp_accounting prices the choice at epsilon {theirs:.4f}, the theorem as "
                    f"written here at {epsilon:.4f}. No epsilon can be claimed; report this."
                )
    theorem = "6" if runs.kind == "poisson" else "2"
    return Price(
        promise="repeat_and_select",
        epsilon=epsilon,
        delta=delta,
        trial_epsilon=trial_epsilon,
        runs=runs,
        accountant=f"RDP, Papernot and Steinke 2022, Theorem {theorem}",
    )


def beside_sweeps(
    sweeps: Sequence[tuple[Sequence[Candidate], RunsConfig | int]],
    others: Sequence[Event],
    delta: float,
) -> float:
    """Returns the epsilon of several sweeps and of ``others``, all composed.

    Args:
      sweeps: of each everything that one run can be, and how the number of runs is drawn of which
        one leaves; or how many runs there were, if all may be seen.
    """
    discrete = discreteness(others, delta)
    curve = _curve(others)
    for possible, runs in sweeps:
        largest = _largest(possible)
        curve = curve + (runs * largest if isinstance(runs, int) else _selected(largest, runs))
    return discrete.total(_epsilon(curve, discrete.delta))


def _largest(possible: Sequence[Candidate]) -> np.ndarray:
    """Returns the pointwise maximum of all curves, float64 [orders]."""
    curves = [_curve(one.training) for one in possible]
    curves += [_curve(one.score) for one in possible if one.score]
    largest: np.ndarray = np.max(curves, axis=0)
    return largest


def _curve(events: Sequence[Event]) -> np.ndarray:
    """Returns the Rényi divergence of ``events`` together at every order, float64 [orders]."""
    accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    with _quiet():
        accountant.compose(_as_library_event(events))
    curve: np.ndarray = np.array(accountant.rdp, dtype=np.float64)
    return curve


def _selected(curve: np.ndarray, runs: RunsConfig) -> np.ndarray:
    """Returns the curve of the best of K runs, each of curve float64 [orders].

    Theorem 2 for the truncated negative binomial, with (a^, eps^) the order that serves best:
    eps' (a) = eps(a) + (1 + eta) ((1 - 1/a^) eps^ + ln(1/gamma)/a^) + ln(mean)/(a - 1).
    Theorem 6 for Poisson, where each run is (eps^, d^)-DP with eps^ = ln(1 + 1/(a - 1)):
    eps'(a) = eps(a) + mean d^ + ln(mean)/(a - 1).
    """
    orders = np.array(ORDERS, dtype=np.float64)
    more_runs = math.log(runs.mean) / (orders - 1)
    if runs.kind == "poisson":
        hats = [math.log1p(1 / (order - 1)) for order in ORDERS]
        deltas = np.array([compute_delta(ORDERS, curve, hat)[0] for hat in hats])
        poisson: np.ndarray = curve + runs.mean * deltas + more_runs
        return poisson
    constant = (1 + runs.shape) * np.min(
        (1 - 1 / orders) * curve - math.log(_priced(runs)) / orders
    )
    selected: np.ndarray = curve + constant + more_runs
    return selected


def _priced(runs: RunsConfig) -> float:
    """Returns gamma for the price: a little below the one that is drawn with, if not the same."""
    return runs.gamma * (1 - 1e-9)


def _epsilon(curve: np.ndarray, delta: float) -> float:
    return float(compute_epsilon(ORDERS, curve, delta)[0])


def _library_epsilon(events: Sequence[Event], runs: RunsConfig, delta: float) -> float:
    if not events:
        return 0.0
    accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    event = _as_library_event(events)
    with _quiet():
        accountant.compose(RepeatAndSelectDpEvent(event, runs.mean, runs.shape))
    return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet() -> Iterator[None]:
    """An order whose series does not converge is left out; the library would say so each time."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(level)


def _as_library_event(events: Sequence[Event]) -> ComposedDpEvent:
    return ComposedDpEvent(
        [
            SelfComposedDpEvent(
                PoissonSampledDpEvent(e.sample_rate, GaussianDpEvent(e.noise_multiplier)), e.steps
            )
            for e in pooled(events)
        ]
    )


def _up(epsilon: float) -> str:
    return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}"
