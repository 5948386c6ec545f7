"""A result that is made ahead is the result, made once, in another thread."""

import threading

import pytest

from rapid_dist.ahead import Ahead


def _recorded() -> tuple[Ahead[int], list[tuple[int, bool]]]:
    calls: list[tuple[int, bool]] = []

    def double(number: int) -> int:
        calls.append((number, threading.current_thread() is threading.main_thread()))
        return 2 * number

    return Ahead(double), calls


def test_what_was_prepared_is_made_once_and_not_by_the_thread_that_asks() -> None:
    ahead, calls = _recorded()
    ahead.prepare(3)
    assert ahead.take(3) == 6
    assert calls == [(3, False)]


def test_what_was_not_prepared_is_made_when_it_is_asked_for() -> None:
    ahead, calls = _recorded()
    ahead.prepare(3)
    assert [ahead.take(4), ahead.take(3)] == [8, 6]
    assert sorted(calls) == [(3, False), (3, True), (4, True)]


def test_an_error_of_the_thread_reaches_the_one_who_asks() -> None:
    def fail(number: int) -> None:
        raise ValueError(number)

    ahead = Ahead(fail)
    ahead.prepare(1)
    with pytest.raises(ValueError, match="1"):
        ahead.take(1)
