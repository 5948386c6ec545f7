"""What people see of a plan and of a finished run."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rapid_dist.config import Recipe


def print_plan(solved: dict[str, Any] | None, promise: str, recipe: "Recipe") -> None:
    """Prints a solved plan, and epsilon by every accountant; or that there is nothing to solve."""
    from rapid_dist.privacy.statement import rounded_up

    if solved is None:
        print(f"privacy    none: method {recipe.method} has no epsilon, and is never released")
        return
    if promise == "public":
        print(f"privacy    method {recipe.method} reads no private record: nothing is charged")
        return
    budget, epsilons = solved["budget"], solved["epsilons"]
    unit = unit_facts(recipe)
    print(f"budget     epsilon {budget['epsilon']:g} at delta {budget['delta']:g}")
    print(
        f"unit       one {unit['unit_name']} of {unit['num_units']:,}. {unit['unit_note']}".rstrip()
    )
    counts = tuple(name for name in ("contamination", "candidates") if solved[name])
    for name in (*counts, "prior", "retrieval" if solved["retrieval"] else "dp_sgd"):
        event = solved[name] or {"none": ""}
        facts = ", ".join(f"{key} {_shown(value)}".rstrip() for key, value in event.items())
        print(f"{name:<10} {facts}")
    unknown = "noise_multiplier" if solved["retrieval"] else recipe.privacy.unknown
    print(f"solved     {unknown}")
    for name in ("pld", "prv", "rdp"):
        print(f"{name:<10} epsilon {rounded_up(epsilons[name])}")


def print_dry_run(
    recipe: "Recipe", described: dict[str, Any], lines: list[str], as_json: bool
) -> None:
    """Prints a resolved recipe, what a dry run has found out, and where it would be written."""
    from rapid_dist.config import to_yaml

    print(to_yaml(recipe))
    for line in (*lines, *(f"{name:<10} {value}" for name, value in described["places"].items())):
        print(line)
    if as_json:
        print(json.dumps(described, default=str))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def print_summary(summary: dict[str, Any], out: str) -> None:
    """Prints what a run has cost and where its results lie."""
    from rapid_dist.privacy.statement import rounded_up

    privacy, registry = summary["privacy"], summary["registry"]
    model = (
        f"models:/{registry['name']}@{registry['aliases'][0]} (version {registry['version']}) in "
        f"{registry['tracking_uri']}"
        if registry
        else "not registered"
    )
    if "sentence" in privacy:  # Nothing was charged, so nothing is claimed.
        print(f"privacy    {privacy['sentence']}")
        print(f"internal   {out}/internal/report.html")
        print(f"seconds    {summary['seconds']['total']:.0f}")
        return
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


def unit_facts(recipe: "Recipe") -> dict[str, Any]:
    """What the plan's epsilon is for."""
    private = recipe.data.private
    return {
        "unit": recipe.privacy.unit,
        "unit_name": private.unit_name,
        "unit_note": private.unit_note,
        "num_units": recipe.num_units,
    }


def unit_on(unit: str | None, recipe: "Recipe") -> str:
    """The name of a ledger's unit: the recipe's if it is the same, or what the ledger holds."""
    private = recipe.data.private
    return private.unit_name if unit in (None, private.unit_id) else str(unit)
