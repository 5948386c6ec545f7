"""`rapid-dist compare`."""

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
from rapid_dist.errors import RapidError

_WIDE = 120
COMPARE = "Set methods side by side at the same budgets, by the same evaluation (internal)."


def add_compare(app: typer.Typer) -> None:
    """Adds `compare`."""
    app.command("compare", help=COMPARE)(compare)


def compare(
    recipe: RecipeOption,
    overrides: SetOption = None,
    out: OutOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.runtime.compare import run_compare
    from rapid_dist.runtime.compare_plan import prepare_compare

    loaded = load(recipe, overrides)
    out = out or f"runs/{loaded.name}-compare"
    if dry_run:
        described = prepare_compare(loaded, out).described()
        lines = [_piece_line(one) for one in described["pieces"]]
        print_dry_run(loaded, described, [*lines, f"pieces     {len(lines)}"], as_json)
        return
    result = run_compare(loaded, out)
    print_compare(result)
    if as_json:
        print(json.dumps(result))
    failed = [one["piece"] for one in result["pieces"] if one["state"] == "failed"]
    if failed:
        raise RapidError(
            f"{len(failed)} of {len(result['pieces'])} pieces failed: {', '.join(failed)}. Run the "
            "same command again to go on with them."
        )


def print_compare(result: dict[str, Any]) -> None:
    """Prints the table, what all of it cost, and where the page is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from rapid_dist.release.compare_page import COSTS, FAITHFUL, USEFUL, table_rows

    costs = ("epsilon_spent", "private_rows", "nfe", "seconds", "rss_gb")
    shown = [USEFUL[0], USEFUL[2], FAITHFUL[0], *(one for one in COSTS if one[0] in costs)]
    heads = (heading for _, heading, _ in shown)
    table = Table(Column("row", no_wrap=True), "epsilon", "seeds", *heads)
    for cells in table_rows(result["rows"], shown):
        table.add_row(*(escape(cell) for cell in cells))
    Console(width=max(_WIDE, Console().width)).print(table)  # A log has no width of its own.
    for one in result["pieces"]:
        if one["state"] == "failed":
            print(f"failed     {one['piece']}: {one['reason']}")
    print("*          best of three by the private score: a choice made on private records")
    print(f"cost       {result['cost']['sentence']}")
    print(f"internal   {result['page']}")


def _piece_line(one: dict[str, Any]) -> str:
    """Returns what a dry run says of one piece."""
    plan, facts = one["plan"], [one["method"], one["promise"]]
    step, asked = plan["dp_sgd"], plan["retrieval"]
    if plan["prior"]:
        facts.append(f"prior noise {plan['prior']['noise_multiplier']:.4g}")
    if step:
        facts.append(f"{step['steps']} steps of {step['expected_batch']:g} x {one['multiplicity']}")
    if asked:
        facts.append(f"{asked['steps']} rounds of {asked['neighbors']} neighbours")
    if step or asked:
        facts.append(f"noise {(step or asked)['noise_multiplier']:.4g}")
    return f"{one['piece']:<28} {', '.join(facts)}"
