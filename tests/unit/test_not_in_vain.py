"""What a network is told changes what it says, and what is trained has a gradient."""

import pytest
import torch
from torch import nn

from rapid_dist.config import load_recipe, method_settings
from rapid_dist.diffusion.conditioned import EmbeddingDenoiser
from rapid_dist.diffusion.denoiser import Denoiser, NetworkConfig
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.private.subset import NAMES, restrict_trainable
from rapid_dist.recipe_files import recipe_names

LEAST = 1e-3  # Of what a network says: a change below is none, and rounding is far below.


def _settings(recipe: str, method: str) -> MethodSettings:
    return method_settings(load_recipe(recipe, [f"method={method}"]))


def _shape(settings: MethodSettings) -> tuple[int, int]:
    channels, size = settings.private.channels, settings.private.size
    return (channels, size) if settings.autoencoder is None else (
        settings.autoencoder.latent_shape(size)
    )  # fmt: skip


def _speaking(denoiser: Denoiser) -> Denoiser:
    """As begun, diffusers' output layer hardly speaks."""
    torch.nn.init.normal_(denoiser.unet.conv_out.weight, std=0.3)
    return denoiser.eval()


def _network(config: NetworkConfig, channels: int, size: int, classes: int = 4) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = Denoiser(config, channels=channels, size=size, num_classes=classes)
        return _speaking(own)


@torch.no_grad()
def _raw(denoiser: Denoiser, levels: list[float], labels: torch.Tensor) -> torch.Tensor:
    """What the network itself says of one and the same input: nothing is scaled by the level."""
    size = denoiser.size // denoiser.config.patch
    inputs = torch.randn(
        1, denoiser.channels * denoiser.config.patch**2, size, size,
        generator=torch.Generator().manual_seed(1),
    ).expand(len(levels), -1, -1, -1)  # fmt: skip
    times = 100.0 * torch.tensor(levels).log()
    raw: torch.Tensor = denoiser.unet(inputs, times, class_labels=labels, return_dict=False)[0]
    return raw


def _heard(denoiser: Denoiser) -> tuple[float, float]:
    """Returns by what share of itself the output changes with the noise level, and the label."""
    one, level, label = _raw(denoiser, [0.5, 3.0, 0.5], torch.tensor([0, 0, 1]))
    scale = float(one.std())
    return float((one - level).std()) / scale, float((one - label).std()) / scale


@pytest.mark.parametrize("method", ["rapid", "dp_ldm"])
@pytest.mark.parametrize("recipe", recipe_names())
def test_noise_level_and_label_are_heard_in_the_network_of_every_recipe(
    recipe: str, method: str
) -> None:
    settings = _settings(recipe, method)
    assert min(_heard(_network(settings.network, *_shape(settings)))) > LEAST


def test_the_test_would_notice_norms_that_take_away_what_is_told() -> None:
    config = NetworkConfig(widths=(16,), attention=(False,), norm_groups=8)
    assert min(_heard(_network(config, 1, 8))) > LEAST
    object.__setattr__(config, "norm_groups", 16)  # Which the settings refuse.
    assert max(_heard(_network(config, 1, 8))) < LEAST


@pytest.mark.parametrize("recipe", recipe_names())
def test_an_embedding_is_heard_in_the_network_of_every_recipe(recipe: str) -> None:
    settings = _settings(recipe, "dp_rdm")
    begun = EmbeddingDenoiser.begun_from(
        _network(settings.network, *_shape(settings)), settings.contrast.extractor.dim, seed=0
    )
    told = torch.nn.functional.normalize(
        torch.randn(2, begun.embedding_dim, generator=torch.Generator().manual_seed(2)), dim=1
    )
    one, other = _raw(begun.eval(), [0.5, 0.5], begun.condition(told))
    assert float((one - other).std()) / float(one.std()) > LEAST


def _without_gradient(denoiser: Denoiser) -> set[str]:
    """Returns the trainable parameters that a step on a few rows would not move."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.arange(denoiser.num_classes + 1)
    rows = torch.randn(
        len(classes), denoiser.channels, denoiser.size, denoiser.size, generator=generator
    )
    levels = torch.linspace(0.3, 3.0, len(classes))
    denoiser(rows, levels, classes).square().mean().backward()
    named = dict(denoiser.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in named.values() if p.grad is not None)
    return {
        name
        for name, parameter in named.items()
        if parameter.requires_grad
        and (parameter.grad is None or float(parameter.grad.abs().max()) < 1e-6 * largest)
    }


@pytest.mark.parametrize("subset", NAMES)
@pytest.mark.parametrize("method", ["rapid", "dp_ldm"])
def test_every_parameter_of_a_subset_is_moved(method: str, subset: str) -> None:
    settings = _settings("digits", method)
    denoiser = _network(settings.network, *_shape(settings))
    restrict_trainable(denoiser, subset)
    for name, parameter in denoiser.named_parameters():
        if name.endswith(".up.weight"):  # At its start of zero, its partner has no gradient yet.
            nn.init.normal_(parameter, std=0.1)
    # One key's bias adds the same to all weights of a query, and softmax takes that away.
    still = {name for name in _without_gradient(denoiser) if not name.endswith("to_k.bias")}
    assert still == set()


def test_the_test_would_notice_attention_to_a_single_place() -> None:
    config = NetworkConfig(widths=(16, 16), attention=(False, True), norm_groups=8)
    denoiser = _network(config, 1, 2)  # A side of one where it attends: nothing to choose from.
    restrict_trainable(denoiser, "attention")
    still = _without_gradient(denoiser)
    assert any(name.endswith("to_q.weight") for name in still)
