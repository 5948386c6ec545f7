"""What a run tells Ray's metrics, and with them Prometheus and Grafana (cluster/grafana.json).

Nothing private (P9): of a private stage there is the step and the mean pace since the stage began,
as its log has them, and epsilon, which is computed from the ledger alone. Answers to private
queries are not timed.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.ledger import Ledger

LOOK_SEC = 15.0  # Between two looks at the ledger, at least.
SHARE = 0.01  # Of one core that computing epsilon may take.
GAUGES = {
    "rapid_dist_step": "Steps of a stage that are done",
    "rapid_dist_steps": "Steps of a stage in all",
    "rapid_dist_step_seconds": "Mean seconds of a step since its stage began here",
    "rapid_dist_rows_per_second": "Rows of public data, or expected rows of private data, a second",
    "rapid_dist_epsilon": "Epsilon of the run so far, from its ledger",
    "rapid_dist_queue_depth": "Shards of the knowledge base that are still to be made",
    "rapid_dist_search_waiting": "Pieces of public queries that wait for an answer",
}


class Meter(Protocol):
    """Where numbers go; Ray's gauges, or a list in a test."""

    def set(self, name: str, value: float, tags: dict[str, str]) -> None: ...

    def observe(self, name: str, value: float, tags: dict[str, str]) -> None: ...


@dataclass(kw_only=True)
class StageMeter:
    """Turns what stages report, private figures already left out, into numbers of now."""

    meter: Meter
    clock: Callable[[], float] = time.monotonic
    _began: dict[str, tuple[float, int]] = field(default_factory=dict, init=False)

    def on_report(self, stage: str, figures: dict[str, float]) -> None:
        """Takes one report: ``step`` of ``steps``, and ``rows`` of a step where there are any."""
        tags = {"stage": stage}
        step, now = int(figures["step"]), self.clock()
        began, first = self._began.setdefault(stage, (now, step))
        if step < first:  # The loop began again, from a checkpoint.
            began, first = self._began[stage] = (now, step)
        self.meter.set("rapid_dist_step", step, tags)
        self.meter.set("rapid_dist_steps", figures["steps"], tags)
        if stage == "index":
            waiting = figures["steps"] - step
            self.meter.set("rapid_dist_queue_depth", waiting, {"queue": "shards"})
        if step > first and now > began:
            seconds = (now - began) / (step - first)
            self.meter.set("rapid_dist_step_seconds", seconds, tags)
            if "rows" in figures:
                self.meter.set("rapid_dist_rows_per_second", figures["rows"] / seconds, tags)

    def on_search(self, seconds: float, waiting: int) -> None:
        """Takes the answer to one piece of public queries."""
        self.meter.observe("rapid_dist_search_seconds", seconds, {"pool": "public"})
        self.meter.set("rapid_dist_search_waiting", waiting, {"pool": "public"})


class EpsilonWatch:
    """Looks at the ledger now and then, in a thread of its own, and says what was spent."""

    def __init__(
        self,
        meter: Meter,
        open_ledger: Callable[[], Ledger],
        run: str,
        delta: float,
        *,
        look_sec: float = LOOK_SEC,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter, self._open, self._run, self._delta = meter, open_ledger, run, delta
        self._look_sec, self._clock = look_sec, clock
        self._ledger: Ledger | None = None
        self._known = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="epsilon", daemon=True)

    def look(self) -> float:
        """Sets epsilon if something was charged since the last look; returns the seconds taken."""
        began = self._clock()
        if self._ledger is None:
            self._ledger = self._open()
        else:
            self._ledger.refresh()
        events = self._ledger.events(self._run)
        if len(events) > self._known:
            self._known = len(events)
            spent = epsilons(events, self._delta).reported
            self._meter.set("rapid_dist_epsilon", spent, {})
        return self._clock() - began

    def _follow(self) -> None:
        wait = self._look_sec
        while not self._ended.wait(wait):
            try:
                wait = max(self._look_sec, self.look() / SHARE)
            except Exception:  # A storage that is away for a moment stops no run.
                wait = self._look_sec

    def __enter__(self) -> "EpsilonWatch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        if kind is None:  # A run shorter than a look has its epsilon told as well.
            self._thread.join()
            with suppress(Exception):
                self.look()
