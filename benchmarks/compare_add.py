"""What a comparison found, added to what an earlier one had: other rows, budgets or seeds."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from rapid_dist.runtime.compare_results import rows_of

FACTS = ("command", "machine", "versions", "cost", "seeds", "methods")  # Of one go each.
# Where and how a run is made; all else has to be the same.
_FREE = ("runtime", "tracking", "compare")


def added(earlier: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Returns the pieces of both and their rows; a new piece takes the place of that of its name.

    One that is not done takes nobody's. ``earlier`` in it has the command, machine and cost of
    every go before.
    """
    pieces = {one["piece"]: one for one in earlier["pieces"]}
    for one in found["pieces"]:
        if one["state"] == "done" or one["piece"] not in pieces:
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


def require_same(earlier: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuses settings, as plain trees, that would not make pieces of one comparison.

    Raises:
      SystemExit: they differ in more than where and how runs are made, rows, budgets and seeds.
    """
    differ = [
        name
        for name in sorted({*earlier, *found} - set(_FREE))
        if earlier.get(name) != found.get(name)
    ]
    old, new = earlier["compare"], found["compare"]
    for name in ("variants", "budgets"):
        both = set(old[name]) & set(new[name])
        differ += [f"compare.{name}.{one}" for one in both if old[name][one] != new[name][one]]
    differ += [
        f"compare.{name}"
        for name in sorted({*old, *new} - {"methods", "epsilons", "seeds", "first_seed"})
        if name not in ("variants", "budgets") and old.get(name) != new.get(name)
    ]
    if differ:
        raise SystemExit(
            f"compare: the earlier results differ in {', '.join(differ)}. Run without --add, which "
            "replaces them."
        )


def _names(pieces: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["row"] for one in pieces))


def _shown(result: dict[str, Any]) -> set[tuple[str, float | None]]:
    return {(one["row"], one["epsilon"]) for one in result["pieces"] if one["state"] == "done"}
