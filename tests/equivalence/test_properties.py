"""Contribution and equivalence, over networks, batches and cuts that nobody thought of.

Hypothesis draws them, always the same ones: a test that fails on somebody else's change by chance
teaches nothing.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from rapid_dist.audit.contribution import Longest, longest_contribution
from rapid_dist.audit.workers import ThreadWorkers
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.private.reference import reference_clipped_sum
from rapid_dist.private.settings import TrainConfig
from rapid_dist.private.step import ClippedSum
from tests.faults.engines import CopiesClippedApart, NormsInBfloat16
from tests.faults.subjects import small_subject
from tests.models import CLASSES, SIZE, mechanism, private_images, random_rows, tiny_network

LIMITED = settings(
    max_examples=30,
    deadline=None,  # Time is the machine's, not the property's.
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
LAYERS = ["conv", "strided", "pointwise", "linear", "norm", "classes"]


class StackDenoiser(Denoiser):
    """A random stack of the layers that the U-Net is made of, with random weights."""

    def __init__(self, *, layers: list[str], width: int, spread: float, seed: int) -> None:
        nn.Module.__init__(self)
        self.config, self.channels, self.size = tiny_network(), 1, SIZE
        self.num_classes, self.data_std, self.evaluations = CLASSES, 0.5, 0
        self.kinds = layers
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.stack = nn.ModuleList([self._layer(kind, width) for kind in layers])
        self.last = nn.Conv2d(width, 1, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))

    @staticmethod
    def _layer(kind: str, width: int) -> nn.Module:
        return {
            "conv": lambda: nn.Conv2d(width, width, 3, padding=1),
            "strided": lambda: nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            "pointwise": lambda: nn.Conv2d(width, width, 1),
            "linear": lambda: nn.Linear(width, width),
            "norm": lambda: nn.GroupNorm(2, width),
            "classes": lambda: nn.Embedding(CLASSES + 1, width),
        }[kind]()

    def forward(
        self, noised: torch.Tensor, noise_level: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.first(noised / (1 + noise_level.square()).sqrt()[:, None, None, None])
        for kind, layer in zip(self.kinds, self.stack, strict=True):
            if kind == "classes":
                hidden = hidden + layer(labels)[:, :, None, None]
            elif kind == "linear":
                hidden = hidden + layer(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif kind == "strided":
                hidden = functional.interpolate(layer(hidden), size=hidden.shape[2:])
            else:
                hidden = functional.silu(layer(hidden))
        estimate: torch.Tensor = self.last(hidden)
        return estimate


NETWORKS = st.fixed_dictionaries(
    {
        "layers": st.lists(st.sampled_from(LAYERS), max_size=4),
        "width": st.sampled_from([2, 4, 6]),
        "spread": st.floats(0.05, 1.0),
        "seed": st.integers(0, 2**16),
    }
)
BOUNDS = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)
CONFIGS = st.builds(
    TrainConfig,
    mode=st.sampled_from(["full", "late", "surrogate"]),
    multiplicity=st.integers(1, 5),
    shift=st.integers(0, 2),
    flip=st.booleans(),
    micro_batch=st.integers(1, 5),
)
PLAIN: dict[str, Any] = {"layers": ["conv"], "width": 4, "spread": 0.5, "seed": 0}


def _agrees(
    engine: ClippedSum, network: dict[str, Any], mask: list[bool], draws: int, bound: float
) -> bool:
    """Within the clip's shrink and the rounding of fp32, relative to the records' own lengths."""
    denoiser, counted = StackDenoiser(**network), torch.tensor(mask)
    rows = random_rows(len(mask) * draws, seed=network["seed"])
    each = [
        reference_clipped_sum(denoiser, rows, draws, bound, one & counted).double()
        for one in torch.eye(len(mask), dtype=torch.bool)
    ]
    found = engine(denoiser, rows, draws, bound, counted).double()
    lengths = sum(float(vector.norm()) for vector in each)
    return float((found - sum(each)).norm()) <= 3e-4 * lengths


@given(
    network=NETWORKS,
    mask=st.lists(st.booleans(), min_size=1, max_size=5),
    draws=st.integers(1, 4),
    bound=BOUNDS,
)
@LIMITED
def test_the_engine_is_the_reference(
    network: dict[str, Any], mask: list[bool], draws: int, bound: float
) -> None:
    assert _agrees(clipped_sum, network, mask, draws, bound)


def test_the_equivalence_would_notice_copies_that_are_clipped_apart() -> None:
    assert not _agrees(CopiesClippedApart(), PLAIN, [True] * 3, 2, 1e-3)


def _longest(
    network: dict[str, Any],
    config: TrainConfig,
    records: int,
    world_size: int,
    bound: float,
    **parts: Any,
) -> Longest:
    """The largest contribution of a record, each left out of the batch in turn."""
    plan = mechanism(num_records=records, expected_batch=1.0, max_grad_norm=bound)
    subject = small_subject(
        make_denoiser=lambda: StackDenoiser(**network),
        images=private_images(records),
        config=config,
        mechanism=replace(plan, noise_multiplier=1e-3, noise=parts.pop("noise", "fast")),
        **parts,
    )
    return longest_contribution(subject, ThreadWorkers(world_size), range(records))


@given(
    network=NETWORKS,
    config=CONFIGS,
    records=st.integers(3, 6),
    world_size=st.integers(1, 4),
    bound=BOUNDS,
    noise=st.sampled_from(["fast", "secure"]),
)
@LIMITED
def test_no_record_contributes_more_than_the_bound(
    network: dict[str, Any],
    config: TrainConfig,
    records: int,
    world_size: int,
    bound: float,
    noise: str,
) -> None:
    assert _longest(network, config, records, world_size, bound, noise=noise).passed


@pytest.mark.parametrize("engine", [CopiesClippedApart(), NormsInBfloat16()])
def test_the_contribution_would_notice(engine: ClippedSum) -> None:
    """A norm is rounded up, which errs on the safe side, as often as down: of 24 records all of
    them are under one key in 2**24, and of six they would be under one in 64.
    """
    config = TrainConfig(mode="late", multiplicity=3, micro_batch=2)
    assert not _longest(PLAIN, config, 24, 2, 1e-3, engine=engine).passed
