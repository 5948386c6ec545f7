"""Runs the stages of a method in order, each once, and says at the end what came of it.

The same command, given again, goes on where the last one stopped. Everything that can be wrong
with a recipe, the data and the cluster is looked for before the first stage.
"""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from rapid_dist.config import Recipe, method_settings, recipe_hash, to_tree
from rapid_dist.data.sources import check_disjoint, load_private
from rapid_dist.errors import ConfigError
from rapid_dist.leftovers import cleared
from rapid_dist.methods import artifacts, catalog, contamination_stage, sampling_stages
from rapid_dist.methods.context import RunContext, Stage
from rapid_dist.methods.evaluation_stage import require_features
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.accounting import PrivacyPlan
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.spend import spend
from rapid_dist.privacy.statement import Claim, claim, require_charged
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.private.step import ClippedSum
from rapid_dist.release.server import connect
from rapid_dist.runtime import results
from rapid_dist.runtime.backend import KeeperMaker, open_backend
from rapid_dist.runtime.chosen import as_chosen, in_bundle, selection_of, trial_fault
from rapid_dist.runtime.figures import Figures
from rapid_dist.runtime.integrity import (
    is_made,
    require_own,
    require_own_summary,
    require_public_whole,
)
from rapid_dist.runtime.lineage import lineage_of
from rapid_dist.runtime.lock import locked
from rapid_dist.runtime.metrics import EpsilonWatch, Meter, StageMeter
from rapid_dist.runtime.metrics_log import JsonProgress, wants_json
from rapid_dist.runtime.needs import needs
from rapid_dist.runtime.placement_roles import phases, placement_told
from rapid_dist.runtime.progress import Progress, clock_time
from rapid_dist.runtime.recording import record_internal, record_lineage, record_results
from rapid_dist.runtime.room import searchers_beside
from rapid_dist.runtime.run_directory import Places, RunDirectory, places, require_writable
from rapid_dist.runtime.signals import Notice, stop_on_sigterm
from rapid_dist.runtime.stage_times import timed
from rapid_dist.runtime.tracking import TrackedRun, Tracker
from rapid_dist.runtime.tracking_place import internal_place, server_of, tracking_place
from rapid_dist.runtime.unclaimed import finish_unclaimed
from rapid_dist.storage import open_storage, require_reachable

# What a command does. A stage that the method lacks is left out.
COMMANDS: dict[str, tuple[str, ...]] = {
    "pretrain": ("autoencode", "pretrain", "contrast"),
    "index": ("index",),
    "train": (
        "initial",
        "contamination",
        "prior",
        "adapt",
        "candidates",
        "train",
        "condition",
        "answers",
    ),
    "generate": ("generate",),
    "evaluate": ("evaluate",),
}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that has been checked as far as it can be without starting anything."""

    recipe: Recipe
    settings: MethodSettings
    plan: PrivacyPlan
    places: Places
    stages: tuple[Stage, ...]  # All of the method's.

    @property
    def told_plan(self) -> dict[str, Any] | None:
        """The plan as plain values; None without privacy, of which no epsilon, nor 0, is said."""
        return None if catalog.promise_of(self.settings) == "none" else asdict(self.plan)

    def described(self) -> dict[str, Any]:
        """Returns the whole configuration, the privacy plan and the resources."""
        runtime = self.recipe.runtime
        beside = searchers_beside(self.settings, runtime)
        return {
            "recipe": to_tree(self.recipe),
            "promise": catalog.promise_of(self.settings),
            "plan": self.told_plan,
            "places": asdict(self.places),
            "stages": [stage.name for stage in self.stages],
            "resources": {"backend": runtime.backend, **asdict(needs(runtime, beside=beside))},
            "placement": placement_told(runtime, beside=beside),
        }


def prepare(recipe: Recipe, out: str) -> Prepared:
    """Checks the recipe against the method and solves the privacy plan."""
    settings = method_settings(recipe)
    public = (*settings.public, *settings.more_references)
    check_disjoint(settings.private, public, settings.data_root)
    catalog.check_method(settings)
    return Prepared(
        recipe=recipe,
        settings=settings,
        plan=catalog.plan_of(settings),
        places=places(recipe, out),
        stages=catalog.stages_of(settings),
    )


def run(
    recipe: Recipe,
    out: str,
    *,
    command: str | None = None,
    progress: Progress | None = None,
    engine: ClippedSum = clipped_sum,
) -> dict[str, Any]:
    """Runs all stages, or those of one command, and returns summary.json as far as there is one.

    The summary, the reports and the registered model are made once the last stage is done. Two
    processes do not write one directory: the second is refused. ``engine`` is for the audit alone.
    """
    prepared = prepare(recipe, out)
    tracked = tracking_place(server_of(recipe.tracking), prepared.places.out)
    if tracked.uri.startswith(("http://", "https://")):
        connect(tracked.uri)  # One that is away refuses the run here, and nothing is begun.
    for place in asdict(prepared.places).values():
        require_reachable(place)
    if not open_storage(prepared.places.out).exists("stages/train.json"):
        # A wrong declaration is refused here, and leaves no directory that it has begun.
        load_private(prepared.settings.private, prepared.settings.data_root)
        if command in (None, "evaluate"):
            require_features(prepared.settings)
    require_writable(prepared.places)
    here = [place for place in asdict(prepared.places).values() if "://" not in place]
    with locked(prepared.places.out), cleared(here):
        return _run(prepared, command, progress, engine)


def _run(
    prepared: Prepared, command: str | None, progress: Progress | None, engine: ClippedSum
) -> dict[str, Any]:
    recipe = prepared.recipe
    directory = RunDirectory(recipe, prepared.places.out)
    if directory.is_complete():
        summary = directory.read_json("summary.json")
        require_own_summary(directory, summary)
        return summary
    require_own(directory, Ledger.open(prepared.places.ledger, recipe.data.private.name))
    _refuse_trial(prepared, directory)
    chosen = [
        stage for stage in prepared.stages if command is None or stage.name in COMMANDS[command]
    ]
    if not chosen:
        raise ConfigError(f"Method {recipe.method} has nothing to {command}. Run `rapid-dist run`.")
    _refuse_gaps(prepared, chosen, directory)
    waiting = [stage for stage in chosen if not _is_done(prepared, directory, stage)]
    public, effective = open_storage(prepared.places.public), _effective(prepared, directory)
    require_public_whole(prepared.stages, waiting, effective, public)
    place = tracking_place(server_of(recipe.tracking), prepared.places.out)
    with ExitStack() as open_things:
        meter = None
        if recipe.runtime.backend == "ray":
            meter = _join_cluster(prepared, directory, open_things)
        logs = JsonProgress(directory.run) if wants_json() else Progress()
        progress = open_things.enter_context(progress or logs)
        notice = Notice()
        open_things.enter_context(stop_on_sigterm(notice))  # After Ray, which would exit at once.
        tracker = Tracker(place, recipe.tracking.experiment)
        tracked = open_things.enter_context(
            tracker.run(
                recipe.name, out=prepared.places.out, key=directory.run, tags=_tags(prepared)
            )
        )
        tracked.log_params({**to_tree(recipe), "plan": prepared.told_plan})
        observe = None
        if meter is not None:
            observe = StageMeter(meter=meter).on_report
            if catalog.promise_of(prepared.settings) == "charged":
                open_things.enter_context(_epsilon_watch(prepared, directory, meter))
        figures = Figures(directory.storage, progress, debug=recipe.runtime.debug, observe=observe)
        context = replace(
            _context(prepared, directory, figures, notice, open_things), engine=engine
        )
        for stage in chosen:
            if stage not in waiting:
                progress.note(f"{stage.name:<14} done before")
                continue
            with tracked.child(stage.name) as child, figures.of(child):
                now = contamination_stage.effective(context)
                with timed(directory, stage, now):
                    stage.run(now)
                took = directory.seconds([stage.name])[stage.name]
                child.log_metrics({"seconds": took})
            progress.note(f"{stage.name:<14} done in {clock_time(took)}")
        if not all(directory.is_done(stage.name) for stage in prepared.stages):
            return {}
        context = contamination_stage.effective(context)
        if catalog.promise_of(prepared.settings) == "charged":
            summary = _finish(prepared, directory, context, tracked, place.uri)
        else:
            summary = finish_unclaimed(
                recipe,
                directory,
                context,
                tracked,
                Ledger.open(prepared.places.ledger, recipe.data.private.name),
                directory.seconds([stage.name for stage in prepared.stages]),
            )
        internal = Tracker(internal_place(place), f"{recipe.tracking.experiment}-internal")
        pages = catalog.promise_of(prepared.settings) != "none"
        record_internal(directory, internal, recipe.name, pages=pages)
    # When all records are closed: nobody looks again at a directory that has it. Its quality is
    # internal (P13).
    directory.write_json("summary.json", summary, private=True)
    return summary


def _join_cluster(prepared: Prepared, directory: RunDirectory, open_things: ExitStack) -> Meter:
    """Connects to a cluster, or starts one, for as long as the run lasts; returns its metrics."""
    from rapid_dist.runtime.cluster import session
    from rapid_dist.runtime.ray_meter import RayMeter
    from rapid_dist.runtime.submit_metadata import note_in_job

    runtime = prepared.recipe.runtime
    beside = searchers_beside(prepared.settings, runtime, prepared.places.public)
    open_things.enter_context(
        session(
            needs(runtime, beside=beside),
            debug=runtime.debug,
            roles=phases(runtime, beside=beside),
            scale_minutes=runtime.scale_minutes,
        )
    )
    note_in_job({"run": directory.run, "recipe_hash": recipe_hash(prepared.recipe)})
    return RayMeter(directory.run)


def _refuse_trial(prepared: Prepared, directory: RunDirectory) -> None:
    """A trial that its sweep has not chosen makes no claim, so it is not finished as a run."""
    ledger = Ledger.open(prepared.places.ledger, prepared.recipe.data.private.name)
    fault = trial_fault(ledger, directory.run, selection_of(directory.storage))
    if fault:
        raise ConfigError(fault)


def _epsilon_watch(prepared: Prepared, directory: RunDirectory, meter: Meter) -> EpsilonWatch:
    where, recipe = prepared.places.ledger, prepared.recipe
    return EpsilonWatch(
        meter,
        lambda: Ledger.open(where, recipe.data.private.name),
        directory.run,
        recipe.privacy.delta,
    )


def _refuse_gaps(prepared: Prepared, chosen: list[Stage], directory: RunDirectory) -> None:
    """Every stage needs all that come before it in its method."""
    names = [stage.name for stage in prepared.stages]
    done = {stage.name for stage in prepared.stages if _is_done(prepared, directory, stage)}
    before = names[: names.index(chosen[-1].name)]
    missing = [name for name in before if name not in done | {stage.name for stage in chosen}]
    if missing:
        raise ConfigError(
            f"Stage {chosen[-1].name} needs {', '.join(missing)}, not yet done in "
            f"{prepared.places.out}. Run `rapid-dist run`, or those stages first."
        )


def _is_done(prepared: Prepared, directory: RunDirectory, stage: Stage) -> bool:
    """Whether the stage is done, and its result still in the public store if it belongs there."""
    if stage.artifact is None or not directory.is_done(stage.name):
        return directory.is_done(stage.name)
    public = open_storage(prepared.places.public)
    return is_made(stage, _effective(prepared, directory), public)


def _effective(prepared: Prepared, directory: RunDirectory) -> MethodSettings:
    return contamination_stage.without_dropped(prepared.settings, directory.storage)


def _context(
    prepared: Prepared,
    directory: RunDirectory,
    figures: Figures,
    notice: Notice,
    open_things: ExitStack,
) -> RunContext:
    recipe, where = prepared.recipe, prepared.places
    maker = KeeperMaker(
        ledger_uri=where.ledger,
        dataset=recipe.data.private.name,
        run=directory.run,
        plan=prepared.plan,
        unit=recipe.data.private.unit_id,
    )
    backend = open_backend(recipe.runtime, maker, figures.on_report, figures.note, notice)
    open_things.callback(backend.close)
    return RunContext(
        settings=prepared.settings,
        plan=prepared.plan,
        out=directory.storage,
        internal=directory.internal,
        public=open_storage(where.public),
        backend=backend,
        device=backend.device,
        memory_gb=recipe.runtime.memory_gb,
        privacy=lambda: in_bundle(
            results.privacy_figures(recipe, prepared.plan, _claim(prepared, directory)[1]),
            selection_of(directory.storage),
        ),
        versions=results.versions(),
        report=figures.on_report,
        note=figures.note,
        run=directory.run,
    )


def _claim(prepared: Prepared, directory: RunDirectory) -> tuple[Ledger, Claim]:
    """Returns what can be said of the run once its private stages are done, and from what."""
    recipe = prepared.recipe
    ledger = Ledger.open(prepared.places.ledger, recipe.data.private.name)
    require_charged(prepared.plan, ledger, directory.run)
    private = recipe.data.private
    return ledger, claim(
        recipe.privacy,
        recipe.num_units,
        ledger,
        directory.run,
        unit_name=private.unit_name,
        unit_note=private.unit_note,
    )


def _finish(
    prepared: Prepared,
    directory: RunDirectory,
    context: RunContext,
    tracked: TrackedRun,
    tracking_uri: str,
) -> dict[str, Any]:
    """Registers the model, writes the pages, and returns the summary."""
    recipe = prepared.recipe
    ledger, claimed = _claim(prepared, directory)
    sampling_stages.require_own_bundle(context.out)
    selection = selection_of(directory.storage)
    privacy = as_chosen(results.privacy_figures(recipe, prepared.plan, claimed), selection)
    quality = directory.need_json("internal/quality.json")
    registry = directory.read_json("registry.json")
    has_bundle = context.out.child(sampling_stages.BUNDLE).exists("checksums.json")
    # A debug run may have logged private values (P9); one by query was drawn without a bundle once.
    may_leave = not (recipe.runtime.debug or catalog.method_of(context.settings).NEVER_RELEASED)
    if not registry and has_bundle and may_leave and recipe.tracking.register_models:
        registry = results.register(
            context,
            privacy,
            name=recipe.tracking.model_name or f"rapid-dist-{recipe.name}",
            run_id=tracked.run_id,
            tracking_uri=tracking_uri,
        )
        directory.write_json("registry.json", registry)  # A second run registers no second model.
    summary = results.summarise(
        recipe,
        seconds=directory.seconds([stage.name for stage in prepared.stages]),
        privacy=privacy,
        nfe=artifacts.read_done(context.out.child(sampling_stages.SAMPLES))["nfe"],
        quality=quality,
        registry=registry,
        contamination=contamination_stage.told(context),
    )
    spent = spend(ledger.events(directory.run), claimed.budget.delta)
    assert spent.reported[-1] == claimed.spent.reported, "The curve ends where the claim stands."
    directory.storage.write(results.SPEND, results.spend_lines(spent))
    curve = results.epsilon_curve(spent, claimed.budget.epsilon)
    results.write_pages(
        context, summary, claimed, curve, quality, price_per_hour=recipe.runtime.price_per_hour
    )
    record_lineage(directory, tracked, lineage_of(context, ledger, directory.run), registry)
    entries = results.ledger_of(ledger, directory.run)
    record_results(directory, tracked, summary, spent, entries)
    return summary


def _tags(prepared: Prepared) -> dict[str, str]:
    return {
        "method": prepared.recipe.method,
        "recipe": prepared.recipe.name,
        "dataset": prepared.recipe.data.private.name,
    }
