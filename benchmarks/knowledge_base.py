"""The knowledge base at scale: what it answers, how fast, and what it survives.

    python benchmarks/knowledge_base.py                          # as in the table: about an hour
    python benchmarks/knowledge_base.py --document               # and the cost model into the docs
    python benchmarks/knowledge_base.py --entries 20000 --kills 4 --shards-built 8 --repeats 1
    python benchmarks/knowledge_base.py --only search,memory

Every figure that is a ratio is taken in one run, both sides interleaved on the same cores. Keys
are synthetic: points of a smooth 16-dimensional surface in as many dimensions as asked for, with
noise, of length 1, as a contrastive extractor's are. Random directions would make every inverted
index look useless, and separate clusters would make it look perfect.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import knowledge_base_building as building
import knowledge_base_searching as searching
from common import table, write
from matplotlib.figure import Figure

from rapid_dist.runtime.cluster import Needs, session

COLUMNS = ["figure", "value", "bar", "met", "detail"]
RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "operations.md"
BEGIN, END = "<!-- cost model: begin -->\n", "<!-- cost model: end -->\n"


def parts(
    options: argparse.Namespace, folder: Path
) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Returns what measures each part: a list of table rows."""
    return {
        "equal": lambda: searching.equal_answers(folder / "equal"),
        "search": lambda: searching.throughput(folder / "large", options),
        "memory": lambda: searching.actor_memory(folder / "large", options),
        "inverted": lambda: searching.inverted_curve(folder / "large", options),
        "step": lambda: searching.share_of_a_step(folder / "step", options),
        "build": lambda: building.throughput(folder / "build", options),
        "kill": lambda: [
            *building.killed_builders(folder / "kill", options),
            *searching.killed_searchers(folder / "equal-kill", options),
        ],
        "resume": lambda: building.resumed(folder / "resume", options),
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws recall over speed-up, a line a kind of index."""
    figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for kind in dict.fromkeys(row["kind"] for row in rows):
        line = [row for row in rows if row["kind"] == kind]
        axes.plot(
            [row["speed_up"] for row in line], [row["recall@10"] for row in line], "o-", label=kind
        )
    axes.axhline(0.95, color="grey", linestyle="dashed", linewidth=1)
    axes.axvline(10, color="grey", linestyle="dashed", linewidth=1)
    axes.set(xscale="log", xlabel="queries per second / flat", ylabel="recall@10")
    axes.legend()
    figure.savefig(path, metadata={"Software": None})


def cost_model(measured: dict[str, float], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Extrapolates to larger knowledge bases: everything is linear in entries, over the nodes.

    Assumes nodes of ``cores`` such cores that do nothing else, storage that keeps up, exact search
    (every node searches its part for every query), and a node hour as the unit of money. Inverted
    lists are as much faster than that as was measured on ``entries`` in one process.
    """
    rows = []
    for entries, nodes in ((10**6, 1), (10**7, 8), (10**8, 64)):
        cores = nodes * options.node_cores
        build_hours = entries / (measured["trajectories_per_core_second"] * cores) / 3600
        part = entries / nodes
        exact = measured["scores_per_core_second"] * options.node_cores / part
        rows.append(
            {
                "entries": f"{entries:,}",
                "nodes": nodes,
                "vectors GB a node": part * options.dim * 4 / 1e9,
                "stored GB": entries * measured["stored_bytes_per_entry"] / 1e9,
                "build hours": build_hours,
                "build node hours": build_hours * nodes,
                "exact queries/s": exact,
                "node hours / 1e6 queries": nodes * 1e6 / exact / 3600,
                "by inverted lists, queries/s": exact * measured.get("inverted_speed_up", 0.0),
            }
        )
    return rows


def documented(text: str, costs: list[dict[str, Any]], entries: int, dim: int) -> str:
    """Returns the document with the cost model's table between its two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    said = f"From {entries:,} entries of {dim} dimensions, linear:\n\n"
    return f"{before}{BEGIN}\n{said}{table(costs, list(costs[0]))}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1_024, help="of one timed search")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lists", type=int, default=2_048)
    parser.add_argument("--train-keys", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--shards-built", type=int, default=32)
    parser.add_argument("--images-a-shard", type=int, default=512)
    parser.add_argument("--recipe", default="mnist", help="whose private step is timed")
    parser.add_argument("--step-entries", type=int, default=200_000)
    parser.add_argument("--node-cores", type=int, default=16, help="of the cost model")
    parser.add_argument("--only", default="", help="parts, with commas; all by default")
    parser.add_argument("--name", default="knowledge_base", help="of the files written")
    parser.add_argument("--document", action="store_true", help="put the cost model into the docs")
    parser.add_argument("--folder", default="", help="kept afterwards, for a second run")
    options = parser.parse_args()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="rapid-kb-")).absolute()
    found: list[dict[str, Any]] = []
    try:
        with session(Needs(cpus=max(4, os.cpu_count() or 1))):
            chosen = parts(options, folder)
            for name in options.only.split(",") if options.only else chosen:
                rows = chosen[name]()
                found += rows
                print(table([row for row in rows if "figure" in row], COLUMNS), flush=True)
    finally:
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)
    figures = [row for row in found if "figure" in row]
    curve = [row for row in found if "kind" in row]
    measured = {k: v for row in found for k, v in row.get("measured", {}).items()}
    print("\n" + table(figures, COLUMNS))
    if curve:
        print("\n" + table(curve, list(curve[0])))
        RESULTS.mkdir(exist_ok=True)
        plot(curve, RESULTS / f"{options.name}.png")
    costs = []
    if {"trajectories_per_core_second", "scores_per_core_second"} <= measured.keys():
        costs = cost_model(measured, options)
        print("\n" + table(costs, list(costs[0])))
        if options.document:
            text = DOCUMENT.read_text(encoding="utf-8")
            text = documented(text, costs, options.entries, options.dim)
            DOCUMENT.write_text(text, encoding="utf-8")
    write(
        options.name,
        {"figures": figures, "curve": curve, "measured": measured, "costs": costs,
         "options": vars(options)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
