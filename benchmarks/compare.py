"""Methods and ablations side by side, a part at a time: `rapid-dist compare` with its rows.

    python benchmarks/compare.py --list
    python benchmarks/compare.py --parts digits,digits-ablations --set data.root=DIR
    python benchmarks/compare.py --parts mnist --set data.root=DIR
    python benchmarks/compare.py --parts mnist --rows rapid,dpdm --epsilons 0.2,10 --add ...
    python benchmarks/compare.py --parts mnist --rows rapid,dpdm --first-seed 1 --seeds 2 --add ...
    python benchmarks/compare.py --document     # what there is, into docs/results.md

With ``--add`` rows, budgets or seeds join those that the results of the part hold already. Parts
are in ``compare_parts.py``, with what is cut. Resumable piece by piece: the same command goes on,
and writes the results so far after every part. A part leaves ``results/compare-PART.json`` with all
figures by seed and epsilon, its figure and its sheet of samples beside it, its page in
``OUT/compare-PART/compare.html`` (internal). All parts share their public stages. Each keeps a
ledger of its own, which with data that is not published would be a fault: hundreds of runs cost an
epsilon on which no two accountants agree. ``mnist-10k`` is mnist at 14 x 14 pixels, 10,000 records
of it, by a public order.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import RESULTS, arguments, in_document, table, write
from compare_add import FREE, added, require_same, write_sheet
from compare_parts import Part, Settings, parts

from rapid_dist.config import Recipe, load_recipe, parse_recipe, to_tree
from rapid_dist.release.compare_plots import quality_svg
from rapid_dist.release.compare_rows import differences
from rapid_dist.runtime.compare import run_compare
from rapid_dist.runtime.compare_results import series_of
from rapid_dist.runtime.run_directory import changes

DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"


def recipe_of(name: str, part: Part, options: argparse.Namespace) -> Recipe:
    """Returns the recipe of a part, its rows in section ``compare``."""
    epsilons = tuple(options.epsilons or part.epsilons)
    compare = {
        "methods": list(options.rows or part.rows),
        "epsilons": list(epsilons),
        "seeds": options.seeds or part.seeds,
        "first_seed": options.first_seed,
        "variants": {row: _at(one, epsilons) for row, one in part.variants.items()},
        "budgets": {at: one for at, one in part.budgets.items() if at in epsilons},
    }
    return load_recipe(
        part.recipe,
        [
            f"runtime.backend={options.backend}",
            f"runtime.workers={options.workers}",
            f"runtime.ledger_dir={options.out}/ledger-{name}",
            *part.overrides,
            f"compare={json.dumps(compare)}",  # Which is YAML as well.
            *options.overrides,
        ],
    )


def run_part(name: str, part: Part, options: argparse.Namespace) -> list[str]:
    """Runs what is left of a part, prints its table, writes its results; returns what failed."""
    recipe = recipe_of(name, part, options)
    settings = json.loads(json.dumps(to_tree(recipe)))
    if settings["data"]["root"]:
        settings["data"]["root"] = "DIR"  # Wherever it is, the images are the same.
    path = RESULTS / f"compare-{name}.json"
    earlier = json.loads(path.read_text()) if options.add and path.is_file() else None
    if earlier is not None:
        require_same(earlier, recipe)
    result = run_compare(recipe, f"{options.out}/compare-{name}")
    chief = ("mean", "best", "frechet", "nfe", "seconds", "public_seconds", "rss_gb")
    rows = [
        {
            "row": row["row"],
            "epsilon": row["epsilon"] or "-",
            "seeds": row["seeds"],
            "spread": row["spread"].get("mean") or "-",
            **{figure: row["mean"].get(figure) for figure in chief},
        }
        for row in result["rows"]
    ]
    print(table(rows, ["row", "epsilon", "seeds", "mean", "spread", *chief[1:]]), flush=True)
    kept = {key: value for key, value in result.items() if key not in ("page", "versions")}
    kept |= {"part": name, "settings": settings}
    # Internal, as all that is measured on private records; those of a test bed are public.
    sheet = Path(f"{options.out}/compare-{name}/compare-samples.png").read_bytes()
    write_sheet(path.with_suffix(".png"), sheet, kept, earlier)
    if earlier is not None:
        kept = added(earlier, kept)
    figure = quality_svg(series_of(kept["rows"], kept["chief"]), kept["chief"])
    path.with_suffix(".svg").write_text(figure)
    write(f"compare-{name}", kept)
    return [f"{name}/{one['piece']}" for one in result["pieces"] if one["state"] == "failed"]


def documented(result: dict[str, Any]) -> str:
    """Returns the table of a part: a line a row, its figures at each epsilon side by side.

    A row without an epsilon, public or without privacy, has the same ones at each. Below it, the
    settings that are a row's own.
    """
    found = {(row["row"], row["epsilon"]): row for row in result["rows"]}
    names = list(dict.fromkeys(name for name, _ in found))
    epsilons = sorted({epsilon for _, epsilon in found if epsilon is not None})
    lines = []
    for name in names:
        line: Settings = {"row": f"`{name}`"}
        own = [found[key] for key in found if key[0] == name]
        for epsilon in epsilons:
            row = found.get((name, epsilon), found.get((name, None)))
            line |= {f"mean / best at {epsilon:g}": "", f"FID-like at {epsilon:g}": ""}
            if row is not None:
                spread, best = row["spread"]["mean"], f" / {row['mean']['best']:.3f}"
                mean = f"{row['mean']['mean']:.3f}" + (f" ± {spread:.3f}" if spread else "")
                line[f"mean / best at {epsilon:g}"] = mean + best
                line[f"FID-like at {epsilon:g}"] = f"{row['mean']['frechet']:.2f}"
        last, seeds = own[-1]["mean"], [row["seeds"] for row in own]
        lines.append(
            line
            | {
                "seeds": ", ".join(map(str, seeds if len(set(seeds)) > 1 else seeds[:1])),
                "evaluations": f"{last['nfe']:.0f}",
                "seconds": f"{last['seconds']:.0f}",
                "public seconds": _known(last["public_seconds"], 0),
                "GB": _known(last["rss_gb"], 1),
            }
        )
    return table(lines, list(lines[0])) + _differences(result)


def _known(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _differences(result: dict[str, Any]) -> str:
    """Returns a list, folded, of what all rows have otherwise than the recipe, and each one."""
    recipe = result["recipe"]
    given = changes(load_recipe(recipe), parse_recipe(result["settings"]))
    of_all = [
        f"{name}={now if isinstance(now, str) else json.dumps(now)}"
        for name, (_, now) in given.items()
        if name != "data.root" and name.partition(".")[0] not in FREE
    ]
    own = [
        f"- `{row}`" + ("" if row == method else f" ({method})") + f": {said}"
        for row, method, said in differences(result)
    ]
    return "\n".join(
        [
            "\n\n<details><summary>Settings: of all rows, and of each alone</summary>\n",
            f"- all: {'; '.join([f'recipe `{recipe}`', *of_all])}",
            *own,
            "\n</details>",
        ]
    )


def write_document(names: Iterable[str]) -> None:
    """Puts the tables of all parts that were run into docs/results.md."""
    text = DOCUMENT.read_text("utf-8")
    for name in names:
        path = RESULTS / f"compare-{name}.json"
        if path.is_file():
            lines = documented(json.loads(path.read_text()))
            text = in_document(text, f"compare {name}", lines)
    DOCUMENT.write_text(text, "utf-8")


def options_of() -> argparse.ArgumentParser:
    parser = arguments(__doc__)
    parser.add_argument("--parts", default="digits")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--document", action="store_true", help="from the last results")
    parser.add_argument("--seeds", type=int, help="instead of a part's own")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=_names, help="instead of all of a part: rapid,dpdm")
    parser.add_argument("--add", action="store_true", help="join the results that there are")
    parser.add_argument("--epsilons", type=_numbers, help="instead of a part's own: 1,10")
    return parser


def main() -> None:
    options = options_of().parse_args()
    known = parts()
    if options.list:
        print("\n".join(known))
        return
    if options.document:
        write_document(known)
        return
    asked = options.parts.split(",")
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise SystemExit(f"No such part: {', '.join(unknown)}. --list names them.")
    failed = [piece for name in asked for piece in run_part(name, known[name], options)]
    if failed:
        raise SystemExit(f"Failed, and tried again by the same command: {', '.join(failed)}.")


def _at(variant: Settings, epsilons: tuple[float, ...]) -> Settings:
    """Returns a variant without what it has at other epsilons."""
    if "at" not in variant:
        return variant
    return variant | {"at": {at: one for at, one in variant["at"].items() if at in epsilons}}


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(one) for one in text.split(","))


if __name__ == "__main__":
    main()
