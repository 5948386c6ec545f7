"""Whole steps of private training, taken apart: the real loop with a clock around every part.

One worker runs in this process; several are processes that meet over Gloo, as on a cluster. The
ledger is a real one, on disk. What the clock sees, a part: ``rows`` the records' draws, ``compute``
forward, backward, clip and sum, ``reduce`` the all-reduce, ``noise`` its addition and any wait for
it, ``wait`` the rest of the noised step, with any wait for ledger and batch, ``update`` optimizer
and average. Threads meanwhile draw the noise and the next batch, and charge: what these take by
themselves is ``noise alone``, ``batch beside`` and ``charge beside``.
"""

import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from networks import Network, networks

from rapid_dist.collective import Collective, SingleProcess, TorchCollective
from rapid_dist.data.images import ImageSpec, PrivateImages
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.compute import Precision
from rapid_dist.diffusion.loss import Rows
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdConfig, NoiseKind
from rapid_dist.privacy.noise import new_noise
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.loop import train_private
from rapid_dist.private.memory import keep_freed_memory
from rapid_dist.private.per_example import clipped_sum, flat_size
from rapid_dist.private.settings import TrainConfig
from rapid_dist.private.step import PrivateStep
from rapid_dist.storage import open_storage

PARTS = ("rows", "compute", "reduce", "noise", "wait", "update")
BESIDE = ("noise alone", "batch beside", "charge beside")
OVERHEAD = tuple(part for part in PARTS if part not in ("compute", "update"))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One run of a few steps."""

    network: str
    small: bool = False
    batch: int = 256  # Records expected in a step, of all workers.
    draws: int = 1
    micro_batch: int = 32
    steps: int = 3  # After one that warms up.
    workers: int = 1
    threads: int = 1
    device: str = "cpu"
    precision: Precision = "fp32"
    noise: NoiseKind = "fast"


class Clock:
    """Seconds of every part of every step, and bytes that went over the network."""

    def __init__(self, device: str) -> None:
        self._device, self._thread = device, threading.get_ident()
        self.beside: dict[str, list[float]] = defaultdict(list)
        self.seconds: list[dict[str, float]] = []
        self.bytes: list[int] = []
        self.processor: list[float] = []  # Seconds of all threads of this process, at each begin.
        self.begin()

    def begin(self) -> None:
        self.processor.append(time.process_time())
        self.seconds.append(defaultdict(float))
        self.bytes.append(0)
        self.started = self.now()

    def now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Any:
        if threading.get_ident() != self._thread:
            start = time.perf_counter()
            yield
            self.beside[f"{name} beside"].append(time.perf_counter() - start)
            return
        start = self.now()
        yield
        self.seconds[-1][name] += self.now() - start


class _Watched:
    """Anything, with a clock around some of its methods."""

    def __init__(self, inner: Any, clock: Clock, parts: dict[str, str]) -> None:
        self._inner, self._clock, self._parts = inner, clock, parts

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._parts:
            return found

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._clock.part(self._parts[name]):
                if name == "sum_":
                    self._clock.bytes[-1] += args[0].numel() * args[0].element_size()
                return found(*args, **kwargs)

        return timed


class _Keeper:
    """Writes the ledger's entries, as the keeper does, and counts no budget."""

    def __init__(self, ledger: Ledger, mechanism: DpSgdConfig) -> None:
        self._ledger, self._mechanism = ledger, mechanism
        self.affordable_steps = mechanism.steps

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Any:
        self.number = self._ledger.begin_attempt("benchmark")
        return self

    def charge(self, step: int, attempt: int | None = None) -> None:
        event = self._mechanism.event()
        self._ledger.append("step", "benchmark", attempt=self.number, step=step, event=event)


def run_worker(
    setting: Setting,
    collective: Collective,
    folder: Path,
    keeper: Any = None,
    told: Callable[[dict[str, float]], None] = lambda metrics: None,
    network: Network | None = None,
) -> dict[str, Any]:
    """Runs the steps on one worker and returns medians: seconds of parts, of a step, bytes.

    Args:
      folder: of this worker, or of all of them where they are of one machine.
      keeper: who charges; by default one that writes a ledger in ``folder``.
      told: is given what the loop reports of every step.
      network: another than the setting's.
    """
    torch.set_num_threads(setting.threads)
    keep_freed_memory()
    network = network or networks()[setting.network]
    network = network.small() if setting.small else network
    denoiser = network.open(setting.device)
    spec = ImageSpec(
        name="random", num_records=8 * setting.batch, channels=network.channels,
        size=network.size, num_classes=network.num_classes, licence="none",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shape = (spec.num_records, network.channels, network.size, network.size)
    images = PrivateImages(
        images=rng.integers(0, 256, shape, dtype=np.uint8),
        labels=rng.integers(0, network.num_classes, spec.num_records),
        groups=None,
        spec=spec,
    )
    mechanism = DpSgdConfig(
        num_records=spec.num_records, expected_batch=setting.batch, steps=setting.steps + 1,
        max_grad_norm=1.0, noise_multiplier=1.0, noise=setting.noise,
    )  # fmt: skip
    config = TrainConfig(
        mode="late", multiplicity=setting.draws, micro_batch=setting.micro_batch,
        trainable=network.trainable, precision=setting.precision, checkpoint_every=10**6,
    )  # fmt: skip
    clock = Clock(setting.device)

    class Draws(DrawMaker):
        def rows(self, *args: Any) -> Rows:
            with clock.part("rows"):
                return super().rows(*args)

    draws = Draws(
        images=images, config=config, schedule=ScheduleConfig(), split_step=450,
        no_label=network.num_classes, label_drop=0.1, find_references=None,
    )  # fmt: skip

    def engine(*args: Any) -> torch.Tensor:
        with clock.part("compute"):
            return clipped_sum(*args)

    class Sampler(PoissonSampler):
        def batch(self, step: int) -> np.ndarray:
            with clock.part("wait" if step == 0 else "batch"):
                return super().batch(step)

    class Step(PrivateStep):
        @cached_property
        def noise(self) -> Any:
            return _Watched(super().noise, clock, {"release": "noise"})

        def noised_gradient(self, denoiser: Any, step: int) -> torch.Tensor:
            clock.begin()
            flat = super().noised_gradient(denoiser, step)
            took = clock.now() - clock.started
            clock.seconds[-1]["wait"] += took - sum(clock.seconds[-1].values())
            return flat

    def on_step(metrics: dict[str, float]) -> None:
        took = clock.now() - clock.started
        clock.seconds[-1]["update"] = took - sum(clock.seconds[-1].values())
        told(metrics)

    keeper = keeper or _Keeper(Ledger.open(str(folder / "ledger"), "random"), mechanism)
    watched_keeper: Any = _Watched(keeper, clock, {"charge": "charge"})
    watched: Any = _Watched(collective, clock, {"sum_": "reduce"})
    train_private(
        denoiser,
        draws,
        mechanism,
        collective=watched,
        keeper=watched_keeper,
        checkpoints=Checkpoints(open_storage(str(folder / "checkpoints"))),
        on_step=on_step,
        engine=engine,
        step_type=Step,
        sampler_type=Sampler,
        new_key=lambda: SecretKey(bytes(range(32))),  # The same batches for any number of workers.
    )
    clock.begin()
    clock.seconds.pop()
    measured = clock.seconds[2:]  # After what came before the first step, and the first step.
    processor = np.diff(clock.processor[2:])
    parts = {part: median(step[part] for step in measured) for part in PARTS}
    step_seconds = median(sum(step.values()) for step in measured)
    return {
        **parts,
        "noise alone": _noise_alone(mechanism, flat_size(denoiser), setting.device),
        **{name: median(clock.beside[name] or [0.0]) for name in BESIDE[1:]},
        "step": step_seconds,
        "processor seconds": float(median(processor)),
        "rows per second": setting.batch * setting.draws / step_seconds,
        "reduced bytes": max(clock.bytes),
        "values": flat_size(denoiser),
    }


def _noise_alone(mechanism: DpSgdConfig, size: int, device: str) -> float:
    """The seconds of drawing one step's noise with nothing beside it."""
    key = SecretKey.generate()
    noise = new_noise(mechanism.noise, mechanism.max_grad_norm, 1.0, key, attempt=1)
    took = []
    for step in range(3):
        dtype = torch.float32 if noise.units is None else torch.int64
        total = torch.zeros(size, dtype=dtype, device=device)
        start = time.perf_counter()
        noise.release(total, step)
        took.append(time.perf_counter() - start)
    return median(took)


def run(setting: Setting) -> dict[str, Any]:
    """Runs a setting and returns rank 0's figures, with the slowest rank's compute beside them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if setting.workers == 1:
            found = [run_worker(setting, SingleProcess(), folder)]
        else:
            found = _on_processes(setting, folder)
    return {**found[0], "slowest compute": max(one["compute"] for one in found)}


def _on_processes(setting: Setting, folder: Path) -> list[dict[str, Any]]:
    context: Any = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, setting, folder, queue))
        for rank in range(setting.workers)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(setting.workers)]


def _process(rank: int, setting: Setting, folder: Path, queue: Any) -> None:
    torch.set_num_threads(setting.threads)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=setting.workers,
    )
    try:
        queue.put((rank, run_worker(setting, TorchCollective(), folder)))
    finally:
        dist.destroy_process_group()


def interleaved(
    settings: dict[str, Setting], repeats: int, run_one: Callable[[Setting], Any] = run
) -> dict[str, dict[str, float]]:
    """Runs settings in turn, several times; returns the median of every figure of each."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    for _ in range(repeats):
        for name, setting in settings.items():
            found[name].append(run_one(setting))
    return {
        name: {figure: median(one[figure] for one in runs) for figure in runs[0]}
        for name, runs in found.items()
    }


def with_workers(setting: Setting, workers: int, threads: int) -> Setting:
    return replace(setting, workers=workers, threads=threads)
