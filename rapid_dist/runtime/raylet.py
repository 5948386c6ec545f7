"""What becomes of a command when Ray's own process on its machine, the raylet, ends before it.

Ray ends a driver without a raylet as soon as it has noticed: in the middle of whatever that does,
without a line and without clearing up. Of a cluster that was started here the end is seen first.
"""

import _thread
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from rapid_dist.errors import RapidError

LOOK_SEC = 1.0  # Ray itself takes ten seconds and more.
_TRIES = 20


@contextmanager
def started() -> Iterator[None]:
    """Says in one line that Ray did not start in its time, which only a busy machine lets pass."""
    try:
        yield
    except Exception as error:  # Ray's own is of no other type.
        if "timed out during startup" not in str(error):
            raise
        raise RapidError(
            "Ray did not start on this machine in half a minute: something else keeps it busy. Run "
            "the same command again when that is over, or with runtime.backend=process."
        ) from error


def disconnect() -> None:
    """Leaves the cluster, and ends it if it was started here.

    Where its raylet has ended, disconnecting from that would end this process at once. So the rest
    of the cluster is ended, and forgotten, before anything is said.
    """
    node = ray._private.worker._global_node
    if node is None or not _has_ended(_raylets()):
        ray.shutdown()
        return
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    ray._private.worker._global_node = None


def remove(folder: str) -> None:
    """Removes the folder of a cluster that was started here; its last workers may still write."""
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(LOOK_SEC / 4)


@contextmanager
def raylet_watched() -> Iterator[None]:
    """Interrupts the main thread when the raylet that was started here ends.

    Raises:
      RapidError: it has. The whole cluster has ended with it, the ledger's keeper too.
    """
    raylets = _raylets()
    if not raylets or threading.current_thread() is not threading.main_thread():
        yield
        return
    is_over, has_ended = threading.Event(), threading.Event()

    def watch() -> None:
        while not is_over.wait(LOOK_SEC):
            if _has_ended(raylets):
                has_ended.set()
                _thread.interrupt_main()
                return

    threading.Thread(target=watch, name="raylet", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not has_ended.is_set():
            raise
        raise RapidError(
            "Ray's raylet on this machine has ended, and all workers with it. Look why (memory, or "
            "somebody who killed it), then run the same command again to go on."
        ) from None
    finally:
        is_over.set()


def _raylets() -> list[Any]:
    """Those of the cluster that was started here, if one was."""
    node = ray._private.worker._global_node
    found: list[Any] = [] if node is None else node.all_processes.get("raylet", [])
    return found


def _has_ended(raylets: list[Any]) -> bool:
    return any(raylet.process.poll() is not None for raylet in raylets)
