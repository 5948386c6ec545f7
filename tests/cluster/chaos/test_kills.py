"""A private run that is killed or stopped at any moment goes on, and nothing is under-counted.

The killer is a process of its own (benchmarks/chaos.py): it imports everything once and forks. What
it finds is asked here; two planted faults show that it would find one.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.cluster.chaos.points import POINTS
from tests.cluster.chaos.report import added, by_signal
from tests.cluster.chaos.runs import EVERY, STEPS, SmallRun, examine

ROOT = Path(__file__).parents[3]
NO_RAY = ("--ray", "0", "--ray-s3", "0")


def _killed(out: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--out", str(out), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert out.exists(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return {**found, "said": done.stdout + done.stderr, "code": done.returncode}


def _total(found: dict[str, Any], column: str) -> int:
    return sum(row[column] for row in found["rows"])


def _asserted(found: dict[str, Any], tried: int) -> None:
    assert found["code"] == 0, found["said"]
    assert _total(found, "tried") >= tried
    assert _total(found, "failed") == _total(found, "under-counted") == 0
    assert _total(found, "survived") + _total(found, "stopped in one line") == _total(
        found, "tried"
    )


@pytest.fixture(scope="module")
def dozen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A dozen faults in a row, and after them the two planted ones."""
    out = tmp_path_factory.mktemp("chaos") / "chaos.json"
    return _killed(out, *NO_RAY, "--process", "12", "--s3", "0", "--seed", "3", "--planted")


def test_a_dozen_faults_cost_no_run_and_no_step_is_under_counted(dozen: dict[str, Any]) -> None:
    _asserted(dozen, tried=11)  # One may come when its run is done.


@pytest.mark.parametrize("planted", ["charged after the noise", "repeats are not charged"])
def test_the_killer_would_notice_a_loop_that_is_not_what_it_says(
    dozen: dict[str, Any], planted: str
) -> None:
    found = dozen["planted"][planted]
    assert found["under-counted"] > 0
    assert any("nobody paid for" in fault for fault in found["faults"])


def test_every_named_moment_is_among_two_hundred_faults() -> None:
    from tests.cluster.chaos.killer import faults_of

    faults = Counter(fault.moment for fault in faults_of(POINTS, ("KILL", "STOP", "TERM"), 165, 0))
    assert set(POINTS) < faults.keys()
    assert min(faults.values()) >= 15


def test_a_torn_file_and_one_without_a_name_are_noticed(tmp_path: Path) -> None:
    run = SmallRun(folder=str(tmp_path))
    checkpoints = Path(run.out) / "checkpoints"
    checkpoints.mkdir(parents=True)
    save_file({"a": torch.zeros(9)}, checkpoints / "whole.safetensors")
    assert examine(run, tmp_path / "log").faults == ()
    torn = (checkpoints / "whole.safetensors").read_bytes()[:-4]
    (checkpoints / "torn.safetensors").write_bytes(torn)
    (checkpoints / ".tmp-1").touch()
    (checkpoints / "torn.json").write_text('{"a": ')
    assert len(examine(run, tmp_path / "log").faults) == 3


def test_ranks_that_have_other_updates_are_noticed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [
        {"kind": "update", "time": 0, "attempt": 1, "step": 2, "rank": rank, "digest": digest}
        for rank, digest in enumerate("ab")
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (fault,) = examine(SmallRun(folder=str(tmp_path)), log).faults
    assert "ranks differ in what they hold (what, attempt, step): [('update', 1, 2)]" in fault


def test_an_attempt_that_begins_past_what_was_paid_for_is_noticed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    line = {"kind": "begin", "time": 0, "attempt": 1, "first": STEPS - 1, "rank": 0}
    log.write_text(json.dumps(line) + "\n")
    (fault,) = examine(SmallRun(folder=str(tmp_path)), log).faults
    assert "nobody was past 0" in fault


def test_two_goes_of_the_killer_add_up() -> None:
    row = {"where": "process", "fault": "KILL", "tried": 2, "failed": 0}
    other = {**row, "fault": "STOP", "failed": 1}
    one = {"rows": [row], "figures": {"process": {"made": 3, "longest": 1.5}}}
    two = {
        "rows": [row, other],
        "figures": {"process": {"made": 4, "longest": 0.5}, "Ray": {"made": 1}},
    }
    found = added(one, two)
    assert found["rows"] == [{**row, "tried": 4}, other]
    assert found["figures"] == {"process": {"made": 7, "longest": 1.5}, "Ray": {"made": 1}}


def test_the_moments_of_one_signal_to_one_process_are_one_row_of_the_document() -> None:
    counts = {"tried": 1, "failed": 0}
    rows = [
        {"where": "process", "fault": f"KILL of the driver, {moment}", **counts}
        for moment in ("entry, then noise", "in the entry", "a random moment")
    ]
    rows.append({"where": "process", "fault": "STOP of the driver, in the entry", **counts})
    assert [(row["fault"], row["tried"]) for row in by_signal(rows)] == [
        ("KILL of the driver", 3),
        ("STOP of the driver", 1),
    ]


def test_time_lost_by_a_fall_is_until_the_run_is_again_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = [(0, 1, 0), (2, 1, 1), (4, 1, 2), (6, 1, 3), (8, 1, 4)]  # (time, attempt, step)
    again = [(30, 2, EVERY), (32, 2, 4), (34, 2, 5)]
    lines = [
        {"kind": "update", "time": at, "attempt": attempt, "step": step, "rank": 0, "digest": "a"}
        for at, attempt, step in (*first, *again)
    ]
    begins = [
        {"kind": "begin", "time": at, "attempt": attempt, "first": step, "rank": 0}
        for at, attempt, step in (first[0], again[0])
    ]
    lines.insert(len(first), {"kind": "fall", "time": 9})
    lines = [begins[0], *lines, begins[1]]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    finding = examine(SmallRun(folder=str(tmp_path)), log)
    assert (finding.step_sec, finding.lost_sec) == (2, 32 - 8)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_faults_cost_no_run_and_no_step_is_under_counted(tmp_path: Path) -> None:
    found = _killed(tmp_path / "chaos.json", *NO_RAY, "--process", "180", "--s3", "20")
    _asserted(found, tried=195)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_faults_of_every_process_of_a_cluster_cost_no_run(tmp_path: Path) -> None:
    found = _killed(tmp_path / "chaos.json", "--process", "0", "--s3", "0")
    _asserted(found, tried=24)
