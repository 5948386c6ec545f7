"""What a group of workers does when its driver is to leave, its node to go, or one of it hangs."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from rapid_dist.collective import Collective
from rapid_dist.errors import RapidError
from rapid_dist.methods.task import Report
from rapid_dist.runtime.signals import Notice
from rapid_dist.runtime.train_workers import RayWorkers

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@dataclass(frozen=True, kw_only=True)
class SavesWhenItIsTold:
    """Steps until it is told to leave, and then writes down at which step it was."""

    folder: Path

    def __call__(self, collective: Collective, report: Report) -> None:
        for step in range(1, 10_000):
            collective.barrier()
            (self.folder / "step").write_text(str(step))
            leave = report({"step": step, "steps": 10_000})
            if leave is not None:
                (self.folder / "saved").write_text(str(step))
                leave()
            time.sleep(0.05)


@dataclass(frozen=True, kw_only=True)
class LosesItsNodeSoon:
    """Is told by Ray, as a node's drain is, in its second step; reports who was told to save."""

    def __call__(self, collective: Collective, report: Report) -> None:
        from ray.train.v2._internal.execution.context import get_train_context
        from ray.train.v2.api.preemption import PreemptionInfo

        told = []
        for step in (1, 2, 3):
            if step == 2:
                info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={})
                get_train_context().preemption_context.preemption_info = info
            leave = report({"step": step, "steps": 3})
            told.append(leave is not None)
            if leave is not None:
                leave()  # A node's notice ends nothing.
        if collective.rank == 0:
            report({"step": 3, "steps": 3, "told": float(sum(told)), "first": float(told[0])})


@dataclass(frozen=True, kw_only=True)
class Hangs:
    def __call__(self, collective: Collective, report: Report) -> None:
        if collective.rank == 1:
            time.sleep(20)
        collective.barrier()


def test_a_driver_that_is_to_leave_waits_for_its_workers_checkpoint(tmp_path: Path) -> None:
    notice = Notice()

    def on_report(name: str, figures: dict[str, float]) -> None:
        if figures["step"] == 5:
            notice.take()  # As SIGTERM's handler does.

    workers = RayWorkers(threads=1, max_failures=0, on_report=on_report, notice=notice)
    with pytest.raises(KeyboardInterrupt):
        workers.run(SavesWhenItIsTold(folder=tmp_path), name="train", num_workers=2)
    saved = int((tmp_path / "saved").read_text())
    time.sleep(2)
    assert 5 <= saved == int((tmp_path / "step").read_text())  # Nothing was done after it.


def test_from_the_notice_of_a_node_on_every_step_is_saved() -> None:
    reports: list[dict[str, float]] = []
    workers = RayWorkers(threads=1, max_failures=0, on_report=lambda n, f: reports.append(f))
    workers.run(LosesItsNodeSoon(), name="train", num_workers=2)
    assert (reports[-1]["told"], reports[-1]["first"]) == (2.0, 0.0)


def test_a_worker_that_hangs_ends_the_stage_with_a_line_of_its_own() -> None:
    workers = RayWorkers(threads=1, max_failures=0, on_report=lambda *said: None, hang_minutes=0.1)
    with pytest.raises(RapidError, match=r"a worker did not answer .*runtime\.hang_minutes"):
        workers.run(Hangs(), name="train", num_workers=2)
