"""What a comparison found, added to what an earlier one had: other rows, budgets or seeds."""

import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from rapid_dist.config import Recipe, parse_recipe, to_tree
from rapid_dist.runtime.compare_results import rows_of

FACTS = ("command", "machine", "versions", "code", "cost", "seeds", "methods")  # Of one go each.
# Where and how a run is made; all else has to be the same.
_FREE = ("runtime", "tracking", "compare")
_OF_A_GO = ("methods", "epsilons", "seeds", "first_seed", "variants", "budgets")


def added(earlier: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Returns the pieces of both and their rows; a new piece takes the place of that of its name.

    One that is not done takes nobody's, but that of a piece of other settings. ``earlier`` in the
    result has the command, machine and cost of every go before.
    """
    pieces = {one["piece"]: one for one in earlier["pieces"]}
    for one in found["pieces"]:
        before = pieces.get(one["piece"])
        if one["state"] == "done" or before is None or before["changes"] != one["changes"]:
            pieces[one["piece"]] = one
    places = {row: place for place, row in enumerate(_names(pieces.values()))}
    ordered = sorted(
        pieces.values(),
        key=lambda one: (places[one["row"]], one["epsilon"] or 0.0, one["seed"]),
    )
    return {
        **found,
        "pieces": ordered,
        "rows": rows_of(ordered),
        "methods": list(places),
        "seeds": len({one["seed"] for one in ordered}),
        "earlier": [
            *earlier.get("earlier", []),
            {name: earlier[name] for name in FACTS if name in earlier},
        ],
    }


def is_drawn_anew(earlier: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether the later sheet of samples has rows, or budgets, that the earlier has not."""
    return not _shown(found) <= _shown(earlier)


def one_below_the_other(first: bytes, second: bytes) -> bytes:
    """Returns two PNGs as one."""
    sheets = [Image.open(BytesIO(one)).convert("RGB") for one in (first, second)]
    size = (max(one.width for one in sheets), sum(one.height for one in sheets))
    page = Image.new("RGB", size, "white")
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height
    data = BytesIO()
    page.save(data, "PNG")
    return data.getvalue()


def write_sheet(path: Path, sheet: bytes, *, below: bool) -> None:
    """Writes a sheet of samples, below the one that is there if asked for."""
    path.write_bytes(one_below_the_other(path.read_bytes(), sheet) if below else sheet)


def require_same(earlier: dict[str, Any], recipe: Recipe) -> None:
    """Refuses a recipe that would not make pieces of one comparison with those that there are.

    Rows, budgets and seeds may be others. What a row changes at a budget may be so only if no
    earlier piece of it is left.

    Raises:
      SystemExit: they differ in more than where and how runs are made.
    """
    old, new = earlier["settings"], to_tree(recipe)
    old = to_tree(parse_recipe(old))  # Settings newer than it are at their defaults.
    old["data"]["root"] = new["data"]["root"]
    differ = {name for name in new if name not in _FREE and old[name] != new[name]}
    differ |= {
        f"compare.{name}"
        for name in set(new["compare"]) - set(_OF_A_GO)
        if old["compare"][name] != new["compare"][name]
    }
    compare = recipe.compare
    seeds = range(compare.first_seed, compare.first_seed + compare.seeds)
    for piece in earlier["pieces"]:
        row, epsilon = piece["row"], piece["epsilon"]
        if row not in compare.methods or epsilon not in (None, *compare.epsilons):
            continue
        changes = json.loads(json.dumps(compare.changes(row, epsilon)))
        if piece["seed"] not in seeds and piece["changes"] != changes:
            differ.add(f"{row} at {'any epsilon' if epsilon is None else f'{epsilon:g}'}")
    if differ:
        raise SystemExit(
            f"compare: the earlier results differ in {', '.join(sorted(differ))}. Run without "
            "--add, which replaces them."
        )


def _names(pieces: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["row"] for one in pieces))


def _shown(result: dict[str, Any]) -> set[tuple[str, float | None]]:
    return {(one["row"], one["epsilon"]) for one in result["pieces"] if one["state"] == "done"}
