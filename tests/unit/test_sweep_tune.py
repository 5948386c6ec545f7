"""How many trials a cluster holds at once, and what is said of one that failed."""

import pytest

from rapid_dist.config import load_recipe
from rapid_dist.errors import BudgetError, ConfigError
from rapid_dist.runtime.sweep_tune import describe_failure, max_concurrent

GIB = 2**30


def _at_once(*overrides: str, **resources: float) -> int:
    recipe = load_recipe("digits", list(overrides))
    return max_concurrent(recipe.sweep, recipe.runtime, resources)


@pytest.mark.parametrize(
    ("overrides", "resources", "expected"),
    [
        (["runtime.workers=2"], {"CPU": 8.0}, 4),
        (["runtime.workers=2"], {"CPU": 2.0}, 1),
        (["runtime.workers=4", "runtime.threads_per_worker=2"], {"CPU": 20.0}, 2),
        (["runtime.workers=2"], {"CPU": 8.0, "memory": 5.0 * GIB}, 2),
        (["runtime.workers=2", "runtime.device=cuda"], {"CPU": 8.0, "GPU": 2.0}, 1),
        (["sweep.runner=process", "runtime.workers=4"], {"CPU": 8.0}, 8),
        (["sweep.concurrent=2"], {"CPU": 8.0}, 2),
    ],
)
def test_as_many_trials_run_at_once_as_the_scarcest_resource_holds(
    overrides, resources, expected
) -> None:
    assert _at_once(*overrides, **resources) == expected


def test_a_trial_with_searchers_beside_it_takes_more_of_the_cluster() -> None:
    recipe = load_recipe("digits", ["runtime.workers=2"])
    config, runtime = recipe.sweep, recipe.runtime
    assert max_concurrent(config, runtime, {"CPU": 8.0}) == 4
    assert max_concurrent(config, runtime, {"CPU": 8.0}, beside=True) == 2


def test_more_at_once_than_there_is_room_for_is_refused_and_not_waited_for() -> None:
    with pytest.raises(ConfigError, match="the cluster holds 1 at once"):
        _at_once("sweep.concurrent=2", CPU=2.0)


def test_a_refusal_is_told_as_it_is_and_an_unforeseen_error_by_its_kind() -> None:
    assert describe_failure(BudgetError("epsilon would be 11.")) == "epsilon would be 11."
    assert describe_failure(ValueError("could not convert 'Jane Doe'")) == "ValueError"
