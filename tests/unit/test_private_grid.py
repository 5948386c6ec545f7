"""A record's whole numbers have a norm of at most ``UNITS``, and their sum has no rounding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rapid_dist.privacy.mechanism import UNITS
from rapid_dist.private.grid import grid_factors, rounded_sum
from rapid_dist.private.per_example import clip_and_sum, clipped_sum
from tests.models import draw_maker, private_step, random_rows, references_of, tiny_denoiser

BOUND = 0.5


def _gradients(records: int = 7, seed: int = 0, length: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(records, 40, 30), (records, 5), (records, 4097)]
    return [length * torch.randn(shape, generator=generator) for shape in shapes]


def _summed(gradients: Sequence[torch.Tensor], bound: float = BOUND) -> torch.Tensor:
    return clip_and_sum(gradients, bound, torch.ones(len(gradients[0]), dtype=torch.bool), UNITS)


def _norm(whole: torch.Tensor) -> float:
    """The norm of integers, from an exact sum of squares."""
    return float(sum(int(value) ** 2 for value in whole.tolist())) ** 0.5


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e15])
@pytest.mark.parametrize("seed", range(3))
def test_no_record_s_whole_numbers_are_longer_than_the_bound(length: float, seed: int) -> None:
    found = [_norm(_summed([g[i : i + 1] for g in _gradients(4, seed, length)])) for i in range(4)]
    assert max(found) <= UNITS
    if length >= 1:
        assert min(found) > 0.998 * UNITS  # The clip was at work, or nothing was tested.


@pytest.mark.parametrize("shape", ["one entry", "equal entries", "a hair under a half"])
def test_awkward_records_stay_below_the_bound(shape: str) -> None:
    size = 2**17
    gradient = torch.zeros(1, size)
    if shape == "one entry":
        gradient[0, 5] = -3e30
    elif shape == "equal entries":
        gradient += 7.0
    else:
        gradient += 0.999_999 * BOUND / UNITS
        gradient[0, 0] = BOUND
    assert _norm(_summed([gradient])) <= UNITS


def test_entries_below_one_unit_add_nothing_on_a_grid_so_coarse_that_it_counts() -> None:
    units = 64
    gradient = torch.full((1, 11_000), 0.006)  # Of norm 0.63; scaled to 64, entries of 0.61.
    usable = torch.ones(1, dtype=torch.bool)
    factors = grid_factors(gradient.norm(dim=1), usable, BOUND, units)
    assert (gradient * factors[:, None]).round().norm() > 1.5 * units  # Nearest would pass it.
    assert not rounded_sum([gradient], factors, units).any()


def _nearest(gradients: Sequence[torch.Tensor], bound: float) -> torch.Tensor:
    """The fault of rounding to nearest without room for it: entries above a half grow."""
    whole = torch.cat([g.flatten(1) for g in gradients], dim=1)
    factor = (UNITS / whole.norm(dim=1)).clamp_max(UNITS / bound)
    return (whole * factor[:, None]).round().sum(0).long()


def test_the_bound_test_would_notice_rounding_that_is_not_counted() -> None:
    gradient = torch.full((1, 2**21), 0.6 * BOUND / UNITS)
    gradient[0, 0] = BOUND
    assert _norm(_nearest([gradient], BOUND)) > UNITS
    assert _norm(_summed([gradient])) <= UNITS


def test_a_record_whose_norm_was_measured_wrongly_adds_nothing() -> None:
    gradients = _gradients(3)
    norms = torch.cat([g.flatten(1) for g in gradients], dim=1).norm(dim=1)
    wrong = norms * torch.tensor([1.0, 0.9, 1.0])  # As if the second were shorter than it is.
    everyone = torch.ones(3, dtype=torch.bool)
    found = rounded_sum(gradients, grid_factors(wrong, everyone, BOUND, UNITS), UNITS)
    others = [gradient[[0, 2]] for gradient in gradients]
    assert torch.equal(found, _rounded_by(others, norms[[0, 2]]))
    assert not torch.equal(found, _rounded_by(gradients, norms))


def _rounded_by(gradients: Sequence[torch.Tensor], norms: torch.Tensor) -> torch.Tensor:
    usable = torch.ones(len(norms), dtype=torch.bool)
    return rounded_sum(gradients, grid_factors(norms, usable, BOUND, UNITS), UNITS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_record_without_a_finite_norm_adds_exactly_zero(value: float) -> None:
    gradients = _gradients(3)
    gradients[1][2, 3] = value
    assert torch.equal(_summed(gradients), _summed([g[:2] for g in gradients]))


def test_padding_adds_exactly_zero() -> None:
    mask = torch.tensor([True, False, True, False])
    gradients = _gradients(4)
    found = clip_and_sum(gradients, BOUND, mask, UNITS)
    assert torch.equal(found, _summed([g[mask] for g in gradients]))
    nobody = clip_and_sum(gradients, BOUND, torch.zeros(4, dtype=torch.bool), UNITS)
    assert torch.equal(nobody, torch.zeros_like(nobody))


ORDERS = [list(range(60)), list(range(59, -1, -1)), np.random.default_rng(0).permutation(60)]


def _in_parts(gradients: list[torch.Tensor], order: Sequence[int], size: int, **own: Any) -> Any:
    mixed = [gradient[list(order)] for gradient in gradients]
    parts = [[g[s : s + size] for g in mixed] for s in range(0, 60, size)]
    everyone = torch.ones(60, dtype=torch.bool)
    sums = [clip_and_sum(part, BOUND, everyone[: len(part[0])], **own) for part in parts]
    return torch.stack(sums).sum(0)


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("order", ORDERS)
def test_neither_order_nor_micro_batch_changes_a_bit_of_the_sum(
    order: Sequence[int], size: int
) -> None:
    gradients = _gradients(60)
    whole = _in_parts(gradients, ORDERS[0], 60, units=UNITS)
    assert torch.equal(_in_parts(gradients, order, size, units=UNITS), whole)


def test_the_order_test_would_notice_a_sum_of_floats() -> None:
    gradients = _gradients(60)
    assert not torch.equal(_in_parts(gradients, ORDERS[1], 7), _in_parts(gradients, ORDERS[0], 60))


def test_a_batch_too_large_for_int32_is_summed_in_int64() -> None:
    records = 2**31 // UNITS + 3
    gradient = torch.zeros(records, 2)
    gradient[:, 1] = 9.0
    (_, found) = _summed([gradient]).tolist()
    assert found == records * int(UNITS * (1 - 2**-10))
    assert found > 2**31


@pytest.mark.parametrize("draws", [1, 8])
def test_without_noise_secure_and_fast_sums_agree_up_to_the_grid(draws: int) -> None:
    denoiser, rows, mask = tiny_denoiser(), random_rows(5 * draws), torch.ones(5, dtype=torch.bool)
    norms = clipped_sum(denoiser, rows, draws, 1e9, mask).norm()
    bound = float(4 * norms)  # Nothing is clipped: what is left is the grid.
    fast = clipped_sum(denoiser, rows, draws, bound, mask)
    secure = clipped_sum(denoiser, rows, draws, bound, mask, UNITS).double() * (bound / UNITS)
    assert secure.norm() > 0
    assert float((fast - secure).abs().max()) <= 5 * 1.01 * bound / UNITS + 1e-6 * float(
        fast.norm()
    )
    clipped = clipped_sum(denoiser, rows, draws, BOUND, mask)
    whole = clipped_sum(denoiser, rows, draws, BOUND, mask, UNITS).double() * (BOUND / UNITS)
    assert float((clipped - whole).norm() / clipped.norm()) < 1e-3 + 5e-4


@pytest.mark.parametrize("draws", [1, 8])
def test_no_record_of_the_real_engine_is_longer_than_the_bound(draws: int) -> None:
    def not_finite(records: np.ndarray, clean: torch.Tensor, streams: Any) -> torch.Tensor:
        found = references_of(records, clean, streams)
        found[torch.from_numpy(records == 3)] = float("nan")
        return found

    maker = draw_maker(mode="surrogate", multiplicity=draws, find_references=not_finite)
    key, denoiser, alone = private_step().key, tiny_denoiser(), torch.ones(1, dtype=torch.bool)
    found = []
    for record in range(5):  # The first three are black, white and a chessboard.
        rows = maker.rows(np.array([record]), key, 0, 1)
        found.append(_norm(clipped_sum(denoiser, rows, draws, BOUND, alone, UNITS)))
    assert max(found) <= UNITS
    assert found[3] == 0.0
    assert sorted(found)[1] > 0.998 * UNITS
