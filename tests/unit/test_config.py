"""A recipe is one tree, read whole; what is refused of it is in test_bad_input.py."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rapid_dist.config import (
    Recipe,
    load_recipe,
    method_settings,
    parse_recipe,
    to_tree,
    to_yaml,
)
from rapid_dist.errors import ConfigError, DataError
from rapid_dist.recipe_files import recipe_names

RECIPE = """
data:
  private: {source: digits, name: digits, num_records: 1437, num_classes: 10, size: 8}
  public:
    - {source: letters, count: 2000}
privacy: {epsilon: 10, delta: 1e-4}
train:
  mode: surrogate
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_is_read_and_named_by_its_file(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == "small"
    assert recipe.privacy.delta == 1e-4  # YAML 1.1 reads this as text.
    assert recipe.train.mode == "surrogate"
    assert recipe.network.widths == (32, 64)


def test_what_is_written_reads_back_as_the_same_recipe(path: Path) -> None:
    recipe = load_recipe(path, ["network.widths=[16, 32]", "data.root=/data"])
    assert parse_recipe(yaml.safe_load(to_yaml(recipe))) == recipe
    assert to_tree(recipe)["data"]["public"][0]["source"] == "letters"


@pytest.mark.parametrize(
    ("override", "dotted", "value"),
    [
        ("privacy.epsilon=0.5", "privacy.epsilon", 0.5),
        ("privacy.delta=1e-5", "privacy.delta", 1e-5),
        ("seed=7", "seed", 7),
        ("runtime.debug=true", "runtime.debug", True),
        ("runtime.public_dir=s3://b/p=1", "runtime.public_dir", "s3://b/p=1"),
        ("runtime.public_dir=null", "runtime.public_dir", None),
        ("data.public.0.count=5", "data.public.0.count", 5),
        ("network.attention=[true, false]", "network.attention", (True, False)),
        ("evaluation.classifiers.steps=3", "evaluation.classifiers.steps", 3),
    ],
)
def test_an_override_changes_that_setting(
    override: str, dotted: str, value: object, path: Path
) -> None:
    node: Any = load_recipe(path, [override])
    for key in dotted.split("."):
        node = node[int(key)] if key.isdigit() else getattr(node, key)
    assert node == value
    assert type(node) is type(value)


def test_a_later_override_wins(path: Path) -> None:
    assert load_recipe(path, ["seed=1", "seed=2"]).seed == 2


def test_further_wrong_settings_are_counted(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.public\.0: count .* \(And 1 more\.\)$"):
        load_recipe(path, ["data.public.0.count=0", "runtime.workers=0"])


@pytest.mark.parametrize("missing", ["data", "privacy"])
def test_data_and_privacy_have_no_default(missing: str) -> None:
    tree = yaml.safe_load(RECIPE)
    del tree[missing]
    with pytest.raises(ConfigError, match=f"must give {missing}"):
        parse_recipe(tree)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_valid(name: str) -> None:
    assert load_recipe(name).name == name


def test_nothing_in_the_tree_can_be_changed(path: Path) -> None:
    recipe = load_recipe(path)
    for node, name in ((recipe, "seed"), (recipe.runtime, "workers"), (recipe.train, "mode")):
        with pytest.raises(Exception, match=r"frozen|cannot assign"):
            setattr(node, name, 1)


def test_where_a_run_happens_is_no_part_of_what_the_method_is_told(path: Path) -> None:
    here = method_settings(load_recipe(path, ["runtime.workers=1", "runtime.backend=process"]))
    assert here == method_settings(load_recipe(path, ["tracking.experiment=other"]))
    assert here != method_settings(load_recipe(path, ["train.mode=late"]))


def test_the_privacy_unit_counts_groups_where_groups_are_declared(path: Path) -> None:
    grouped = [
        "privacy.unit=group",
        "data.private.group_column=patient",
        "data.private.num_groups=120",
    ]
    assert load_recipe(path).num_units == 1437
    assert load_recipe(path, grouped).num_units == 120


def test_a_data_error_is_a_configuration_error() -> None:
    assert issubclass(DataError, ConfigError)
    assert DataError.exit_code == 2
    assert Recipe.model_config["extra"] == "forbid"
