"""Layers that couple examples, or have no known per-example gradient, are refused (P11)."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError
from rapid_dist.private.allowed import check_layers
from rapid_dist.private.coupling import check_rows_apart
from rapid_dist.private.per_example import clipped_sum, per_record_gradients
from rapid_dist.private.subset import restrict_trainable
from tests.models import random_rows, tiny_denoiser


def _network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers)


def _tied() -> nn.Sequential:
    network = _network(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    network[2].weight = network[1].weight
    return network


def _frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


class _Remembers(nn.Module):
    """Adds what it saw last, of whichever record: no type tells, its buffer does."""

    last: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(()))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        seen, self.last = self.last, rows.detach().mean()
        return rows + seen


REFUSED = {
    "buffer of its own": lambda: _network(_Remembers()),
    "batch norm": lambda: _network(nn.BatchNorm2d(4)),
    "frozen batch norm": lambda: _network(_frozen(nn.BatchNorm2d(4))),
    "batch norm without buffers": lambda: _network(nn.BatchNorm2d(4, track_running_stats=False)),
    "batch norm without anything of its own": lambda: _network(
        nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    ),
    "synchronised batch norm": lambda: _network(
        nn.SyncBatchNorm(4, affine=False, track_running_stats=False)
    ),
    "batch norm under another name": lambda: _network(
        type("Plain", (nn.BatchNorm2d,), {})(4, affine=False, track_running_stats=False)
    ),
    "instance norm with statistics": lambda: _network(
        nn.InstanceNorm2d(4, track_running_stats=True)
    ),
    "tied parameters": _tied,
    "reflecting convolution": lambda: _network(nn.Conv2d(4, 4, 3, padding_mode="reflect")),
    "circular convolution": lambda: _network(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    ),
    "convolution padded by name": lambda: _network(nn.Conv2d(4, 4, 3, padding="same")),
    "grouped convolution": lambda: _network(nn.Conv2d(4, 4, 3, groups=2)),
    "transposed convolution": lambda: _network(nn.ConvTranspose2d(4, 4, 3)),
    "layer norm": lambda: _network(nn.LayerNorm(8)),
    "torch's own attention": lambda: _network(nn.MultiheadAttention(4, 2)),
    "recurrence": lambda: _network(nn.LSTM(8, 8)),
    "embedding that renormalises": lambda: _network(nn.Embedding(4, 4, max_norm=1.0)),
    "embedding that scales by frequency": lambda: _network(
        nn.Embedding(4, 4, scale_grad_by_freq=True)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_is_refused_for_its(name: str) -> None:
    with pytest.raises(ConfigError, match=r"Layer|share"):
        check_layers(REFUSED[name]())


@pytest.mark.parametrize(
    "network",
    [{}, {"attention": (True,)}, {"widths": (16, 16), "attention": (False, True), "patch": 2}],
)
def test_our_networks_pass(network: dict[str, Any]) -> None:
    denoiser = tiny_denoiser(**network)
    check_layers(denoiser)
    check_rows_apart(denoiser)
    assert denoiser.evaluations == 0


def test_a_frozen_layer_without_a_sampler_passes() -> None:
    check_layers(_network(_frozen(nn.LayerNorm(8))))


class _BatchMean(nn.Module):
    """What no list of layers knows: it has neither parameter nor buffer."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden - 0.01 * hidden.mean(0)


def test_a_network_that_looks_across_the_batch_is_refused_by_what_it_does() -> None:
    denoiser = tiny_denoiser()
    denoiser.unet.conv_norm_out = nn.Sequential(_BatchMean(), denoiser.unet.conv_norm_out)
    check_layers(denoiser)
    with pytest.raises(ConfigError, match="other rows"):
        check_rows_apart(denoiser)


def _state(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in denoiser.state_dict().items()}


@pytest.mark.parametrize("subset", ["all", "norm_bias", "last_blocks"])
def test_taking_gradients_leaves_the_network_as_it_was(subset: str) -> None:
    denoiser = tiny_denoiser()
    restrict_trainable(denoiser, subset)
    asked = [parameter.requires_grad for parameter in denoiser.parameters()]
    before = _state(denoiser)
    clipped_sum(denoiser, random_rows(4), 2, 1.0, torch.ones(2, dtype=torch.bool))
    assert [parameter.requires_grad for parameter in denoiser.parameters()] == asked
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    assert not any(module._forward_hooks for module in denoiser.modules())
    after = _state(denoiser)
    assert all(torch.equal(before[name], after[name]) for name in before)


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: object, grads: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")


class _Fails(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return _FailsBackward.apply(hidden)


def test_a_backward_that_fails_leaves_the_network_usable() -> None:
    denoiser = tiny_denoiser()
    broken = copy.deepcopy(denoiser)
    broken.unet.conv_act = nn.Sequential(_Fails(), broken.unet.conv_act)
    restrict_trainable(broken, "norm_bias")
    asked = [parameter.requires_grad for parameter in broken.parameters()]
    with pytest.raises(RuntimeError, match="out of memory"):
        per_record_gradients(broken, random_rows(2), 1)
    assert [parameter.requires_grad for parameter in broken.parameters()] == asked
    assert not any(module._forward_hooks for module in broken.modules())
    broken.unet.conv_act = denoiser.unet.conv_act
    restrict_trainable(denoiser, "norm_bias")
    for own, other in zip(
        per_record_gradients(broken, random_rows(2), 1),
        per_record_gradients(denoiser, random_rows(2), 1),
        strict=True,
    ):
        assert torch.equal(own, other)


@pytest.mark.parametrize("subset", ["(", "no such parameter"])
def test_a_subset_that_is_none_is_refused(subset: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.trainable"):
        restrict_trainable(tiny_denoiser(), subset)


def test_subsets_are_what_their_names_say() -> None:
    denoiser = tiny_denoiser(widths=(16, 16), attention=(False, True))
    sizes = {s: restrict_trainable(denoiser, s) for s in ("norm_bias", "attention", "last_blocks")}
    for subset in sizes:
        restrict_trainable(denoiser, subset)
        names = {name for name, p in denoiser.named_parameters() if p.requires_grad}
        assert "unet.class_embedding.weight" in names  # The classes are private.
        assert sizes[subset] < restrict_trainable(denoiser, "all")
    restrict_trainable(denoiser, "attention")
    names = {name for name, p in denoiser.named_parameters() if p.requires_grad}
    assert all("attentions" in name or "class_embedding" in name for name in names)
