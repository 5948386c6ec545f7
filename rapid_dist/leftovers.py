"""Files that are being written, and what killed processes have left of them.

A file is written under a name of its own and then given its real one, so a reader never sees a part
of it. Whoever is killed between the two leaves such a file behind; it says which process wrote it.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path

TEMPORARY = ".tmp-"  # How the name of a file begins that is being written; it is never listed.
LEFT_SEC = 86_400.0  # Age of such a file of another machine that nobody can be writing any more.


def temporary_name() -> str:
    """Returns a new name for a file that this process is about to write."""
    return f"{TEMPORARY}{machine()}-{os.getpid()}-{secrets.token_hex(8)}"


def remove_leftovers(folder: str | Path, clock: Callable[[], float] = time.time) -> None:
    """Removes below a local folder the half-written files of processes that were killed.

    Those of this machine whose process is gone, and those of other machines that are a day old.
    """
    for directory, _, files in os.walk(folder):
        for name in files:
            if name.startswith(TEMPORARY) and _is_left(Path(directory, name), clock()):
                Path(directory, name).unlink(missing_ok=True)


@contextmanager
def cleared(folders: Sequence[str | Path]) -> Iterator[None]:
    """Removes what is left below folders before, and after: workers may have died meanwhile."""
    try:
        for folder in folders:
            remove_leftovers(folder)
        yield
    finally:
        for folder in folders:
            remove_leftovers(folder)


def _is_left(temporary: Path, now: float) -> bool:
    where, _, rest = temporary.name.removeprefix(TEMPORARY).partition("-")
    process = rest.partition("-")[0]
    if where == machine() and process.isdecimal():
        return not _is_alive(int(process))
    try:
        return now - temporary.stat().st_mtime > LEFT_SEC
    except FileNotFoundError:
        return False  # Its writer has just finished it.


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Somebody else's.
    return True


@cache
def machine() -> str:
    """Returns a name of this machine, and of this container on it: where a process id means one."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]
