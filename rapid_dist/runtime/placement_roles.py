"""What a recipe asks of a cluster, process by process, and which nodes would have room for it.

Stages follow one another, so each phase has the cluster to itself. Within a phase every process
has to fit one node, beside the others there: enough CPUs in all is not enough. Looked at before
anything starts, because Ray waits for ever, without a word, for a node that never comes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rapid_dist.runtime.placement import ActorPlacement, lacks

if TYPE_CHECKING:  # A process of Ray's that only looks at a cluster reads no recipe.
    from rapid_dist.config import RuntimeConfig

SEARCH_CPUS = 0.5  # Of a searching actor: it waits more than it searches.


@dataclass(frozen=True, kw_only=True)
class Role:
    """A number of like processes, and what each asks of its node."""

    name: str
    count: int
    cpus: float
    gpus: float = 0.0
    memory_gb: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def wanted(self) -> dict[str, float]:
        """What one process takes of a node, by Ray's names."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gb * 2**30}
        return {name: amount for name, amount in asked.items() if amount} | dict(self.resources)

    def told(self) -> str:
        """Returns the role in one line."""
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        own = "".join(f", {amount:g} {name}" for name, amount in self.resources.items())
        where = ", ".join(f"{name}={value}" for name, value in self.labels.items())
        return (
            f"{self.count} x {self.cpus:g} CPU{gpus}, {self.memory_gb:g} GB{own} on "
            f"{f'nodes labelled {where}' if where else 'any node'}"
        )


Phase = tuple[Role, ...]  # Roles that run beside each other.


def phases(
    runtime: "RuntimeConfig", device: str | None = None, *, beside: bool | None = None
) -> tuple[Phase, ...]:
    """Returns the roles of a run, phase after phase.

    Args:
      device: where training computes, once that is known; ``auto`` asks for no GPU until then.
      beside: whether searchers stand beside training; by default where they are set to.
    """
    beside = runtime.search == "sharded" if beside is None else beside
    device = device or runtime.device
    training = Role(
        name="training",
        count=runtime.workers,
        cpus=runtime.threads_per_worker,
        gpus=1 if device == "cuda" else 0,
        memory_gb=runtime.memory_gb,
        labels=runtime.worker_labels,
    )
    building = Role(
        name="trajectories",
        count=runtime.trajectory_actors,
        cpus=1.0,
        memory_gb=runtime.memory_gb,
        labels=runtime.trajectory_labels or runtime.actor_labels,
        resources=runtime.actor_resources,
    )
    searching = Role(
        name="search",
        count=runtime.search_actors * runtime.search_replicas,
        cpus=SEARCH_CPUS,
        gpus=runtime.search_gpus,
        memory_gb=runtime.memory_gb,
        labels=runtime.search_labels or runtime.actor_labels,
        resources=runtime.actor_resources,
    )
    return ((training, searching) if beside else (training,), (building,), (searching,))


def actor_place(role: Role) -> ActorPlacement:
    """Returns where one actor of a role goes. Memory is looked at before, and not reserved."""
    return ActorPlacement(
        num_cpus=role.cpus, num_gpus=role.gpus, resources=role.resources, labels=role.labels
    )


def misfit(all_phases: Sequence[Phase], nodes: list[dict[str, Any]]) -> str | None:
    """Returns what does not fit, in one line, or nothing; ``nodes`` as ``ray.nodes`` lists them."""
    for phase in all_phases:
        found = assign(phase, nodes)
        if isinstance(found, str):
            return found
    return None


def assign(phase: Phase, nodes: list[dict[str, Any]]) -> dict[str, list[str]] | str:
    """Returns the nodes of every role, one name a process, or what does not fit, in one line.

    The largest processes first, each to the node with most CPUs left: what fits so, Ray may still
    place otherwise, but it has room.
    """
    left = [{**node, "Resources": dict(node["Resources"])} for node in nodes if node["Alive"]]
    found: dict[str, list[str]] = {}
    for role in sorted(phase, key=lambda one: (one.gpus, one.cpus), reverse=True):
        for number in range(role.count):
            able = [node for node in left if not lacks(role.wanted, role.labels, [node])]
            if not able:
                return _told_misfit(phase, role, number, nodes)
            node = max(able, key=lambda one: one["Resources"].get("CPU", 0.0))
            for name, amount in role.wanted.items():
                node["Resources"][name] -= amount
            found.setdefault(role.name, []).append(node["NodeManagerAddress"])
    return found


def _told_misfit(phase: Phase, role: Role, number: int, nodes: list[dict[str, Any]]) -> str:
    alone = lacks(role.wanted, role.labels, nodes)
    if alone is not None:  # Not even one would fit an empty cluster.
        return f"Role {role.name}: {alone}"
    settings = {
        "training": "runtime.workers, runtime.threads_per_worker or runtime.memory_gb",
        "trajectories": "runtime.trajectory_actors or runtime.memory_gb",
        "search": "runtime.search_actors, runtime.search_replicas or runtime.memory_gb",
    }[role.name]
    is_beside = role.name == "search" and len(phase) > 1
    return (
        f"Role {role.name} needs {role.told()}{', beside training' if is_beside else ''}; the "
        f"cluster has room for {number} of them. Lower {settings}, "
        f"{'set runtime.search to replicated if a copy fits, ' if is_beside else ''}"
        "or add a node."
    )


def unsafe_driver(all_phases: Sequence[Phase], own: Mapping[str, str]) -> str | None:
    """Returns why a driver should not be on a node with these labels, in one line, or nothing.

    Nodes for trajectories alone may vanish at any moment; with the driver the run would, and the
    ledger's keeper.
    """
    labels = {role.name: role.labels for phase in all_phases for role in phase}
    spot = labels.get("trajectories") or {}
    if not spot or spot in (labels.get("training"), labels.get("search")):
        return None
    if any(own.get(name) != value for name, value in spot.items()):
        return None
    told = ", ".join(f"{name}={value}" for name, value in spot.items())
    return (
        f"This driver is on a node labelled {told}, which is what runtime.trajectory_labels asks "
        "of nodes that may vanish. Submit a job (its driver is on the head), or run it elsewhere."
    )


def bundles(all_phases: Sequence[Phase]) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """Returns what an autoscaler is asked for, a bundle a process, and the label of each."""
    wanted = [role for phase in all_phases for role in phase for _ in range(role.count)]
    return [role.wanted for role in wanted], [dict(role.labels) for role in wanted]


def placement_told(runtime: "RuntimeConfig", *, beside: bool | None = None) -> dict[str, str]:
    """Returns every role of a run in a line, for whoever asks before it starts."""
    if runtime.backend == "process":
        return {"driver": "everything in one process"}
    first, *others = phases(runtime, beside=beside)
    told = {role.name: role.told() for phase in others for role in phase}
    told |= {role.name: role.told() for role in first}
    if len(first) > 1:
        told["search"] += ", beside training"
    return {"driver": "with the ledger's keeper, on the node that runs the command or job", **told}
