"""What a process with private content keeps to itself: no core dump, no temporary file left.

A temporary folder is its owner's alone. It is removed when its ``with`` is left, by an exception,
Ctrl-C or SIGTERM (which the command line takes as Ctrl-C) as well. SIGKILL and a loss of power ask
nobody, so every folder is locked by the process that uses it, and the next one to make such a
folder removes those that nobody locks.
"""

import contextlib
import fcntl
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "rapid-private-"
_UNBORN = ".rapid-new-"  # Not locked yet, and empty.


def no_core_dumps() -> None:
    """Has the system write no memory of this process, or of its children, to a disk, for good."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Holds a folder of mode 0700 below TMPDIR for private files, which ``write_own`` writes."""
    parent = Path(tempfile.gettempdir())
    remove_left_behind(parent)
    unborn = tempfile.mkdtemp(prefix=_UNBORN, dir=parent)  # 0700
    held = os.open(unborn, os.O_RDONLY)
    folder = parent / f"{PREFIX}{Path(unborn).name.removeprefix(_UNBORN)}"
    try:
        with contextlib.suppress(OSError):  # A file system without locks.
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(unborn, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(unborn, ignore_errors=True)
        os.close(held)


def write_own(path: Path, data: bytes) -> None:
    """Writes a new file of mode 0600, in folders of mode 0700."""
    for folder in reversed([one for one in path.parents if not one.exists()]):
        folder.mkdir(mode=0o700, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def remove_left_behind(parent: Path) -> list[str]:
    """Removes folders of this user whose process has died; returns their names."""
    removed = []
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(held).st_uid != os.getuid():
                    continue
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Refused while it is in use.
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
            finally:
                os.close(held)
    return removed
