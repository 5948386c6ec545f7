"""Parts of benchmarks/knowledge_base.py: exact answers, their speed, memory, and kill -9."""

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

from rapid_dist.public.build import write_shard
from rapid_dist.retrieval.features import pixel_features
from rapid_dist.retrieval.manifest import MANIFEST, KnowledgeBaseSpec, Manifest, ShardRecord
from rapid_dist.retrieval.searcher import read_parts
from rapid_dist.retrieval.shard import Shard
from rapid_dist.retrieval.vectors import VectorIndex
from rapid_dist.runtime.placement import ActorPlacement
from rapid_dist.runtime.search_pool import SearchPool
from rapid_dist.storage import LocalStorage

Row = dict[str, Any]
BATCH = 256
_LATENT = 16
_SHARDS = 16


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


def put_base(
    folder: Path,
    keys: np.ndarray,
    num_shards: int,
    *,
    size: int = 8,
    channels: int = 1,
    featured: bool = False,
) -> LocalStorage:
    """Stores a knowledge base with these keys, one an image of random pixels."""
    storage, rng = LocalStorage(folder), np.random.default_rng(1)
    if storage.exists(MANIFEST):
        return storage
    records = []
    for number, part in enumerate(np.array_split(np.arange(len(keys)), num_shards)):
        images = rng.integers(0, 256, (len(part), channels, size, size), dtype=np.uint8)
        features = pixel_features(images) if featured else np.zeros((len(part), 1), np.float32)
        shard = Shard(
            images=images,
            labels=rng.integers(0, 10, len(part)),
            hashes=rng.integers(0, 256, (len(part), 32), dtype=np.uint8),
            seeds=np.zeros(1, np.int64),
            keys=keys[part],
            features=features,
        )
        data = shard.to_bytes()
        records.append(ShardRecord.of(shard, data, f"{number:032d}"))
        write_shard(storage, data, records[-1])
    spec = KnowledgeBaseSpec(
        channels=channels, size=size, seeds=(0,), query_level=1.0, num_shards=num_shards,
        embed_batch=64, embedder="synthetic", features="pixels" if featured else "none",
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
    """As many actors of one core as there are, against one index on all, and FAISS alone."""
    storage = large_base(folder, options)
    manifest, index = whole_index(storage)
    queries = surface_keys(options.queries, options.dim, seed=2)
    framed = manifest.framed(queries)
    batches = [slice(at, at + BATCH) for at in range(0, len(queries), BATCH)]
    cores = options.cores
    faiss.omp_set_num_threads(cores)

    def in_process() -> None:
        for part in batches:
            index.search(framed[part], 10)

    def by_faiss(threshold: int) -> None:
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = threshold
        for part in batches:
            index._index.search(framed[part], 10)
        faiss.cvar.distance_compute_blas_threshold = before

    with SearchPool(storage.uri, num_actors=cores, place=place_of()) as pool:

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
            f"queries/s of {cores} shards on {cores} cores / one index on them", ratio, ">= 0.9",
            ratio >= 0.9, f"{rate['pool']:.1f} against {rate['index']:.1f}; {shape}",
            scores_per_core_second=rate["pool"] * options.entries / cores,
            entries=options.entries, dim=options.dim, cores=cores,
        ),
        row(
            "the same / FAISS alone, by the same kernel", against, ">= 0.9", against >= 0.9,
            f"{rate['pool']:.1f} against {rate['faiss']:.1f}; as it comes "
            f"{rate['faiss as it comes']:.1f}",
        ),
    ]  # fmt: skip


def actor_memory(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Memory of its own that one actor has with all vectors, nothing taken off."""
    storage = large_base(folder, options)
    few = put_base(folder.with_name(f"{folder.name}-few"), surface_keys(64, options.dim, seed=3), 2)
    queries = surface_keys(BATCH, options.dim, seed=2)

    def own_memory(place: LocalStorage) -> tuple[int, int, int]:
        with SearchPool(place.uri, num_actors=1, place=place_of()) as pool:
            pool.search(queries, 10)
            status = _memory_status(_process_of(pool._groups[0][0]))
            return status["RssAnon"], status["VmHWM"], len(pool) * options.dim * 4

    base, _, _ = own_memory(few)
    held, highest, vectors = own_memory(storage)
    ratio = held / vectors
    detail = (
        f"{held / 1e6:,.0f} MB after a search, vectors {vectors / 1e6:,.0f} MB; {base / 1e6:,.0f} "
        f"MB are Python, Ray and FAISS, without them {(held - base) / vectors:.3f}; highest while "
        f"shards were read, libraries included, {highest / 1e6:,.0f} MB"
    )
    return [row("memory of a search actor / its vectors", ratio, "<= 1.15", ratio <= 1.15, detail)]


def killed_searchers(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Actors are killed at random moments while the pool is asked over and over."""
    storage = put_base(folder, surface_keys(20_000, 64, seed=1), 4)
    manifest, index = whole_index(storage)
    queries = surface_keys(600, 64, seed=2)
    expected = index.search(manifest.framed(queries), 10)
    chance, done = random.Random(0), threading.Event()
    dead = asked = wrong = 0
    place = place_of(0.5)
    with SearchPool(storage.uri, place=place, max_restarts=options.kills + 8) as pool:

        def kill() -> None:
            nonlocal dead
            try:
                for _ in range(options.kills):
                    process = _process_of(chance.choice(pool._groups[0]))
                    time.sleep(chance.uniform(0.0, 1.0))  # Idle, opening or in the midst of it.
                    os.kill(process, signal.SIGKILL)
                    dead += 1
            finally:
                done.set()

        killer = threading.Thread(target=kill)
        killer.start()
        last = False
        while not last:
            last = done.is_set()  # Once more after the last death.
            found = pool.search(queries, 10)
            asked += 1
            wrong += not all(np.array_equal(f, e) for f, e in zip(found, expected, strict=True))
        killer.join()
    detail = f"{dead} kills of a searching actor, {asked} searches of 600 queries, {wrong} differ"
    met = not wrong and dead == options.kills
    return [row("same answers under kill -9", 1 - wrong / asked, "1", met, detail)]


def interleaved(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each way: medians over rounds in which each is called once, after a warm-up."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - start)
    return {name: median(times[1:]) for name, times in spent.items()}


def large_base(folder: Path, options: argparse.Namespace) -> LocalStorage:
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
