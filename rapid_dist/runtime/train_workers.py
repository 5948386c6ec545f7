"""Runs one training loop on a group of Ray Train's workers.

A loop is a function of (collective, report). On Ray Train it gets a process group and nothing else
of Train: no wrapped model, no rebuilt loader, no DDP hook, for each of those changes what a
private step computes. Checkpoints are the loop's own; after a worker's death all workers start the
loop again, and it resumes from them.

What a loop reports goes to a mailbox on the driver's node, from rank 0, without waiting: a report
is no barrier, so no loop can hang because one rank had nothing to say. Reports are public (P9).
"""

from collections.abc import Callable, Mapping

from rapid_dist.methods.task import Task
from rapid_dist.runtime.signals import Notice
from rapid_dist.runtime.worker_group import WorkerGroup


class RayWorkers:
    """Workers of Ray Train V2. One group serves loop after loop, the last of which is private.

    A group takes seconds of every core to start, most of them imports, and a run has many loops.
    But processes that have held private records end with the loop that read them.
    """

    def __init__(
        self,
        *,
        threads: int,
        max_failures: int,
        on_report: Callable[[str, dict[str, float]], None],
        device: str = "cpu",
        labels: Mapping[str, str] | None = None,
        run: str = "",
        hang_minutes: float = 30.0,
        notice: Notice | None = None,
    ) -> None:
        self._threads = threads
        self._hang_minutes = hang_minutes
        self._notice = notice or Notice()
        self._use_gpu = device == "cuda"
        self._max_failures = max_failures
        self._on_report = on_report
        self._labels = labels
        self._run_name = run  # For the workers' logs.
        self._group: WorkerGroup | None = None

    def run(self, task: Task, *, name: str, num_workers: int, private: bool = True) -> None:
        """Runs the loop on ``num_workers`` workers until every one of them has returned.

        A worker that dies takes the group down; the group is started again at most
        ``max_failures`` times. A refusal (any ``RapidError``) is final: it is raised here as it
        was raised there, and nothing is tried again. After a ``private`` loop the group is
        released: what its memory still holds of the records is in no other loop's process (P9).
        """
        if self._group is not None and not self._group.can_serve(num_workers):
            self.release()
        if self._group is None:
            self._group = WorkerGroup(
                num_workers=num_workers,
                threads=self._threads,
                use_gpu=self._use_gpu,
                max_failures=self._max_failures,
                labels=self._labels,
                run=self._run_name,
                hang_minutes=self._hang_minutes,
                notice=self._notice,
            )

        def report(figures: dict[str, float], part: str) -> None:
            self._on_report(f"{name} {part}".rstrip(), figures)

        try:
            with self._notice.heard():
                self._group.run(task, name, report)
        except BaseException:
            self.release()
            raise
        if private:
            self.release()

    def release(self) -> None:
        """Ends the group, if there is one, so that others can have what it held of the cluster."""
        if self._group is not None:
            self._group.close()
            self._group = None
