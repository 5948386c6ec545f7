"""What a cluster lacks is said before a run waits for it."""

import pytest

from rapid_dist.config import RuntimeConfig
from rapid_dist.runtime.cluster import authentication, scaled, shortage
from rapid_dist.runtime.needs import Needs, needs
from rapid_dist.runtime.placement_roles import phases
from tests.fakes import FakeClock

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


def _scale(nodes_after: int, minutes: float) -> tuple[list[dict[str, object]], int]:
    """Returns what an autoscaler was asked, and how often was looked, until two nodes are there."""
    asked: list[dict[str, object]] = []
    looks: list[int] = []
    node = {
        "Alive": True,
        "Labels": {"pool": "train"},
        "Resources": {"CPU": 1.0, "memory": 2.0**31},
        "NodeManagerAddress": "a",
    }

    def look() -> list[dict[str, object]]:
        looks.append(1)
        return [node, {**node, "NodeManagerAddress": "b"}] if len(looks) > nodes_after else []

    roles = phases(RuntimeConfig(workers=2, worker_labels={"pool": "train"}))
    with scaled(
        roles,
        minutes=minutes,
        request=lambda **bundles: asked.append(bundles),
        look=look,
        clock=FakeClock(),
        sleep=lambda seconds: None,
    ):
        assert len(asked) == 1  # It is kept while the run lasts.
    return asked, len(looks)


def test_an_autoscaler_is_asked_waited_for_and_told_at_the_end_that_nothing_is_needed() -> None:
    asked, looks = _scale(nodes_after=3, minutes=10)
    assert looks == 4
    first, last = asked
    assert first["bundle_label_selectors"][:2] == [{"pool": "train"}] * 2  # type: ignore[index]
    assert last == {"bundles": []}


def test_nodes_that_never_come_are_waited_for_no_longer_than_was_said() -> None:
    _, looks = _scale(nodes_after=10_000, minutes=1)
    assert looks <= 61  # The clock ticks a second a look.


@pytest.mark.parametrize("said", [{}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token"}])
def test_a_cluster_that_is_started_here_asks_for_a_token_of_its_own(said: dict[str, str]) -> None:
    first, second = (authentication(said, local=True) for _ in range(2))
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    given = authentication({**said, "RAY_AUTH_TOKEN_PATH": "/token"}, local=True)
    assert given == {"RAY_AUTH_MODE": "token"}


def test_a_cluster_that_is_joined_is_shown_the_token_that_there_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert authentication({}, local=False) == {"RAY_AUTH_MODE": "disabled"}
    assert authentication({"RAY_AUTH_TOKEN": "x"}, local=False) == {"RAY_AUTH_MODE": "token"}
    assert authentication({"RAY_AUTH_MODE": "disabled"}, local=False) == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert authentication({}, local=False) == {"RAY_AUTH_MODE": "token"}
