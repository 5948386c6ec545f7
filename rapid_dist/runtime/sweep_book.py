"""The book of a sweep: every trial that was proposed, and what came of it, on disk at once.

A trial is written down before it starts, so a sweep that was cut off knows what to go on with. No
trial is tried twice: one that failed stays failed, and the next one is asked for.
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rapid_dist.errors import BudgetError, ConfigError
from rapid_dist.methods.seal import read_table
from rapid_dist.methods.sweep_settings import Point
from rapid_dist.runtime.sweep_planner import Planner
from rapid_dist.runtime.sweep_search import Proposer
from rapid_dist.runtime.sweep_trial import Rung, TrialJob
from rapid_dist.storage import Storage

_NAME = re.compile(r"\d+\.json")
_RESTORE = "Restore it from a backup, or begin the sweep again under another --out."

State = Literal["started", "done", "pruned", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One line of the book."""

    number: int
    point: Point
    state: State
    reason: str = ""  # Why it was pruned, or how it failed.
    score: float | None = None
    fraction: float = 0.0  # Of its training that was scored last.
    steps: int | None = None  # What its plan says.
    noise_multiplier: float | None = None
    expected_batch: float | None = None
    epsilon: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # A stage each.
    run: str = ""  # In the ledger.


class Book:
    """Hands out trials, the interrupted ones first, and takes down what came of them."""

    def __init__(self, storage: Storage, planner: Planner, proposer: Proposer) -> None:
        self._storage, self._planner, self._proposer = storage, planner, proposer
        self._trials: dict[int, Trial] = {}
        self._running: set[int] = set()
        for name in storage.list():
            if _NAME.fullmatch(name):  # Below it lie the trials themselves.
                trial = Trial(**read_table(storage, name, _RESTORE))
                self._trials[trial.number] = trial
        for trial in self.trials():
            if trial.state != "started":
                proposer.tell(trial.number, trial.point, _told(trial))

    def trials(self) -> list[Trial]:
        """Returns all trials so far, in order."""
        return [self._trials[number] for number in sorted(self._trials)]

    def next(self) -> TrialJob | None:
        """Returns the next trial to run, or None where there is none left."""
        for trial in self._left_open():
            if self._planner.proxy is not None:
                self._planner.clear(trial.number)
                self._write(replace(trial, score=None, fraction=0.0, seconds={}))
            self._running.add(trial.number)
            return self._planner.job(trial.number, trial.point)
        while True:
            number = next(one for one in itertools.count() if one not in self._trials)
            point = self._proposer.propose(number)
            if point is None:
                return None
            try:
                job = self._planner.job(number, point)
            except (ConfigError, BudgetError) as error:
                self._write(Trial(number=number, point=point, state="pruned", reason=str(error)))
                self._proposer.tell(number, point, None)
                continue
            mechanism = job.charged.dp_sgd
            self._write(
                Trial(
                    number=number,
                    point=point,
                    state="started",
                    steps=mechanism.steps if mechanism else 0,
                    noise_multiplier=mechanism.noise_multiplier if mechanism else None,
                    expected_batch=mechanism.expected_batch if mechanism else None,
                    epsilon=job.charged.epsilons.reported,
                )
            )
            self._running.add(number)
            return job

    def rung(self, number: int, rung: Rung) -> None:
        """Takes down a score; that of the whole training ends the trial."""
        trial = self._trials[number]
        if trial.state != "started" or rung.fraction <= trial.fraction:
            return  # Tune tells of a trial's last result twice.
        done = rung.fraction == 1.0
        trial = replace(
            trial,
            state="done" if done else "started",
            score=rung.score,
            fraction=rung.fraction,
            run=rung.run,
            seconds={
                name: round(trial.seconds.get(name, 0.0) + seconds, 3)
                for name, seconds in {**trial.seconds, **rung.seconds}.items()
                if name in rung.seconds
            },
        )
        if done:
            self._end(trial)
        else:
            self._write(trial)

    def stopped(self, number: int) -> None:
        """Says that the scheduler gave a trial up for its score."""
        trial = self._trials[number]
        if trial.state == "started" and trial.fraction == 0:
            self.failed(number, "it ended without a word")
        elif trial.state == "started":
            reason = f"stopped after {trial.fraction:.0%} of its training"
            self._end(replace(trial, state="stopped", reason=reason))

    def failed(self, number: int, reason: str) -> None:
        """Says that a trial ended without a score; the sweep goes on."""
        trial = self._trials[number]
        if trial.state == "started":
            self._end(replace(trial, state="failed", score=None, reason=reason))

    def _left_open(self) -> Iterator[Trial]:
        for trial in self.trials():
            if trial.state == "started" and trial.number not in self._running:
                yield trial

    def _end(self, trial: Trial) -> None:
        self._write(trial)
        self._running.discard(trial.number)
        self._proposer.tell(trial.number, trial.point, _told(trial))

    def _write(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        content: dict[str, Any] = asdict(trial)
        self._storage.write(
            f"{trial.number:03d}.json", json.dumps(content, indent=2, allow_nan=False).encode()
        )


def _told(trial: Trial) -> float | None:
    """The score that a search learns from: of whole trainings alone, for others are not alike."""
    return trial.score if trial.state == "done" else None
