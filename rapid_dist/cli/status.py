"""`rapid-dist status`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rapid_dist.cli.options import DebugOption, JsonOption

if TYPE_CHECKING:
    from rapid_dist.runtime.status import Status

STATUS = "How far a run is, and what it has spent, from its directory and ledger alone."


def add_status(app: typer.Typer) -> None:
    """Adds `status`."""
    app.command("status", help=STATUS)(status)


def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its directory, or s3://...")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.runtime.status import status as status_of

    found = status_of(run)
    print_status(found)
    if as_json:
        print(json.dumps(found.as_json()))


def print_status(found: "Status") -> None:
    """Prints the stages, a line each, and what was spent."""
    from rapid_dist.privacy.statement import rounded_up

    print(f"run        {found.run}, recipe {found.recipe}, in {found.out}")
    for stage in found.stages:
        word = "done" if stage.done else "begun"
        far = "" if stage.done or stage.steps is None else f"  {stage.step}/{stage.steps}"
        print(f"{stage.name:<14} {word}{far}  {stage.seconds:.0f} s")
    planned = "" if found.planned_steps is None else f" of {found.planned_steps} planned"
    print(f"charged    {found.charged_steps} steps{planned}, in {found.attempts} attempts")
    spent = "nothing" if found.epsilon is None else rounded_up(found.epsilon)
    print(f"epsilon    {spent} of {found.budget:g} at delta {found.delta:g}")
    if found.held_by:
        print(f"held by    process {found.held_by.get('pid')} on {found.held_by.get('host')}")
    print(f"state      {'complete' if found.complete else 'not complete: run it again to go on'}")
    if found.model:
        print(f"model      {found.model}")
