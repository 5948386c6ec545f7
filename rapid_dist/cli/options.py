"""Options that several commands take, and what every command does with them first."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rapid_dist.config import Recipe

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


def load(recipe: str, overrides: list[str] | None) -> "Recipe":
    """Returns a recipe with its overrides; raises ConfigError."""
    from rapid_dist.config import load_recipe

    return load_recipe(recipe, overrides or [])


def out_of(recipe: "Recipe", out: str) -> str:
    """Returns the run directory: the one asked for, or the recipe's own under runs/."""
    return out or f"runs/{recipe.name}"
