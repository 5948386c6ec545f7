"""Parts of benchmarks/knowledge_base.py: exact answers, speed, memory, inverted lists, a step."""

import argparse
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import ray
import torch
from noise import open_step

from rapid_dist.config import load_recipe
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.public.build import write_shard
from rapid_dist.public.contrast import clean_estimate
from rapid_dist.retrieval.features import ContrastExtractor
from rapid_dist.retrieval.inverted import InvertedIndex, InvertedShape, Kind, train
from rapid_dist.retrieval.manifest import MANIFEST, KnowledgeBaseSpec, Manifest, ShardRecord
from rapid_dist.retrieval.searcher import read_parts
from rapid_dist.retrieval.shard import Shard
from rapid_dist.retrieval.trajectory import unit_images
from rapid_dist.retrieval.vectors import VectorIndex
from rapid_dist.runtime.placement import ActorPlacement
from rapid_dist.runtime.search_pool import SearchPool
from rapid_dist.storage import LocalStorage

Row = dict[str, Any]
BATCH = 256
_LATENT = 16
_SHARDS = 16
RERANK = 8  # Candidates a neighbour, where codes only propose.


def row(figure: str, value: float, bar: str, met: bool, detail: str, **measured: float) -> Row:
    return {
        "figure": figure, "value": value, "bar": bar, "met": "yes" if met else "no",
        "detail": detail, "measured": measured,
    }  # fmt: skip


def surface_keys(count: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [count, dim] near a smooth surface of few dimensions; one surface."""
    shape = np.random.default_rng(0)
    first, second = shape.normal(size=(_LATENT, 64)), shape.normal(size=(64, dim))
    rng = np.random.default_rng(seed)
    keys = np.empty((count, dim), np.float32)
    for start in range(0, count, 65_536):
        part = slice(start, min(start + 65_536, count))
        latent = rng.normal(size=(part.stop - part.start, _LATENT)) / np.sqrt(_LATENT)
        keys[part] = np.tanh(latent @ first) @ second
        keys[part] += 0.05 * np.sqrt(64) * rng.normal(size=keys[part].shape)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    return keys


def put_base(folder: Path, keys: np.ndarray, num_shards: int, size: int = 8) -> LocalStorage:
    """Stores a knowledge base with these keys, one an image of random pixels."""
    storage, rng = LocalStorage(folder), np.random.default_rng(1)
    if storage.exists(MANIFEST):
        return storage
    records = []
    for number, part in enumerate(np.array_split(np.arange(len(keys)), num_shards)):
        shard = Shard(
            images=rng.integers(0, 256, (len(part), 1, size, size), dtype=np.uint8),
            labels=rng.integers(0, 10, len(part)),
            hashes=rng.integers(0, 256, (len(part), 32), dtype=np.uint8),
            seeds=np.zeros(1, np.int64),
            keys=keys[part],
            features=np.zeros((len(part), 1), np.float32),
        )
        data = shard.to_bytes()
        records.append(ShardRecord.of(shard, data, f"{number:032d}"))
        write_shard(storage, data, records[-1])
    spec = KnowledgeBaseSpec(
        channels=1, size=size, seeds=(0,), query_level=1.0, num_shards=num_shards, embed_batch=64,
        embedder="synthetic", features="none",
    )  # fmt: skip
    storage.write(MANIFEST, Manifest.of(spec, records, "synthetic").to_bytes())
    return storage


def whole_index(storage: LocalStorage) -> tuple[Manifest, VectorIndex]:
    manifest = Manifest.read(storage)
    parts = read_parts(storage, manifest, range(len(manifest.shards)))
    return manifest, VectorIndex.gather(parts, manifest.num_entries, manifest.key_dim)


def place_of(num_cpus: float = 1.0) -> ActorPlacement:
    return ActorPlacement(num_cpus=num_cpus)


def equal_answers(folder: Path) -> list[Row]:
    """Pools of 1, 2, 5 and 16 shards against one index, on keys with many ties."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 3, (20_000, 8)).astype(np.float32)
    queries, labels = keys[:600], rng.integers(0, 10, 600)
    total = equal = ties = 0
    for num_shards in (1, 2, 5, 16):
        storage = put_base(folder / str(num_shards), keys, num_shards)
        manifest, index = whole_index(storage)
        with SearchPool(storage.uri, num_actors=num_shards, place=place_of(0.1)) as pool:
            for wanted in (None, labels):
                expected = index.search(manifest.framed(queries), 10, wanted)
                found = pool.search(queries, 10, wanted)
                same = (found[0] == expected[0]) & (found[1] == expected[1])
                total, equal = total + same.size, equal + int(same.sum())
                ties += int((np.diff(expected[0], axis=1) == 0).sum())
    detail = (
        f"{total:,} answers of 1, 2, 5 and 16 shards, {ties:,} of them tied with the one before"
    )
    return [row("answers equal to one flat index", equal / total, "1", equal == total, detail)]


def throughput(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Two actors of one core against one index on two, and against FAISS alone."""
    storage = _large(folder, options)
    manifest, index = whole_index(storage)
    queries = surface_keys(options.queries, options.dim, seed=2)
    framed = manifest.framed(queries)
    batches = [slice(at, at + BATCH) for at in range(0, len(queries), BATCH)]
    faiss.omp_set_num_threads(2)

    def in_process() -> None:
        for part in batches:
            index.search(framed[part], 10)

    def by_faiss(threshold: int) -> None:
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = threshold
        for part in batches:
            index._index.search(framed[part], 10)
        faiss.cvar.distance_compute_blas_threshold = before

    with SearchPool(storage.uri, num_actors=2, place=place_of()) as pool:

        def by_pool() -> None:
            pool.search(queries, 10)

        default = faiss.cvar.distance_compute_blas_threshold
        ways = {
            "pool": by_pool,
            "index": in_process,
            "faiss": lambda: by_faiss(1),
            "faiss as it comes": lambda: by_faiss(default),
        }
        spent = interleaved(ways, options.repeats)
    rate = {name: len(queries) / seconds for name, seconds in spent.items()}
    ratio, against = rate["pool"] / rate["index"], rate["pool"] / rate["faiss"]
    shape = f"{options.entries:,} x {options.dim}, batches of {BATCH}"
    return [
        row(
            "queries/s of 2 shards on 2 cores / one index on them", ratio, ">= 0.9", ratio >= 0.9,
            f"{rate['pool']:.1f} against {rate['index']:.1f}; {shape}",
            scores_per_core_second=rate["pool"] * options.entries / 2,
            stored_bytes_per_entry=sum(r.num_bytes for r in manifest.shards) / options.entries,
        ),
        row(
            "the same / FAISS alone, by the same kernel", against, ">= 0.9", against >= 0.9,
            f"{rate['pool']:.1f} against {rate['faiss']:.1f}; as it comes "
            f"{rate['faiss as it comes']:.1f}",
        ),
    ]  # fmt: skip


def actor_memory(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Anonymous memory of a search actor with its vectors, less that of one with next to none."""
    storage = _large(folder, options)
    few = put_base(folder.with_name("few"), surface_keys(64, options.dim, seed=3), 2)
    queries = surface_keys(BATCH, options.dim, seed=2)

    def anonymous(place: LocalStorage) -> tuple[int, int, int]:
        with SearchPool(place.uri, num_actors=2, place=place_of(0.5)) as pool:
            pool.search(queries, 10)
            actor = pool._groups[0][0]
            status = _memory_status(_process_of(actor))
            entries = ray.get(actor.open.remote())
        return status["RssAnon"], status["VmHWM"], entries * options.dim * 4

    base, _, _ = anonymous(few)
    held, highest, vectors = anonymous(storage)
    ratio = (held - base) / vectors
    detail = (
        f"{held / 1e6:,.0f} MB, of which {base / 1e6:,.0f} MB are Python, Ray and FAISS; vectors "
        f"{vectors / 1e6:,.0f} MB; highest, shared memory included, {highest / 1e6:,.0f} MB"
    )
    return [row("memory of a search actor / its vectors", ratio, "<= 1.15", ratio <= 1.15, detail)]


def inverted_curve(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Recall and speed of inverted lists against flat, over the lists looked into."""
    storage = _large(folder, options)
    manifest, flat = whole_index(storage)
    queries = manifest.framed(surface_keys(options.queries, options.dim, seed=2))
    rng = np.random.default_rng(0)
    sample = flat._vectors[np.sort(rng.permutation(len(flat))[: options.train_keys])]
    curve: list[Row] = []
    ways: tuple[tuple[Kind, int], ...] = (("ivf_flat", 0), ("ivf_pq", 0), ("ivf_pq", RERANK))
    for kind, rerank in ways:
        curve += _curve_of(kind, rerank, sample, storage, manifest, flat, queries, options)
    good = [point for point in curve if point["recall@10"] >= 0.95]
    best = max((point["speed_up"] for point in good), default=0.0)
    detail = f"the fastest of {len(curve)} points with recall@10 >= 0.95; {options.lists:,} lists"
    figure = "speed-up over flat at recall@10 >= 0.95"
    return [*curve, row(figure, best, ">= 10", best >= 10, detail, inverted_speed_up=best)]


def _curve_of(
    kind: Kind,
    rerank: int,
    sample: np.ndarray,
    storage: LocalStorage,
    manifest: Manifest,
    flat: VectorIndex,
    queries: np.ndarray,
    options: argparse.Namespace,
) -> list[Row]:
    code_bytes = options.dim // 4
    start = time.perf_counter()
    shape = InvertedShape(
        kind=kind, lists=min(options.lists, len(sample) // 8), code_bytes=code_bytes
    )
    trained = train(sample, shape, 0)
    took = time.perf_counter() - start
    parts = read_parts(storage, manifest, range(len(manifest.shards)))
    index = InvertedIndex(trained, 1, parts, rerank=rerank)
    filled = time.perf_counter() - start - took
    truth = flat.search(queries, 10)[1]
    points = []
    for probes in (1, 2, 4, 8, 16, 32, 64, 128):
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
                "queries_per_second": BATCH / spent["inverted"],
                "speed_up": spent["flat"] / spent["inverted"],
                "train_seconds": took,
                "fill_seconds": filled,
            }
        )
    return points


def share_of_a_step(folder: Path, options: argparse.Namespace) -> list[Row]:
    """What a search by every record of an expected batch adds to a private step."""
    recipe = load_recipe(options.recipe)
    batch, dim = int(recipe.privacy.expected_batch or 0), recipe.contrast.extractor.dim
    source = recipe.data.private
    storage = put_base(folder, surface_keys(options.step_entries, dim, seed=1), 8)
    manifest, index = whole_index(storage)
    extractor = ContrastExtractor(recipe.contrast.extractor, source.channels, source.size).freeze()
    denoiser = Denoiser(
        recipe.network, channels=source.channels, size=source.size,
        num_classes=source.num_classes, data_std=recipe.schedule.data_std,
    )  # fmt: skip
    step = open_step(options.recipe, "fast", SecretKey.generate())
    level = recipe.schedule.level(recipe.split.query_step)
    rng = np.random.default_rng(0)
    shape = (batch, source.channels, source.size, source.size)
    states = torch.from_numpy(unit_images(rng.integers(0, 256, shape, dtype=np.uint8)))
    queries = extractor(clean_estimate(denoiser, states, level)).detach().numpy()
    ways: dict[str, Callable[[], object]] = {
        "step": lambda: step.noised_gradient(denoiser, 1),
        "search": lambda: index.search(manifest.framed(queries), 1),
        "embed": lambda: extractor(clean_estimate(denoiser, states, level)),
    }
    spent = interleaved(ways, options.repeats)
    share = spent["search"] / (spent["step"] + spent["search"])
    detail = (
        f"{batch:,} records, {options.step_entries:,} x {dim}: {spent['search']:.3f} s of a step's "
        f"{spent['step']:.2f} s; making the queries takes {spent['embed']:.2f} s more"
    )
    figure = f"retrieval's share of a private step, {options.recipe}"
    return [row(figure, share, "<= 0.01", share <= 0.01, detail)]


def killed_searchers(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Actors are killed at random moments while the pool is asked over and over."""
    storage = put_base(folder, surface_keys(20_000, 64, seed=1), 4)
    manifest, index = whole_index(storage)
    queries = surface_keys(600, 64, seed=2)
    expected = index.search(manifest.framed(queries), 10)
    kills, asked, wrong = options.kills // 2, 0, 0
    chance = random.Random(0)
    place = place_of(0.5)
    with SearchPool(storage.uri, place=place, max_restarts=options.kills + 8) as pool:
        done = threading.Event()

        def kill() -> None:
            for _ in range(kills):
                time.sleep(chance.uniform(0.05, 1.0))
                actor = chance.choice(pool._groups[0])
                os.kill(_process_of(actor), signal.SIGKILL)
            done.set()

        killer = threading.Thread(target=kill)
        killer.start()
        while not done.is_set():
            found = pool.search(queries, 10)
            asked += 1
            wrong += not all(np.array_equal(f, e) for f, e in zip(found, expected, strict=True))
        killer.join()
    detail = f"{kills} kills of a searching actor, {asked} searches of 600 queries, {wrong} differ"
    return [row("same answers under kill -9", 1 - wrong / max(asked, 1), "1", not wrong, detail)]


def interleaved(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each way: medians over rounds in which each is called once, after a warm-up."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - start)
    return {name: median(times[1:]) for name, times in spent.items()}


def _large(folder: Path, options: argparse.Namespace) -> LocalStorage:
    if not (folder / MANIFEST).is_file():
        put_base(folder, surface_keys(options.entries, options.dim, seed=1), _SHARDS)
    return LocalStorage(folder)


def _process_of(actor: Any) -> int:
    # A lambda travels by value: an actor that had to import this file would import torch with it.
    process: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    return process


def _memory_status(process: int) -> dict[str, int]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")
    }
