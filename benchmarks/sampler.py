"""Network evaluations against distance, for every sampler: what does a cheaper sample cost?

    python benchmarks/sampler.py --bundle runs/digits/bundle

Samples of one bundle at each number of intervals. The distance is Fréchet's, in pixels or in the
features of a network trained on public images (``--features mobilenet``), to the samples of
``--target-intervals`` of Heun's method from other seeds. It says how far a sampler is from having
solved its equation, needs no private image, and is zero but for sampling error when it has; the
floor is that of two sets of the target.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from output import RESULTS, table, write_json

from rapid_dist.diffusion.sampler import Solver
from rapid_dist.evaluation.fidelity import Extractor, PixelExtractor, frechet_distance
from rapid_dist.release.bundle import open_bundle
from rapid_dist.release.generator import Generator

SOLVERS: tuple[Solver, ...] = ("ddim", "heun", "dpmpp")
INTERVALS = (3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 50)
COLUMNS = ["solver", "intervals", "evaluations", "distance", "distance / at 50 evaluations"]
TARGET_SEED, FLOOR_SEED, SEED = 1, 2, 3


def drawn(
    folder: Path, solver: Solver, intervals: int, count: int, seed: int, device: str
) -> tuple[np.ndarray, float]:
    """Returns images uint8 [count, C, S, S] and the evaluations that one of them cost."""
    bundle = open_bundle(folder)
    facts = replace(bundle.facts, solver=solver, intervals=intervals)
    generator = Generator(replace(bundle, facts=facts), device)
    labels = np.arange(count) % max(1, len(generator.class_names))
    images = generator.generate(labels, seed=seed)
    return images, generator.evaluations_per_image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--intervals", type=int, nargs="+", default=list(INTERVALS))
    parser.add_argument("--target-intervals", type=int, default=100)
    parser.add_argument("--features", default="pixels", choices=["pixels", "mobilenet"])
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="for mobilenet")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    features_of = _extractor(options)

    def features(solver: Solver, intervals: int, seed: int) -> tuple[np.ndarray, float]:
        images, evaluations = drawn(
            options.bundle, solver, intervals, options.count, seed, options.device
        )
        return features_of(images), evaluations

    target, _ = features("heun", options.target_intervals, TARGET_SEED)
    again, _ = features("heun", options.target_intervals, FLOOR_SEED)
    floor = float(frechet_distance(target, again))
    rows: list[dict[str, Any]] = []
    for solver in SOLVERS:
        for intervals in options.intervals:
            found, evaluations = features(solver, intervals, SEED)
            rows.append(
                {
                    "solver": solver,
                    "intervals": intervals,
                    "evaluations": evaluations,
                    "distance": float(frechet_distance(target, found)),
                }
            )
    at_50 = _at_50(rows)
    for row in rows:
        row["distance / at 50 evaluations"] = row["distance"] / at_50
    enough = [r for r in rows if r["evaluations"] <= 20 and r["distance"] <= 1.05 * at_50]
    print(table(rows, COLUMNS))
    print(f"\nfloor {floor:.4f}; at 50 evaluations {at_50:.4f}")
    if enough:
        best = min(enough, key=lambda row: float(row["evaluations"]))
        print(
            f"within 5% of it at {best['evaluations']:g} evaluations: {best['solver']}, "
            f"{best['intervals']} intervals"
        )
    write_json(
        RESULTS / "sampler.json",
        {"rows": rows, "floor": floor, "at 50 evaluations": at_50, "features": options.features},
    )
    plot(RESULTS / "sampler.png", rows, floor)


def _extractor(options: argparse.Namespace) -> Extractor:
    if options.features == "pixels":
        return PixelExtractor()
    from rapid_dist.evaluation.mobilenet import open_mobilenet

    return open_mobilenet(options.data_root, options.device)


def _at_50(rows: list[dict[str, Any]]) -> float:
    """The default of 50 evaluations, DDIM's, or what came nearest to it in this run."""
    ddim = [row for row in rows if row["solver"] == "ddim"]
    return float(min(ddim, key=lambda row: abs(row["evaluations"] - 50))["distance"])


def plot(path: Path, rows: list[dict[str, Any]], floor: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for solver in SOLVERS:
        own = [row for row in rows if row["solver"] == solver]
        axes.plot(
            [row["evaluations"] for row in own], [row["distance"] for row in own], "o-",
            label=solver,
        )  # fmt: skip
    axes.axhline(floor, color="grey", linestyle=":", label="two sets of the target")
    axes.set(xlabel="network evaluations an image", ylabel="distance", xscale="log", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
