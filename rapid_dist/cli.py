"""`rapid-dist ...`: reads the command line, calls one function, prints what it returned.

Exit codes: 0 done, 2 wrong configuration (nothing started), 3 budget refused, 4 release refused,
1 anything else. An error is one line on stderr. ``--debug`` adds the traceback, which may quote
private values and therefore does not come by itself (P9).

Imports are inside the commands, so that ``--help`` and a typing error answer at once.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from rapid_dist.errors import RapidError

if TYPE_CHECKING:
    from rapid_dist.audit.result import CheckResult
    from rapid_dist.config import Recipe
    from rapid_dist.privacy.ledger import Ledger
    from rapid_dist.runtime.pipeline import Prepared


class AuditProfile(StrEnum):
    """How much of everything an audit does."""

    QUICK = "quick"
    FULL = "full"


INTERRUPTED = 130  # What typer makes of Ctrl-C.
STAGES = {
    "run": "All stages, in order, skipping what is already done.",
    "pretrain": "Train the public denoiser and the feature extractor.",
    "index": "Build the knowledge base of public trajectories.",
    "train": "Take the private prior, adapt to it, and train by DP-SGD.",
    "generate": "Write the bundle and draw samples from it.",
    "evaluate": "Measure samples and controls against private records (internal).",
}

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="A recipe's name, or a file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="A.B=C", help="Change one setting; repeatable."),
]
OutOption = Annotated[
    str, typer.Option("--out", "-o", help="Run directory or s3://...; default runs/<recipe>.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print configuration, privacy plan, resources, and stop.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
HeadOption = Annotated[
    str, typer.Option("--head", help="A ledger head written down earlier; it must still be there.")
]


def main(arguments: Sequence[str] | None = None, *, app: typer.Typer | None = None) -> int:
    """Runs the command line, ours unless another is given, and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        code = (app or build_app())(arguments, prog_name="rapid-dist", standalone_mode=False) or 0
    except RapidError as error:
        return _refused(str(error), error.exit_code, debug)
    except typer.TyperException as error:  # A command line that cannot be read, or none at all.
        line = error.format_message()
        return _refused(line, error.exit_code, debug) if line else error.exit_code
    except Exception as error:
        # Not its message: an unforeseen error of a private stage may quote what it worked on.
        place = traceback.extract_tb(error.__traceback__)[-1]
        return _refused(
            f"{type(error).__name__} in {place.name} ({place.filename}:{place.lineno}). Run the "
            "same command again to go on, or with --debug for the traceback.",
            1,
            debug,
        )
    if code == INTERRUPTED:
        return _refused("Stopped. Run the same command again to go on.", 1, debug)
    return int(code)


def run_command(name: str) -> NoReturn:
    """Runs one command with this process's arguments; what a script in jobs/ does."""
    sys.exit(main([name, *sys.argv[1:]]))


def build_app() -> typer.Typer:
    """Returns the command line."""
    app = typer.Typer(
        name="rapid-dist",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Image generators with a differential-privacy guarantee. To resume, run again.",
    )
    for name, text in STAGES.items():
        app.command(name, help=text)(index if name == "index" else _stage_command(name))
    app.command("audit", help="Try the installed code of a recipe on public stand-ins.")(audit)
    app.command("plan", help="Solve the privacy plan and print epsilon by every accountant.")(plan)
    ledger = typer.Typer(no_args_is_help=True, help="The ledger of the recipe's private data set.")
    ledger.command("show", help="Print totals: of the data set and of each run.")(ledger_show)
    ledger.command("verify", help="Read every entry again and check the chain.")(ledger_verify)
    app.add_typer(ledger, name="ledger")
    return app


def _stage_command(name: str) -> Any:
    def command(
        recipe: RecipeOption,
        overrides: SetOption = None,
        out: OutOption = "",
        dry_run: DryRunOption = False,
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        summary = _run_stage(name, recipe, overrides, out, dry_run, as_json)
        if as_json and summary is not None:
            print(json.dumps(summary))

    return command


def _run_stage(
    name: str, recipe: str, overrides: list[str] | None, out: str, dry_run: bool, as_json: bool
) -> dict[str, Any] | None:
    """Runs one command's stages and prints what came of them; nothing after a dry run."""
    from rapid_dist.runtime import pipeline
    from rapid_dist.runtime.run_directory import places

    loaded = _load(recipe, overrides)
    out = out or f"runs/{loaded.name}"
    if dry_run:
        _print_prepared(pipeline.prepare(loaded, out), as_json)
        return None
    summary = pipeline.run(loaded, out, command=None if name == "run" else name)
    if summary:
        _print_summary(summary, places(loaded, out).out)
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

    said = _run_stage("index", recipe, overrides, out, dry_run, as_json)
    if said is None:
        return
    if stats:
        loaded = _load(recipe, overrides)
        where = places(loaded, out or f"runs/{loaded.name}")
        place = open_storage(where.out)
        settings = without_dropped(method_settings(loaded), place)
        found = write_stats(settings, open_storage(where.public), place)
        print("\n".join(found.lines()))
        print(f"written    {where.out}/{STATS}, {HISTOGRAM}")
        said = {**said, "knowledge_base": asdict(found)}
    if as_json:
        print(json.dumps(said))


def audit(
    recipe: RecipeOption,
    overrides: SetOption = None,
    out: OutOption = "",
    profile: Annotated[
        AuditProfile, typer.Option("--profile", help="quick: minutes; full: more of everything.")
    ] = AuditProfile.QUICK,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.runtime import audit as auditing
    from rapid_dist.runtime import pipeline

    loaded = _load(recipe, overrides)
    out = out or f"runs/{loaded.name}"
    if dry_run:
        _print_prepared(pipeline.prepare(loaded, out), as_json)
        return
    found = auditing.run_audit(loaded, out, profile.value, _say_checked)
    print_audit(found.results)
    if as_json:
        print(json.dumps(found.content))
    refuse_failed(found.results)


def plan(
    recipe: RecipeOption,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.privacy import accounting

    loaded = _load(recipe, overrides)
    solved = accounting.plan(loaded.privacy, loaded.num_units)
    _print_plan(asdict(solved), loaded)
    if as_json:
        print(json.dumps({**asdict(solved), **_unit_facts(loaded)}))


def ledger_show(
    recipe: RecipeOption,
    overrides: SetOption = None,
    out: OutOption = "",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.privacy.keeper import totals
    from rapid_dist.privacy.statement import rounded_up

    loaded = _load(recipe, overrides)
    opened = _open_ledger(loaded, out)
    delta = loaded.privacy.delta
    spent = totals(opened, delta)
    print(f"data set {opened.dataset}: {len(opened.entries())} entries, head {opened.head}")
    unit = _unit_on(spent.unit, loaded)
    print(
        f"epsilon of all runs together for one {unit}, at delta {delta:g}: "
        f"{rounded_up(spent.dataset.reported)}"
    )
    for name, epsilons in spent.runs.items():
        print(f"  {name}: {rounded_up(epsilons.reported)}")
    if as_json:
        facts = {"dataset": opened.dataset, "entries": len(opened.entries()), "head": opened.head}
        print(json.dumps({**facts, **asdict(spent), "unit_name": unit}))


def ledger_verify(
    recipe: RecipeOption,
    overrides: SetOption = None,
    out: OutOption = "",
    head: HeadOption = "",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    opened = _open_ledger(_load(recipe, overrides), out)
    opened.verify(head or None)
    print(f"data set {opened.dataset}: {len(opened.entries())} entries, every one in its place")
    if as_json:
        print(json.dumps({"dataset": opened.dataset, "head": opened.head, "verified": True}))


def _load(recipe: str, overrides: list[str] | None) -> "Recipe":
    from rapid_dist.config import load_recipe

    return load_recipe(recipe, overrides or [])


def _open_ledger(recipe: "Recipe", out: str) -> "Ledger":
    from rapid_dist.runtime.run_directory import open_ledger

    return open_ledger(recipe, out or f"runs/{recipe.name}")


def _print_prepared(prepared: "Prepared", as_json: bool) -> None:
    from rapid_dist.config import to_yaml

    described = prepared.described()
    print(to_yaml(prepared.recipe))
    _print_plan(described["plan"], prepared.recipe)
    print(f"stages     {', '.join(described['stages'])}")
    for name, value in {**described["resources"], **described["places"]}.items():
        print(f"{name:<10} {value}")
    if as_json:
        print(json.dumps(described))


def _unit_facts(recipe: "Recipe") -> dict[str, Any]:
    """What the plan's epsilon is for."""
    private = recipe.data.private
    return {
        "unit": recipe.privacy.unit,
        "unit_name": private.unit_name,
        "unit_note": private.unit_note,
        "num_units": recipe.num_units,
    }


def _unit_on(unit: str | None, recipe: "Recipe") -> str:
    """The name of a ledger's unit: the recipe's if it is the same, or what the ledger holds."""
    private = recipe.data.private
    return private.unit_name if unit in (None, private.unit_id) else str(unit)


def _say_checked(name: str, results: "Sequence[CheckResult]", seconds: float) -> None:
    verdict = "passed" if all(result.passed for result in results) else "FAILED"
    print(f"{name:<18} {verdict} in {seconds:.0f} s", file=sys.stderr)


def refuse_failed(results: "Sequence[CheckResult]") -> None:
    """Ends the command with exit code 1, and a line for every question that was not passed."""
    refused = [result for result in results if not result.passed]
    for result in refused:
        line = f"{result.check} failed: {result.statistic}; the bound is {result.bound}."
        print(f"rapid-dist: {line}", file=sys.stderr)
    if refused:
        raise typer.Exit(1)


def print_audit(results: "Sequence[CheckResult]") -> None:
    """Prints a table, a row a question."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "measured", "bound", "false alarm", "verdict", show_lines=True)
    for result in results:
        chance = f"{result.false_alarm:.1g}" if result.false_alarm else "exact"
        verdict = "passed" if result.passed else "[bold red]FAILED[/bold red]"
        asked = f"[bold]{result.check}[/bold]\n{escape(result.question)}"
        table.add_row(asked, escape(result.statistic), escape(result.bound), chance, verdict)
    Console().print(table)


def _print_plan(solved: dict[str, Any], recipe: "Recipe") -> None:
    from rapid_dist.privacy.statement import rounded_up

    budget, epsilons = solved["budget"], solved["epsilons"]
    unit = _unit_facts(recipe)
    print(f"budget     epsilon {budget['epsilon']:g} at delta {budget['delta']:g}")
    print(
        f"unit       one {unit['unit_name']} of {unit['num_units']:,}. {unit['unit_note']}".rstrip()
    )
    counts = ("contamination",) if solved["contamination"] else ()
    for name in (*counts, "prior", "dp_sgd"):
        event = solved[name] or {"none": ""}
        facts = ", ".join(f"{key} {_shown(value)}".rstrip() for key, value in event.items())
        print(f"{name:<10} {facts}")
    print(f"solved     {recipe.privacy.unknown}")
    for name in ("pld", "prv", "rdp"):
        print(f"{name:<10} epsilon {rounded_up(epsilons[name])}")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _print_summary(summary: dict[str, Any], out: str) -> None:
    from rapid_dist.privacy.statement import rounded_up

    privacy, registry = summary["privacy"], summary["registry"]
    model = (
        f"models:/{registry['name']}@{registry['aliases'][0]} (version {registry['version']}) in "
        f"{registry['tracking_uri']}"
        if registry
        else "not registered"
    )
    unit = privacy.get("unit_name", privacy["unit"])
    print(
        f"epsilon    {rounded_up(privacy['epsilon'])} at delta {privacy['delta']:g}, relation "
        f"{privacy['relation']}, for one {unit}; all runs on {summary['dataset']} together "
        f"{rounded_up(privacy['dataset_epsilon'])}"
    )
    if privacy.get("unit_note"):
        print(f"unit       {privacy['unit_note']}")
    print(f"report     {out}/report.html")
    print(f"internal   {out}/internal/report.html")
    print(f"samples    {out}/samples.png")
    print(f"model      {model}")
    print(f"seconds    {summary['seconds']['total']:.0f}")


def _refused(line: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"rapid-dist: {line}", file=sys.stderr)
    return code
