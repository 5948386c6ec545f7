"""A device and a precision change rounding, and nothing else: bf16 stays inside the network."""

from typing import Any

import numpy as np
import pytest
import torch

from rapid_dist.config import RuntimeConfig
from rapid_dist.diffusion.compute import device_named, precision_on
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError
from rapid_dist.privacy.poisson import rank_slice
from rapid_dist.private.per_example import clipped_sum, per_record_gradients
from rapid_dist.private.settings import TrainConfig
from rapid_dist.runtime.needs import needs
from rapid_dist.runtime.ray_backend import device_on_cluster
from tests.models import draw_maker, mechanism, private_step, random_rows, tiny_denoiser

CPU = torch.device("cpu")
RECORDS, DRAWS, BOUND = 4, 3, 0.05
NETWORK = {"widths": (16, 16), "attention": (False, True)}
# bf16 keeps 8 bits of a number, so entries are off by 2^-9 a rounding; a few dozen add up.
BF16_ERROR = 0.05


def _network(precision: Any) -> Denoiser:
    denoiser = tiny_denoiser(**NETWORK)
    denoiser.precision = precision
    return denoiser


def _clipped_sum(precision: str, records: slice = slice(None)) -> torch.Tensor:
    rows = random_rows(RECORDS * DRAWS)
    mask = torch.zeros(RECORDS, dtype=torch.bool)
    mask[records] = True
    return clipped_sum(_network(precision), rows, DRAWS, BOUND, mask)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.device is 'cuda'"):
        device_named("cuda")
    assert device_named("auto") == device_named("cpu") == CPU


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [("auto", 0, "cpu"), ("auto", 1, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu")],
)
def test_a_cluster_computes_on_cuda_if_every_worker_can_have_a_device(
    device: str, gpus: int, found: str
) -> None:
    runtime = RuntimeConfig(workers=2, device=device)
    assert device_on_cluster(runtime, {"CPU": 4.0, "GPU": float(gpus)}) == found


def test_devices_that_were_asked_for_are_needed() -> None:
    assert needs(RuntimeConfig(workers=3, device="cuda")).gpus == 3
    assert needs(RuntimeConfig(workers=3)).gpus == 0


def test_nobody_gets_bf16_unasked_where_it_is_emulated() -> None:
    assert precision_on(CPU, "auto") == "fp32"
    assert precision_on(CPU, "bf16") == "bf16"


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.precision"):
        TrainConfig(precision="fp16")


def test_the_estimate_is_float32_and_what_surrounds_the_network_is_not_rounded() -> None:
    rows = random_rows(3)
    exact, rounded = (
        _network(p)(rows.noised, torch.full((3,), 1e-3), rows.labels) for p in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    # At this noise level the estimate is the input plus a thousandth of the network's output.
    torch.testing.assert_close(rounded, exact, rtol=1e-3, atol=1e-3)


def test_a_sum_in_bf16_is_the_sum_in_fp32_but_for_rounding() -> None:
    exact, rounded = _clipped_sum("fp32"), _clipped_sum("bf16")
    assert rounded.dtype == torch.float32
    difference = float((rounded - exact).norm() / exact.norm())
    assert 1e-5 < difference < BF16_ERROR  # It did run in bf16.


def test_the_comparison_with_fp32_would_notice_a_record_that_is_missing() -> None:
    exact, short = _clipped_sum("fp32"), _clipped_sum("bf16", slice(0, RECORDS - 1))
    assert float((short - exact).norm() / exact.norm()) > BF16_ERROR


@pytest.mark.parametrize("record", range(RECORDS))
def test_a_record_in_bf16_adds_a_vector_of_the_bound_at_most(record: int) -> None:
    only = slice(record, record + 1)
    assert float(_clipped_sum("bf16", only).double().norm()) <= BOUND
    assert float(_clipped_sum("bf16", only).double().norm()) > 0.999 * BOUND  # It was clipped.


def test_the_bound_in_bf16_would_notice_a_factor_that_was_rounded() -> None:
    gradients = per_record_gradients(_network("bf16"), random_rows(RECORDS * DRAWS), DRAWS)
    flat = torch.cat([g.float().flatten(1) for g in gradients], dim=1)
    factors = (BOUND / flat.norm(dim=1)).bfloat16()
    assert (factors[:, None].double() * flat).norm(dim=1).max() > BOUND


@pytest.mark.parametrize("noise", ["fast", "secure"])
def test_a_whole_step_in_bf16_releases_nearly_what_it_does_in_fp32(noise: str) -> None:
    step = private_step(draws=draw_maker(multiplicity=2), mechanism=mechanism(noise=noise))
    exact, rounded = (step.noised_gradient(_network(p), step=0) for p in ("fp32", "bf16"))
    assert rounded.dtype == torch.float32
    assert 0 < float((exact - rounded).norm()) < 0.1  # Equal noise; the sums' norm is about 1.


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_rows_that_a_thread_draws_ahead_are_the_same_rows_in_the_same_order(count: int) -> None:
    step = private_step(draws=draw_maker(multiplicity=2))
    parts = rank_slice(np.arange(2 * count), 0, 1, 2)
    at_once, ahead = (list(step._drawn(parts, 0, ahead=flag)) for flag in (False, True))
    assert len(at_once) == len(ahead) == count
    for (rows, mask), (others, other_mask) in zip(at_once, ahead, strict=True):
        assert torch.equal(rows.noised, others.noised)
        assert np.array_equal(mask, other_mask)


def test_what_a_thread_fails_at_is_raised() -> None:
    step = private_step()
    beyond = np.array([10**6, 0])
    parts = [(np.array([0, 1]), np.ones(2, bool)), (beyond, np.ones(2, bool))]
    with pytest.raises(IndexError):
        list(step._drawn(parts, 0, ahead=True))
