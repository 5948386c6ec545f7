"""The fast engine gives what one autograd call a record gives, for every layer we use.

Where nothing is clipped the two agree to fp32 rounding. Where something is, the engine's vectors
are shorter by 2^-12 on purpose, which the looser tolerance allows for.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention_processor import Attention
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows, row_losses
from rapid_dist.private.allowed import check_layers
from rapid_dist.private.per_example import clipped_sum, flat_size, trainable
from rapid_dist.private.reference import reference_clipped_sum
from rapid_dist.private.subset import restrict_trainable
from tests.models import draw_maker, private_step, random_rows, tiny_denoiser

UNCLIPPED, CLIPPED = 1e9, 0.05
TOLERANCE = {UNCLIPPED: 1e-5, CLIPPED: 3e-4}
RECORDS = 4
WIDTH = 8


class LayerDenoiser(nn.Module):
    """A denoiser with one layer under test between two convolutions, [R, 8, 8, 8] to the same."""

    data_std = 0.5

    def __init__(self, middle: nn.Module, use: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.middle = middle
        self.last = nn.Conv2d(WIDTH, 1, 3, padding=1)
        self._use = use or (lambda layer, hidden, labels: layer(hidden))

    def forward(
        self, noised: torch.Tensor, noise_level: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        hidden = functional.silu(self.first(noised))
        hidden = functional.silu(self._use(self.middle, hidden, labels))
        return self.last(hidden)


def _on_positions(layer: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return layer(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _on_sequence(layer: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return hidden + layer(hidden.flatten(2).mT).mT.reshape(hidden.shape)


def _by_label(layer: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return hidden + layer(labels)[:, :, None, None]


def _upsampled(layer: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(layer(hidden), size=hidden.shape[2:])


def _twice(layer: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return layer(functional.silu(layer(hidden)))


def _unused(layer: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return hidden


def _attention() -> nn.Module:
    return Attention(WIDTH, heads=2, dim_head=4, norm_num_groups=4, bias=True)


LAYERS: dict[str, Callable[[], LayerDenoiser]] = {
    "conv 3x3": lambda: LayerDenoiser(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
    "conv 3x3 without bias": lambda: LayerDenoiser(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
    ),
    "conv 1x1": lambda: LayerDenoiser(nn.Conv2d(WIDTH, WIDTH, 1)),
    "conv 1x1 without bias": lambda: LayerDenoiser(nn.Conv2d(WIDTH, WIDTH, 1, bias=False)),
    "conv 1x1 strided": lambda: LayerDenoiser(nn.Conv2d(WIDTH, WIDTH, 1, stride=2), _upsampled),
    "conv 3x3 strided": lambda: LayerDenoiser(
        nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1), _upsampled
    ),
    "conv 3x2 dilated": lambda: LayerDenoiser(
        nn.Conv2d(WIDTH, WIDTH, (3, 2), padding=(2, 1), dilation=2), _upsampled
    ),
    "linear": lambda: LayerDenoiser(nn.Linear(WIDTH, WIDTH), _on_positions),
    "linear without bias": lambda: LayerDenoiser(
        nn.Linear(WIDTH, WIDTH, bias=False), _on_positions
    ),
    "linear on a sequence": lambda: LayerDenoiser(nn.Linear(WIDTH, WIDTH), _on_sequence),
    "attention": lambda: LayerDenoiser(_attention(), _on_sequence),
    "group norm": lambda: LayerDenoiser(nn.GroupNorm(4, WIDTH)),
    "class embedding": lambda: LayerDenoiser(nn.Embedding(4, WIDTH), _by_label),
    "conv used twice": lambda: LayerDenoiser(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), _twice),
    "conv not used": lambda: LayerDenoiser(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), _unused),
}


def _difference(
    denoiser: Denoiser | LayerDenoiser, draws: int, bound: float, channels: int = 1
) -> float:
    """||fast - reference|| / ||reference||, with one record masked out."""
    rows = random_rows(RECORDS * draws, channels=channels)
    mask = torch.arange(RECORDS) != 1
    fast = clipped_sum(denoiser, rows, draws, bound, mask)
    slow = reference_clipped_sum(denoiser, rows, draws, bound, mask)
    assert fast.shape == slow.shape == (flat_size(denoiser),)
    assert slow.norm() > 0
    return float((fast - slow).norm() / slow.norm())


@pytest.mark.parametrize("bound", [UNCLIPPED, CLIPPED])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_agrees_with_the_reference(layer: str, draws: int, bound: float) -> None:
    torch.manual_seed(1)
    denoiser = LAYERS[layer]()
    check_layers(denoiser)
    assert _difference(denoiser, draws, bound) < TOLERANCE[bound]


def test_the_agreement_test_would_notice_a_sampler_that_ignores_the_padding_mode() -> None:
    torch.manual_seed(1)
    denoiser = LayerDenoiser(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect"))
    assert _difference(denoiser, 1, UNCLIPPED) > 1e-3


NETWORKS = {
    "one level": {},
    "two levels": {"widths": (16, 16), "attention": (False, True)},
    "attention": {"attention": (True,), "layers_per_block": 2},
    "patches": {"patch": 2, "widths": (16, 32), "attention": (False, False)},
}


@pytest.mark.parametrize("bound", [UNCLIPPED, CLIPPED])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_whole_networks_agree_with_the_reference(network: str, draws: int, bound: float) -> None:
    denoiser = tiny_denoiser(channels=3, **NETWORKS[network])
    assert _difference(denoiser, draws, bound, channels=3) < TOLERANCE[bound]


@pytest.mark.parametrize("bound", [UNCLIPPED, CLIPPED])
@pytest.mark.parametrize("subset", ["all", "attention", "norm_bias", "last_blocks", "time_emb"])
def test_trainable_subsets_agree_with_the_reference(subset: str, bound: float) -> None:
    denoiser = tiny_denoiser(**NETWORKS["two levels"])
    count = restrict_trainable(denoiser, subset)
    assert count == flat_size(denoiser)
    assert _difference(denoiser, 3, bound) < TOLERANCE[bound]


def test_an_evaluating_network_agrees_with_the_reference() -> None:
    assert _difference(tiny_denoiser().eval(), 2, UNCLIPPED) < TOLERANCE[UNCLIPPED]


def _released_at(micro_batch: int) -> torch.Tensor:
    step = private_step(draws=draw_maker(micro_batch=micro_batch, multiplicity=2, shift=1))
    return step.noised_gradient(tiny_denoiser(), step=0)


@pytest.mark.parametrize("micro_batch", [1, 4, 16])
def test_the_micro_batch_does_not_change_the_step(micro_batch: int) -> None:
    torch.testing.assert_close(_released_at(micro_batch), _released_at(6), rtol=1e-5, atol=1e-5)


def _masked_after_padding(
    denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
) -> torch.Tensor:
    """The fault of padding that counts."""
    return clipped_sum(denoiser, rows, draws, bound, torch.ones_like(mask))


def test_the_micro_batch_test_would_notice_padding_that_counts() -> None:
    step = private_step(draws=draw_maker(micro_batch=4), engine=_masked_after_padding)
    found = step.noised_gradient(tiny_denoiser(), step=0)
    exact = private_step(draws=draw_maker(micro_batch=6)).noised_gradient(tiny_denoiser(), step=0)
    assert (found - exact).norm() > 0.1


class _LossOf(nn.Module):
    """Rows in, losses out: what Opacus' wrapper can call."""

    def __init__(self, denoiser: LayerDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self, noised: torch.Tensor, level: torch.Tensor, labels: torch.Tensor, clean: torch.Tensor
    ) -> torch.Tensor:
        rows = Rows(noised=noised, noise_level=level, labels=labels, clean=clean)
        return row_losses(self.denoiser, rows)


def _step_of_opacus(denoiser: LayerDenoiser, rows: Rows, bound: float) -> torch.Tensor:
    """What one step of Opacus' own optimizer, noise off, takes off the parameters."""
    before = torch.cat([p.detach().flatten() for p in trainable(denoiser)])
    wrapped = GradSampleModule(_LossOf(denoiser), loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=RECORDS,
    )
    noised = rows.noised.clone().requires_grad_()  # Opacus' hooks warn of inputs without gradient.
    wrapped(noised, rows.noise_level, rows.labels, rows.clean).mean().backward()
    optimizer.step()
    return before - torch.cat([p.detach().flatten() for p in trainable(denoiser)])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")
@pytest.mark.parametrize("bound", [UNCLIPPED, CLIPPED])
@pytest.mark.parametrize(
    "layer", ["conv 3x3", "linear on a sequence", "attention", "group norm", "class embedding"]
)
def test_a_step_without_noise_is_the_step_of_opacus_own_optimizer(layer: str, bound: float) -> None:
    torch.manual_seed(1)
    denoiser, rows = LAYERS[layer](), random_rows(RECORDS)
    everyone = torch.ones(RECORDS, dtype=torch.bool)
    ours = clipped_sum(denoiser, rows, 1, bound, everyone) / RECORDS
    theirs = _step_of_opacus(denoiser, rows, bound)
    # The step is read off parameters of order 1, so it carries their rounding.
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[bound], atol=2e-6)
    assert not torch.allclose(1.01 * ours, theirs, rtol=TOLERANCE[bound], atol=2e-6)
