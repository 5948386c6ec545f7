"""Where actors are put, and whether a knowledge base is searched in process or on actors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rapid_dist.errors import ConfigError
from rapid_dist.retrieval.manifest import Manifest

SearchKind = Literal["replicated", "sharded"]


@dataclass(frozen=True, kw_only=True)
class ActorPlacement:
    """What a node must have for one actor to be put there."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)  # Of the node's own naming.
    labels: Mapping[str, str] = field(default_factory=dict)  # As in `ray start --labels`.

    def options(self) -> dict[str, Any]:
        """Returns Ray's options of an actor; one without a GPU cannot see any.

        Ray leaves all GPUs of a node visible to actors that asked for none.
        """
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.resources:
            options["resources"] = dict(self.resources)
        if self.labels:
            options["label_selector"] = dict(self.labels)
        if self.num_gpus == 0:
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        return options

    def require_room(self, nodes: list[dict[str, Any]]) -> None:
        """Refuses an actor that no node could ever hold: Ray would wait.

        Args:
          nodes: as ``ray.nodes`` lists them.
        """
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        lacking = lacks(wanted, self.labels, nodes)
        if lacking:
            raise ConfigError(lacking)


def lacks(
    wanted: Mapping[str, float], labels: Mapping[str, str], nodes: list[dict[str, Any]]
) -> str | None:
    """Returns what no node has, in one line, or nothing; ``nodes`` as ``ray.nodes`` lists them."""
    alive = [node for node in nodes if node["Alive"]]
    labelled = [
        node
        for node in alive
        if all((node.get("Labels") or {}).get(name) == value for name, value in labels.items())
    ]
    told = ", ".join(f"{name}={value}" for name, value in labels.items())
    if not labelled:
        return (
            f"Actors are to run on nodes labelled {told}, and none of {len(alive)} is. "
            "Start nodes with `ray start --labels`, or change runtime.actor_labels."
        )
    if any(
        all(node["Resources"].get(name, 0.0) >= amount for name, amount in wanted.items())
        for node in labelled
    ):
        return None
    for name, amount in wanted.items():
        most = max(node["Resources"].get(name, 0.0) for node in labelled)
        if most < amount:
            asked, there = _amount(amount, name), _amount(most, name)
            return (
                f"One actor needs {asked}, a node has {there} at most. "
                "Lower the request or add nodes."
            )
    asked = ", ".join(_amount(amount, name) for name, amount in wanted.items() if amount)
    return f"One actor needs {asked} on one node, and none has all. Lower the request."


def _amount(amount: float, name: str) -> str:
    return f"{amount / 2**30:.3g} GB of memory" if name == "memory" else f"{amount:g} {name}"


@dataclass(frozen=True, kw_only=True)
class SearchChoice:
    """How queries reach the knowledge base, and why so."""

    kind: SearchKind
    reason: str


def choose_search(
    setting: Literal["auto", "replicated", "sharded"], manifest: Manifest, memory_gb: float
) -> SearchChoice:
    """Returns ``replicated`` while a copy fits each process, ``sharded`` above, or what is set.

    A copy holds every shard: vectors, images and features.
    """
    copy_gb = sum(record.num_bytes for record in manifest.shards) / 2**30
    said = f"a copy takes {copy_gb:.3g} GB, runtime.memory_gb is {memory_gb:g}"
    if setting != "auto":
        return SearchChoice(kind=setting, reason=f"runtime.search is {setting}; {said}")
    if copy_gb <= memory_gb:
        return SearchChoice(kind="replicated", reason=f"it fits each process: {said}")
    return SearchChoice(kind="sharded", reason=f"it does not fit one process: {said}")


def stands_beside(
    setting: Literal["auto", "replicated", "sharded"], manifest: Manifest | None, memory_gb: float
) -> bool:
    """Whether a run that asks while it trains has to have room for searchers beside its workers.

    Args:
      manifest: of the knowledge base, None where it is yet to be made: then ``auto`` may decide
        either way, and room is looked for.
    """
    if manifest is None:
        return setting != "replicated"
    return choose_search(setting, manifest, memory_gb).kind == "sharded"
