"""One process a run directory.

The system takes a lock away from a process that dies, so none has to be cleared by hand. The file
also says who holds it: to the process that is refused, and to one on another node, whose file
system may not share locks. A bucket is not locked; there, and everywhere, the ledger's attempts
keep two processes from releasing as one (a charge of the older one is refused).
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rapid_dist.errors import ConfigError

LOCK = "run.lock"


@contextmanager
def locked(out: str) -> Iterator[None]:
    """Holds the run directory ``out`` for this process; a ``ConfigError`` names who else does."""
    if "://" in out:
        yield
        return
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    # Opened without being emptied: what is in it may be another's.
    with os.fdopen(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644), "r+") as file:
        _take(file, out)
        try:
            yield
        finally:
            _write(file, "")


def _take(file: TextIOWrapper, out: str) -> None:
    here = {"pid": os.getpid(), "host": socket.gethostname()}
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{out} is in use by {_named(_read(file))}. Wait for it, or use another --out."
        ) from None
    except OSError:
        pass  # A file system without locks: what the file says has to do.
    holder = _read(file)
    if holder.get("host", here["host"]) != here["host"]:
        raise ConfigError(
            f"{out} was left by {_named(holder)}, which may still run. Wait for it, or delete "
            f"{LOCK} there if it is gone."
        )
    _write(file, json.dumps(here))


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _read(file: TextIOWrapper) -> dict[str, Any]:
    file.seek(0)
    try:
        content = json.loads(file.read())
    except ValueError:
        return {}  # Empty, or half written by a process that died of it.
    return content if isinstance(content, dict) else {}


def _write(file: TextIOWrapper, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
