"""`rapid-dist sweep`."""

import json
from typing import Any

import typer

from rapid_dist.cli.options import (
    DebugOption,
    DryRunOption,
    JsonOption,
    OutOption,
    RecipeOption,
    SetOption,
    load,
)
from rapid_dist.cli.printing import print_dry_run

SWEEP = "Try many settings at one epsilon, choose one, and say what choosing it cost."


def add_sweep(app: typer.Typer) -> None:
    """Adds `sweep`."""
    app.command("sweep", help=SWEEP)(sweep)


def sweep(
    recipe: RecipeOption,
    overrides: SetOption = None,
    out: OutOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.runtime.sweep import prepare_sweep, run_sweep

    loaded = load(recipe, overrides)
    out = out or f"runs/{loaded.name}-sweep"
    if dry_run:
        described = prepare_sweep(loaded, out).described()
        price = described["price"]
        lines = [f"{name:<26} {values}" for name, values in described["space"].items()]
        lines.append(f"price      {price['sentence'] if price else 'known when the trials are'}")
        print_dry_run(loaded, described, lines, as_json)
        return
    result = run_sweep(loaded, out)
    print_sweep(result)
    if as_json:
        print(json.dumps(result))


def print_sweep(result: dict[str, Any]) -> None:
    """Prints the trials as a table, unless their number is secret, and what was chosen."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rapid_dist.release.sweep_page import own_columns, score_name, trial_rows

    winner, trials = result["winner"], result["trials"]
    if trials:
        settings = own_columns(trials)
        table = Table("trial", *settings, "steps", "noise", score_name(result["promise"]),
                      "seconds", "state")  # fmt: skip
        for trial, row in zip(trials, trial_rows(trials, settings), strict=True):
            style = "bold" if trial["number"] == winner["number"] else None
            table.add_row(*(escape(cell) for cell in row), style=style)
        Console().print(table)
    point = ", ".join(f"{name}={value}" for name, value in winner["point"].items())
    print(f"chosen     {point}")
    print(f"price      {result['price']['sentence']}")
    print(f"recipe     {winner['recipe']}")
    if winner["run"]:
        print(f"model      {winner['run']}")
    print(f"page       {result['page']}")
