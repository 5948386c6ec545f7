"""Methods and ablations side by side, a part at a time: `rapid-dist compare` with its rows.

    python benchmarks/compare.py --list
    python benchmarks/compare.py --parts digits,digits-modes
    python benchmarks/compare.py --parts mnist --set data.root=DIR
    python benchmarks/compare.py --parts mnist-best --best rapid,dpdm --set data.root=DIR

Resumable piece by piece: the same command goes on, and writes the results so far after every part.
A part leaves ``results/compare-PART.json`` with all figures by seed and epsilon, its page in
``OUT/compare-PART/compare.html`` (internal). All parts share their public stages. Each keeps a
ledger of its own, which with data that is not published would be a fault: hundreds of runs cost an
epsilon on which no two accountants agree. ``mnist-10k`` is mnist at 14 x 14 pixels, 10,000 records
of it, by a public order.

What is cut, so that two cores end within a night: K of dpdm and of nonprivate is 4 and not 32.
"""

import argparse
import json
from dataclasses import dataclass, field
from typing import Any

from common import arguments, table, write

from rapid_dist.config import Recipe, load_recipe, to_tree
from rapid_dist.methods.catalog import METHODS
from rapid_dist.runtime.compare import run_compare

Settings = dict[str, Any]
EVERY = (
    "rapid", "dpdm", "dp_ldm", "dp_rdm", "public", "references", "public_from_references",
    "nonprivate",
)  # fmt: skip
CUT: dict[str, Settings] = {
    "dpdm": {"train.multiplicity": 4, "train.ema_decay": 0.98},
    "nonprivate": {"train.multiplicity": 4},
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
SMALL_MNIST = (
    "data.private.name=mnist-10k-14",
    "data.private.limit=10000",
    "data.private.num_records=10000",
    "data.private.size=14",
    "network.patch=1",
    "network.widths=[32, 64]",
    "pretrain.steps=1000",
    "knowledge_base.clusters=5000",
    "privacy.steps=150",
    "sampling.count=5000",
)
PUBLIC = {
    "letters": [{"source": "letters", "count": 20000}],
    "omniglot": [{"source": "omniglot"}],
    "kannada": [{"source": "kannada"}],
    "all": [
        {"source": "omniglot"}, {"source": "kannada"}, {"source": "kmnist"}, {"source": "notmnist"},
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
    budgets: dict[float, Settings] = field(default_factory=dict)
    seeds: int = 3
    first_seed: int = 0


def _varied(name: str, *values: Any) -> dict[str, Settings]:
    """Returns a variant for each value of one setting, named after both."""
    last = name.rpartition(".")[2].replace("_", "-")
    return {f"{last}-{value}": {name: value} for value in values}


def ablations(base: str, recipe: str, overrides: tuple[str, ...]) -> dict[str, Part]:
    """Returns the ablations on one data set, at epsilon 1 and 10, one seed each."""
    # Where a record's own query decides its surrogate, k and the keys matter; else they do not.
    queried = {"train.mode": "surrogate", "train.surrogate": "query", "sampling.source": "query"}
    domains: dict[str, Settings] = {
        "letters-only": {"data.public": PUBLIC["letters"]},
        "omniglot-only": {"data.public": PUBLIC["omniglot"]},
        "all-public": {"data.public": PUBLIC["all"]},
        "none": {"method": "dpdm", **CUT["dpdm"]},
    }
    groups = {
        "split": _varied("split.split_step", 250, 450, 600, 690),
        "query": {
            name: {**queried, "split.split_step": 450, **one}
            for name, one in _varied("split.query_step", 500, 700, 850).items()
        },
        "k": _varied("train.multiplicity", 1, 4, 16),
        # Fewer references with the same pretrained network would need another split of the public
        # images, so what is left of them pretrains: told beside the figures.
        "size": _varied("data.reference_share", 0.05, 0.2, 0.5, 0.8),
        "domain": domains,
        "modes": {
            "late": {"train.mode": "late"},
            "surrogate": {"train.mode": "surrogate"},
            "surrogate-query": {"train.mode": "surrogate", "train.surrogate": "query"},
            "full": {"train.mode": "full"},
        },
        "top": {
            name: {**queried, **one} for name, one in _varied("sampling.top_m", 1, 4, 16).items()
        },
        "prior": _varied("privacy.prior_share", 0.05, 0.15, 0.5, 0.9, 1),
        "clusters": _varied("knowledge_base.clusters", 100, 400, 1600, 4000),
    }
    found = {}
    for name, variants in groups.items():
        epsilons = (0.2, 1, 10) if name in ("prior", "clusters") else (1, 10)
        found[f"{base}-{name}"] = Part(
            recipe=recipe,
            rows=tuple(variants),
            variants=variants,
            overrides=overrides,
            epsilons=epsilons,
            seeds=1,
        )
    return found


def parts(best: tuple[str, ...]) -> dict[str, Part]:
    """Returns all parts by name; ``best`` are the methods that go on to other budgets on mnist."""
    every = tuple(name for name in EVERY if name in METHODS)
    mnist = {"recipe": "mnist", "variants": CUT, "budgets": MNIST_BUDGETS}
    return {
        "digits": Part(
            recipe="digits",
            rows=every,
            # As many draws of a record for all that train: the same compute.
            overrides=("pretrain.steps=1000", "train.multiplicity=4"),
            variants={
                **CUT,
                "rapid": {"train.mode": "surrogate"},
                "dp_ldm": {"network.attention": [True, True]},  # It trains nothing else.
            },
            budgets=DIGITS_BUDGETS,
        ),
        "mnist": Part(
            recipe="mnist", rows=every, variants=CUT, epsilons=(1,), seeds=1,
            budgets={1: MNIST_BUDGETS[1]},
        ),
        "mnist-best": Part(**mnist, rows=best, seeds=1),  # type: ignore[arg-type]
        "mnist-best-seeds": Part(
            recipe="mnist", rows=best, variants=CUT, epsilons=(1,), first_seed=1, seeds=2,
            budgets={1: MNIST_BUDGETS[1]},
        ),
        "pneumonia": Part(recipe="pneumonia", rows=every, variants=CUT, epsilons=(10,), seeds=1),
        **ablations("digits", "digits", ("pretrain.steps=1000",)),
        **ablations("mnist-10k", "mnist", SMALL_MNIST),
    }  # fmt: skip


def recipe_of(name: str, part: Part, options: argparse.Namespace) -> Recipe:
    """Returns the recipe of a part, its rows in section ``compare``."""
    epsilons = tuple(options.epsilons or part.epsilons)
    compare = {
        "methods": list(part.rows),
        "epsilons": list(epsilons),
        "seeds": options.seeds or part.seeds,
        "first_seed": part.first_seed,
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
    write(f"compare-{name}", {**kept, "part": name, "settings": to_tree(recipe)})


def options_of() -> argparse.ArgumentParser:
    parser = arguments(__doc__)
    parser.add_argument("--parts", default="digits")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seeds", type=int, help="instead of a part's own")
    parser.add_argument("--epsilons", type=_numbers, help="instead of a part's own: 1,10")
    parser.add_argument("--best", default="rapid,references", help="rows of mnist-best")
    return parser


def main() -> None:
    options = options_of().parse_args()
    known = parts(tuple(options.best.split(",")))
    if options.list:
        print("\n".join(known))
        return
    asked = options.parts.split(",")
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise SystemExit(f"No such part: {', '.join(unknown)}. --list names them.")
    for name in asked:
        run_part(name, known[name], options)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(one) for one in text.split(","))


if __name__ == "__main__":
    main()
