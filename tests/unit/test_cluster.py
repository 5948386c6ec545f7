"""What a cluster lacks is said before a run waits for it."""

import pytest

from rapid_dist.config import RuntimeConfig
from rapid_dist.runtime.backend import needs
from rapid_dist.runtime.cluster import Needs, shortage

BIG = {"CPU": 8.0, "memory": 32 * 2.0**30}


def test_a_cluster_that_is_large_enough_lacks_nothing() -> None:
    assert shortage(Needs(cpus=8, memory_gb=32.0), BIG) is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Needs(cpus=9), "needs 9 CPUs, the cluster has 8"),
        (Needs(cpus=1, memory_gb=33.0), "needs 33 GB of memory, the cluster has 32.0"),
    ],
)
def test_a_shortage_is_one_line_with_the_settings_to_change(asked: Needs, said: str) -> None:
    line = shortage(asked, BIG)
    assert line is not None
    assert said in line
    assert "runtime.workers" in line
    assert "\n" not in line


def test_the_busiest_stage_decides_what_is_needed() -> None:
    assert needs(RuntimeConfig(workers=3, threads_per_worker=2, memory_gb=1.5)) == Needs(
        cpus=6, memory_gb=4.5
    )
    assert needs(RuntimeConfig(workers=1, trajectory_actors=5)).cpus == 5
