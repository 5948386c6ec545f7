"""Stand-ins for what tests cannot wait for or cannot break: clocks, storages and workers."""

from rapid_dist.audit.workers import ThreadWorkers as ThreadWorkers
from rapid_dist.storage import AlreadyExists, Storage, StorageMissing


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


class ReplacingStorage(MemoryStorage):
    """Creates what exists once more, as a look-alike of S3 does that ignores If-None-Match."""

    def create(self, name: str, data: bytes) -> None:
        self.write(name, data)

    def child(self, prefix: str) -> "ReplacingStorage":
        return ReplacingStorage(self.files, f"{self._prefix}{prefix}/")


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
