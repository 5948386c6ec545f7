"""`rapid-dist ledger show` and `rapid-dist ledger verify`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from rapid_dist.cli.options import (
    DebugOption,
    JsonOption,
    OutOption,
    RecipeOption,
    SetOption,
    load,
    out_of,
)
from rapid_dist.cli.printing import unit_on

if TYPE_CHECKING:
    from rapid_dist.config import Recipe
    from rapid_dist.privacy.ledger import Ledger

HeadOption = Annotated[
    str, typer.Option("--head", help="A ledger head written down earlier; it must still be there.")
]

_SECRET = "It holds a sweep of a secret number of runs: show neither this nor the ledger."


def add_ledger(app: typer.Typer) -> None:
    """Adds `ledger` with its two commands."""
    ledger = typer.Typer(no_args_is_help=True, help="The ledger of the recipe's private data set.")
    ledger.command("show", help="Print totals: of the data set and of each run.")(ledger_show)
    ledger.command("verify", help="Read every entry again and check the chain.")(ledger_verify)
    app.add_typer(ledger, name="ledger")


def ledger_show(
    recipe: RecipeOption,
    overrides: SetOption = None,
    out: OutOption = "",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.privacy.dataset_total import has_secret
    from rapid_dist.privacy.keeper import totals
    from rapid_dist.privacy.statement import rounded_up

    loaded = load(recipe, overrides)
    opened = _open_ledger(loaded, out)
    delta = loaded.privacy.delta
    spent = totals(opened, delta)
    print(f"data set {opened.dataset}: {len(opened.entries())} entries, head {opened.head}")
    if not opened.entries():
        print(
            f"Nothing was ever charged at {opened.uri}: is that where its runs have their ledger?"
        )
    unit = unit_on(spent.unit, loaded)
    print(
        f"epsilon of all runs together for one {unit}, at delta {delta:g}: "
        f"{rounded_up(spent.dataset.reported)}"
    )
    if has_secret(opened):
        print(_SECRET)
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
    opened = _open_ledger(load(recipe, overrides), out)
    from rapid_dist.privacy.dataset_total import has_secret

    opened.verify(head or None)
    if not opened.entries():
        from rapid_dist.errors import LedgerError

        raise LedgerError(
            f"There is no entry at {opened.uri}, so nothing was verified. Give the --out of one of "
            "the data set's runs, and its runtime.ledger_dir if it has one."
        )
    if has_secret(opened):
        print(_SECRET)
    print(f"data set {opened.dataset}: {len(opened.entries())} entries, every one in its place")
    if as_json:
        print(json.dumps({"dataset": opened.dataset, "head": opened.head, "verified": True}))


def _open_ledger(recipe: "Recipe", out: str) -> "Ledger":
    from rapid_dist.runtime.run_directory import open_ledger

    return open_ledger(recipe, out_of(recipe, out))
