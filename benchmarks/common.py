"""What the benchmarks share: one run of a recipe, and one file of results.

Training runs on one worker of one thread a core: for networks of this size two threads of one
worker are hardly faster than one.
"""

import argparse
import json
import os
from typing import Any

from output import RESULTS, in_document, table, write_json

from rapid_dist.config import Recipe, load_recipe
from rapid_dist.installed import code_version
from rapid_dist.runtime import pipeline
from rapid_dist.runtime.results import versions
from rapid_dist.storage import open_storage

__all__ = ["RESULTS", "arguments", "figures", "in_document", "run_recipe", "table", "write"]


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", default="runs/benchmarks", help="where runs are kept; resumable")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--backend", default="ray", choices=["ray", "process"])
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], help="of every recipe: a.b=value"
    )
    return parser


def run_recipe(
    name: str, out: str, options: argparse.Namespace, overrides: list[str]
) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    """Runs a whole recipe, or reads back a finished one: itself, its summary, its quality."""
    recipe = load_recipe(
        name,
        [
            f"runtime.backend={options.backend}",
            f"runtime.workers={options.workers}",
            *overrides,
            *options.overrides,
        ],
    )
    summary = pipeline.run(recipe, out)
    quality = json.loads(open_storage(out).child("internal").read("quality.json"))
    return recipe, summary, quality


def figures(of_set: dict[str, Any]) -> dict[str, float]:
    """The figures of one set of images that tables show."""
    return {**of_set["classifiers"], "frechet": of_set["fidelity"]["frechet_distance"]}


def write(name: str, figures_found: dict[str, Any]) -> None:
    """Writes one JSON with machine, versions, code and command beside the figures."""
    facts = {"versions": versions(), "code": code_version()}
    write_json(RESULTS / f"{name}.json", {**figures_found, **facts})
