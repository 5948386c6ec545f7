"""`rapid-dist run`, a command for every stage of it, and `rapid-dist plan`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapid_dist.cli.options import (
    DebugOption,
    DryRunOption,
    JsonOption,
    OutOption,
    RecipeOption,
    SetOption,
    load,
    out_of,
)
from rapid_dist.cli.printing import print_plan, print_summary, unit_facts

if TYPE_CHECKING:
    from rapid_dist.runtime.pipeline import Prepared

STAGES = {
    "run": "All stages, in order, skipping what is already done.",
    "pretrain": "Train the public denoiser and the feature extractor.",
    "index": "Build the knowledge base of public trajectories.",
    "train": "Take the private prior, adapt to it, and train by DP-SGD.",
    "evaluate": "Measure samples and controls against private records (internal).",
}


def add_stages(app: typer.Typer) -> None:
    """Adds `run`, the stages and `plan`."""
    for name, text in STAGES.items():
        app.command(name, help=text)(index if name == "index" else _stage_command(name))
    app.command("plan", help="Solve the privacy plan and print epsilon by every accountant.")(plan)


def _stage_command(name: str) -> Any:
    def command(
        recipe: RecipeOption,
        overrides: SetOption = None,
        out: OutOption = "",
        dry_run: DryRunOption = False,
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        summary = run_stage(name, recipe, overrides, out, dry_run, as_json)
        if as_json and summary is not None:
            print(json.dumps(summary))

    return command


def run_stage(
    name: str, recipe: str, overrides: list[str] | None, out: str, dry_run: bool, as_json: bool
) -> dict[str, Any] | None:
    """Runs one command's stages and prints what came of them; nothing after a dry run."""
    from rapid_dist.runtime import pipeline
    from rapid_dist.runtime.run_directory import places

    loaded = load(recipe, overrides)
    out = out_of(loaded, out)
    if dry_run:
        print_prepared(pipeline.prepare(loaded, out), as_json)
        return None
    summary = pipeline.run(loaded, out, command=None if name == "run" else name)
    if summary:
        print_summary(summary, places(loaded, out).out)
    return summary


def index(
    recipe: RecipeOption,
    overrides: SetOption = None,
    out: OutOption = "",
    stats: Annotated[
        bool, typer.Option("--stats", help="Measure what it holds; writes JSON and a histogram.")
    ] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.config import method_settings
    from rapid_dist.methods.contamination_stage import without_dropped
    from rapid_dist.methods.index_stats import HISTOGRAM, STATS, write_stats
    from rapid_dist.runtime.run_directory import places
    from rapid_dist.storage import open_storage

    said = run_stage("index", recipe, overrides, out, dry_run, as_json)
    if said is None:
        return
    if stats:
        loaded = load(recipe, overrides)
        where = places(loaded, out_of(loaded, out))
        place = open_storage(where.out)
        settings = without_dropped(method_settings(loaded), place)
        found = write_stats(settings, open_storage(where.public), place)
        print("\n".join(found.lines()))
        print(f"written    {where.out}/{STATS}, {HISTOGRAM}")
        said = {**said, "knowledge_base": asdict(found)}
    if as_json:
        print(json.dumps(said))


def plan(
    recipe: RecipeOption,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.config import method_settings
    from rapid_dist.methods import catalog

    loaded = load(recipe, overrides)
    settings = method_settings(loaded)
    promise = catalog.promise_of(settings)
    solved = None if promise == "none" else asdict(catalog.plan_of(settings))
    print_plan(solved, promise, loaded)
    if as_json:
        print(json.dumps({"promise": promise, **(solved or {}), **unit_facts(loaded)}))


def print_prepared(prepared: "Prepared", as_json: bool) -> None:
    """Prints all that a dry run has found out."""
    from rapid_dist.config import to_yaml

    described = prepared.described()
    print(to_yaml(prepared.recipe))
    print_plan(described["plan"], described["promise"], prepared.recipe)
    print(f"stages     {', '.join(described['stages'])}")
    for name, value in {**described["resources"], **described["places"]}.items():
        print(f"{name:<10} {value}")
    for name, line in described["placement"].items():
        print(f"place      {name}: {line}")
    if as_json:
        print(json.dumps(described))
