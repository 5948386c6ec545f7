"""Actors on the driver's node: how one is put there, and the mailbox that workers write to.

An actor's process imports the module of its class. This one needs nothing but Ray, so a mailbox,
one for every group of workers, is there at once.
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def place_beside_driver(actor_class: type, *args: Any) -> Any:
    """Starts an actor on the driver's node, that takes no CPU from the workers."""
    here = ray.get_runtime_context().get_node_id()
    options: dict[str, Any] = {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }
    return ray.remote(**options)(actor_class).remote(*args)


class Mailbox:
    """What the driver wants done, and what workers have to tell it, until either asks.

    Only the group that started last can finish a task: one thought dead may go on for a while.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._reports: list[tuple[dict[str, float], str]] = []
        self._refusal: tuple[str, str] | None = None
        self._number = 0  # Of the task that was given out last.
        self._task: list[Any] | None = None  # None once all workers have done it.
        self._finished: set[int] = set()  # Ranks that have done it.
        self._starts = 0
        self._present: set[int] = set()  # Ranks that have asked since the roll was called.
        self._is_ended = False
        self._is_leaving = False
        self._has_left = False

    def give(self, task: list[Any]) -> None:
        """Takes the next task, in a list, by its reference: it is opened where it is done."""
        self._number, self._task, self._finished = self._number + 1, task, set()

    def end(self) -> None:
        self._is_ended = True

    def leave(self) -> None:
        """The driver was told to leave: the loop that is at work writes a checkpoint and ends."""
        self._is_leaving = True

    def left(self) -> None:
        self._has_left = True

    def has_left(self) -> bool:
        return self._has_left

    def collect(self) -> tuple[list[tuple[dict[str, float], str]], bool]:
        """Returns the reports since it was last asked, and whether the task is done by all."""
        reports, self._reports = self._reports, []
        return reports, self._task is None

    def refusal(self) -> tuple[str, str] | None:
        return self._refusal

    def call_roll(self) -> None:
        self._present = set()

    def is_whole(self) -> bool:
        """Whether all workers have asked since the roll was called, and none has ever died."""
        return self._starts == 1 and len(self._present) == self._num_workers

    def begin(self) -> int:
        """Returns the number of a start; a task that is not done by all is done again by all."""
        self._starts += 1
        self._finished = set()
        return self._starts

    def is_over(self) -> bool:
        """Whether workers are to leave; a refusal does not change by asking twice."""
        return self._is_ended or self._refusal is not None

    def next_after(self, done: int, rank: int) -> tuple[int, list[Any]] | None:
        """Returns the task to do and its number, if there is one above ``done``."""
        self._present.add(rank)
        if self._task is None or self._number <= done:
            return None
        return self._number, self._task

    def post(self, figures: dict[str, float], part: str) -> bool:
        """Takes a report; returns whether the worker is to leave."""
        self._reports.append((figures, part))
        return self._is_leaving

    def refuse(self, kind: str, message: str) -> None:
        self._refusal = self._refusal or (kind, message)

    def finish(self, start: int, rank: int) -> None:
        """Takes note that a worker of this start has done the task."""
        if start == self._starts:
            self._finished.add(rank)
        if len(self._finished) == self._num_workers:
            self._task = None  # From here on no death can have it done again.
