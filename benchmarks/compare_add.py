"""What a comparison found, added to what an earlier one had: other rows, budgets or seeds."""

import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rapid_dist.config import Recipe, parse_recipe, to_tree
from rapid_dist.release.plots import GAP
from rapid_dist.runtime.compare_results import SHOWN, rows_of

FACTS = ("command", "machine", "versions", "code", "cost", "seeds", "methods")  # Of one go each.
# Where and how a run is made; all else has to be the same.
FREE = ("runtime", "tracking", "compare")
_OF_THE_LAST = (
    "the pieces of this command alone; of those before it, see earlier. What was ever charged to "
    "the data set counts all that stands on this part's ledger."
)
_ROWS = "rows"  # The names of a sheet's rows, in the text of its PNG.
_OF_A_GO = ("methods", "epsilons", "seeds", "first_seed", "variants", "budgets")


def added(earlier: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Returns the pieces of both and their rows; a new piece takes the place of that of its name.

    One that is not done takes nobody's, but that of a piece of other settings. ``earlier`` in the
    result has the command, machine and cost of every go before; ``cost`` itself says that it is of
    the last one alone.
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
        "cost": {**found["cost"], "of": _OF_THE_LAST},
        "methods": list(places),
        "seeds": len({one["seed"] for one in ordered}),
        "earlier": [
            *earlier.get("earlier", []),
            {name: earlier[name] for name in FACTS if name in earlier},
        ],
    }


def write_sheet(
    path: Path, sheet: bytes, found: dict[str, Any], earlier: dict[str, Any] | None
) -> None:
    """Writes a sheet of samples: of each row and epsilon those of the first seed that there is.

    Args:
      sheet: the PNG of ``found``; that of ``earlier`` lies at ``path``.
    """
    strips = _cut(sheet, list(_first(found)))
    if earlier is not None:
        with Image.open(path) as old:
            before = _cut(path.read_bytes(), json.loads(old.info[_ROWS]))
        done = {one["piece"] for one in found["pieces"] if one["state"] == "done"}
        strips = {
            name: (strips if piece in done else before)[name]
            for name, piece in _first(added(earlier, found)).items()
        }
    path.write_bytes(_page(strips))


def _first(result: dict[str, Any]) -> dict[str, str]:
    """Returns the piece of the first seed by the name that its row has on a sheet."""
    found: dict[str, str] = {}
    for one in sorted(result["pieces"], key=lambda one: one["seed"]):
        at = "" if one["epsilon"] is None else f" at {one['epsilon']:g}"
        if one["state"] == "done":
            found.setdefault(f"{one['row']}{at}", one["piece"])
    return found


def _cut(sheet: bytes, names: list[str]) -> dict[str, Image.Image]:
    """Returns the rows of a sheet, all equally high, by their names."""
    whole = Image.open(BytesIO(sheet)).convert("RGB")
    height = (whole.height - GAP) // len(names)
    return {
        name: whole.crop((0, GAP + place * height, whole.width, GAP + (place + 1) * height))
        for place, name in enumerate(names)
    }


def _page(strips: dict[str, Image.Image]) -> bytes:
    """Returns a PNG of rows, images under each other, their names in its text."""
    width = max(one.width for one in strips.values())
    page = Image.new("RGB", (width, sum(one.height for one in strips.values()) + GAP), "white")
    top = GAP
    for strip in strips.values():
        label = strip.width - SHOWN * strip.height - GAP  # Images are squares, all of one size.
        page.paste(strip.crop((0, 0, label, strip.height)), (0, top))
        page.paste(strip.crop((label, 0, *strip.size)), (width - strip.width + label, top))
        top += strip.height
    facts, data = PngInfo(), BytesIO()
    facts.add_text(_ROWS, json.dumps(list(strips)))
    page.save(data, "PNG", pnginfo=facts)
    return data.getvalue()


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
    differ = {name for name in new if name not in FREE and old[name] != new[name]}
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
