"""How far a run is, read from its directory and its ledger alone: no cluster has to be there."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rapid_dist.config import Recipe, method_settings, parse_recipe
from rapid_dist.errors import ConfigError
from rapid_dist.methods.catalog import plan_of
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.recipe_files import parse_tree
from rapid_dist.runtime.figures import METRICS
from rapid_dist.runtime.lock import LOCK
from rapid_dist.runtime.run_directory import places
from rapid_dist.storage import Storage, StorageMissing, open_storage


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """One stage that was begun."""

    name: str
    done: bool
    seconds: float
    step: int | None = None  # The last that its log has; every MOST_POINTS-th is kept.
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What can be said of a run while it runs, and after it."""

    out: str
    run: str
    recipe: str
    complete: bool
    stages: tuple[StageStatus, ...]
    attempts: int
    charged_steps: int
    planned_steps: int | None
    epsilon: float | None  # Spent so far; None before anything was charged.
    budget: float
    delta: float
    held_by: Mapping[str, Any]  # Who writes here now; empty where nobody does, or in a bucket.
    model: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def status(out: str) -> Status:
    """Returns the status of the run in a directory or bucket.

    Raises:
      ConfigError: no run was begun there, or by a version with other settings.
      LedgerError: its ledger is not whole.
    """
    out = out.rstrip("/")
    storage = open_storage(out)
    try:
        text = storage.read("config.yaml").decode()
    except StorageMissing:
        raise ConfigError(
            f"{out} holds no run. Give the --out of one, a folder or s3://bucket/prefix."
        ) from None
    recipe = parse_recipe(parse_tree(text, f"{out}/config.yaml"))
    run = str(_json(storage, "run.json").get("run", ""))
    ledger = Ledger.open(places(recipe, out).ledger, recipe.data.private.name)
    entries = [entry for entry in ledger.entries() if entry.run == run]
    events = ledger.events(run)
    solved = plan_of(method_settings(recipe)).stepped
    registry = _json(storage, "registry.json")
    return Status(
        out=out,
        run=run,
        recipe=recipe.name,
        complete=storage.exists("summary.json"),
        stages=_stages(storage),
        attempts=sum(entry.kind == "attempt" for entry in entries),
        charged_steps=sum(entry.kind == "step" for entry in entries),
        planned_steps=None if solved is None else solved.steps,
        epsilon=epsilons(events, recipe.privacy.delta).reported if events else None,
        budget=recipe.privacy.epsilon,
        delta=recipe.privacy.delta,
        held_by=_json(storage, LOCK),
        model=_model(registry, recipe),
    )


def _model(registry: Mapping[str, Any], recipe: Recipe) -> str:
    if not registry:
        return ""
    return f"models:/{registry['name']}/{registry['version']} in {registry['tracking_uri']}"


def _stages(storage: Storage) -> tuple[StageStatus, ...]:
    """Returns the stages that were begun, in the order of their last reports."""
    last: dict[str, tuple[int, int]] = {}
    try:
        lines = storage.read(METRICS).decode().splitlines()
    except StorageMissing:
        lines = []
    for line in lines:
        try:
            figures = json.loads(line)
        except ValueError:  # Half a line of a process that was killed.
            continue
        name = str(figures["stage"]).partition(" ")[0]
        last.pop(name, None)
        last[name] = (int(figures["step"]), int(figures["steps"]))
    markers = {
        name.removeprefix("stages/").removesuffix(".json"): _json(storage, name)
        for name in storage.list("stages/")
    }
    order = [*last, *(name for name in markers if name not in last)]
    found = []
    for name in order:
        step, steps = last.get(name, (None, None))
        marker = markers.get(name, {})
        found.append(
            StageStatus(
                name=name,
                done=bool(marker.get("done")),
                seconds=float(marker.get("seconds", 0.0)),
                step=step,
                steps=steps,
            )
        )
    return tuple(sorted(found, key=lambda stage: not stage.done))


def _json(storage: Storage, name: str) -> dict[str, Any]:
    try:
        content = json.loads(storage.read(name) or b"{}")
    except (StorageMissing, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
