"""How far a long stage is: bars in a terminal, a plain line every few seconds elsewhere.

Plain lines are what ends up in the log of a Ray job. Throughput and time left are counted from
the first report of this process, so a resumed stage does not boast of the work of its past.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

LINE_SEC = 5.0  # Between two plain lines of one stage.


@dataclass(kw_only=True)
class _Stage:
    first_done: float
    started: float
    printed: float  # When its last plain line was printed.
    task: TaskID | None = None


class Progress:
    """Shows the stages that report to it. Use it in ``with``; a terminal needs tidying up."""

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._stages: dict[str, _Stage] = {}
        self._bars: Bars | None = None
        if self._console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description:<14}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
                console=self._console,
            )

    @classmethod
    def silent(cls) -> Self:
        """Returns one that shows nothing."""
        return cls(Console(stderr=True, quiet=True))

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, name: str, done: float, total: float) -> None:
        """Says that ``done`` of ``total`` is finished; the last of a stage is always shown."""
        now = self._clock()
        stage = self._stages.get(name)
        if stage is None or done < stage.first_done:
            stage = _Stage(first_done=done, started=now, printed=now - LINE_SEC)
            self._stages[name] = stage
        pace = _pace(done - stage.first_done, now - stage.started, total - done)
        if self._bars is not None:
            if stage.task is None:
                stage.task = self._bars.add_task(name, total=total, pace="")
            self._bars.update(stage.task, completed=done, total=total, pace=pace)
        elif now - stage.printed >= LINE_SEC or done >= total:
            stage.printed = now
            share = f"{done / total:4.0%}" if total else ""
            self.note(f"{name:<14} {done:g}/{total:g} {share}  {pace}".rstrip())

    def note(self, line: str) -> None:
        """Prints one line of text above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _pace(done: float, seconds: float, left: float) -> str:
    """Returns throughput and time left, or nothing before there is anything to go by."""
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    return f"{rate:.3g}/s, {clock_time(left / rate)} left"


def clock_time(seconds: float) -> str:
    """Returns 75.2 as 1:15, and an hour as 1:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
