"""`rapid-dist audit`."""

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

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
from rapid_dist.cli.stages import print_prepared

if TYPE_CHECKING:
    from rapid_dist.audit.result import CheckResult


class AuditProfile(StrEnum):
    """How much of everything an audit does."""

    QUICK = "quick"
    FULL = "full"


def add_audit(app: typer.Typer) -> None:
    """Adds `audit`."""
    app.command("audit", help="Try the installed code of a recipe on public stand-ins.")(audit)


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

    loaded = load(recipe, overrides)
    out = out_of(loaded, out)
    if dry_run:
        print_prepared(pipeline.prepare(loaded, out), as_json)
        return
    found = auditing.run_audit(loaded, out, profile.value, _say_checked)
    print_audit(found.results)
    if found.unrecorded:
        print(f"rapid-dist: not recorded in MLflow: {found.unrecorded}.", file=sys.stderr)
    if as_json:
        print(json.dumps(found.content))
    refuse_failed(found.results)


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
