"""Groups of workers on one machine, for trying the mechanism at any world size.

``ThreadWorkers`` are threads that sum in the order of their ranks, so that two runs on the same
data differ by the data alone. ``ProcessWorkers`` are threads as well, but what they exchange goes
through real processes and the product's ``TorchCollective``: the reduction of a real run, around
any part under test, pickled or not.
"""

import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from rapid_dist.collective import Collective, TorchCollective

T = TypeVar("T")

TIMEOUT_SEC = 120.0


class ThreadWorkers:
    """A group of threads of this process that sum and broadcast through one list.

    The first error breaks the barrier, so no other rank is left waiting; it is raised by ``run``.
    """

    def __init__(self, world_size: int, *, lost: int | None = None) -> None:
        """Takes the group's size, and a rank whose share of every sum is lost on the way."""
        self.world_size = world_size
        self.lost = lost
        self.slots: list[torch.Tensor | bytes] = [b""] * world_size
        self.wall = threading.Barrier(world_size, timeout=TIMEOUT_SEC)
        self.errors: dict[int, BaseException] = {}
        # Of each rank: the kind and the size in bytes of every exchange, in order.
        self.messages: list[list[tuple[str, int]]] = [[] for _ in range(world_size)]

    def run(self, task: Callable[[Collective], T]) -> list[T]:
        """Returns what the task returned on every rank."""
        results: dict[int, T] = {}

        def work(rank: int) -> None:
            try:
                results[rank] = task(self.collective(rank))
            except BaseException as error:
                self.errors[rank] = error
                self.wall.abort()

        threads = [threading.Thread(target=work, args=(r,)) for r in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in self.errors.values():
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [results[rank] for rank in range(self.world_size)]

    def collective(self, rank: int) -> Collective:
        return ThreadCollective(self, rank)


class ThreadCollective:
    """One rank's view of ``ThreadWorkers``."""

    def __init__(self, workers: ThreadWorkers, rank: int) -> None:
        self._workers = workers
        self.rank = rank
        self.world_size = workers.world_size

    def sum_(self, flat: torch.Tensor) -> None:
        self._note("sum", flat.numel() * flat.element_size())
        own = torch.zeros_like(flat) if self.rank == self._workers.lost else flat.clone()
        parts = [part for part in self._exchange(own) if isinstance(part, torch.Tensor)]
        flat.copy_(torch.stack(parts).sum(0))

    def broadcast_bytes(self, payload: bytes) -> bytes:
        self._note("broadcast", len(payload))
        payloads = [part for part in self._exchange(payload) if isinstance(part, bytes)]
        assert len({len(part) for part in payloads}) == 1
        return payloads[0]

    def least(self, number: int) -> int:
        self._note("least", 8)
        parts = self._exchange(torch.tensor(number))
        return min(int(part) for part in parts if isinstance(part, torch.Tensor))

    def barrier(self) -> None:
        self._note("barrier", 0)
        self._workers.wall.wait()

    def _note(self, kind: str, size: int) -> None:
        self._workers.messages[self.rank].append((kind, size))

    def _exchange(self, own: torch.Tensor | bytes) -> list[torch.Tensor | bytes]:
        self._workers.slots[self.rank] = own
        self._workers.wall.wait()
        all_of_them = list(self._workers.slots)
        self._workers.wall.wait()
        return all_of_them


class ProcessWorkers(ThreadWorkers):
    """Threads that exchange over processes of a Gloo group, one process a rank.

    with ProcessWorkers(2) as workers:
        workers.run(task)
    """

    def __init__(self, world_size: int) -> None:
        super().__init__(world_size)
        self._open = ExitStack()
        self._ends: list[Connection] = []

    def __enter__(self) -> Self:
        folder = self._open.enter_context(tempfile.TemporaryDirectory())
        context = torch.multiprocessing.get_context("spawn")
        for rank in range(self.world_size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(rank, self.world_size, str(Path(folder) / "rendezvous"), there),
                daemon=True,
            )
            process.start()
            there.close()
            self._ends.append(here)
            self._open.callback(process.join, TIMEOUT_SEC)
        for end in self._ends:
            self._open.callback(end.close)  # Ends the process, before it is joined.
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def collective(self, rank: int) -> Collective:
        return _RelayCollective(self._ends[rank], rank, self.world_size)


class _RelayCollective:
    """One rank's view of ``ProcessWorkers``."""

    def __init__(self, end: Connection, rank: int, world_size: int) -> None:
        self._end = end
        self.rank = rank
        self.world_size = world_size

    def sum_(self, flat: torch.Tensor) -> None:
        flat.copy_(torch.from_numpy(self._ask(flat.numpy())))

    def broadcast_bytes(self, payload: bytes) -> bytes:
        found: np.ndarray = self._ask(np.frombuffer(payload, np.uint8))
        return found.tobytes()

    def least(self, number: int) -> int:
        own = np.zeros(self.world_size, np.int64)
        own[self.rank] = number
        return int(self._ask(own).min())  # Their sum is all of them.

    def barrier(self) -> None:
        self._ask(np.zeros(0))

    def _ask(self, values: np.ndarray) -> np.ndarray:
        self._end.send(values)
        answer: np.ndarray = self._end.recv()
        return answer


def _serve(rank: int, world_size: int, meeting_place: str, end: Connection) -> None:
    """One process of the group: bytes are broadcast, other arrays summed, an empty one waits."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIMEOUT_SEC),
    )
    collective = TorchCollective()
    try:
        while True:
            values: np.ndarray = end.recv()
            if values.size == 0:
                collective.barrier()
            elif values.dtype == np.uint8:
                values = np.frombuffer(collective.broadcast_bytes(values.tobytes()), np.uint8)
            else:
                total = torch.from_numpy(values.copy())
                collective.sum_(total)
                values = total.numpy()
            end.send(values)
    except EOFError:  # The other end was closed: nothing more will be asked.
        dist.destroy_process_group()
