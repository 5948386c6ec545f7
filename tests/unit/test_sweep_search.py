"""Where points come from: the same after an interruption, and Optuna's from what it was told."""

from typing import Any

import pytest

from rapid_dist.methods.sweep_settings import Range, SweepConfig
from rapid_dist.runtime.sweep_search import Listed, Optuna, Proposer, Random, Space, proposer_of

SPACE: Space = {
    "split.split_step": [100, 300, 500],
    "train.learning_rate": Range(low=1e-4, high=1e-2, log=True),
}


def _score(point: dict[str, Any]) -> float:
    return -abs(point["split.split_step"] - 300) / 100 - abs(point["train.learning_rate"] - 0.005)


def _told(proposer: Proposer, first: int, count: int) -> list[dict[str, Any]]:
    points = []
    for number in range(first, first + count):
        point = proposer.propose(number)
        assert point is not None
        proposer.tell(number, point, _score(point))
        points.append(point)
    return points


@pytest.mark.parametrize("kind", [Random, Optuna])
def test_a_search_that_goes_on_proposes_what_it_would_have_proposed(kind) -> None:
    whole = _told(kind(SPACE, seed=3, trials=14), 0, 14)
    again = kind(SPACE, seed=3, trials=14)
    for number, point in enumerate(whole[:10]):
        again.tell(number, point, _score(point))
    assert _told(again, 10, 4) == whole[10:]


@pytest.mark.parametrize("kind", [Random, Optuna])
def test_a_search_ends_with_its_trials_and_does_not_repeat_its_points(kind) -> None:
    search = kind(SPACE, seed=0, trials=6)
    points = _told(search, 0, 6)
    assert search.propose(6) is None
    assert len({point["train.learning_rate"] for point in points}) == 6


def test_optuna_learns_from_scores() -> None:
    tpe, chance = (_told(kind(SPACE, seed=1, trials=40), 0, 40) for kind in (Optuna, Random))
    late, even = ([_score(point) for point in points[20:]] for points in (tpe, chance))
    assert sum(late) > sum(even)


def test_optuna_is_told_of_points_that_failed() -> None:
    search = Optuna(SPACE, seed=1, trials=4)
    search.tell(0, {"split.split_step": 100, "train.learning_rate": 1e-3}, None)
    assert search.propose(1) is not None


def test_a_grid_is_tried_in_order_as_far_as_there_are_trials() -> None:
    space: Space = {"a": [1, 2], "b": [3, 4]}
    whole = proposer_of(SweepConfig(search="grid"), space, seed=0)
    assert isinstance(whole, Listed)
    assert [whole.propose(n) for n in (0, 3, 4)] == [{"a": 1, "b": 3}, {"a": 2, "b": 4}, None]
    assert proposer_of(SweepConfig(search="grid", trials=2), space, seed=0).propose(2) is None
