"""Parts of benchmarks/knowledge_base.py: inverted lists against exact search, a kind a part."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
from knowledge_base_searching import (
    BATCH,
    Row,
    interleaved,
    large_base,
    row,
    surface_keys,
    whole_index,
)
from matplotlib.figure import Figure

from rapid_dist.retrieval.inverted import InvertedIndex, InvertedShape, Kind, train
from rapid_dist.retrieval.searcher import read_parts

RERANK = 8  # Candidates a neighbour, where codes only propose.
PROBES = (1, 2, 4, 8, 16, 32, 48, 64, 128)
RECALL, SPEED_UP = 0.95, 10.0  # What is asked for.


def curve_of(kind: Kind, rerank: int, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Recall and speed of one kind, trained once and filled, over the lists looked into."""
    faiss.omp_set_num_threads(options.cores)
    storage = large_base(folder, options)
    manifest, flat = whole_index(storage)
    queries = manifest.framed(surface_keys(options.queries, options.dim, seed=2))
    rng = np.random.default_rng(0)
    sample = flat._vectors[np.sort(rng.permutation(len(flat))[: options.train_keys])]
    shape = InvertedShape(
        kind=kind,
        lists=min(options.lists, len(sample) // 8),
        code_bytes=options.dim // 8,
        of_residuals=not rerank,
    )
    start = time.perf_counter()
    trained = train(sample, shape, 0)
    took = time.perf_counter() - start
    del sample
    parts = read_parts(storage, manifest, range(len(manifest.shards)))
    index = InvertedIndex(trained, 1, parts, rerank=rerank)
    filled = time.perf_counter() - start - took
    truth = flat.search(queries, 10)[1]
    points = []
    for probes in PROBES:
        if probes > shape.lists:
            break
        index.probes = probes
        found = index.search(queries, 10)[1]
        spent = interleaved(
            {"flat": lambda: flat.search(queries[:BATCH], 10),
             "inverted": lambda: index.search(queries[:BATCH], 10)},
            options.repeats,
        )  # fmt: skip
        points.append(
            {
                "kind": f"{kind}, re-ranked" if rerank else kind,
                "probes": probes,
                "recall@1": float((found[:, 0] == truth[:, 0]).mean()),
                "recall@10": float(
                    np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)])
                ),
                "queries_per_second": min(BATCH, len(queries)) / spent["inverted"],
                "speed_up": spent["flat"] / spent["inverted"],
                "train_seconds": took,
                "fill_seconds": filled,
                "lists": shape.lists,
                "entries": len(flat),
            }
        )
    return points


def summary(curve: Sequence[Row]) -> Row:
    """The fastest point of all kinds that recalls enough."""
    good = [point for point in curve if point["recall@10"] >= RECALL]
    best = max(good, key=lambda point: point["speed_up"], default=None)
    speed_up = best["speed_up"] if best else 0.0
    detail = f"none of {len(curve)} points recalls so much"
    if best:
        detail = (
            f"{best['kind']}, {best['probes']} of {best['lists']:,} lists: recall@10 "
            f"{best['recall@10']:.3f}, the fastest of {len(curve)} points; {best['entries']:,} keys"
        )
    return row(
        f"speed-up over flat at recall@10 >= {RECALL}", speed_up, f">= {SPEED_UP:g}",
        speed_up >= SPEED_UP, detail, inverted_speed_up=speed_up,
    )  # fmt: skip


def plot(curve: Sequence[Row], path: Path) -> None:
    """Draws recall over speed-up, a line a kind of index."""
    figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for kind in dict.fromkeys(point["kind"] for point in curve):
        line = [point for point in curve if point["kind"] == kind]
        axes.plot(
            [point["speed_up"] for point in line],
            [point["recall@10"] for point in line],
            "o-",
            label=kind,
        )
    axes.axhline(RECALL, color="grey", linestyle="dashed", linewidth=1)
    axes.axvline(SPEED_UP, color="grey", linestyle="dashed", linewidth=1)
    axes.set(xscale="log", xlabel="queries per second / flat", ylabel="recall@10")
    axes.legend()
    figure.savefig(path, metadata={"Software": None})
