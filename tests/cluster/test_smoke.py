"""The check of a cluster, on one of a single node: what it asks of Ray, storage and workers."""

import threading
from pathlib import Path

import pytest

from rapid_dist.runtime.cluster_smoke import look

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def test_a_local_cluster_has_nothing_to_fix(tmp_path: Path) -> None:
    checks = look(str(tmp_path), workers=2, seconds=900)
    assert [check.told() for check in checks if check.remedy] == []
    found = {check.name: check.found for check in checks}
    assert found.keys() == {
        "versions", "devices", "token", "memory", "clock", "dashboard", "storage", "ledger",
        "all-reduce",
    }  # fmt: skip
    assert found["ledger"] == "1 of 2 created one name"
    assert "1,000,000 numbers over 2 workers on cpu" in found["all-reduce"]
    assert list((tmp_path / "smoke").glob("*")) == []  # It takes away what it wrote.


def test_workers_that_never_sum_are_told_of_and_ended_so_that_ray_can_be_left(
    tmp_path: Path,
) -> None:
    checks = look(str(tmp_path), workers=2, seconds=0.1)
    assert [check.name for check in checks if check.remedy] == ["all-reduce"]
    assert checks[-1].found == "no sum after 0.1 s"
    assert "GLOO_SOCKET_IFNAME" in checks[-1].remedy
    assert not any(thread.name == "fit workers" for thread in threading.enumerate())
