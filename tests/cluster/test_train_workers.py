"""Ray Train's workers: the loop gets a group, its reports arrive, its refusals are final."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rapid_dist.collective import Collective
from rapid_dist.errors import BudgetError, RapidError
from rapid_dist.methods.context import Report
from rapid_dist.runtime.train_workers import ProcessWorkers, RayWorkers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


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


def _workers(reports: list[tuple[str, dict[str, float]]], max_failures: int = 2) -> RayWorkers:
    return RayWorkers(
        threads=1,
        max_failures=max_failures,
        on_report=lambda name, metrics: reports.append((name, metrics)),
    )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_rank_sees_the_sum_and_rank_0_is_heard(num_workers: int, tmp_path: Path) -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    _workers(reports).run(SumOfRanks(folder=tmp_path), name="sum", num_workers=num_workers)
    total = float(sum(range(1, num_workers + 1)))
    least = 10.0 - num_workers
    assert reports == [("sum", {"total": total, "key": 7.0, "least": least})]
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == [f"{total}"] * num_workers


TWO_COUNTS = [("train clusters", {"step": 1.0}), ("train", {"step": 2.0})]


def test_a_part_of_a_stage_has_a_count_of_its_own_under_the_name_of_its_stage() -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    _workers(reports).run(CountsTwoThings(), name="train", num_workers=2)
    assert reports == TWO_COUNTS
    reports.clear()
    here = ProcessWorkers(
        threads=1, on_report=lambda name, figures: reports.append((name, figures))
    )
    here.run(CountsTwoThings(), name="train", num_workers=1)
    assert reports == TWO_COUNTS


def test_a_dead_worker_is_survived_and_the_loop_starts_again(tmp_path: Path) -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    _workers(reports).run(DiesOnce(folder=tmp_path, times=1), name="mortal", num_workers=2)
    assert reports == [("mortal", {"attempt": 1.0})]


def test_a_loop_that_keeps_dying_is_given_up_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RapidError, match="mortal failed: its workers raised") as caught:
        _workers([], max_failures=1).run(
            DiesOnce(folder=tmp_path, times=9), name="mortal", num_workers=2
        )
    assert "\n" not in str(caught.value)
    assert len(list(tmp_path.glob("rank1-*"))) == 2


def test_a_refusal_is_raised_as_it_was_and_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"^epsilon would be 10\.1, the budget is 10\."):
        _workers([]).run(Refuses(folder=tmp_path), name="train", num_workers=2)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_process_backend_runs_the_same_loop(tmp_path: Path) -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    workers = ProcessWorkers(threads=1, on_report=lambda name, m: reports.append((name, m)))
    workers.run(SumOfRanks(folder=tmp_path), name="sum", num_workers=2)
    assert reports == [("sum", {"total": 1.0, "key": 7.0, "least": 9.0})]
