"""What a sweep may try under which promise; the rest is refused before anything has started."""

from typing import Any

import numpy as np
import pytest

from rapid_dist.config import Recipe, load_recipe, parse_recipe, recipe_hash, to_tree
from rapid_dist.errors import ConfigError
from rapid_dist.methods.sweep_settings import (
    Range,
    default_space,
    grid_points,
    random_point,
    variants,
)


def _recipe(*overrides: str) -> Recipe:
    return load_recipe("digits", [f"sweep.{override}" for override in overrides])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["scheduler=pbt"], "copies weights from trial to trial"),
        (["scheduler=asha", "promise=per_trial"], "every score is a release"),
        (["scheduler=asha", "promise=repeat_and_select"], "every score is a release"),
        (["search=optuna", "promise=repeat_and_select"], "picks each by the others"),
        (["search=grid", "promise=repeat_and_select"], "picks each by the others"),
        (["trials=8", "promise=repeat_and_select"], "would void it"),
        (["space={privacy.epsilon: [1, 2]}"], "is what a sweep holds fixed"),
        (["space={data.private.limit: [10, 20]}"], "says what the claim is for"),
        (["space={evaluation.seed: [1, 2]}"], "the yardstick"),
        (["space={seed: [1, 2]}"], "a lucky seed"),
        (["space={privacy.steps: [10, 20]}"], "leaves it to the plan"),
        (["space={split.query_step: {low: 500, high: 700}}"], "shapes public stages"),
        (["space={train.learning_rate: {low: 0.1, high: 0.2}}", "search=grid"], "tries lists"),
        (
            ["space={privacy.noise_multiplier: {low: 1, high: 2}}", "promise=repeat_and_select"],
            "the price covers a list of mechanisms",
        ),
        (
            [
                "space={privacy.noise_multiplier: {low: 1, high: 2}}",
                "promise=per_trial",
                "search=optuna",
            ],
            "the price covers a list of mechanisms",
        ),
        (["space={privacy: [{epsilon: 100, noise_multiplier: 0.3}]}"], "the whole section"),
        (["space={split: [{query_step: 500, split_step: 300}]}"], "the whole section"),
        (
            ["space={knowledge_base.clusters: [40, 80]}", "promise=repeat_and_select"],
            "tell how many",
        ),
        (["space={prior.feature_step: [40, 80]}", "promise=repeat_and_select"], "tell how many"),
        (["space={split.split_step: []}"], "different values"),
        (["space={split.split_step: [300, 300]}"], "different values"),
        (["space={train.learning_rate: {low: 2, high: 1}}"], "must ascend"),
        (["space={train.learning_rate: {low: 0, high: 1, log: true}}"], "must be positive"),
        (["score_noise=0"], "has no epsilon"),
        (["proxy.classes=[A]"], "at least two"),
        (["trials=0"], "at least 1"),
    ],
)
def test_what_voids_the_promise_or_has_no_sense_is_refused_in_one_line(overrides, said) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        _recipe(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["scheduler=asha"],
        ["search=optuna", "promise=per_trial", "space={privacy.noise_multiplier: [1, 2]}"],
        ["promise=repeat_and_select", "space={train.learning_rate: {low: 0.1, high: 0.2}}"],
        ["search=grid", "promise=per_trial", "space={split.query_step: [500, 700]}"],
    ],
)
def test_what_the_promise_allows_is_let_through(overrides) -> None:
    recipe = _recipe(*overrides)
    assert parse_recipe(to_tree(recipe)) == recipe


def test_a_sweeps_settings_change_no_run_and_no_hash_of_it() -> None:
    plain = load_recipe("digits")
    assert recipe_hash(_recipe("search=optuna", "space={seed2: [1]}")) == recipe_hash(plain)


def test_a_range_is_drawn_evenly_or_evenly_in_its_logarithm_and_never_left() -> None:
    shares = np.linspace(0, 1, 1_001, endpoint=False)
    whole = [Range(low=3, high=7, whole=True).draw(share) for share in shares]
    assert set(whole) == {3, 4, 5, 6, 7}
    assert max(whole.count(n) for n in range(3, 8)) - min(whole.count(n) for n in range(3, 8)) < 3
    log = [Range(low=1e-4, high=1e-2, log=True).draw(share) for share in shares]
    assert np.mean(np.array(log) < 1e-3) == pytest.approx(0.5, abs=0.01)
    assert min(log) >= 1e-4
    assert max(log) <= 1e-2


def test_a_grid_has_every_point_once_and_a_random_point_is_one_of_the_space() -> None:
    space: dict[str, Range | list[Any]] = {"a": [1, 2], "b": ["x", "y", "z"]}
    points = grid_points(space)
    assert len(points) == len({tuple(point.values()) for point in points}) == 6
    drawn = random_point({**space, "c": Range(low=0, high=1)}, np.random.default_rng(0))
    assert {"a": drawn["a"], "b": drawn["b"]} in points
    assert 0 <= drawn["c"] < 1


def test_a_grid_too_large_to_write_down_is_refused() -> None:
    with pytest.raises(ConfigError, match="points"):
        grid_points({name: list(range(100)) for name in "abc"})


def test_variants_are_of_the_settings_that_shape_the_mechanism_or_the_public_stages() -> None:
    space = {
        "privacy.noise_multiplier": [1, 2],
        "split.query_step": [500, 600, 700],
        "split.split_step": [1, 2],
        "train.learning_rate": Range(low=0, high=1),
    }
    assert len(variants(space, mechanism=True)) == 2
    assert len(variants(space, public=True)) == 3
    assert variants({}, mechanism=True) == [{}]


def test_the_default_space_is_around_what_the_recipe_does() -> None:
    space: dict[str, Any] = default_space(700, 2.1)
    assert max(space["split.split_step"]) < 700
    assert any(value == 2.1 for value in space["privacy.noise_multiplier"])
