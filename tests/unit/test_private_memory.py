"""The micro-batch is solved from what random rows take, and what it solves for is what is taken."""

import gc

import pytest
import torch

from rapid_dist.errors import ConfigError
from rapid_dist.private.memory import (
    LiveBytes,
    memory_of,
    peak_bytes,
    random_rows,
    solve_micro_batch,
)
from rapid_dist.private.per_example import clipped_sum, flat_size
from rapid_dist.private.settings import TrainConfig
from tests.models import tiny_denoiser

CPU = torch.device("cpu")
GB = 2**30


def test_live_bytes_are_those_of_tensors_that_are_alive_at_once() -> None:
    with LiveBytes() as tensors:
        kept = torch.zeros(1000)
        for _ in range(5):
            other = torch.zeros(500)
            view = other.view(50, 10)
            del other, view
        gc.collect()
        assert tensors.now == kept.nbytes
    assert tensors.peak == 4 * 1500


def test_bytes_of_a_backward_pass_are_seen() -> None:
    weight = torch.randn(300, 300, requires_grad=True)
    with LiveBytes() as tensors:
        torch.autograd.grad((weight @ weight).square().sum(), weight)
    assert tensors.peak >= 3 * weight.nbytes


def _peak(records: int, draws: int) -> int:
    denoiser = tiny_denoiser(widths=(16, 16), attention=(False, True))
    rows, mask = random_rows(denoiser, records * draws), torch.ones(records, dtype=torch.bool)
    return peak_bytes(lambda: clipped_sum(denoiser, rows, draws, 1.0, mask), CPU)


@pytest.mark.parametrize("draws", [1, 4])
def test_the_line_through_two_small_batches_gives_the_peak_of_a_large_one(draws: int) -> None:
    denoiser = tiny_denoiser(widths=(16, 16), attention=(False, True))
    fixed, per_record = memory_of(denoiser, draws)
    assert denoiser.evaluations == 0
    predicted, found = fixed + 24 * per_record, _peak(24, draws)
    assert 0.9 * found < predicted < 1.15 * found


def test_a_record_costs_its_gradient_and_its_rows() -> None:
    denoiser = tiny_denoiser(widths=(16, 16), attention=(False, True))
    (_, one), (_, four) = memory_of(denoiser, 1), memory_of(denoiser, 4)
    gradient = 4 * flat_size(denoiser)
    assert one > gradient
    assert one < four < 4 * one  # More rows, one gradient.


def _solved(memory_gb: float, share: float = 1e6, draws: int = 1) -> int:
    return solve_micro_batch(tiny_denoiser(), draws, memory_gb=memory_gb, held_bytes=0, share=share)


def test_what_is_solved_fits_and_twice_as_much_would_not() -> None:
    solved, room = _solved(1.0), 0.25 * GB
    assert 0.5 * room < _peak_of_line(solved) < room < _peak_of_line(2 * solved)


def _peak_of_line(records: int) -> float:
    fixed, per_record = memory_of(tiny_denoiser(), 1)
    return fixed + records * per_record


def test_more_memory_allows_more_and_images_take_their_share() -> None:
    assert _solved(1.0) < _solved(2.0)
    held = solve_micro_batch(tiny_denoiser(), 1, memory_gb=1.0, held_bytes=GB // 8, share=1e6)
    assert held < _solved(1.0)


@pytest.mark.parametrize("share", [1.0, 64.0, 700.0])
def test_a_step_is_cut_into_parts_of_one_size(share: float) -> None:
    solved = _solved(1.0, share=share)
    largest = share + 3 * share**0.5
    parts = -(-largest // solved)
    assert solved * parts - largest < parts  # Less than one record of padding a part.


def test_memory_that_holds_no_record_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.memory_gb is 0\.10"):
        _solved(0.1)


def test_null_is_a_micro_batch_and_zero_is_none() -> None:
    assert TrainConfig(micro_batch=None).micro_batch is None
    with pytest.raises(ConfigError, match="micro_batch must be at least 1"):
        TrainConfig(micro_batch=0)
