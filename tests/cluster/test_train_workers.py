"""Ray Train's workers: the loop gets a group, its reports arrive, its refusals are final."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError

from rapid_dist.collective import Collective
from rapid_dist.errors import BudgetError, RapidError
from rapid_dist.methods.task import Report
from rapid_dist.runtime.process_workers import ProcessWorkers
from rapid_dist.runtime.train_workers import RayWorkers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

RUN = "digits-shared"  # Of the workers' logs.


@dataclass(frozen=True, kw_only=True)
class SumOfRanks:
    """Reports the sum over ranks of (rank + 1), as every rank sees it."""

    folder: Path

    def __call__(self, collective: Collective, report: Report) -> None:
        total = torch.tensor([float(collective.rank + 1)])
        collective.sum_(total)
        (self.folder / f"rank{collective.rank}").write_text(f"{total.item()}")
        key = collective.broadcast_bytes(bytes([collective.rank + 7]) * 4)
        least = collective.least(9 - collective.rank)
        if collective.rank == 0:  # A report from one rank only must not hang the others.
            report({"total": total.item(), "key": float(key[0]), "least": float(least)})


@dataclass(frozen=True, kw_only=True)
class CountsTwoThings:
    """Reports of a part of itself, and then of itself."""

    def __call__(self, collective: Collective, report: Report) -> None:
        report({"step": 1.0}, part="clusters")
        report({"step": 2.0})


@dataclass(frozen=True, kw_only=True)
class DiesOnce:
    """Kills its own process in the first attempt; leaves a mark an attempt."""

    folder: Path
    times: int

    def __call__(self, collective: Collective, report: Report) -> None:
        attempt = len(list(self.folder.glob(f"rank{collective.rank}-*")))
        (self.folder / f"rank{collective.rank}-{attempt}").touch()
        collective.barrier()
        if attempt < self.times and collective.rank == 1:
            os._exit(1)
        collective.barrier()
        report({"attempt": float(attempt)})


@dataclass(frozen=True, kw_only=True)
class Refuses:
    folder: Path

    def __call__(self, collective: Collective, report: Report) -> None:
        if collective.rank == 0:
            (self.folder / f"attempt{len(list(self.folder.iterdir()))}").touch()
            raise BudgetError("epsilon would be 10.1, the budget is 10. Train fewer steps.")
        collective.barrier()


@dataclass(frozen=True, kw_only=True)
class TellsItsProcesses:
    def __call__(self, collective: Collective, report: Report) -> None:
        pid = torch.zeros(collective.world_size, dtype=torch.float64)
        pid[collective.rank] = os.getpid()
        collective.sum_(pid)
        report({str(rank): float(number) for rank, number in enumerate(pid)})


@dataclass(frozen=True, kw_only=True)
class TellsItsProcessesAndStays:
    sign: Path

    def __call__(self, collective: Collective, report: Report) -> None:
        TellsItsProcesses()(collective, report)
        while not self.sign.exists():
            time.sleep(0.1)


@dataclass(frozen=True, kw_only=True)
class LosesAnActorOfItsOwn:
    def __call__(self, collective: Collective, report: Report) -> None:
        if collective.rank == 0:
            raise ActorDiedError
        collective.barrier()


def _workers(
    reports: list[tuple[str, dict[str, float]]], max_failures: int = 2, run: str = ""
) -> RayWorkers:
    return RayWorkers(
        threads=1,
        max_failures=max_failures,
        run=run,
        on_report=lambda name, metrics: reports.append((name, metrics)),
    )


@contextmanager
def _kept(reports: list[tuple[str, dict[str, float]]], max_failures: int) -> Iterator[RayWorkers]:
    """Workers that stay between loops which are not private, until the test is over."""
    workers = _workers(reports, max_failures)
    try:
        yield workers
    finally:
        workers.release()


@dataclass(kw_only=True)
class Shared:
    """Workers for several tests: a group takes seconds to start, and most tests end one at most."""

    reports: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    answer: Callable[[dict[str, float]], None] | None = None

    def __post_init__(self) -> None:
        self.workers = RayWorkers(threads=1, max_failures=2, run=RUN, on_report=self._take)

    def _take(self, name: str, figures: dict[str, float]) -> None:
        self.reports.append((name, figures))
        if self.answer is not None:
            self.answer(figures)


@pytest.fixture(scope="module")
def all_tests_workers(ray_cluster: None) -> Iterator[Shared]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPID_DIST_LOG", "json")
        found = Shared()
        try:
            yield found
        finally:
            found.workers.release()


@pytest.fixture
def shared(all_tests_workers: Shared) -> Shared:
    """The same workers, with whatever group the last test has left, and nothing reported yet."""
    all_tests_workers.reports.clear()
    all_tests_workers.answer = None
    return all_tests_workers


def _processes(figures: dict[str, float]) -> set[int]:
    return {int(pid) for pid in figures.values()}


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _require_end(pids: set[int]) -> None:
    """Waits: Ray ends an actor's process some time after it was told to."""
    give_up = time.monotonic() + 240
    while not all(map(_has_ended, pids)):
        assert time.monotonic() < give_up
        time.sleep(0.2)


def _is_fitting() -> bool:
    return any(thread.name == "fit workers" for thread in threading.enumerate())


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_rank_sees_the_sum_and_rank_0_is_heard(
    num_workers: int, tmp_path: Path, shared: Shared
) -> None:
    name = f"sum of {num_workers}"
    task = SumOfRanks(folder=tmp_path)
    shared.workers.run(task, name=name, num_workers=num_workers, private=False)
    total = float(sum(range(1, num_workers + 1)))
    least = 10.0 - num_workers
    assert shared.reports == [(name, {"total": total, "key": 7.0, "least": least})]
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == [f"{total}"] * num_workers
    said = [line for line in _logged(RUN) if line["stage"] == name]
    told = {(line["rank"], line["event"]) for line in said}
    assert told == {(rank, kind) for rank in range(num_workers) for kind in ("begins", "done")}


def _logged(run: str) -> list[dict[str, Any]]:
    """Returns the JSON lines of a run in the logs of the workers of this cluster."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]
    texts = [path.read_text(errors="replace") for path in logs.glob("worker-*.err")]
    lines = [line for text in texts for line in text.splitlines() if f'"run": "{run}"' in line]
    return [json.loads(line) for line in lines]


def test_a_part_of_a_stage_has_a_count_of_its_own_under_the_name_of_its_stage() -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    here = ProcessWorkers(
        threads=1, on_report=lambda name, figures: reports.append((name, figures))
    )
    here.run(CountsTwoThings(), name="train", num_workers=1)
    assert reports == [("train clusters", {"step": 1.0}), ("train", {"step": 2.0})]


def test_a_dead_worker_is_survived_and_the_loop_starts_again(
    tmp_path: Path, shared: Shared
) -> None:
    task = DiesOnce(folder=tmp_path, times=1)
    shared.workers.run(task, name="mortal", num_workers=2, private=False)
    assert shared.reports == [("mortal", {"attempt": 1.0})]


@pytest.mark.slow
def test_a_loop_that_keeps_dying_is_given_up_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RapidError, match="mortal failed: its workers raised") as caught:
        _workers([], max_failures=1).run(
            DiesOnce(folder=tmp_path, times=9), name="mortal", num_workers=2
        )
    assert "\n" not in str(caught.value)
    assert len(list(tmp_path.glob("rank1-*"))) == 2


def test_a_group_serves_one_loop_after_another_until_one_has_read_private_records(
    shared: Shared,
) -> None:
    workers, reports = shared.workers, shared.reports
    workers.run(TellsItsProcesses(), name="pretrain", num_workers=2, private=False)
    workers.run(CountsTwoThings(), name="contrast", num_workers=2, private=False)
    workers.run(TellsItsProcesses(), name="train", num_workers=2)
    _require_end(_processes(reports[0][1]))
    workers.run(TellsItsProcesses(), name="generate", num_workers=2, private=False)
    own, counts = [reports[at] for at in (0, 3, 4)], reports[1:3]
    assert counts == [("contrast clusters", {"step": 1.0}), ("contrast", {"step": 2.0})]
    assert [name for name, _ in own] == ["pretrain", "train", "generate"]
    first, second, third = (_processes(figures) for _, figures in own)
    assert first == second
    assert not first & third


def test_a_refusal_is_raised_as_it_was_and_not_tried_again(tmp_path: Path, shared: Shared) -> None:
    with pytest.raises(BudgetError, match=r"^epsilon would be 10\.1, the budget is 10\."):
        shared.workers.run(Refuses(folder=tmp_path), name="train", num_workers=2, private=False)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_every_loop_has_the_whole_number_of_failures_to_itself(tmp_path: Path) -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    with _kept(reports, max_failures=1) as workers:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            task = DiesOnce(folder=tmp_path / name, times=1)
            workers.run(task, name=name, num_workers=2, private=False)
    assert reports == [("first", {"attempt": 1.0}), ("second", {"attempt": 1.0})]


@pytest.mark.slow
def test_a_worker_that_dies_between_two_loops_costs_neither_a_failure() -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    with _kept(reports, max_failures=0) as workers:
        workers.run(TellsItsProcesses(), name="pretrain", num_workers=2, private=False)
        first = _processes(reports[0][1])
        os.kill(min(first), signal.SIGKILL)
        workers.run(TellsItsProcesses(), name="contrast", num_workers=2, private=False)
    assert not first & _processes(reports[1][1])


def test_workers_whose_driver_was_interrupted_end_and_ray_can_be_left(
    tmp_path: Path, shared: Shared
) -> None:
    pids: set[int] = set()

    def interrupt(figures: dict[str, float]) -> None:
        pids.update(_processes(figures))
        raise KeyboardInterrupt

    shared.answer = interrupt
    task = TellsItsProcessesAndStays(sign=tmp_path / "never")
    with pytest.raises(KeyboardInterrupt):
        shared.workers.run(task, name="train", num_workers=2)
    assert not _is_fitting()  # Or leaving Ray could end this process.
    _require_end(pids)


@pytest.mark.slow
def test_the_death_of_a_loops_own_actor_is_a_failure_and_no_sign_to_leave() -> None:
    with pytest.raises(RapidError, match="train failed: its workers raised ActorDiedError"):
        _workers([], max_failures=0).run(LosesAnActorOfItsOwn(), name="train", num_workers=2)


def test_the_process_backend_runs_the_same_loop(tmp_path: Path) -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    workers = ProcessWorkers(threads=1, on_report=lambda name, m: reports.append((name, m)))
    workers.run(SumOfRanks(folder=tmp_path), name="sum", num_workers=2)
    assert reports == [("sum", {"total": 1.0, "key": 7.0, "least": 9.0})]
