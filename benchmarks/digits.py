"""RAPID on digits against its controls and against training without public data.

    python benchmarks/digits.py

Public stages are made once; every seed has its own private prior, DP-SGD noise, samples and
classifiers. Epsilon 10, delta 1e-4, prior and training composed.
"""

from statistics import mean, stdev
from typing import Any

from common import arguments, figures, run_recipe, table, write

LONGER = ["pretrain.steps=1000"]  # The recipe has five minutes for everything, and takes 400.
SCRATCH = [
    "method=dpdm",
    "train.multiplicity=1",  # As rapid here: the same time, and the figures that are published.
    "train.ema_decay=0.98",
]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    seeds = range(options.seeds)
    found: dict[str, list[dict[str, float]]] = {}
    epsilons, nfe = [], []
    for seed in seeds:
        common = [*LONGER, f"sampling.seed={seed}"]
        _, summary, quality = run_recipe(
            "digits", f"{options.out}/digits-rapid-{seed}", options, common
        )
        found.setdefault("rapid", []).append(figures(quality["samples"]))
        for name, control in quality["controls"].items():
            found.setdefault(f"control: {name}", []).append(figures(control))
        epsilons.append(summary["privacy"]["epsilon"])
        nfe.append(summary["sampling"]["nfe"])
        _, _, scratch = run_recipe(
            "digits", f"{options.out}/digits-dpdm-{seed}", options, [*SCRATCH, *common]
        )
        found.setdefault("without public data (dpdm)", []).append(figures(scratch["samples"]))
    rows: list[dict[str, Any]] = []
    for name, runs in found.items():
        means = {key: mean(run[key] for run in runs) for key in runs[0]}
        rows.append(
            {
                "set": name,
                **means,
                "spread of mean": stdev(run["mean"] for run in runs) if len(runs) > 1 else "-",
            }
        )
    rivals = {row["set"]: row["mean"] for row in rows if row["set"] != "rapid"}
    lead = rows[0]["mean"] - max(rivals.values())
    print(table(rows, ["set", "logistic", "mlp", "cnn", "mean", "spread of mean", "frechet"]))
    print(f"lead over the best of the others: {100 * lead:.1f} points; NFE {nfe[0]:.0f}")
    write(
        "digits",
        {
            "rows": rows,
            "runs": found,
            "lead": lead,
            "epsilon": epsilons,
            "delta": 1e-4,
            "nfe": nfe,
            "seeds": list(seeds),
        },
    )


if __name__ == "__main__":
    main()
