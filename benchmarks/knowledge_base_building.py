"""Parts of benchmarks/knowledge_base.py: building shards, under kill -9, and going on later."""

import argparse
import multiprocessing
import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from knowledge_base_searching import Row, row

from rapid_dist.config import load_recipe
from rapid_dist.data.images import ImageSpec, PublicImages
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.public.build import ShardPlan, ShardTask, plan_shards, write_manifest
from rapid_dist.public.contrast import clean_estimate
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
    """Leaves the number of its process while it is at a shard, for whoever wants to end it."""

    def __init__(self, storage_uri: str, images: partial[PublicImages], recipe: str) -> None:
        super().__init__(storage_uri, images, partial(open_embedders, recipe))
        self._at_work = Path(storage_uri + "-at-work")

    def build(self, plan: ShardPlan) -> ShardRecord:
        self._at_work.mkdir(parents=True, exist_ok=True)
        mark = self._at_work / str(os.getpid())
        mark.touch()
        try:
            return super().build(plan)
        finally:
            mark.unlink(missing_ok=True)


class _Work:
    """Shards of some size, planned once and built wherever it is asked for."""

    def __init__(self, options: argparse.Namespace, num_shards: int) -> None:
        recipe = load_recipe(options.recipe)
        self.recipe = options.recipe
        self.images = partial(
            reference_images, num_shards * options.images_a_shard, recipe.data.private.size
        )
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


def _bare_loop(task: WatchedTask, plans: list[ShardPlan], ready: Any, go: Any, done: Any) -> None:
    torch.set_num_threads(1)
    task.build(plans[0])  # Opens images and networks.
    ready.release()
    go.wait()
    for plan in plans[1:]:
        task.build(plan)
    done.release()


def _bare_seconds(work: _Work, storage: LocalStorage) -> float:
    """Two processes with a loop each, without Ray; the first shard of each is not timed."""
    context = multiprocessing.get_context("spawn")
    ready, done, go = context.Semaphore(0), context.Semaphore(0), context.Event()
    halves = [work.plans[half::2] for half in range(2)]
    processes = [
        context.Process(target=_bare_loop, args=(work.task(storage), half, ready, go, done))
        for half in halves
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    start = time.perf_counter()
    go.set()
    for _ in processes:
        done.acquire()
    took = time.perf_counter() - start
    for process in processes:
        process.join()
    return took


def _pool_seconds(work: _Work, storage: LocalStorage) -> float:
    """Two actors; timed from the moment when each has finished its first shard."""
    times: list[float] = []
    pool = TrajectoryPool(work.task(storage), num_actors=2, place=ActorPlacement(num_cpus=1.0))
    pool.build(work.plans, lambda done, total: times.append(time.perf_counter()))
    return times[-1] - times[1]


def throughput(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Trajectories a second of two actors over those of two bare loops."""
    work = _Work(options, options.shards_built)
    rates: dict[str, list[float]] = {"pool": [], "loop": []}
    count = (len(work.plans) - 2) * options.images_a_shard
    for repeat in range(options.repeats):
        rates["loop"].append(count / _bare_seconds(work, LocalStorage(folder / f"loop-{repeat}")))
        rates["pool"].append(count / _pool_seconds(work, LocalStorage(folder / f"pool-{repeat}")))
    pool, loop = median(rates["pool"]), median(rates["loop"])
    detail = f"{pool:,.0f} against {loop:,.0f} of two processes, {count:,} trajectories"
    figure = "trajectories/s of 2 actors / bare loops on the same cores"
    return [
        row(figure, pool / loop, ">= 0.95", pool / loop >= 0.95, detail,
            trajectories_per_core_second=pool / 2)
    ]  # fmt: skip


def killed_builders(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Builders are killed at random moments until so many are dead; the build goes on."""
    kills, chance = options.kills - options.kills // 2, random.Random(0)
    work = _Work(options, max(options.shards_built, 2 * kills))
    alone, storage = LocalStorage(folder / "alone"), LocalStorage(folder / "pool")
    work.loop(alone)
    at_work = Path(storage.uri + "-at-work")
    stop, dead = threading.Event(), 0

    def kill() -> None:
        nonlocal dead
        while dead < kills and not stop.wait(chance.uniform(0.02, 0.6)):
            marks = sorted(at_work.glob("*")) if at_work.is_dir() else []
            if marks:
                mark = chance.choice(marks)
                try:
                    os.kill(int(mark.name), signal.SIGKILL)
                    dead += 1
                except ProcessLookupError:
                    pass
                mark.unlink(missing_ok=True)

    killer = threading.Thread(target=kill)
    killer.start()
    pool = TrajectoryPool(
        work.task(storage), place=ActorPlacement(num_cpus=1.0), max_failures=options.kills + 8
    )
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
    work, storage = _Work(options, options.shards_built), LocalStorage(folder)
    process = multiprocessing.get_context("spawn").Process(target=work.loop, args=(storage,))
    process.start()
    while len(storage.list("records/")) < len(work.plans) // 2 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    finished = {
        name: (folder / name).stat().st_mtime_ns
        for name in [*storage.list("shards/"), *storage.list("records/")]
    }
    kept = len(storage.list("records/"))
    TrajectoryPool(work.task(storage), place=ActorPlacement(num_cpus=1.0)).build(work.plans)
    remade = sum((folder / name).stat().st_mtime_ns != at for name, at in finished.items()
                 if name.startswith("records/"))  # fmt: skip
    detail = f"{kept} of {len(work.plans)} shards were finished when the process was killed"
    return [row("finished shards remade by a resume", remade, "0", remade == 0, detail)]


def _contents(storage: LocalStorage) -> dict[str, bytes]:
    return {name: storage.read(name) for name in storage.list()}
