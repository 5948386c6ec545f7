"""What would fail hours later, or when the prior is paid for, is refused before the first stage."""

from dataclasses import replace
from pathlib import Path

import pytest

from rapid_dist.config import load_recipe, method_settings
from rapid_dist.diffusion.autoencoder import VaeConfig
from rapid_dist.errors import ConfigError
from rapid_dist.methods.catalog import METHODS, check_method
from rapid_dist.methods.checks import check_settings
from rapid_dist.methods.public_stages import autoencode_stage, run_pretrain
from rapid_dist.public.autoencode import AutoencoderConfig
from rapid_dist.recipe_files import recipe_names
from tests.untrained import UntrainedRun


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_passes(name: str) -> None:
    check_settings(method_settings(load_recipe(name)))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["network.patch=3"], "Images of 8 pixels do not divide"),
        (["train.trainable=heads"], "train.trainable='heads' matches no parameter"),
        (["privacy.prior_share=0"], "sampling.source is 'prior', but privacy.prior_share is 0"),
        (["train.log_level_mean=60"], "leave none of steps 1..600 to train on"),
        (["train.mode=full", "train.log_level_mean=60"], "leave none of steps 1..1000"),
        (["sampling.guidance=2", "network.label_drop=0"], "never learns what an image without"),
        (
            ["sampling.solver=heun", "sampling.churn={amount: 40, least_level: 30}"],
            "none of the noise levels 4.",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(method_settings(load_recipe("digits", overrides)))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.log_level_mean=-4"],
        ["sampling.guidance=2"],
        ["sampling.solver=heun", "sampling.churn={amount: 40, least_level: 3}"],
        ["sampling.solver=heun", "sampling.churn={amount: 40, least_level: 30}",
         "sampling.source=noise"],
    ],
)  # fmt: skip
def test_what_comes_to_something_is_not_refused(overrides: list[str]) -> None:
    check_settings(method_settings(load_recipe("digits", overrides)))


@pytest.mark.parametrize("source", ["query", "uniform", "noise"])
def test_votes_that_nothing_would_be_made_of_are_not_paid_for(source: str) -> None:
    without = [f"sampling.source={source}", "adapt.steps=0"]
    _check(*without, "privacy.prior_share=0")
    _check(f"sampling.source={source}")  # The network is adapted to what they say.
    for paid in ("privacy.prior_share=0.1", "privacy.prior_noise=30"):
        with pytest.raises(ConfigError, match=f"source='{source}' and adapt.steps=0 nothing is"):
            _check(*without, paid)
    twice = "privacy.candidate_share=0.5"
    with pytest.raises(ConfigError, match=f"second round of votes, but .*source='{source}'"):
        _check(f"sampling.source={source}", twice)


def test_a_second_round_of_votes_without_weight_is_not_paid_for() -> None:
    _check("privacy.candidate_share=0.5")
    with pytest.raises(ConfigError, match=r"candidate_weight=0(\.0)? nothing is"):
        _check("privacy.candidate_share=0.5", "prior.candidate_weight=0")


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_never_misses_its_label_is_asked_without_one_by_no_method(
    method: str,
) -> None:
    overrides = [f"method={method}", "network.label_drop=0"]
    if method in ("dpdm", "nonprivate"):
        _check(*overrides)
        return
    with pytest.raises(ConfigError, match="asks the public network without a label"):
        _check(*overrides)


def _check(*overrides: str) -> None:
    check_method(method_settings(load_recipe("digits", overrides)))


def test_a_prior_by_its_noise_is_a_prior() -> None:
    overrides = ["privacy.prior_share=0", "privacy.prior_noise=3"]
    check_settings(method_settings(load_recipe("digits", overrides)))


def test_more_clusters_than_references_are_refused_before_the_first_training(
    tmp_path: Path,
) -> None:
    run = UntrainedRun(tmp_path)
    reports: list[tuple[str, dict[str, float]]] = []
    context = run.context(reports)
    fresh = replace(run.settings, pretrain=replace(run.settings.pretrain, steps=3))
    asked = replace(fresh, privacy=replace(fresh.privacy, prior_share=0.1))
    with pytest.raises(ConfigError, match=r"clusters is 400, but the public data give \d\d ref"):
        run_pretrain(replace(context, settings=asked))
    small = AutoencoderConfig(steps=2, batch_size=8, network=VaeConfig(widths=(8, 8)))
    latents = replace(context, settings=replace(asked, autoencoder=small))
    with pytest.raises(ConfigError, match="clusters is 400"):
        autoencode_stage().run(latents)
    assert reports == []  # Nothing was trained.
    few = replace(asked, knowledge_base=replace(asked.knowledge_base, clusters=10))
    run_pretrain(replace(context, settings=few))
    assert [(stage, figures["step"]) for stage, figures in reports][-1] == ("pretrain", 3)
    autoencode_stage().run(replace(context, settings=replace(few, autoencoder=small)))
    assert [(stage, figures["step"]) for stage, figures in reports][-1] == ("autoencode", 2)
