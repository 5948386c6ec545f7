"""The log of a run as JSON, a line an event, where RAPID_DIST_LOG=json asks for it.

Each line has its time, the run, the host and the rank: ``driver``, or a worker's number. Drivers
write to the job's log, workers to their own files below Ray's logs, which a collector finds on
every node. What is said is what the plain log says, and no more (P9).
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from rapid_dist.runtime.progress import Progress

SETTING = "RAPID_DIST_LOG"


def wants_json(environment: Mapping[str, str] | None = None) -> bool:
    return (os.environ if environment is None else environment).get(SETTING, "") == "json"


def event(
    run: str,
    rank: int | str,
    kind: str,
    *,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.time,
    **facts: str | float,
) -> None:
    """Writes one line. Nothing private may be in ``facts``."""
    line = {"time": round(clock(), 3), "run": run, "rank": rank, "host": socket.gethostname()}
    print(json.dumps({**line, "event": kind, **facts}), file=file or sys.stderr, flush=True)


class JsonProgress(Progress):
    """Progress as events: at most one a stage every few seconds, as the plain log has them."""

    def __init__(
        self,
        run: str,
        *,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_sec: float = 5.0,
    ) -> None:
        super().__init__(clock=clock)
        self._bars = None
        self._run, self._file, self._now, self._every = run, file, clock, every_sec
        self._told: dict[str, float] = {}

    def update(self, name: str, done: float, total: float) -> None:
        now = self._now()
        if done < total and now - self._told.get(name, float("-inf")) < self._every:
            return
        self._told[name] = now
        event(self._run, "driver", "step", file=self._file, stage=name, step=done, steps=total)

    def note(self, line: str) -> None:
        event(self._run, "driver", "note", file=self._file, line=line)
