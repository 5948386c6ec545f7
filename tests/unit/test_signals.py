"""A notice to leave waits for the step of a loop that asks, and for nobody else."""

import os
import signal
import time
from typing import Any

import pytest

from rapid_dist.collective import Collective
from rapid_dist.methods.task import Report
from rapid_dist.runtime.process_workers import ProcessWorkers
from rapid_dist.runtime.signals import Notice, stop_on_sigterm


class Loop:
    """A loop of three steps; in the second one SIGTERM comes."""

    def __init__(self, heeds: bool = True, told_in: int = 2, says: bool = False) -> None:
        self.heeds, self.told_in, self.says = heeds, told_in, says
        self.done: list[int] = []
        self.saved: list[int] = []

    def __call__(self, collective: Collective, report: Report) -> None:
        if self.says:
            report({})
        for step in (1, 2, 3):
            if step == self.told_in:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
            self.done.append(step)
            leave = report({"step": step, "steps": 3})
            if leave is not None and self.heeds:
                self.saved.append(step)
                leave()


def _run(loop: Any) -> None:
    notice = Notice()

    def on_report(name: str, figures: dict[str, float]) -> None:
        assert figures["step"] <= figures["steps"]  # A report of nothing is handed to nobody.

    with stop_on_sigterm(notice):
        workers = ProcessWorkers(threads=1, on_report=on_report, notice=notice)
        workers.run(loop, name="train", num_workers=1)


def test_a_loop_that_is_told_to_leave_ends_its_step_and_has_time_for_a_checkpoint() -> None:
    loop = Loop()
    with pytest.raises(KeyboardInterrupt):
        _run(loop)
    assert (loop.done, loop.saved) == ([1, 2], [2])


def test_a_loop_without_checkpoints_is_interrupted_a_step_later() -> None:
    loop = Loop(heeds=False)
    with pytest.raises(KeyboardInterrupt):
        _run(loop)
    assert (loop.done, loop.saved) == ([1, 2, 3], [])


def test_a_notice_in_the_last_step_ends_the_run_after_it() -> None:
    loop = Loop(heeds=False, told_in=3)
    with pytest.raises(KeyboardInterrupt):
        _run(loop)
    assert loop.done == [1, 2, 3]


def test_before_the_first_step_a_notice_interrupts_at_once() -> None:
    loop = Loop(told_in=1)
    with pytest.raises(KeyboardInterrupt):
        _run(loop)
    assert loop.done == []


def test_a_loop_that_says_when_it_begins_ends_its_first_step_as_well() -> None:
    loop = Loop(told_in=1, says=True)
    with pytest.raises(KeyboardInterrupt):
        _run(loop)
    assert (loop.done, loop.saved) == ([1], [1])


def _wait_for_sigterm() -> None:
    with stop_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def test_without_a_loop_a_notice_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        _wait_for_sigterm()
