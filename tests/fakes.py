"""Stand-ins for what tests cannot wait for or cannot break: clocks, storages and workers."""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from rapid_dist.collective import Collective
from rapid_dist.storage import AlreadyExists, Storage, StorageMissing

T = TypeVar("T")


class FakeClock:
    """Ticks one second a look."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class MemoryStorage:
    """A storage in a dictionary that all its children share."""

    def __init__(self, files: dict[str, bytes] | None = None, prefix: str = "") -> None:
        self.files = {} if files is None else files
        self._prefix = prefix

    @property
    def uri(self) -> str:
        return f"memory://{self._prefix}"

    def read(self, name: str) -> bytes:
        try:
            return self.files[self._prefix + name]
        except KeyError as error:
            raise StorageMissing(name) from error

    def write(self, name: str, data: bytes) -> None:
        self.files[self._prefix + name] = data

    def create(self, name: str, data: bytes) -> None:
        if self.files.setdefault(self._prefix + name, data) is not data:
            raise AlreadyExists(name)

    def exists(self, name: str) -> bool:
        return self._prefix + name in self.files

    def list(self, prefix: str = "") -> list[str]:
        start = self._prefix + prefix
        return sorted(n.removeprefix(self._prefix) for n in self.files if n.startswith(start))

    def delete(self, name: str) -> None:
        self.files.pop(self._prefix + name, None)

    def child(self, prefix: str) -> Storage:
        return MemoryStorage(self.files, f"{self._prefix}{prefix}/")


class CountingStorage(MemoryStorage):
    """Counts reads and listings."""

    def __init__(self, files: dict[str, bytes] | None = None, prefix: str = "") -> None:
        super().__init__(files, prefix)
        self.looks = 0

    def read(self, name: str) -> bytes:
        self.looks += 1
        return super().read(name)

    def list(self, prefix: str = "") -> list[str]:
        self.looks += 1
        return super().list(prefix)

    def child(self, prefix: str) -> "CountingStorage":
        # The ledger's own folder is the one whose looks a test wants to count.
        self._prefix = f"{self._prefix}{prefix}/"
        return self


class LostAnswerStorage(MemoryStorage):
    """Stores what it is given, then fails as an upload does whose first answer was lost."""

    def create(self, name: str, data: bytes) -> None:
        super().create(name, data)
        raise AlreadyExists(name)

    def child(self, prefix: str) -> "LostAnswerStorage":
        return LostAnswerStorage(self.files, f"{self._prefix}{prefix}/")


class FullDiskStorage(MemoryStorage):
    """Refuses every create, before anything is stored, while ``full``."""

    full = False

    def create(self, name: str, data: bytes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().create(name, data)

    def child(self, prefix: str) -> Storage:
        return _FullDiskChild(self, prefix)


class _FullDiskChild(MemoryStorage):
    def __init__(self, parent: FullDiskStorage, prefix: str) -> None:
        super().__init__(parent.files, f"{prefix}/")
        self._parent = parent

    def create(self, name: str, data: bytes) -> None:
        self._parent.create(self._prefix + name, data)


class ThreadWorkers:
    """A group of threads of this process that sum and broadcast through one list.

    The first error breaks the barrier, so no other rank is left waiting; it is raised by ``run``.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.slots: list[torch.Tensor | bytes] = [b""] * world_size
        self.wall = threading.Barrier(world_size, timeout=60)
        self.errors: dict[int, BaseException] = {}

    def run(self, task: Callable[[Collective], T]) -> list[T]:
        """Returns what the task returned on every rank."""
        results: dict[int, T] = {}

        def work(rank: int) -> None:
            try:
                results[rank] = task(ThreadCollective(self, rank))
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


class ThreadCollective:
    """One rank's view of ``ThreadWorkers``."""

    def __init__(self, workers: ThreadWorkers, rank: int) -> None:
        self._workers = workers
        self.rank = rank
        self.world_size = workers.world_size

    def _exchange(self, own: torch.Tensor | bytes) -> list[torch.Tensor | bytes]:
        self._workers.slots[self.rank] = own
        self._workers.wall.wait()
        all_of_them = list(self._workers.slots)
        self._workers.wall.wait()
        return all_of_them

    def sum_(self, flat: torch.Tensor) -> None:
        parts = self._exchange(flat.clone())
        flat.copy_(torch.stack([part for part in parts if isinstance(part, torch.Tensor)]).sum(0))

    def broadcast_bytes(self, payload: bytes) -> bytes:
        payloads = [part for part in self._exchange(payload) if isinstance(part, bytes)]
        assert len({len(part) for part in payloads}) == 1
        return payloads[0]

    def barrier(self) -> None:
        self._workers.wall.wait()
