"""Every way to a layer's per-record gradient gives what autograd gives one record at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from rapid_dist.private.layer_gradients import (
    CONV_WAYS,
    GRADIENTS,
    ConvWay,
    conv_way,
    group_norm_by_row,
)

RECORDS = 4
TOLERANCE = 1e-5

Case = tuple[Callable[[], nn.Module], tuple[int, ...]]
LAYERS: dict[str, Case] = {
    "conv 3x3": (lambda: nn.Conv2d(8, 6, 3, padding=1), (8, 7, 7)),
    "conv 3x3 without bias": (lambda: nn.Conv2d(8, 6, 3, padding=1, bias=False), (8, 7, 7)),
    "conv 3x3 strided": (lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1), (8, 8, 8)),
    "conv 3x2 dilated": (lambda: nn.Conv2d(8, 6, (3, 2), padding=(2, 1), dilation=2), (8, 8, 8)),
    "conv 1x1": (lambda: nn.Conv2d(8, 6, 1), (8, 7, 7)),
    "conv 1x1 strided": (lambda: nn.Conv2d(8, 6, 1, stride=2), (8, 8, 8)),
    "linear on a sequence": (lambda: nn.Linear(8, 6), (5, 8)),
    "linear on an embedding": (lambda: nn.Linear(8, 6), (8,)),
    "linear without bias": (lambda: nn.Linear(8, 6, bias=False), (5, 8)),
    "group norm": (lambda: nn.GroupNorm(4, 8), (8, 5, 5)),
    "group norm far from zero": (lambda: nn.GroupNorm(4, 8), (8, 5, 5)),
    "embedding": (lambda: nn.Embedding(5, 6), ()),
    "embedding with padding": (lambda: nn.Embedding(5, 6, padding_idx=2), ()),
}
CONVS = [name for name in LAYERS if name.startswith("conv")]


def _case(name: str, draws: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A layer, its input and the gradient of its output."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, rows = make(), RECORDS * draws
    inputs = torch.randn(rows, *shape) if shape else torch.randint(5, (rows,))
    if name.endswith("far from zero"):
        inputs = inputs + 10
    return layer, inputs, torch.randn_like(layer(inputs))


def _by_autograd(
    layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor, draws: int
) -> dict[str, torch.Tensor]:
    names, parameters = zip(*layer.named_parameters(), strict=True)
    found = []
    for record in range(RECORDS):
        own = slice(record * draws, (record + 1) * draws)
        found.append(torch.autograd.grad(layer(inputs[own]), parameters, grads[own]))
    columns = zip(*found, strict=True)
    return {name: torch.stack(column) for name, column in zip(names, columns, strict=True)}


def _difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in expected)
    return max(
        float((found[name].float() - expected[name]).norm() / expected[name].norm())
        for name in expected
    )


def _names(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_parameters()]


def _by_engine(
    layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor, draws: int
) -> dict[str, torch.Tensor]:
    if not isinstance(layer, nn.GroupNorm):
        with torch.no_grad():
            return GRADIENTS[type(layer)](layer, inputs, grads, draws, _names(layer))
    output, own = group_norm_by_row(layer, inputs, _names(layer))
    torch.testing.assert_close(output, layer(inputs))
    rows = torch.autograd.grad(output, list(own.values()), grads)
    return {
        name: found.view(-1, draws, layer.num_channels).sum(dim=1)
        for name, found in zip(own, rows, strict=True)
    }


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_the_engine_gives_the_gradient_of_autograd(name: str, draws: int) -> None:
    layer, inputs, grads = _case(name, draws)
    expected = _by_autograd(layer, inputs, grads, draws)
    found = _by_engine(layer, inputs, grads, draws)
    tolerance = 10 * TOLERANCE if name.endswith("far from zero") else TOLERANCE
    assert _difference(found, expected) < tolerance


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("way", CONV_WAYS)
@pytest.mark.parametrize("name", CONVS)
def test_every_way_to_a_convolution_is_the_same(name: str, way: ConvWay, draws: int) -> None:
    layer, inputs, grads = _case(name, draws)
    if way == "product" and name != "conv 1x1":
        with pytest.raises(AssertionError):
            CONV_WAYS[way](layer, inputs, grads, draws, _names(layer))
        return
    found = CONV_WAYS[way](layer, inputs, grads, draws, _names(layer))
    assert _difference(found, _by_autograd(layer, inputs, grads, draws)) < TOLERANCE


def test_the_comparison_would_notice_draws_that_belong_to_another_record() -> None:
    layer, inputs, grads = _case("conv 3x3", 3)
    found = GRADIENTS[nn.Conv2d](layer, inputs.roll(1, 0), grads.roll(1, 0), 3, _names(layer))
    assert _difference(found, _by_autograd(layer, inputs, grads, 3)) > 0.1


@pytest.mark.parametrize(
    "name", [n for n in LAYERS if not any(w in n for w in ("bias", "embedding", "norm"))]
)
def test_a_bias_alone_needs_no_input_and_forms_no_weight_gradient(name: str) -> None:
    layer, inputs, grads = _case(name, 3)
    found = GRADIENTS[type(layer)](layer, inputs.new_empty(0), grads, 3, ["bias"])
    assert found.keys() == {"bias"}
    expected = _by_autograd(layer, inputs, grads, 3)
    assert _difference(found, {"bias": expected["bias"]}) < TOLERANCE


@pytest.mark.parametrize("name", CONVS + [n for n in LAYERS if "linear" in n])
def test_gradients_of_bf16_keep_its_eight_bits(name: str) -> None:
    layer, inputs, grads = _case(name, 3)
    expected = _by_autograd(layer, inputs, grads, 3)
    found = GRADIENTS[type(layer)](layer, inputs.bfloat16(), grads.bfloat16(), 3, _names(layer))
    assert all(part.dtype == torch.bfloat16 for part in found.values())
    assert _difference(found, expected) < 2**-6


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_way_is_chosen_by_shape_and_device_alone(device: str) -> None:
    small, large = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(512, 512, 3, padding=1)
    assert conv_way(large, 1, 2**12, device) == "records"
    assert conv_way(small, 1, 16, device) == ("groups" if device == "cpu" else "patches")
    assert conv_way(nn.Conv2d(8, 8, 1), 1, 16, device) == "product"
    assert conv_way(nn.Conv2d(8, 8, 1), 4, 16, device) == (
        "groups" if device == "cpu" else "product"
    )
    assert conv_way(nn.Conv2d(8, 8, 1, stride=2), 1, 16, device) != "product"
