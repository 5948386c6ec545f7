"""The mailbox between driver and workers: which task is done by whom, through restarts."""

from rapid_dist.runtime.beside_driver import Mailbox

TASK, OTHER = ["task"], ["other"]


def _given() -> tuple[Mailbox, int]:
    """A mailbox with one task for a group of two that has started."""
    mailbox = Mailbox(2)
    start = mailbox.begin()
    mailbox.give(TASK)
    return mailbox, start


def test_a_task_is_done_once_all_workers_have_done_it() -> None:
    mailbox, start = _given()
    assert mailbox.next_after(0, 0) == (1, TASK)
    mailbox.finish(start, 0)
    assert mailbox.next_after(1, 0) is None  # For the worker that has done it.
    assert mailbox.next_after(0, 0) == (1, TASK)
    assert not mailbox.collect()[1]
    mailbox.finish(start, 1)
    assert mailbox.collect()[1]


def test_a_group_that_starts_again_does_the_whole_task_again() -> None:
    mailbox, start = _given()
    mailbox.finish(start, 0)
    again = mailbox.begin()
    assert mailbox.next_after(0, 0) == (1, TASK)
    mailbox.finish(again, 1)
    assert not mailbox.collect()[1]  # What rank 0 did before its death does not count.
    mailbox.finish(again, 0)
    assert mailbox.collect()[1]


def test_a_task_that_all_have_done_is_never_done_again() -> None:
    mailbox, start = _given()  # It may have been charged: a private step is not for nothing.
    mailbox.finish(start, 0)
    mailbox.finish(start, 1)
    mailbox.begin()
    assert mailbox.next_after(0, 0) is None
    mailbox.give(OTHER)
    assert mailbox.next_after(0, 0) == (2, OTHER)


def test_a_worker_thought_dead_cannot_finish_for_the_group_that_replaced_its_own() -> None:
    mailbox, start = _given()
    again = mailbox.begin()
    mailbox.finish(again, 1)
    mailbox.finish(start, 0)
    assert not mailbox.collect()[1]


def test_workers_leave_when_they_are_told_to_or_one_has_refused() -> None:
    told, refused = _given()[0], _given()[0]
    assert not told.is_over()
    told.end()
    refused.refuse("BudgetError", "Too much.")
    refused.refuse("DataError", "A consequence.")
    assert told.is_over()
    assert refused.is_over()
    assert refused.refusal() == ("BudgetError", "Too much.")


def test_a_group_is_whole_while_every_worker_asks_and_none_has_died() -> None:
    mailbox, _ = _given()
    mailbox.next_after(0, 0)
    assert not mailbox.is_whole()
    mailbox.next_after(0, 1)
    assert mailbox.is_whole()
    mailbox.call_roll()  # That a worker has asked before does not say that it lives.
    assert not mailbox.is_whole()
    mailbox.begin()
    mailbox.next_after(0, 0)
    mailbox.next_after(0, 1)
    assert not mailbox.is_whole()


def test_reports_are_handed_on_once_and_in_order() -> None:
    mailbox, _ = _given()
    mailbox.post({"step": 1.0}, "")
    mailbox.post({"step": 2.0}, "clusters")
    assert mailbox.collect()[0] == [({"step": 1.0}, ""), ({"step": 2.0}, "clusters")]
    assert mailbox.collect()[0] == []
