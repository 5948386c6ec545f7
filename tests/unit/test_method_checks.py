"""What would fail hours later, or when the prior is paid for, is refused before the first stage."""

from dataclasses import replace
from pathlib import Path

import pytest

from rapid_dist.config import load_recipe, method_settings
from rapid_dist.diffusion.autoencoder import VaeConfig
from rapid_dist.errors import ConfigError
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
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(method_settings(load_recipe("digits", overrides)))
    assert said in str(caught.value)


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
