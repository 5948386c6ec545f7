"""`rapid-dist compare`."""

import json
from typing import TYPE_CHECKING, Any

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
from rapid_dist.errors import RapidError

if TYPE_CHECKING:
    from rapid_dist.runtime.compare_plan import PreparedCompare

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
        _print_prepared(prepare_compare(loaded, out), as_json)
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

    shown = [USEFUL[0], USEFUL[2], FAITHFUL[0], *COSTS[:3], COSTS[4]]
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


def _print_prepared(prepared: "PreparedCompare", as_json: bool) -> None:
    from rapid_dist.config import to_yaml

    described = prepared.described()
    print(to_yaml(prepared.recipe))
    for one in described["pieces"]:
        plan = one["plan"]
        step, prior = plan["dp_sgd"], plan["prior"]
        facts = [one["method"], one["promise"]]
        if prior:
            facts.append(f"prior noise {prior['noise_multiplier']:.4g}")
        if step:
            facts += [
                f"{step['steps']} steps of {step['expected_batch']:g} x {one['multiplicity']}",
                f"noise {step['noise_multiplier']:.4g}",
            ]
        print(f"{one['piece']:<28} {', '.join(facts)}")
    for name, value in described["places"].items():
        print(f"{name:<10} {value}")
    print(f"pieces     {len(described['pieces'])}")
    if as_json:
        print(json.dumps(described, default=str))
