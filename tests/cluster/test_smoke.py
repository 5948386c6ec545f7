"""The check of a cluster, on one of a single node: what it asks of Ray, storage and workers."""

from pathlib import Path

import pytest

from rapid_dist.runtime.cluster_smoke import look

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.slow
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
