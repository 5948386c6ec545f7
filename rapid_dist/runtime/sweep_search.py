"""How the next point of a sweep is found; every way of it can be told what was found before.

A proposer knows nothing of trials that run, of clusters or of files. Point i of ``grid`` and
``random`` is a function of i alone, so a sweep that goes on tries what it would have tried.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from rapid_dist.methods.sweep_settings import Point, Range, SweepConfig, grid_points, random_point

Space = dict[str, Range | list[Any]]
_STARTUP = 8  # Points that Optuna draws before it goes by scores.


class Proposer(Protocol):
    """Where points come from."""

    def propose(self, number: int) -> Point | None:
        """Returns the point of trial ``number``, or None if there is none left."""

    def tell(self, number: int, point: Point, score: float | None) -> None:
        """Says how good a point was; None = it failed, was stopped or could not be tried."""


class Listed:
    """Points that were all there beforehand: a grid's, or those of secret draws."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points

    def propose(self, number: int) -> Point | None:
        return self._points[number] if number < len(self._points) else None

    def tell(self, number: int, point: Point, score: float | None) -> None:
        """A list does not listen."""


class Random:
    """Independent points, from the recipe's public seed."""

    def __init__(self, space: Space, *, seed: int, trials: int) -> None:
        self._space, self._seed, self._trials = space, seed, trials

    def propose(self, number: int) -> Point | None:
        if number >= self._trials:
            return None
        return random_point(self._space, np.random.default_rng([self._seed, number]))

    def tell(self, number: int, point: Point, score: float | None) -> None:
        """Chance does not listen."""


class Optuna:
    """Optuna's tree-structured Parzen estimator, asked anew for every point.

    The study is in memory; whoever goes on with a sweep tells it what the sweep has on record.
    """

    def __init__(self, space: Space, *, seed: int, trials: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {name: _distribution(values) for name, values in space.items()}
        self._values = space
        self._seed, self._trials = seed, trials
        self._study = optuna.create_study(direction="maximize")

    def propose(self, number: int) -> Point | None:
        if number >= self._trials:
            return None
        # A sampler of its own for each number: one that went on would depend on interruptions.
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_STARTUP,
            seed=int(np.random.default_rng([self._seed, number]).integers(2**31)),
        )
        asked = self._study.ask(self._space)
        self._study.tell(asked, state=TrialState.FAIL)  # What came of it is told by ``tell``.
        return {
            name: values[asked.params[name]] if isinstance(values, list) else asked.params[name]
            for name, values in self._values.items()
        }

    def tell(self, number: int, point: Point, score: float | None) -> None:
        params = {
            name: values.index(point[name]) if isinstance(values, list) else point[name]
            for name, values in self._values.items()
        }
        self._study.add_trial(
            create_trial(
                state=TrialState.FAIL if score is None else TrialState.COMPLETE,
                params=params,
                distributions=self._space,
                value=score,
            )
        )


def proposer_of(config: SweepConfig, space: Space, *, seed: int) -> Proposer:
    """Returns the search that the settings name; that of secret draws is made where they are."""
    if config.search == "grid":
        points = grid_points(space)
        return Listed(points if config.trials is None else points[: config.trials])
    kind = Optuna if config.search == "optuna" else Random
    return kind(space, seed=seed, trials=config.num_trials)


def _distribution(values: Range | list[Any]) -> BaseDistribution:
    """Lists are told by place: Optuna wants plain values, and a value of ours may be a list."""
    if isinstance(values, list):
        return CategoricalDistribution(list(range(len(values))))
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
