"""Runs one training loop in this process, as a group of one."""

from collections.abc import Callable

import torch

from rapid_dist.collective import SingleProcess
from rapid_dist.methods.task import Task
from rapid_dist.runtime.signals import Notice


class ProcessWorkers:
    """The group of one: the loop runs here, in this process."""

    def __init__(
        self,
        *,
        threads: int,
        on_report: Callable[[str, dict[str, float]], None],
        notice: Notice | None = None,
    ) -> None:
        self._threads = threads
        self._on_report = on_report
        self._notice = notice or Notice()

    def run(self, task: Task, *, name: str, num_workers: int, private: bool = True) -> None:
        """Runs the loop once; the world has size one whatever ``num_workers`` says."""
        torch.set_num_threads(self._threads)

        def report(figures: dict[str, float], part: str = "") -> Callable[[], None] | None:
            if figures:
                self._on_report(f"{name} {part}".rstrip(), figures)
            return None if part else self._notice.asked()

        with self._notice.heard():
            task(SingleProcess(), report)
