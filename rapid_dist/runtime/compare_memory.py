"""The most memory that a piece of a comparison held: of its process and of all that it started.

Pages that processes share, such as Ray's object store, count in each of them, so with workers the
figure is above what the machine gave. Workers on other machines are not seen.
"""

import contextlib
import os
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

LOOK_SEC = 0.25  # Between two looks; a peak between them that is shorter may be missed.
_PROC = Path("/proc")


class PeakMemory:
    """Looks on from a thread while ``with`` it the work is done."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc, self._most, self._done = proc, 0, threading.Event()
        self._seen: set[int] = set()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def figures(self) -> dict[str, float | None]:
        """Returns the peaks in GB; of CUDA only where this process itself computed on it."""
        own = own_peak(self._proc)
        cuda = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            cuda = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        return {"rss_gb": round(max(self._most, own) / 2**30, 3), "cuda_gb": cuda}

    def look(self) -> None:
        """Looks once. A process counts from its second look on: for a moment it is a whole copy.

        One that was forked and has not yet begun its own program has all pages of its parent.
        """
        found = tree_rss(os.getpid(), self._proc)
        known = sum(resident for pid, resident in found.items() if pid in self._seen)
        self._most, self._seen = max(self._most, known), set(found)

    def _look_on(self) -> None:
        while not self._done.is_set():
            self.look()
            self._done.wait(LOOK_SEC)


def own_peak(proc: Path = _PROC) -> int:
    """Returns the most bytes that were ever resident in this process since its program began."""
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    # Not where there is a /proc: Linux begins this figure at that of the process which started us.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


def tree_rss(pid: int, proc: Path = _PROC) -> dict[int, int]:
    """Returns the resident bytes of a process and of all below it; none where there is no /proc."""
    found: dict[int, int] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):  # It may end while it is looked at.
        resident_pages = int((proc / str(pid) / "statm").read_text().split()[1])
        found[pid] = resident_pages * resource.getpagesize()
        for thread in (proc / str(pid) / "task").iterdir():
            for child in (thread / "children").read_text().split():
                found |= tree_rss(int(child), proc)
    return found
