"""What is frozen costs nothing: no per-record gradient, and no backward below what is trained."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.private.memory import LiveBytes, random_rows
from rapid_dist.private.per_example import clipped_sum, trainable
from rapid_dist.private.subset import restrict_trainable
from tests.models import tiny_denoiser

RECORDS, DRAWS = 4, 2
BACKWARD = "convolution_backward"


class _Calls(TorchDispatchMode):
    """Counts operations by name; of convolutions, what their backward was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.of[name] += 1
        if name == BACKWARD:
            of_input, of_weight, _ = args[-1]
            self.of["of the input"] += bool(of_input)
            self.of["of the weight"] += bool(of_weight)
        return func(*args, **(kwargs or {}))


def _network(subset: str) -> Denoiser:
    denoiser = tiny_denoiser(widths=(16, 16), attention=(False, True))
    restrict_trainable(denoiser, subset)
    return denoiser


def _calls(subset: str) -> Counter[str]:
    denoiser = _network(subset)
    rows = random_rows(denoiser, RECORDS * DRAWS)
    with _Calls() as calls:
        clipped_sum(denoiser, rows, DRAWS, 1.0, torch.ones(RECORDS, dtype=torch.bool))
    return calls.of


def _convolutions(denoiser: Denoiser) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in denoiser.modules())


def test_a_whole_network_forms_every_weight_gradient_and_one_input_gradient_less() -> None:
    found, layers = _calls("all"), _convolutions(_network("all"))
    assert found["of the weight"] == layers
    assert found["of the input"] == layers - 1  # The first one's input is the image.


def test_frozen_convolutions_form_no_weight_gradient() -> None:
    assert _calls("attention")["of the weight"] == 0
    assert _calls("norm_bias")["of the weight"] == 0  # Of a bias the output's gradient is enough.


def test_nothing_runs_backward_below_the_lowest_trained_layer() -> None:
    last = _calls(r"unet\.conv_out")
    assert last["of the input"] == 0
    assert last[BACKWARD] == last["of the weight"] == 1
    whole = _calls("all")["of the input"]
    assert 0 < _calls(r"unet\.up_blocks\.1")["of the input"] < whole / 2


def test_the_count_would_notice_a_trained_layer_at_the_bottom() -> None:
    assert _calls(r"unet\.conv_(in|out)")["of the input"] == _calls("all")["of the input"]


def _peak(subset: str) -> int:
    denoiser = _network(subset)
    rows = random_rows(denoiser, RECORDS)  # One draw each: their gradients outweigh the images.
    with LiveBytes() as tensors:
        clipped_sum(denoiser, rows, 1, 1.0, torch.ones(RECORDS, dtype=torch.bool))
    return tensors.peak


@pytest.mark.parametrize("subset", ["attention", r"unet\.conv_out"])
def test_a_subset_takes_less_memory_than_the_whole(subset: str) -> None:
    values = sum(p.numel() for p in trainable(_network(subset)))
    whole = sum(p.numel() for p in trainable(_network("all")))
    saved = 4 * RECORDS * (whole - values)
    assert _peak(subset) < _peak("all") - 0.5 * saved
