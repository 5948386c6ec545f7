"""Draws images from a released bundle: in this process, on several of this machine, or on Ray.

Every image is a pure function of (class, seed, id), and an id keeps its row in a block of 64
whoever draws it, so any number of workers gives the same bytes. Processes need the `serve` extra
alone; Ray is imported where it is asked for. Nothing private passes here: a bundle has left.
"""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import torch

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.errors import RapidError
from rapid_dist.release.generator import BLOCK_ROWS, Generator

CHUNK = 4 * BLOCK_ROWS  # Images that a worker draws before it says so.

OnDrawn = Callable[[int], None]  # Is told how many images have come.


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """What is to be drawn, and who hears of it."""

    bundle: Path
    labels: Int64Array  # [n], the class of each image; their ids follow one another.
    seed: int
    first_id: int = 0
    device: str = "cpu"
    on_drawn: OnDrawn = lambda count: None


class DrawingWorker:
    """One process that draws, and nothing else. Knows neither Ray nor who else draws."""

    def __init__(self, bundle: Path, device: str = "cpu") -> None:
        # One thread: sums of floats must not depend on how many cores a machine has.
        torch.set_num_threads(1)
        self._generator = Generator.open(bundle, device)

    def draw(self, labels: Int64Array, seed: int, first_id: int) -> UInt8Array:
        """Returns an image for each label int64 [n], of ids from the first: uint8 [n, C, S, S]."""
        return self._generator.generate(labels, seed=seed, first_id=first_id)


def chunks(count: int, first_id: int, size: int = CHUNK) -> list[slice]:
    """Returns the parts that ``count`` images are drawn in; no block of ids is in two of them."""
    edges = np.arange(-(first_id % size), count, size).clip(0)
    return [slice(int(a), int(b)) for a, b in zip(edges, [*edges[1:], count], strict=True)]


def draw_here(asked: Drawing) -> UInt8Array:
    """Draws in this process: an image for each label, uint8 [n, C, S, S]."""
    before = torch.get_num_threads()
    try:
        worker = DrawingWorker(asked.bundle, asked.device)
        parts = []
        # Small ones, for the first image shows that all is well.
        for part in chunks(len(asked.labels), asked.first_id, BLOCK_ROWS):
            start = asked.first_id + part.start
            parts.append(worker.draw(asked.labels[part], asked.seed, start))
            asked.on_drawn(part.stop - part.start)
    finally:
        torch.set_num_threads(before)
    return np.concatenate(parts)


def draw_in_processes(asked: Drawing, num_workers: int) -> UInt8Array:
    """Draws in ``num_workers`` processes of this machine; the same images.

    Raises:
      RapidError: a process ended before its work was done.
    """
    context = multiprocessing.get_context("spawn")  # A fork would inherit torch's threads.
    waiting = chunks(len(asked.labels), asked.first_id)
    parts: dict[int, UInt8Array] = {}
    busy: dict[Connection, slice] = {}
    processes = []
    try:
        for _ in range(min(num_workers, len(waiting))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, asked.bundle, asked.device), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            _hand_out(ours, waiting, busy, asked)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                part = busy.pop(ready)
                parts[part.start] = _received(ready)
                asked.on_drawn(part.stop - part.start)
                _hand_out(ready, waiting, busy, asked)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return np.concatenate([parts[start] for start in sorted(parts)])


def _hand_out(
    to: Connection, waiting: list[slice], busy: dict[Connection, slice], asked: Drawing
) -> None:
    if waiting:
        part = waiting.pop(0)
        to.send((asked.labels[part], asked.seed, asked.first_id + part.start))
        busy[to] = part


def _received(worker: Connection) -> UInt8Array:
    try:
        answer = worker.recv()
    except EOFError:
        raise RapidError(
            "A drawing process ended before its work was done, for lack of memory perhaps. Run "
            "the command again with fewer --workers."
        ) from None
    if isinstance(answer, str):
        raise RapidError(answer)
    images: UInt8Array = answer
    return images


def _serve(orders: Connection, bundle: Path, device: str) -> None:
    """What a process does until its pipe is closed."""
    try:
        worker = DrawingWorker(bundle, device)
        while True:
            orders.send(worker.draw(*orders.recv()))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except RapidError as error:
        orders.send(str(error))
