"""Collects what a gate asks of a finished run; reads everything and changes nothing."""

import contextlib
import json
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

from rapid_dist.config import Recipe, method_settings, recipe_hash, to_tree
from rapid_dist.data.licences import recorded_licence
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import BudgetError, CheckpointError, ConfigError, LedgerError
from rapid_dist.installed import code_hash
from rapid_dist.methods import (
    artifacts,
    catalog,
    contamination_stage,
    evaluation_stage,
    sampling_stages,
)
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.dataset_total import has_secret
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.statement import Claim, claim, require_charged
from rapid_dist.release.bundle import BundleFacts, verify_bundle
from rapid_dist.release.gate import Evidence
from rapid_dist.release.passport_content import PublicData, is_secret
from rapid_dist.release.registry import ledger_heads, tags_of
from rapid_dist.release.scan import MODEL_FILES, internal_traces
from rapid_dist.runtime.chosen import trial_fault
from rapid_dist.runtime.results import AUDIT
from rapid_dist.runtime.run_directory import (
    Places,
    begun_with,
    places,
    refused_changes,
    shaping,
)
from rapid_dist.storage import Storage, StorageMissing, open_storage

SELECTION = "selection.json"  # What a sweep says of the run that it chose.
INTERNAL = ("quality.json", contamination_stage.FOUND)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run as it lies in its directory."""

    recipe: Recipe
    settings: MethodSettings  # Without the sources that the run has dropped.
    places: Places
    out: Storage
    bundle: Path  # A copy of the run's bundle, for as long as the run is open.
    internal: tuple[dict[str, Any], ...]
    registry: Mapping[str, Any]
    ledger_entries: int | None  # None where it is secret.
    evidence: Evidence

    def public_network(self) -> Denoiser | None:
        """Returns the network that was trained on public data alone, where it is to go along."""
        place = _public_place(self.recipe, self.settings, self.places)
        return None if place is None else artifacts.get_denoiser(place.uri)

    def facts(self) -> BundleFacts:
        return BundleFacts.from_json(json.loads((self.bundle / "model.json").read_text()))

    def environment(self) -> dict[str, str]:
        return {**self.evidence.versions, "platform": f"{platform.system()} {platform.machine()}"}


def told_settings(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe as a passport prints it: without where it runs and what is measured.

    Of a file's address its last part is left, which is what tells one source from another.
    """
    tree = {name: value for name, value in shaping(to_tree(recipe)).items() if name != "evaluation"}
    data = tree["data"]
    for source in (data["private"], *data["public"], *data["more_references"]):
        if source["path"] is not None:
            source["path"] = PurePosixPath(source["path"]).name
    taken = tree["autoencoder"]
    if taken is not None and taken["source"] is not None and not taken["hub"]:
        taken["source"] = PurePosixPath(taken["source"]).name
    return tree


@contextlib.contextmanager
def opened(recipe: Recipe, out: str, today: date) -> Iterator[Finished]:
    """Opens a run directory with the evidence for its release.

    Raises:
      ConfigError: there is no run.
    """
    where = places(recipe, out)
    require_run(where.out)
    storage = open_storage(where.out)
    settings = contamination_stage.without_dropped(method_settings(recipe), storage)
    with tempfile.TemporaryDirectory(prefix="rapid-") as folder:
        bundle = Path(folder)
        _fetch(storage.child(sampling_stages.BUNDLE), bundle)
        yield _finished(recipe, settings, where, storage, bundle, today)


def require_run(out: str) -> None:
    """Refuses a place that holds no run."""
    if not open_storage(out).exists("config.yaml"):
        raise ConfigError(f"{out} holds no run. Give `rapid-dist run` first, or its --out.")


def _finished(
    recipe: Recipe,
    settings: MethodSettings,
    where: Places,
    storage: Storage,
    bundle: Path,
    today: date,
) -> Finished:
    run = str(_json(storage, "run.json").get("run", ""))
    summary, registry = _json(storage, "summary.json"), _json(storage, "registry.json")
    private = open_storage(where.out, private=True).child("internal")
    internal = tuple(found for name in INTERNAL if (found := _json(private, name)))
    tags, bundle_fault = _registered(registry)
    selection = _json(storage, SELECTION) or None
    bundle_fault = bundle_fault or _bundle_fault(bundle, run, tags, selection)
    solved = catalog.plan_of(settings)
    ledger, claimed, ledger_fault, fault_of_trial = None, None, "", ""
    try:
        ledger = Ledger.open(where.ledger, recipe.data.private.name)
        require_charged(solved, ledger, run)
        _require_heads(ledger, _known_heads(storage, summary, bundle, registry, recipe))
        claimed = _claim(recipe, ledger, run)
        fault_of_trial = trial_fault(ledger, run, selection or {})
    except (LedgerError, BudgetError) as error:
        ledger_fault = str(error)
    entries = [] if ledger is None else [e for e in ledger.entries() if e.run == run]
    charges = [entry for entry in entries if entry.event is not None]
    begun, unread = _begun(storage, recipe)
    stages = [stage.name for stage in catalog.stages_of(settings)]
    evidence = Evidence(
        config=recipe.release,
        today=today,
        run=run,
        unfinished=_unfinished(storage, stages, recipe, settings, where),
        debug=bool(recipe.runtime.debug or summary.get("debug") or (begun and begun.runtime.debug)),
        recipe_hash=recipe_hash(recipe),
        recipe_changes=unread if begun is None else refused_changes(begun, recipe),
        code_hash=code_hash(),
        charged_codes=tuple(dict.fromkeys(entry.code for entry in charges)),
        ledger_fault=ledger_fault,
        claim=claimed,
        events=tuple(entry.event for entry in charges if entry.event is not None),
        plan=solved,
        audit=_json(storage, AUDIT) or None,
        versions=summary.get("versions", {}),
        public_data=_public_data(recipe, settings),
        contamination=_contamination(recipe, storage, private),
        never_released=catalog.method_of(settings).NEVER_RELEASED,
        looks_for_duplicates="contamination" in stages,
        selection=selection,
        stated_selection=_stated(bundle).get("selection"),
        trial_fault=fault_of_trial,
        bundle_fault=bundle_fault,
        traces=internal_traces(bundle, internal, MODEL_FILES),
    )
    return Finished(
        recipe=recipe,
        settings=settings,
        places=where,
        out=storage,
        bundle=bundle,
        internal=internal,
        registry=registry,
        ledger_entries=None if ledger is None or has_secret(ledger) else len(ledger.entries()),
        evidence=evidence,
    )


def _fetch(storage: Storage, folder: Path) -> None:
    for name in storage.list():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storage.read(name))


def _json(storage: Storage, name: str) -> dict[str, Any]:
    """Returns a JSON file, and nothing for one that is not there or is none."""
    try:
        content = json.loads(storage.read(name))
    except (StorageMissing, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _begun(storage: Storage, recipe: Recipe) -> tuple[Recipe | None, list[str]]:
    try:
        return begun_with(storage, recipe), []
    except ConfigError as error:
        return None, [str(error)]


def _unfinished(
    storage: Storage, stages: list[str], recipe: Recipe, settings: MethodSettings, where: Places
) -> list[str]:
    missing = [name for name in stages if not _json(storage, f"stages/{name}.json").get("done")]
    missing += [name for name in ("summary.json",) if not _json(storage, name)]
    # Without its figures nobody could look whether one of them is in the bundle.
    figures = f"internal/{evaluation_stage.QUALITY}"
    missing += [figures] if "evaluate" in stages and not _json(storage, figures) else []
    place = _public_place(recipe, settings, where)
    if place is not None and not artifacts.is_done(place):
        missing.append("the public network in the public store")
    return missing


def _public_place(recipe: Recipe, settings: MethodSettings, where: Places) -> Storage | None:
    if not (recipe.release.public_network and catalog.has_stage(settings, "pretrain")):
        return None
    if settings.sampling.source == "query":
        return None  # It is in the run's own bundle.
    return open_storage(where.public).child(artifacts.pretrain_name(settings))


def _registered(registry: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """The tags of the run's candidate; or why there is none to compare the bundle with."""
    if not registry:
        return {}, "The run has registered no candidate. Give `rapid-dist run` again."
    try:
        return tags_of(registry["tracking_uri"], registry["name"], registry["version"]), ""
    except ConfigError as error:
        return {}, f"The run's candidate cannot be looked up: {error}"


def _bundle_fault(
    bundle: Path,
    run: str,
    tags: Mapping[str, str],
    selection: Mapping[str, Any] | None,
) -> str:
    try:
        digest = verify_bundle(bundle)
    except CheckpointError as error:
        return f"The run's bundle is not whole: {str(error).partition(': ')[2]}"
    if tags.get("bundle.sha256") != digest:
        return (
            "The bundle is not the one that the run registered: its files or its checksums were "
            "changed. Give `rapid-dist run` into another --out, or bring the bundle back."
        )
    stated = _stated(bundle)
    if stated.get("run") != run:
        return f"The bundle is of run {stated.get('run')!r}, this one is {run!r}."
    if is_secret(selection) and stated.get("dataset_epsilon"):
        return (
            "The bundle states dataset_epsilon, which tells how many runs the sweep drew; its "
            "price rests on that being secret. Make the bundle anew without it."
        )
    return ""


def _stated(bundle: Path) -> dict[str, Any]:
    """What the bundle says of privacy; nothing if it cannot be read, a fault of its own."""
    privacy = _json(open_storage(bundle), "model.json").get("privacy")
    return privacy if isinstance(privacy, dict) else {}


def _known_heads(
    storage: Storage,
    summary: Mapping[str, Any],
    bundle: Path,
    registry: Mapping[str, Any],
    recipe: Recipe,
) -> set[str]:
    """Every head of this ledger that was written down anywhere: none may be missing."""
    heads = {summary.get("privacy", {}).get("ledger_head")}
    heads.add(_stated(bundle).get("ledger_head"))
    heads.add(_json(storage, "release.json").get("ledger_head"))
    with contextlib.suppress(ConfigError, KeyError):  # Without a registry it is refused for that.
        heads |= ledger_heads(registry["tracking_uri"], recipe.data.private.name)
    return {head for head in heads if head}


def _require_heads(ledger: Ledger, heads: set[str]) -> None:
    lost = heads - {entry.hash for entry in ledger.entries()}
    if lost:
        raise LedgerError(
            f"The ledger of {ledger.dataset!r} lacks {len(lost)} of the {len(heads)} heads that "
            f"were written down of it ({', '.join(sorted(head[:16] for head in lost))}): entries "
            "were cut off, or it is another ledger. Bring the whole one back."
        )


def _claim(recipe: Recipe, ledger: Ledger, run: str) -> Claim:
    private = recipe.data.private
    return claim(
        recipe.privacy,
        recipe.num_units,
        ledger,
        run,
        unit_name=private.unit_name,
        unit_note=private.unit_note,
    )


def _public_data(recipe: Recipe, settings: MethodSettings) -> tuple[PublicData, ...]:
    if not catalog.has_stage(settings, "pretrain"):
        return ()
    retrieves = catalog.has_stage(settings, "index")
    used = "networks and references" if retrieves else "networks"
    told = [(source, used) for source in settings.public]
    if retrieves:
        told += [(source, "references") for source in settings.more_references]
    found = [
        PublicData(
            source=source.source,
            licence=recorded_licence(source, recipe.release.licences),
            used_for=used,
            images=source.count,
        )
        for source, used in told
    ]
    taken = settings.autoencoder
    if taken is not None and taken.source is not None:  # Somebody's weights are in the bundle.
        found.append(
            PublicData(source="autoencoder", licence=taken.licence, used_for="latents", images=None)
        )
    return tuple(found)


def _contamination(recipe: Recipe, out: Storage, internal: Storage) -> dict[str, Any]:
    """What may be said of it; whether the pass was made is seen from its internal file."""
    if not internal.exists(contamination_stage.FOUND):
        return {}
    return {"policy": recipe.contamination.policy, **_json(out, contamination_stage.DECISION)}
