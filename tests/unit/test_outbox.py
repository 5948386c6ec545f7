"""Figures travel in batches behind the step's back; none is lost while a server is away."""

import threading
import time
from collections.abc import Sequence

import pytest

from rapid_dist.runtime.outbox import Outbox


class SlowServer:
    """Takes batches only while it is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[tuple[str, list[int]]] = []

    def send(self, address: str, items: Sequence[int]) -> None:
        assert self.open.wait(30)
        self.batches.append((address, list(items)))


def test_whoever_reports_does_not_wait_for_a_server_that_hangs() -> None:
    server = SlowServer()
    outbox = Outbox[int](server.send, batch=1000)
    started = time.monotonic()
    for step in range(200):
        outbox.put("run", range(step * 500, (step + 1) * 500))  # 500 figures a step.
    took = time.monotonic() - started
    assert server.batches == []  # Nothing was taken, and yet we are here.
    server.open.set()
    outbox.flush(30)
    assert [item for _, items in server.batches for item in items] == list(range(100_000))
    assert took < 20  # The server was held for all of it.
    outbox.close()


def test_figures_of_many_steps_travel_together() -> None:
    server = SlowServer()
    outbox = Outbox[int](server.send, batch=100)
    for step in range(1000):
        outbox.put("run" if step < 500 else "next", [step])
    server.open.set()
    outbox.flush(30)
    assert all(len(items) <= 100 for _, items in server.batches)
    assert 10 <= len(server.batches) <= 13  # The first may have left with less.
    outbox.close()


def test_a_server_that_was_away_gets_everything_once_and_in_order() -> None:
    taken: list[int] = []
    failures = iter([True, True, False, True])

    def send(address: str, items: Sequence[int]) -> None:
        if next(failures, False):
            raise ConnectionError("away")
        taken.extend(items)

    outbox = Outbox[int](send, batch=3, retry_sec=0.01)
    outbox.put("run", range(7))
    deadline = time.monotonic() + 30
    while len(taken) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    outbox.flush(30)
    assert taken == list(range(7))
    outbox.close()


def test_a_server_that_stays_away_is_told_of_by_flush() -> None:
    def send(address: str, items: Sequence[int]) -> None:
        raise ConnectionError("still away")

    outbox = Outbox[int](send, batch=3, retry_sec=0.01)
    outbox.put("run", [1])
    with pytest.raises(ConnectionError, match="still away"):
        outbox.flush(30)
    outbox.close()


def test_a_server_that_is_only_slow_is_not_waited_for_longer_than_was_said() -> None:
    server = SlowServer()
    outbox = Outbox[int](server.send, batch=3)
    outbox.put("run", [1])
    with pytest.raises(TimeoutError):
        outbox.flush(0.05)
    server.open.set()
    outbox.flush(30)
    assert server.batches == [("run", [1])]
    outbox.close()
