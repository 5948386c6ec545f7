"""Makes shards of a knowledge base on Ray actors.

An actor gets its next shard when it has finished one, so a fast actor makes more of them and no
queue builds up anywhere. An actor that dies, alone or with its node, is replaced and its shard is
made again; one that has found no place yet holds nothing up. When no shard is left to begin, an
idle actor takes over one that has been in the works for much longer than the others took: the
first to finish counts. All of this is safe because a shard is stored whole or not at all, and its
bytes do not depend on who made it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.public.build import ShardPlan
from rapid_dist.retrieval.manifest import ShardRecord
from rapid_dist.runtime.placement import ActorPlacement

_LOOK_SEC = 1.0  # How often an idle actor looks for a shard to take over.
_SLOW = 2.0  # Times the median of finished shards, after which a shard may be taken over.


class Task(Protocol):
    """What an actor runs. Plain and picklable; opens what it needs where it runs."""

    def build(self, plan: ShardPlan) -> ShardRecord: ...


class _Builder:
    """The actor. Fetches its task when first asked: a task that cannot be opened is an error."""

    def __init__(self, task_refs: Sequence[Any]) -> None:
        self._task_refs = task_refs  # In a list, for Ray would open a bare one before the start.
        self._task: Task | None = None

    def ready(self) -> None:
        """Answers once the actor has a place."""

    def build(self, plan: ShardPlan) -> ShardRecord:
        if self._task is None:
            self._task = ray.get(self._task_refs[0])
        return self._task.build(plan)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What an actor is at: a shard, or finding a place."""

    actor: Any
    place: int | None
    since: float


class TrajectoryPool:
    """Ray actors that make the shards of one knowledge base. Needs a running Ray."""

    def __init__(
        self,
        task: Task,
        *,
        num_actors: int = 2,
        place: ActorPlacement | None = None,
        max_failures: int = 16,
        patience_sec: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts nothing yet.

        Args:
          place: what each actor needs of its node.
          max_failures: deaths of actors to survive, over one build.
          patience_sec: how long to wait with no actor at work before giving up.
        """
        if num_actors < 1:
            raise ConfigError(f"num_actors must be at least 1, got {num_actors}.")
        self._task, self._num_actors = task, num_actors
        self._place = place or ActorPlacement()
        self._max_failures, self._patience_sec = max_failures, patience_sec
        self._clock = clock

    def build(
        self, plans: Sequence[ShardPlan], progress: Callable[[int, int], None] | None = None
    ) -> list[ShardRecord]:
        """Returns the records of all planned shards, in the order of their plans.

        The answer is the same for any number of actors. Shards that are stored already are only
        checked. ``progress`` is called with (shards done, shards in all) after every one.
        """
        self._place.require_room(ray.nodes())  # type: ignore[no-untyped-call]
        build = _Build(
            plans,
            ray.remote(**self._place.options())(_Builder),
            [ray.put(self._task)],
            self._clock,
        )
        try:
            for _ in range(min(self._num_actors, len(plans))):
                build.hire()
            while len(build.records) < len(plans):
                self._await_one(build, progress)
        finally:
            for work in build.running.values():
                ray.kill(work.actor)
            for actor in build.idle:
                ray.kill(actor)
        return [build.records[place] for place in range(len(plans))]

    def _await_one(self, build: "_Build", progress: Callable[[int, int], None] | None) -> None:
        done, _ = ray.wait(list(build.running), num_returns=1, timeout=_LOOK_SEC)
        if not done:
            build.take_over()
            if build.idle_for() > self._patience_sec:
                raise ShardError(
                    f"No actor has found a place for {self._patience_sec:g} seconds. "
                    "Add nodes, or lower what an actor asks for; finished shards are kept."
                )
            return
        work = build.running.pop(done[0])
        try:
            record = ray.get(done[0])
        except RayActorError as error:
            build.failures += 1
            if build.failures > self._max_failures:
                raise ShardError(
                    f"Actors died {build.failures} times while building {len(build.plans)} shards "
                    f"(last: {_first_line(error)}). Give them more memory or lower "
                    "knowledge_base.embed_batch, and run again: finished shards are kept."
                ) from error
            if work.place is not None and not build.is_covered(work.place):
                build.waiting.appendleft(work.place)
            if build.idle:
                build.take_over()
            else:
                build.hire()
            return
        except RayTaskError as error:
            raise error.cause from error
        if work.place is not None and work.place not in build.records:
            build.records[work.place] = record
            build.took.append(self._clock() - work.since)
            if progress is not None:
                progress(len(build.records), len(build.plans))
        build.employ(work.actor)


class _Build:
    """One build under way: which shards are done, which are left, and who is at what."""

    def __init__(
        self,
        plans: Sequence[ShardPlan],
        actor_class: Any,
        task_refs: list[Any],
        clock: Callable[[], float],
    ) -> None:
        self.plans = plans
        self.records: dict[int, ShardRecord] = {}
        self.waiting = deque(range(len(plans)))
        self.running: dict[Any, _Work] = {}  # By the reference to its result.
        self.idle: list[Any] = []
        self.took: list[float] = []  # Seconds of each finished shard.
        self.failures = 0
        self._actor_class, self._task_refs, self._clock = actor_class, task_refs, clock
        self._last_work = clock()

    def hire(self) -> None:
        """Starts an actor, which gets a shard once it has found a place."""
        actor = self._actor_class.remote(self._task_refs)
        self.running[actor.ready.remote()] = _Work(actor=actor, place=None, since=self._clock())

    def employ(self, actor: Any) -> None:
        """Gives an actor the next shard, or lets it wait for one to take over."""
        if self.waiting:
            self._start(actor, self.waiting.popleft())
        else:
            self.idle.append(actor)

    def take_over(self) -> None:
        """Gives idle actors what is left to do, or shards that take far longer than others did."""
        while self.idle and self.waiting:
            self._start(self.idle.pop(), self.waiting.popleft())
        if not self.idle or not self.took:
            return
        late = self._clock() - max(_LOOK_SEC, _SLOW * median(self.took))
        at = [work for work in self.running.values() if work.place is not None]
        alone = [w for w in at if sum(other.place == w.place for other in at) == 1]
        for work in sorted(alone, key=lambda w: w.since):
            if self.idle and work.since < late and work.place not in self.records:
                assert work.place is not None
                self._start(self.idle.pop(), work.place)

    def is_covered(self, place: int) -> bool:
        """Whether a shard is done, or somebody else is at it."""
        return place in self.records or any(w.place == place for w in self.running.values())

    def idle_for(self) -> float:
        """Seconds since an actor was at a shard."""
        if any(work.place is not None for work in self.running.values()) or self.idle:
            self._last_work = self._clock()
        return self._clock() - self._last_work

    def _start(self, actor: Any, place: int) -> None:
        work = _Work(actor=actor, place=place, since=self._clock())
        self.running[actor.build.remote(self.plans[place])] = work


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
