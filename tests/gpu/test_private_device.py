"""Training on a CUDA device: the same step as on the CPU but for rounding. `pytest -m gpu`."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rapid_dist.collective import SingleProcess
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.private.layer_gradients import CONV_WAYS, ConvWay
from rapid_dist.private.loop import train_private
from rapid_dist.private.memory import memory_of, peak_bytes, random_rows, solve_micro_batch
from rapid_dist.private.per_example import clipped_sum, per_record_gradients, record_norms
from rapid_dist.private.reference import reference_clipped_sum
from rapid_dist.public.fit import fit_denoiser
from rapid_dist.public.pretrain import PretrainConfig, public_rows
from tests.fakes import MemoryStorage
from tests.models import (
    KEY,
    SCHEDULE,
    CountingKeeper,
    draw_maker,
    mechanism,
    private_step,
    public_images,
    tiny_denoiser,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICE = torch.device("cuda")
NETWORK = {"widths": (32, 32), "attention": (False, True)}
RECORDS, DRAWS, UNCLIPPED, CLIPPED = 6, 3, 1e9, 0.05


@pytest.fixture(autouse=True)
def whole_floats() -> Iterator[None]:
    """Keeps convolutions from rounding to TF32, which would hide an error of one in a thousand."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _network(device: str = "cuda", precision: Any = "fp32", **changes: Any) -> Denoiser:
    denoiser = tiny_denoiser(**{**NETWORK, **changes}).to(device)
    denoiser.precision = precision
    return denoiser


def _sum(denoiser: Denoiser, bound: float, draws: int = DRAWS) -> torch.Tensor:
    rows = random_rows(denoiser, RECORDS * draws)
    mask = torch.arange(RECORDS, device=rows.noised.device) != 1
    return clipped_sum(denoiser, rows, draws, bound, mask)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.cpu() - other.cpu()).norm() / other.norm())


@pytest.mark.parametrize(("bound", "tolerance"), [(UNCLIPPED, 1e-4), (CLIPPED, 4e-4)])
@pytest.mark.parametrize("draws", [1, 3])
def test_the_device_agrees_with_the_reference_on_it(
    draws: int, bound: float, tolerance: float
) -> None:
    denoiser = _network()
    rows = random_rows(denoiser, RECORDS * draws)
    mask = torch.ones(RECORDS, dtype=torch.bool, device=DEVICE)
    slow = reference_clipped_sum(denoiser, rows, draws, bound, mask)
    assert _apart(clipped_sum(denoiser, rows, draws, bound, mask), slow) < tolerance


def test_the_device_sums_what_the_cpu_sums() -> None:
    assert _apart(_sum(_network(), UNCLIPPED), _sum(_network("cpu"), UNCLIPPED)) < 1e-4


def test_a_sum_in_bf16_is_near_that_in_fp32_and_is_not_the_same() -> None:
    assert 1e-5 < _apart(_sum(_network(precision="bf16"), CLIPPED), _sum(_network(), CLIPPED)) < 0.1


def test_a_record_in_bf16_adds_a_vector_of_the_bound_at_most() -> None:
    denoiser = _network(precision="bf16")
    rows = random_rows(denoiser, RECORDS * DRAWS)
    for record in range(RECORDS):
        mask = torch.arange(RECORDS, device=DEVICE) == record
        alone = clipped_sum(denoiser, rows, DRAWS, CLIPPED, mask)
        assert 0.999 * CLIPPED < float(alone.double().norm()) <= CLIPPED


def test_channels_last_changes_rounding_alone() -> None:
    denoiser: Any = _network()
    denoiser.to(memory_format=torch.channels_last)
    assert _apart(_sum(denoiser, UNCLIPPED), _sum(_network(), UNCLIPPED)) < 1e-4


@pytest.mark.parametrize("way", [way for way in CONV_WAYS if way != "product"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_to_a_convolution_runs_on_the_device(way: ConvWay, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(16, 24, 3, padding=1).to(DEVICE)
    inputs = torch.randn(RECORDS * DRAWS, 16, 8, 8, device=DEVICE)
    grads = torch.randn(RECORDS * DRAWS, 24, 8, 8, device=DEVICE)
    exact = CONV_WAYS["groups"](layer, inputs, grads, DRAWS, ["weight", "bias"])
    found = CONV_WAYS[way](layer, inputs.to(dtype), grads.to(dtype), DRAWS, ["weight", "bias"])
    for name in exact:
        limit = 1e-4 if dtype == torch.float32 else 2e-2
        assert _apart(found[name].float(), exact[name].cpu()) < limit


@pytest.mark.parametrize("noise", ["fast", "secure"])
def test_a_step_on_the_device_releases_what_it_does_on_the_cpu(noise: str) -> None:
    step = private_step(
        draws=draw_maker(multiplicity=2, micro_batch=2), mechanism=mechanism(noise=noise)
    )
    on_device = step.noised_gradient(_network(), step=0)
    assert on_device.device.type == "cuda"
    on_cpu = step.noised_gradient(_network("cpu"), step=0)
    other = step.noised_gradient(_network("cpu"), step=1)
    # The noise is the same to the bit; what differs is the rounding of six clipped vectors.
    assert float((on_device.cpu() - on_cpu).norm()) < 1e-3
    assert float((other - on_cpu).norm()) > 1e-1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_private_training_runs_on_the_device_and_resumes_there(precision: str) -> None:
    storage = MemoryStorage()
    draws = draw_maker(precision=precision, checkpoint_every=2)
    for steps in (2, 4):
        denoiser = _network()
        before = [p.detach().clone() for p in denoiser.parameters()]
        train_private(
            denoiser, draws, mechanism(steps=steps), collective=SingleProcess(),
            keeper=CountingKeeper(), checkpoints=Checkpoints(storage), on_step=lambda _: None,
            new_key=lambda: KEY,
        )  # fmt: skip
        assert all(p.device.type == "cuda" for p in denoiser.parameters())
        moved = [not torch.equal(a, b) for a, b in zip(before, denoiser.parameters(), strict=True)]
        assert any(moved)


def test_public_training_on_the_device_follows_that_on_the_cpu() -> None:
    trained = {}
    for device in ("cpu", "cuda"):
        denoiser = _network(device)
        images = public_images(num_classes=3)
        fit_denoiser(
            denoiser, public_rows(images, SCHEDULE, denoiser, SCHEDULE.num_steps),
            PretrainConfig(steps=3, batch_size=8), seed=1, collective=SingleProcess(),
            checkpoints=None, on_step=lambda _: None,
        )  # fmt: skip
        trained[device] = torch.cat([p.detach().cpu().flatten() for p in denoiser.parameters()])
    assert _apart(trained["cuda"], trained["cpu"]) < 1e-2


def test_the_line_through_two_small_batches_gives_the_peak_on_the_device() -> None:
    denoiser = _network(widths=(64, 64), norm_groups=8)
    fixed, per_record = memory_of(denoiser, DRAWS)
    rows = random_rows(denoiser, 64 * DRAWS)
    mask = torch.ones(64, dtype=torch.bool, device=DEVICE)
    found = peak_bytes(lambda: clipped_sum(denoiser, rows, DRAWS, 1.0, mask), DEVICE)
    assert 0.7 * found < fixed + 64 * per_record < 1.5 * found
    solved = solve_micro_batch(denoiser, DRAWS, memory_gb=1.0, held_bytes=0, share=100.0)
    assert solved >= 100  # All of a step: the device has room for far more.


def test_norms_on_the_device_are_float32_whatever_the_gradients_are() -> None:
    denoiser = _network(precision="bf16")
    gradients = per_record_gradients(denoiser, random_rows(denoiser, RECORDS), 1)
    assert {g.dtype for g in gradients} >= {torch.bfloat16}
    assert record_norms(gradients).dtype == torch.float32
