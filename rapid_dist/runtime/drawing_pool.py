"""Draws images from a released bundle on Ray's workers, each with a copy of the bundle."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.runtime.cluster import session
from rapid_dist.runtime.drawing_workers import Drawing, DrawingWorker, chunks
from rapid_dist.runtime.needs import Needs

RESTARTS = 3  # Of one worker; its work is done again by whoever stands in for it.
AHEAD = 2  # Chunks that a worker has before it: one in work, one to go on with.


class BundleWorker:
    """A ``DrawingWorker`` that brings its bundle: nodes need share no disk."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._worker: DrawingWorker | None = None

    def draw(self, stored: list[Any], labels: Int64Array, seed: int, first_id: int) -> UInt8Array:
        """Draws as a ``DrawingWorker`` does.

        ``stored`` is a list of one reference, to the bundle's files by name. It comes with the
        work, so that a worker which was started anew has it, and is asked for once.
        """
        if self._worker is None:
            files: dict[str, bytes] = ray.get(stored[0])
            with tempfile.TemporaryDirectory(prefix="rapid-bundle-") as folder:
                for name, content in files.items():
                    path = Path(folder, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                self._worker = DrawingWorker(Path(folder), self._device)  # After every checksum.
        return self._worker.draw(labels, seed, first_id)


def draw_on_ray(asked: Drawing, num_workers: int) -> UInt8Array:
    """Draws on ``num_workers`` workers of a cluster, RAY_ADDRESS's or one started here.

    An image for each label, uint8 [n, C, S, S]; the same as in one process. A worker that dies is
    replaced.
    """
    labels, first_id, on_cuda = asked.labels, asked.first_id, asked.device == "cuda"
    waiting = chunks(len(labels), first_id)
    num_workers = min(num_workers, len(waiting))
    with session(Needs(cpus=num_workers, gpus=num_workers if on_cuda else 0)):
        files = ray.put(
            {
                path.relative_to(asked.bundle).as_posix(): path.read_bytes()
                for path in asked.bundle.rglob("*")
                if path.is_file()
            }
        )
        kind: Any = ray.remote(
            num_cpus=1,
            num_gpus=1 if on_cuda else 0,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )(BundleWorker)
        workers = [kind.remote(asked.device) for _ in range(num_workers)]
        parts: dict[int, UInt8Array] = {}
        busy: dict[ray.ObjectRef[UInt8Array], tuple[int, slice]] = {}

        def hand_out(number: int) -> None:
            if waiting:
                part = waiting.pop(0)
                start = first_id + part.start
                drawn = workers[number].draw.remote([files], labels[part], asked.seed, start)
                busy[drawn] = (number, part)

        for _ in range(AHEAD):
            for number in range(num_workers):
                hand_out(number)
        while busy:
            (ready, *_), _ = ray.wait(list(busy), num_returns=1)
            number, part = busy.pop(ready)
            parts[part.start] = ray.get(ready)
            asked.on_drawn(part.stop - part.start)
            hand_out(number)
        for worker in workers:
            ray.kill(worker)
    return np.concatenate([parts[start] for start in sorted(parts)])
