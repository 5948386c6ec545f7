"""The public figures of a run while it runs: shown, kept in metrics.jsonl, sent to MLflow.

A stage that holds private data may say how far it is and nothing else (P9). What else it reports
is dropped here, at the one place where figures leave the workers, unless the run is for debugging.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rapid_dist.runtime.progress import Progress
from rapid_dist.runtime.tracking import TrackedRun
from rapid_dist.storage import Storage, StorageMissing

PRIVATE_STAGES = ("contamination", "prior", "candidates", "answers", "train", "evaluate")
HOW_FAR = ("step", "steps", "rows")  # What a private stage may report.
FLUSH_SEC = 20.0
MOST_POINTS = 500  # That are kept of one stage; a curve needs no more.
METRICS = "metrics.jsonl"


class Figures:
    """Takes the reports of all stages, one stage at a time."""

    def __init__(
        self,
        storage: Storage,
        progress: Progress,
        *,
        debug: bool = False,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[str, dict[str, float]], None] | None = None,
    ) -> None:
        """Args: ``observe`` is told of every report what may leave its stage."""
        self._storage = storage
        self._progress = progress
        self._debug = debug
        self._clock = clock
        self._observe = observe
        self._lines = _read_lines(storage)
        self._run: TrackedRun | None = None
        self._series: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._flushed = clock()

    @contextmanager
    def of(self, run: TrackedRun | None) -> Iterator[None]:
        """Sends what is reported inside to this run; nothing is lost if the stage fails."""
        self._run = run
        try:
            yield
        finally:
            self._flush()
            self._run = None

    def on_report(self, stage: str, figures: dict[str, float]) -> None:
        """Takes one report of a loop: ``step`` of ``steps``, and what else it has to say."""
        if stage.partition(" ")[0] in PRIVATE_STAGES and not self._debug:  # And all parts of one.
            figures = {name: value for name, value in figures.items() if name in HOW_FAR}
        step, steps = int(figures["step"]), int(figures["steps"])
        self._progress.update(stage, step, steps)
        if self._observe is not None:
            self._observe(stage, figures)
        if step % max(1, steps // MOST_POINTS) == 0 or step == steps:
            self._lines.append(json.dumps({"stage": stage, **figures}))
            for name, value in figures.items():
                if name not in HOW_FAR:
                    self._series[name].append((step, value))
        if self._clock() - self._flushed >= FLUSH_SEC:
            self._flush()

    def note(self, line: str) -> None:
        """Shows one line; nothing private may be in it."""
        self._progress.note(line)

    def _flush(self) -> None:
        self._flushed = self._clock()
        if self._lines:
            self._storage.write(METRICS, "".join(f"{line}\n" for line in self._lines).encode())
        if self._run is not None and self._series:
            self._run.log_series(self._series)
        self._series.clear()


def _read_lines(storage: Storage) -> list[str]:
    try:
        return storage.read(METRICS).decode().splitlines()
    except StorageMissing:
        return []
