"""Methods and ablations side by side, a part at a time: `rapid-dist compare` with its rows.

    python benchmarks/compare.py --list
    python benchmarks/compare.py --parts digits,digits-ablations
    python benchmarks/compare.py --parts mnist --set data.root=DIR
    python benchmarks/compare.py --parts mnist-best --best rapid,dpdm --set data.root=DIR
    python benchmarks/compare.py --parts digits --first-seed 2 --seeds 1 --add
    python benchmarks/compare.py --document     # what there is, into docs/results.md

With ``--add`` rows, budgets or seeds join those that the results of the part hold already.
Resumable piece by piece: the same command goes on, and writes the results so far after every part.
A part leaves ``results/compare-PART.json`` with all figures by seed and epsilon, its figure and its
sheet of samples beside it, its page in ``OUT/compare-PART/compare.html`` (internal). All parts
share their public stages. Each keeps a ledger of its own, which with data that is not published
would be a fault: hundreds of runs cost an epsilon on which no two accountants agree. ``mnist-10k``
is mnist at 14 x 14 pixels, 10,000 records of it, by a public order.

What is cut, so that two cores end within a night: K of dpdm and of nonprivate is not 32 but
4 on digits, 1 on mnist and 2 on pneumonia, which pretrains for 1,000 steps and not 3,000; ablations
have one seed, at epsilon 10 on digits and at 1 on mnist-10k, which has 60 steps and no K above 4;
those of the prior are at 0.2, 1 and 10 on digits.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common import RESULTS, arguments, in_document, table, write
from compare_add import added, is_drawn_anew, require_same, write_sheet

from rapid_dist.config import Recipe, load_recipe, to_tree
from rapid_dist.methods.catalog import METHODS
from rapid_dist.release.compare_plots import quality_svg
from rapid_dist.runtime.compare import run_compare
from rapid_dist.runtime.compare_results import series_of

Settings = dict[str, Any]
DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"
EVERY = (
    "rapid", "dpdm", "dp_ldm", "dp_rdm", "public", "references", "public_from_references",
    "nonprivate",
)  # fmt: skip
CUT: dict[str, Settings] = {
    "dpdm": {"train.multiplicity": 4, "train.ema_decay": 0.98},
    "nonprivate": {"train.multiplicity": 4},
    # It trains little but attention, and so few parameters want larger steps: on digits at epsilon
    # 10 0.003 gave 0.54, 0.01 0.88 and 0.03 0.84; the others are best at 0.003 (docs/results.md).
    "dp_ldm": {"network.attention": [True, True], "train.learning_rate": 0.01},
}
# A small budget leaves training little to add: most of it, or all, goes to the prior, and on mnist
# a sample then enters at a lower noise level (docs/results.md).
DIGITS_BUDGETS: dict[float, Settings] = {
    0.2: {"privacy.prior_share": 1},
    1: {"privacy.prior_share": 0.4},
}
MNIST_BUDGETS: dict[float, Settings] = {
    0.2: {
        "privacy.prior_share": 1, "knowledge_base.clusters": 5000, "prior.threshold": 3.4,
        "split.split_step": 250,
    },
    1: {
        "privacy.prior_share": 0.7, "privacy.expected_batch": 2048, "privacy.steps": 40,
        "train.ema_decay": 0.95, "train.learning_rate": 0.001, "train.log_level_mean": None,
        "split.split_step": 450,
    },
}  # fmt: skip
# Those budgets are for a method with a prior: few steps for what the prior left. Who trains without
# one has the recipe's own steps, at every epsilon.
_ALONE: Settings = {
    "privacy.expected_batch": 1024, "privacy.steps": 250, "train.learning_rate": 0.003,
    "train.log_level_mean": -0.3,
}  # fmt: skip
MNIST_CUT: dict[str, Settings] = {
    row: {**_ALONE, **changes, "train.multiplicity": 1, "train.ema_decay": 0.98}
    for row, changes in CUT.items()
}
SMALL_MNIST = (
    "data.private.name=mnist-10k-14",
    "data.private.limit=10000",
    "data.private.num_records=10000",
    "data.private.size=14",
    "network.patch=1",
    "network.widths=[32, 64]",
    "pretrain.steps=1000",
    "knowledge_base.clusters=5000",
    "privacy.steps=60",
    "train.ema_decay=0.95",
    "sampling.count=5000",
)
PUBLIC: dict[str, list[dict[str, Any]]] = {
    "letters": [{"source": "letters", "count": 20000}],
    "omniglot": [{"source": "omniglot"}],
    "kannada": [{"source": "kannada"}],
    "all": [
        {"source": "letters", "count": 20000}, {"source": "omniglot"}, {"source": "kannada"},
        {"source": "kmnist"}, {"source": "notmnist"},
    ],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """One comparison: a recipe, what is changed in it, its rows, budgets and seeds."""

    recipe: str
    rows: tuple[str, ...]
    variants: dict[str, Settings] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    epsilons: tuple[float, ...] = (0.2, 1, 10)
    budgets: dict[float, Settings] = field(default_factory=dict)  # What else holds at an epsilon.
    seeds: int = 3
    first_seed: int = 0


def _varied(name: str, *values: Any) -> dict[str, Settings]:
    """Returns a variant for each value of one setting, named after both."""
    last = name.rpartition(".")[2].replace("_", "-")
    return {f"{last}-{value}": {name: value} for value in values}


def ablations(
    base: str,
    recipe: str,
    *,
    epsilons: tuple[float, ...],
    overrides: tuple[str, ...],
    splits: tuple[int, ...],
    multiplicities: tuple[int, ...],
    clusters: tuple[int, ...],
    budgets: dict[float, Settings],
) -> dict[str, Part]:
    """Returns the ablations on one data set: each row is the recipe, ``base``, but for one thing.

    Args:
      epsilons: of those of the prior; the others are at the last of them.
      splits: the split steps beside the recipe's own; as the other values.
      budgets: what else holds at an epsilon, where the prior is what is changed.
    """
    # Where a record's own query decides its surrogate, k and the keys matter; else they do not.
    queried = {
        "train.mode": "surrogate", "train.surrogate": "query", "sampling.source": "query",
        "split.split_step": 450,
    }  # fmt: skip
    modes: dict[str, Settings] = {
        mode: {"train.mode": mode} for mode in ("late", "surrogate", "full")
    }
    del modes[load_recipe(recipe).train.mode]
    prior: dict[str, Settings] = {
        "base": {},
        **_varied("privacy.prior_share", 0.05, 0.5, 0.9, 1),
        **_varied("knowledge_base.clusters", *clusters),
        **_varied("prior.features", "contrast", "denoiser"),
        **_varied("prior.threshold", 2, 4),
        **_varied("prior.nearest", 1, 8),
        **_varied("privacy.candidate_share", 0.3),  # A second round of votes.
    }
    rows: dict[str, Settings] = {
        "base": {},
        **modes,
        **_varied("split.split_step", *splits),
        **_varied("train.multiplicity", *multiplicities),
        # Fewer references with the same pretrained network would need another split of the public
        # images, so what is left of them pretrains: told beside the figures.
        **_varied("data.reference_share", 0.05, 0.2, 0.8),
        **{
            f"public-{name}": {"data.public": one}
            for name, one in PUBLIC.items()
            if (name, recipe) != ("letters", "digits")  # Which is the recipe.
        },
        "no-public": {"method": "dpdm", "train.start": "scratch", "train.ema_decay": 0.98},
        "queried": queried,
        **{
            name: {**queried, **one}
            for name, one in (
                _varied("split.query_step", 500, 850) | _varied("sampling.top_m", 4, 16)
            ).items()
        },
    }
    own = Part(
        recipe=recipe, rows=tuple(rows), variants=rows, overrides=overrides,
        epsilons=epsilons[-1:], seeds=1,
    )  # fmt: skip
    return {
        f"{base}-ablations": own,
        f"{base}-prior": replace(
            own, rows=tuple(prior), variants=prior, epsilons=epsilons, budgets=budgets
        ),
    }


def parts(best: tuple[str, ...]) -> dict[str, Part]:
    """Returns all parts by name; ``best`` are the methods that go on to other budgets on mnist."""
    every = tuple(name for name in EVERY if name in METHODS)
    mnist = Part(
        recipe="mnist",
        rows=every,
        variants=MNIST_CUT,
        epsilons=(1,),
        budgets=MNIST_BUDGETS,
        seeds=1,
    )
    return {
        "digits": Part(
            recipe="digits",
            rows=every,
            # As many draws of a record for all that train: the same compute.
            overrides=("pretrain.steps=1000", "train.multiplicity=4"),
            variants={**CUT, "rapid": {"train.mode": "surrogate"}},
            budgets=DIGITS_BUDGETS,
        ),
        "mnist": mnist,
        "mnist-best": replace(mnist, rows=best, epsilons=(0.2, 10)),
        "mnist-best-seeds": replace(mnist, rows=best, first_seed=1, seeds=2),
        "pneumonia": Part(
            recipe="pneumonia",
            rows=every,
            # As many draws of a scan for all that train, the recipe's own: the same compute.
            variants={row: {**changes, "train.multiplicity": 2} for row, changes in CUT.items()},
            epsilons=(10,),
            seeds=1,
            overrides=("pretrain.steps=1000",),
        ),
        **ablations(
            "digits",
            "digits",
            epsilons=(0.2, 1, 10),
            overrides=("pretrain.steps=1000",),
            splits=(250, 450, 690),
            multiplicities=(4, 8),
            clusters=(100, 1600),
            budgets=DIGITS_BUDGETS,
        ),
        **ablations(
            "mnist-10k",
            "mnist",
            epsilons=(1,),
            overrides=SMALL_MNIST,
            splits=(250, 450, 680),
            multiplicities=(4,),
            clusters=(1000, 20000),
            budgets={},
        ),
    }


def recipe_of(name: str, part: Part, options: argparse.Namespace) -> Recipe:
    """Returns the recipe of a part, its rows in section ``compare``."""
    epsilons = tuple(options.epsilons or part.epsilons)
    compare = {
        "methods": list(options.rows or part.rows),
        "epsilons": list(epsilons),
        "seeds": options.seeds or part.seeds,
        "first_seed": part.first_seed if options.first_seed is None else options.first_seed,
        "variants": part.variants,
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


def run_part(name: str, part: Part, options: argparse.Namespace) -> None:
    """Runs what is left of a part, prints its table and writes its results."""
    recipe = recipe_of(name, part, options)
    settings = json.loads(json.dumps(to_tree(recipe)))
    if settings["data"]["root"]:
        settings["data"]["root"] = "DIR"  # Wherever it is, the images are the same.
    path = RESULTS / f"compare-{name}.json"
    earlier = json.loads(path.read_text()) if options.add and path.is_file() else None
    if earlier is not None:
        require_same(earlier["settings"], settings)
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
    if earlier is None or is_drawn_anew(earlier, kept):
        write_sheet(path.with_suffix(".png"), sheet, below=earlier is not None)
    if earlier is not None:
        kept = added(earlier, kept)
    figure = quality_svg(series_of(kept["rows"], kept["chief"]), kept["chief"])
    path.with_suffix(".svg").write_text(figure)
    write(f"compare-{name}", kept)


def documented(result: dict[str, Any]) -> str:
    """Returns the table of a part: a line a row, its figures at each epsilon side by side.

    A row without an epsilon, public or without privacy, has the same ones at each.
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
            line |= {f"accuracy at {epsilon:g}": "", f"FID-like at {epsilon:g}": ""}
            if row is not None:
                spread = row["spread"]["mean"]
                mean = f"{row['mean']['mean']:.3f}"
                line[f"accuracy at {epsilon:g}"] = f"{mean} ± {spread:.3f}" if spread else mean
                line[f"FID-like at {epsilon:g}"] = f"{row['mean']['frechet']:.2f}"
        last = own[-1]["mean"]
        lines.append(
            line
            | {
                "seeds": own[-1]["seeds"],
                "evaluations": f"{last['nfe']:.0f}",
                "seconds": f"{last['seconds']:.0f}",
                "GB": f"{last['rss_gb']:.1f}",
            }
        )
    return table(lines, list(lines[0]))


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
    parser.add_argument("--first-seed", type=int, help="instead of a part's own")
    parser.add_argument("--rows", type=_names, help="instead of all of a part: rapid,dpdm")
    parser.add_argument("--add", action="store_true", help="join the results that there are")
    parser.add_argument("--epsilons", type=_numbers, help="instead of a part's own: 1,10")
    parser.add_argument("--best", default="rapid,references", help="rows of mnist-best")
    return parser


def main() -> None:
    options = options_of().parse_args()
    known = parts(tuple(options.best.split(",")))
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
    for name in asked:
        run_part(name, known[name], options)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(one) for one in text.split(","))


if __name__ == "__main__":
    main()
