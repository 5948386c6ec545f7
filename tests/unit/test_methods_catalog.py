"""The table of methods: what it says of each is what its stages and its settings say."""

from typing import Any, get_args

import pytest

from rapid_dist.config import Recipe, load_recipe, method_settings, parse_recipe, to_yaml
from rapid_dist.errors import ConfigError
from rapid_dist.methods import catalog
from rapid_dist.methods.checks import shape_of
from rapid_dist.methods.presets import PRESETS
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.private.subset import restrict_trainable
from rapid_dist.recipe_files import parse_tree, recipe_names


def _of(recipe: str, *overrides: str) -> MethodSettings:
    return method_settings(load_recipe(recipe, overrides))


def _settings(*overrides: str) -> MethodSettings:
    return _of("digits", *overrides)


def _stages(settings: MethodSettings) -> list[str]:
    return [stage.name for stage in catalog.stages_of(settings)]


def test_a_recipe_may_name_the_methods_of_the_table_and_no_other() -> None:
    named = get_args(Recipe.model_fields["method"].annotation)
    assert set(named) == set(catalog.METHODS) == set(PRESETS)


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("method", sorted(PRESETS))
def test_every_recipe_becomes_one_of_every_method_by_one_override(recipe: str, method: str) -> None:
    settings = method_settings(load_recipe(recipe, [f"method={method}"]))
    catalog.check_method(settings)
    assert settings.method == method


@pytest.mark.parametrize("recipe", recipe_names())
def test_dp_ldm_trains_a_tenth_of_a_network_with_attention_in_every_block(recipe: str) -> None:
    settings = _of(recipe, "method=dp_ldm", "network.attention=[true, true]")
    network = shape_of(settings)
    few = restrict_trainable(network, settings.train.trainable, settings.train.blocks)
    whole = sum(one.numel() for one in network.parameters())
    assert 0.87 < 1 - few / whole < 0.93  # About 90% fewer (Liu et al.).
    trained = [name for name, one in network.named_parameters() if one.requires_grad]
    assert all("attentions" in name or "class_embedding" in name for name in trained)


def test_the_presets_are_what_makes_it_so() -> None:
    """Without them a recipe of one method is none of another, and is refused in one line."""
    own = to_yaml(load_recipe("digits")).replace("method: rapid", "method: dpdm")
    with pytest.raises(ConfigError, match=r"dpdm retrieves nothing: train\.mode must be 'full'"):
        catalog.check_method(method_settings(parse_recipe(parse_tree(own))))


def test_a_recipe_of_another_method_becomes_one_of_rapid(tmp_path: Any) -> None:
    """It does not stay on the whole schedule, from noise and without a prior."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_recipe("digits", ["method=dpdm"])))
    settings = method_settings(load_recipe(path, ["method=rapid"]))
    catalog.check_method(settings)
    assert (settings.train.mode, settings.sampling.source) == ("late", "prior")
    assert catalog.plan_of(settings).prior is not None


def test_an_override_of_ones_own_beats_the_presets_wherever_it_stands() -> None:
    before = load_recipe("digits", ["train.multiplicity=4", "method=dpdm"])
    after = load_recipe("digits", ["method=dpdm", "train.multiplicity=4"])
    assert before == after
    assert before.train.multiplicity == 4
    assert load_recipe("digits", ["method=dpdm"]).train.multiplicity == 32


def test_a_recipe_that_names_its_method_is_taken_as_it_is(tmp_path: Any) -> None:
    mine = load_recipe("digits", ["method=dpdm", "train.multiplicity=3", "train.ema_decay=0.5"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(mine))
    assert load_recipe(path) == mine
    assert load_recipe(path, ["method=dpdm"]) == mine  # Which is no other method.


def test_dpdm_has_public_stages_exactly_from_public_weights() -> None:
    scratch, public = _settings("method=dpdm"), _settings("method=dpdm", "train.start=public")
    assert _stages(scratch) == ["initial", "train", "generate", "evaluate"]
    assert _stages(public) == ["pretrain", "contrast", "contamination", *_stages(scratch)]
    for settings, seen in ((scratch, False), (public, True)):
        assert catalog.has_stage(settings, "pretrain") is seen
        assert not catalog.has_stage(settings, "index")


def test_dpdm_decides_about_public_sources_only_where_it_has_any() -> None:
    asked = ("method=dpdm", "contamination.policy=drop", "privacy.contamination_noise=5")
    with pytest.raises(ConfigError, match="from scratch sees no public data"):
        catalog.check_method(_settings(*asked))
    settings = _settings(*asked, "train.start=public")
    catalog.check_method(settings)
    assert catalog.plan_of(settings).contamination is not None


@pytest.mark.parametrize(
    ("method", "overrides", "promise", "stages"),
    [
        ("public", (), "public", ["pretrain"]),
        ("references", (), "charged", ["pretrain", "contrast", "index", "prior"]),
        ("public_from_references", (), "charged", ["pretrain", "contrast", "index", "prior"]),
        (
            "references",
            ("sampling.source=uniform", "privacy.prior_share=0"),
            "public",
            ["pretrain", "contrast", "index"],
        ),
        ("nonprivate", (), "none", ["pretrain", "initial", "train"]),
        ("nonprivate", ("train.start=scratch",), "none", ["initial", "train"]),
    ],
)
def test_a_control_promises_and_plans_what_its_stages_ask(
    method: str, overrides: tuple[str, ...], promise: str, stages: list[str]
) -> None:
    settings = _settings(f"method={method}", *overrides)
    catalog.check_method(settings)
    assert _stages(settings) == [*stages, "generate", "evaluate"]
    assert catalog.promise_of(settings) == promise
    plan = catalog.plan_of(settings)
    assert (plan.prior is not None) == (promise == "charged")
    assert plan.dp_sgd is None
    assert (plan.epsilons.reported > 9.5) == (promise == "charged")  # The whole budget, or nothing.


def test_a_part_of_the_budget_buys_the_same_prior_as_beside_training() -> None:
    share = ("method=references", "privacy.prior_share=0.15")
    alone, beside = catalog.plan_of(_settings(*share)), catalog.plan_of(_settings())
    assert alone.prior == beside.prior
    assert alone.dp_sgd is None
    assert alone.epsilons.reported < beside.epsilons.reported / 3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=public", "sampling.source=uniform"), "draws from 'noise'"),
        (("method=references", "sampling.source=query"), "draws from 'prior' or 'uniform'"),
        (("method=references", "sampling.source=uniform"), "needs privacy.prior_share 0"),
        (("method=references", "privacy.prior_share=0"), "needs privacy.prior_share above 0"),
        (("method=references", "privacy.prior_noise=3"), "privacy.prior_noise=3"),
        (
            ("method=public", "contamination.policy=drop", "privacy.contamination_noise=5"),
            "judges no public source",
        ),
        (("method=nonprivate", "train.mode=late"), "nonprivate charges nothing: train.mode"),
        (("method=nonprivate", "privacy.prior_share=0.1"), "nonprivate charges nothing"),
    ],
)
def test_what_a_control_is_not_is_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        catalog.check_method(_settings(*overrides))


@pytest.mark.parametrize("method", ["public", "references", "public_from_references", "nonprivate"])
def test_what_is_never_released_is_neither_audited_nor_swept_over(method: str) -> None:
    for what in ("audit", "sweep"):
        with pytest.raises(ConfigError, match=f"no {what} of method {method}"):
            catalog.require_releasable(_settings(f"method={method}"), what)
    catalog.require_releasable(_settings("method=dpdm"), "sweep")  # The twin.


def test_rapid_from_scratch_is_refused() -> None:
    with pytest.raises(ConfigError, match="rapid starts from the public weights"):
        catalog.check_method(_settings("train.start=scratch"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.level_law=lognormal", "log_level_mean is null"),
        ("train.level_law=vp", "has none"),
        ("train.level_law=edm", "level_law"),
        ("train.start=private", "start"),
    ],
)
def test_a_law_or_start_that_cannot_be_is_refused(override: str, said: str) -> None:
    mean = "train.log_level_mean=null" if "lognormal" in override else "train.log_level_mean=-1"
    with pytest.raises(ConfigError, match=said):
        load_recipe("digits", [mean, override])
