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
    """What workers have to tell the driver, until the driver asks."""

    def __init__(self) -> None:
        self._reports: list[tuple[dict[str, float], str]] = []
        self._refusal: tuple[str, str] | None = None

    def post(self, figures: dict[str, float], part: str) -> None:
        self._reports.append((figures, part))

    def collect(self) -> list[tuple[dict[str, float], str]]:
        reports, self._reports = self._reports, []
        return reports

    def refuse(self, kind: str, message: str) -> None:
        self._refusal = self._refusal or (kind, message)

    def refusal(self) -> tuple[str, str] | None:
        return self._refusal
