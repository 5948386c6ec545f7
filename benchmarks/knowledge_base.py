"""The knowledge base at scale: what it answers, how fast, and what it survives.

    python benchmarks/knowledge_base.py                        # as in the table: about an hour
    python benchmarks/knowledge_base.py --only memory,search --folder runs/kb   # parts of it
    python benchmarks/knowledge_base.py --only build --add --document     # one more, and the docs
    python benchmarks/knowledge_base.py --entries 4000 --dim 64 --queries 256 --repeats 1 \
        --kills 2 --shards-built 8 --images-a-shard 16 --step-entries 4000 --recipe digits \
        --name rehearsal

The file of results is written after every part. With ``--add`` it keeps what other parts measured
before, each with the options it was measured with; ``--folder`` keeps the large knowledge base.

Every figure that is a ratio is taken in one run, both sides interleaved on the same cores. Keys
are synthetic: points of a smooth 16-dimensional surface in as many dimensions as asked for, with
noise, of length 1, as a contrastive extractor's are. Random directions would make every inverted
index look useless, and separate clusters would make it look perfect.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import knowledge_base_building as building
import knowledge_base_inverted as inverted
import knowledge_base_searching as searching
import knowledge_base_step as stepping
from common import RESULTS, table, write

from rapid_dist.runtime.cluster import session
from rapid_dist.runtime.needs import Needs

COLUMNS = ["figure", "value", "bar", "met", "detail"]
DOCUMENT = Path(__file__).parents[1] / "docs" / "operations.md"
BEGIN, END = "<!-- cost model: begin -->\n", "<!-- cost model: end -->\n"
NEEDED = ("trajectories_per_core_second", "bytes_beside_keys", "scores_per_core_second", "dim")
ON_RAY = {"equal", "search", "memory", "build", "kill-build", "kill-search", "resume"}

Part = Callable[[], list[dict[str, Any]]]


def parts(options: argparse.Namespace, folder: Path) -> dict[str, Part]:
    """Returns what measures each part: a list of table rows, and of points of the curve."""
    large = folder / f"large-{options.entries}-{options.dim}"
    step = folder / f"step-{options.recipe}-{options.step_entries}"
    return {
        "equal": lambda: searching.equal_answers(folder / "equal"),
        "memory": lambda: searching.actor_memory(large, options),
        "search": lambda: searching.throughput(large, options),
        "ivf-flat": lambda: inverted.curve_of("ivf_flat", 0, large, options),
        "ivf-pq": lambda: inverted.curve_of("ivf_pq", 0, large, options),
        "ivf-pq-reranked": lambda: inverted.curve_of("ivf_pq", inverted.RERANK, large, options),
        "step": lambda: stepping.share_of_a_step(step, options),
        "build": lambda: building.throughput(folder / "build", options),
        "kill-build": lambda: building.killed_builders(folder / "kill-build", options),
        "kill-search": lambda: searching.killed_searchers(folder / "kill-search", options),
        "resume": lambda: building.resumed(folder / "resume", options),
    }


def cost_model(measured: Mapping[str, float], node_cores: int) -> list[dict[str, Any]]:
    """Extrapolates to larger knowledge bases: everything is linear in entries, over the nodes.

    Assumes nodes of ``node_cores`` such cores that do nothing else, storage that keeps up, exact
    search (every node searches its part for every query), one seed an image, and a node hour as
    the unit of money. Inverted lists gain what they gained where they were measured.
    """
    rows = []
    stored = 4 * measured["dim"] + measured["bytes_beside_keys"]
    for entries, nodes in ((10**6, 1), (10**7, 8), (10**8, 64)):
        build_hours = (
            entries / (measured["trajectories_per_core_second"] * nodes * node_cores) / 3600
        )
        part = entries / nodes
        exact = measured["scores_per_core_second"] * node_cores / part
        costs: dict[str, Any] = {
            "entries": f"{entries:,}",
            "nodes": nodes,
            "keys in memory, GB a node": part * measured["dim"] * 4 / 1e9,
            "stored, GB": entries * stored / 1e9,
            "build, hours": build_hours,
            "build, node hours": build_hours * nodes,
            "exact queries/s": exact,
            "exact, node hours for 10^6 queries": nodes * 1e6 / exact / 3600,
        }
        if measured.get("inverted_speed_up"):
            approximate = exact * measured["inverted_speed_up"]
            costs["inverted lists, queries/s"] = approximate
            costs["inverted, node hours for 10^6 queries"] = nodes * 1e6 / approximate / 3600
        rows.append(costs)
    return rows


def documented(text: str, measured: Mapping[str, float], node_cores: int) -> str:
    """Returns the document with the cost model and what it was made from between its two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    costs = cost_model(measured, node_cores)
    lists = (
        f"; inverted lists that recall {inverted.RECALL:.0%} of the ten nearest answered "
        f"{measured['inverted_speed_up']:.1f} times as many queries as exact search"
        if measured.get("inverted_speed_up")
        else ""
    )
    said = (
        f"Measured on {measured['cores']:.0f} cores with {measured['entries']:,.0f} keys of "
        f"{measured['dim']:.0f} dimensions: T = {measured['trajectories_per_core_second']:,.0f} "
        f"trajectories and S = {measured['scores_per_core_second'] / 1e6:,.0f} million comparisons "
        f"a second and core; an entry is stored in its key and "
        f"{measured['bytes_beside_keys']:,.0f} bytes besides{lists}. For nodes of {node_cores} "
        "such cores:\n\n"
    )
    return f"{before}{BEGIN}\n{said}{table(costs, list(costs[0]))}\n\n{END}{after}"


def report(found: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Prints the tables of all parts that there are, draws the curve, and writes the file."""
    rows = [row for name in parts(options, Path()) for row in found.get(name, {}).get("rows", [])]
    figures = [row for row in rows if "figure" in row]
    curve = [row for row in rows if "kind" in row]
    if curve:
        figures.append(inverted.summary(curve))
        print("\n" + table(curve, list(curve[0])))
        RESULTS.mkdir(exist_ok=True)
        inverted.plot(curve, RESULTS / f"{options.name}.png")
    print("\n" + table(figures, COLUMNS))
    measured = {k: v for row in figures for k, v in row.get("measured", {}).items()}
    costs = cost_model(measured, options.node_cores) if measured.keys() >= set(NEEDED) else []
    if costs:
        print("\n" + table(costs, list(costs[0])))
        if options.document:
            text = documented(DOCUMENT.read_text("utf-8"), measured, options.node_cores)
            DOCUMENT.write_text(text, "utf-8")
    write(
        options.name,
        {"figures": figures, "curve": curve, "measured": measured, "costs": costs, "parts": found},
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1_024, help="of one timed search")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="of pools, indexes and bare loops")
    parser.add_argument("--lists", type=int, default=4_096)
    parser.add_argument("--train-keys", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=50, help="of builders, and as many more")
    parser.add_argument("--shards-built", type=int, default=64)
    parser.add_argument("--images-a-shard", type=int, default=256)
    parser.add_argument("--recipe", default="mnist", help="whose networks and step are timed")
    parser.add_argument("--step-entries", type=int, default=200_000)
    parser.add_argument("--node-cores", type=int, default=16, help="of the cost model")
    parser.add_argument("--only", default="", help="parts, with commas; all by default")
    parser.add_argument("--add", action="store_true", help="keep the file's other parts")
    parser.add_argument("--name", default="knowledge_base", help="of the files written")
    parser.add_argument("--document", action="store_true", help="put the cost model into the docs")
    parser.add_argument("--folder", default="", help="kept afterwards, for other parts")
    options = parser.parse_args()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="rapid-kb-")).absolute()
    measures, sizes = parts(options, folder), dict(vars(options), folder=bool(options.folder))
    chosen = options.only.split(",") if options.only else list(measures)
    if unknown := set(chosen) - measures.keys():
        parser.error(f"--only names {sorted(unknown)}; parts are {', '.join(measures)}.")
    file = RESULTS / f"{options.name}.json"
    found = json.loads(file.read_text())["parts"] if options.add and file.is_file() else {}
    needs = Needs(cpus=max(4, os.cpu_count() or 1))
    try:
        with session(needs) if ON_RAY & set(chosen) else nullcontext():
            for name in chosen:
                shutil.rmtree(folder / name, ignore_errors=True)  # Of a run that was cut off.
                start = time.perf_counter()
                rows = measures[name]()
                took = round(time.perf_counter() - start, 1)
                shutil.rmtree(folder / name, ignore_errors=True)
                found[name] = {"rows": rows, "seconds": took, "options": sizes}
                print(f"\n{name}: {took:,.0f} s", flush=True)
                report(found, options)
    finally:
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
