"""Figures on their way to a server: whoever reports them never waits for it.

``put`` only appends to a list. One thread sends what has gathered, in batches as large as the
server takes, and tries again while the server is away; ``flush`` waits until all is delivered.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

MOST_WAITING = 200_000  # Points; a server that is away for longer loses the oldest.
RETRY_SEC = 2.0


class Outbox(Generic[Item]):
    """A queue of (address, item) and the thread that empties it."""

    def __init__(
        self,
        send: Callable[[str, Sequence[Item]], None],
        *,
        batch: int,
        retry_sec: float = RETRY_SEC,
    ) -> None:
        """``send`` is called with items of one address, at most ``batch``, in order."""
        self._send = send
        self._batch = batch
        self._retry_sec = retry_sec
        self._waiting: deque[tuple[str, Item]] = deque(maxlen=MOST_WAITING)
        self._changed = threading.Condition()
        self._sending = False
        self._closed = False
        self._failure: Exception | None = None  # Of the newest attempt; None once one succeeds.
        self._thread: threading.Thread | None = None

    def put(self, address: str, items: Sequence[Item]) -> None:
        """Takes items for an address and returns at once."""
        with self._changed:
            self._waiting.extend((address, item) for item in items)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_sec: float) -> None:
        """Waits until everything is delivered.

        Raises:
          Exception: what the newest attempt failed with, if the time is up or it failed after the
            call; TimeoutError if nothing failed and the server is only slow.
        """
        deadline = time.monotonic() + timeout_sec
        with self._changed:
            self._failure = None
            while self._waiting or self._sending:
                left = deadline - time.monotonic()
                if self._failure is not None or left <= 0:
                    raise self._failure or TimeoutError(f"{len(self._waiting)} figures wait")
                self._changed.wait(left)

    def close(self) -> None:
        """Ends the thread; what is still waiting is dropped, so ``flush`` first."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                address, items = self._next_batch()
                self._sending = True
            failure: Exception | None = None
            try:
                self._send(address, items)
            except Exception as error:  # A network's or a server's: each has its own.
                failure = error
            with self._changed:
                self._sending = False
                self._failure = failure
                if failure is not None:
                    self._waiting.extendleft((address, item) for item in reversed(items))
                self._changed.notify_all()
                if failure is not None and not self._closed:
                    self._changed.wait_for(lambda: self._closed, self._retry_sec)

    def _next_batch(self) -> tuple[str, list[Item]]:
        address = self._waiting[0][0]
        items: list[Item] = []
        while self._waiting and self._waiting[0][0] == address and len(items) < self._batch:
            items.append(self._waiting.popleft()[1])
        return address, items
