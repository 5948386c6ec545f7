"""Makes shards of a knowledge base on Ray actors.

An actor gets its next shard when it has finished one, so a fast actor makes more of them and
no queue builds up. An actor that dies is replaced and its shard is made again, which is safe:
a shard is stored whole or not at all, and its bytes do not depend on who made it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.public.build import ShardPlan
from rapid_dist.retrieval.manifest import ShardRecord


class Task(Protocol):
    """What an actor runs. Plain and picklable; opens what it needs where it runs."""

    def build(self, plan: ShardPlan) -> ShardRecord: ...


class _Builder:
    """The actor. Fetches its task when first asked: a task that cannot be opened is an error."""

    def __init__(self, task_refs: Sequence[Any]) -> None:
        self._task_refs = task_refs  # In a list, for Ray would open a bare one before the start.
        self._task: Task | None = None

    def build(self, plan: ShardPlan) -> ShardRecord:
        if self._task is None:
            self._task = ray.get(self._task_refs[0])
        return self._task.build(plan)


def build_shards_on_ray(
    plans: Sequence[ShardPlan],
    task: Task,
    *,
    num_actors: int = 2,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    max_failures: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[ShardRecord]:
    """Returns the records of all planned shards, in the order of their plans.

    The answer is the same for any number of actors. Needs a running Ray.

    Args:
      max_failures: deaths of actors to survive, over the whole build.
      progress: called with (shards done, shards in all) whenever one is finished.
    """
    _check_room(num_actors, num_cpus, num_gpus)
    task_refs = [ray.put(task)]
    actor_class = ray.remote(**placement(num_cpus, num_gpus))(_Builder)
    records: dict[int, ShardRecord] = {}
    waiting = deque(range(len(plans)))
    running: dict[Any, tuple[Any, int]] = {}  # Reference to a result -> (actor, place of a plan).
    failures = 0

    def start(actor: Any) -> None:
        place = waiting.popleft()
        running[actor.build.remote(plans[place])] = (actor, place)

    try:
        for _ in range(min(num_actors, len(plans))):
            start(actor_class.remote(task_refs))
        while running:
            (result,), _ = ray.wait(list(running), num_returns=1)
            actor, place = running.pop(result)
            try:
                records[place] = ray.get(result)
            except RayActorError as error:
                failures += 1
                if failures > max_failures:
                    raise ShardError(
                        f"Actors died {failures} times while building {len(plans)} shards (last: "
                        f"{_first_line(error)}). Give them more memory or lower "
                        "knowledge_base.embed_batch, and run again: finished shards are kept."
                    ) from error
                waiting.appendleft(place)
                start(actor_class.remote(task_refs))
                continue
            except RayTaskError as error:
                raise error.cause from error
            if progress is not None:
                progress(len(records), len(plans))
            if waiting:
                start(actor)
            else:
                ray.kill(actor)  # Frees its place for an actor that has not found one yet.
    finally:
        for actor, _ in running.values():
            ray.kill(actor)
    return [records[place] for place in range(len(plans))]


def placement(num_cpus: float, num_gpus: float = 0.0) -> dict[str, Any]:
    """Returns the options of an actor; one without a GPU cannot see any.

    Ray leaves all GPUs of a node visible to actors that asked for none.
    """
    options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    if num_gpus == 0:
        options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    return options


def _check_room(num_actors: int, num_cpus: float, num_gpus: float) -> None:
    if num_actors < 1:
        raise ConfigError(f"num_actors must be at least 1, got {num_actors}.")
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, needed in (("CPU", num_cpus), ("GPU", num_gpus)):
        if needed > resources.get(name, 0.0):
            raise ConfigError(
                f"One actor needs {needed:g} {name}, the whole cluster has "
                f"{resources.get(name, 0.0):g}. Lower the request or add nodes."
            )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
