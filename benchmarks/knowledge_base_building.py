"""Parts of benchmarks/knowledge_base.py: building shards, under kill -9, and going on later."""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from knowledge_base_searching import Row, row

from rapid_dist.config import load_recipe
from rapid_dist.data.images import ImageSpec, PublicImages
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.public.build import ShardPlan, ShardTask, plan_shards, write_manifest
from rapid_dist.public.embedding import clean_estimate
from rapid_dist.retrieval.features import ContrastExtractor, pixel_features
from rapid_dist.retrieval.manifest import KnowledgeBaseSpec, ShardRecord
from rapid_dist.retrieval.shard_maker import Embed, FeaturesOf
from rapid_dist.runtime.placement import ActorPlacement
from rapid_dist.runtime.trajectory_pool import TrajectoryPool
from rapid_dist.storage import LocalStorage

_LEVEL = 7.8  # Noise level at the query step of recipe mnist.


def reference_images(count: int, size: int) -> PublicImages:
    rng = np.random.default_rng(5)
    spec = ImageSpec(
        name="random", num_records=count, channels=1, size=size, num_classes=10, licence="none"
    )
    images = rng.integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    return PublicImages(images=images, labels=rng.integers(0, 10, count), spec=spec)


def open_embedders(recipe_name: str) -> tuple[Embed, FeaturesOf]:
    """The recipe's networks, untrained: a key costs what it costs there."""
    recipe = load_recipe(recipe_name)
    source = recipe.data.private
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser(
            recipe.network, channels=source.channels, size=source.size, num_classes=10,
            data_std=recipe.schedule.data_std,
        ).eval()  # fmt: skip
        extractor = ContrastExtractor(recipe.contrast.extractor, source.channels, source.size)
    extractor.freeze()

    @torch.no_grad()
    def embed(states: torch.Tensor) -> np.ndarray:
        keys: np.ndarray = extractor(clean_estimate(denoiser, states, _LEVEL)).numpy()
        return keys

    return embed, pixel_features


class WatchedTask(ShardTask):
    """Says beside the shards who is at one, for whoever wants to end it, and when each was done."""

    def __init__(self, storage_uri: str, images: partial[PublicImages], recipe: str) -> None:
        super().__init__(storage_uri, images, partial(open_embedders, recipe))
        self._beside = Path(storage_uri + "-beside")

    def build(self, plan: ShardPlan) -> ShardRecord:
        self._beside.mkdir(parents=True, exist_ok=True)
        mark = self._beside / f"{os.getpid()}.at-work"
        mark.touch()
        try:
            record = super().build(plan)
        finally:
            mark.unlink(missing_ok=True)
        with (self._beside / f"{os.getpid()}.done").open("a") as file:
            file.write(f"{time.monotonic()}\n")  # One clock for all processes of a machine.
        return record

    def at_work(self) -> list[int]:
        """Returns the processes that are at a shard."""
        return [int(mark.stem) for mark in sorted(self._beside.glob("*.at-work"))]

    def forget(self, process: int) -> None:
        """Takes a dead process from those at work."""
        (self._beside / f"{process}.at-work").unlink(missing_ok=True)

    def done(self) -> list[list[float]]:
        """Returns when shards were done, a list of seconds for every process."""
        files = sorted(self._beside.glob("*.done"))
        return [[float(line) for line in file.read_text().split()] for file in files]


def steady_rate(done: Sequence[Sequence[float]]) -> float:
    """Shards a second of all processes, once each of them has finished one.

    Before that one still loads libraries and networks on a core that another computes on; after a
    process' last shard the others may be at theirs. Neither is counted, and all between is.

    Args:
      done: when each process finished its shards, ascending, in seconds of one clock.
    """
    start = max(times[0] for times in done)
    rate = 0.0
    for times in done:
        counted = [time for time in times if time >= start]
        if len(counted) > 1:  # Else nothing can be told of it, and nothing is counted.
            rate += (len(counted) - 1) / (counted[-1] - counted[0])
    return rate


class _Work:
    """Shards of some size, planned once and built wherever it is asked for."""

    def __init__(self, options: argparse.Namespace, num_shards: int, images_a_shard: int) -> None:
        recipe = load_recipe(options.recipe)
        self.recipe = options.recipe
        count, size = num_shards * max(1, images_a_shard), recipe.data.private.size
        self.images = partial(reference_images, count, size)
        self.reference = self.images()
        self.spec = KnowledgeBaseSpec(
            channels=1, size=self.reference.spec.size, seeds=(0,), query_level=_LEVEL,
            num_shards=num_shards, embed_batch=64, embedder="untrained", features="pixels",
        )  # fmt: skip
        self.plans = plan_shards(self.reference, self.spec)

    def task(self, storage: LocalStorage) -> WatchedTask:
        return WatchedTask(storage.uri, self.images, self.recipe)

    def loop(self, storage: LocalStorage) -> None:
        task = self.task(storage)
        records = [task.build(plan) for plan in self.plans]
        write_manifest(storage, self.plans, records, self.reference)


def _bare_loop(task: WatchedTask, plans: list[ShardPlan]) -> None:
    torch.set_num_threads(1)
    for plan in plans:
        task.build(plan)


def _loop_rate(work: _Work, storage: LocalStorage, cores: int) -> float:
    """Shards a second of a process with a loop on every core, without Ray."""
    context, task = multiprocessing.get_context("spawn"), work.task(storage)
    processes = [
        context.Process(target=_bare_loop, args=(task, work.plans[one::cores]))
        for one in range(cores)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return steady_rate(task.done())


def _pool_rate(work: _Work, storage: LocalStorage, cores: int) -> tuple[float, list[ShardRecord]]:
    """Shards a second of an actor on every core, and their records."""
    task = work.task(storage)
    pool = TrajectoryPool(task, num_actors=cores, place=ActorPlacement(num_cpus=1.0))
    records = pool.build(work.plans)
    return steady_rate(task.done()), records


def throughput(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Trajectories a second of an actor a core over those of a bare loop a core."""
    work, cores = _Work(options, options.shards_built, options.images_a_shard), options.cores
    pools, loops = [], []
    for repeat in range(options.repeats):
        loops.append(_loop_rate(work, LocalStorage(folder / f"loop-{repeat}"), cores))
        rate, records = _pool_rate(work, LocalStorage(folder / f"pool-{repeat}"), cores)
        pools.append(rate)
        for name in ("loop", "pool"):
            shutil.rmtree(folder / f"{name}-{repeat}")
    count = len(work.reference) / len(work.plans)  # Of a shard, on average.
    pool, loop = count * median(pools), count * median(loops)
    key_bytes = 4 * len(records[0].key_sums)
    beside = sum(r.num_bytes for r in records) / sum(r.num_entries for r in records) - key_bytes
    detail = (
        f"{pool:,.0f} against {loop:,.0f} of {cores} processes; {len(work.plans)} shards of "
        f"{count:,.0f}, networks of {options.recipe}, starts not counted"
    )
    figure = f"trajectories/s of {cores} actors / bare loops on the same cores"
    return [
        row(figure, pool / loop, ">= 0.95", pool / loop >= 0.95, detail,
            trajectories_per_core_second=pool / cores, bytes_beside_keys=beside)
    ]  # fmt: skip


def killed_builders(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Builders are killed at random moments until so many are dead; the build goes on."""
    kills, chance = options.kills, random.Random(0)
    work = _Work(options, max(options.shards_built, 4 * kills), options.images_a_shard // 4)
    alone, storage = LocalStorage(folder / "alone"), LocalStorage(folder / "pool")
    start = time.perf_counter()
    work.loop(alone)
    of_a_shard = (time.perf_counter() - start) / len(work.plans)
    task = work.task(storage)
    stop, dead = threading.Event(), 0

    def kill() -> None:
        nonlocal dead
        while dead < kills and not stop.wait(chance.uniform(0.0, of_a_shard)):
            at_work = task.at_work()
            if at_work:
                victim = chance.choice(at_work)
                try:
                    os.kill(victim, signal.SIGKILL)
                    dead += 1
                except ProcessLookupError:
                    pass
                task.forget(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    pool = TrajectoryPool(task, place=ActorPlacement(num_cpus=1.0), max_failures=kills + 8)
    records = pool.build(work.plans)
    stop.set()
    killer.join()
    write_manifest(storage, work.plans, records, work.reference)
    expected, found = _contents(alone), _contents(storage)
    equal = sum(found.get(name) == data for name, data in expected.items())
    detail = f"{dead} kills of a builder at work, {len(work.plans)} shards, no manual step"
    same = found == expected and dead == kills
    return [row("same bytes under kill -9", equal / len(expected), "1", same, detail)]


def resumed(folder: Path, options: argparse.Namespace) -> list[Row]:
    """A whole process is killed half-way through a build; the same build is then run again."""
    work = _Work(options, options.shards_built, options.images_a_shard)
    storage = LocalStorage(folder / "base")
    process = multiprocessing.get_context("spawn").Process(target=work.loop, args=(storage,))
    process.start()
    while len(storage.list("records/")) < len(work.plans) // 2 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    kept = len(storage.list("records/"))
    finished = {name: _written(storage, name) for name in storage.list("records/")}
    pool = TrajectoryPool(work.task(storage), place=ActorPlacement(num_cpus=1.0))
    write_manifest(storage, work.plans, pool.build(work.plans), work.reference)
    remade = sum(_written(storage, name) != times for name, times in finished.items())
    detail = f"{kept} of {len(work.plans)} shards were finished when the process was killed"
    met = remade == 0 and 0 < kept < len(work.plans)
    return [row("finished shards remade by a resume", remade, "0", met, detail)]


def _written(storage: LocalStorage, name: str) -> tuple[int, int]:
    """When a record and its shard were written last."""
    shard = ShardRecord.from_bytes(storage.read(name), name).name
    root = Path(storage.uri)
    return (root / name).stat().st_mtime_ns, (root / shard).stat().st_mtime_ns


def _contents(storage: LocalStorage) -> dict[str, bytes]:
    return {name: storage.read(name) for name in storage.list()}
