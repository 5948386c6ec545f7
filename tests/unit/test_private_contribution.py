"""One record moves the released sum by at most C, whatever the record and however it is cut (P3).

Randomness is frozen by the key, so that the noise of two steps cancels and what is left of their
difference is the record.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from rapid_dist.collective import Collective
from rapid_dist.config import load_recipe
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows, row_losses
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.per_example import (
    clip_and_sum,
    clipped_sum,
    flat_size,
    per_record_gradients,
    record_norms,
    trainable,
)
from tests.fakes import ThreadWorkers
from tests.models import (
    FixedBatch,
    draw_maker,
    each_left_out,
    mechanism,
    private_step,
    random_rows,
    references_of,
    tiny_denoiser,
)

NUM_RECORDS = 5  # The first three are black, white and a chessboard.
BOUND = 0.5  # C. Below every record's norm, but for that test where it is above.


def _released(records: list[int], world_size: int, bound: float, **changes: Any) -> torch.Tensor:
    """The released vector of one step on these records, before the division."""

    def step(collective: Collective) -> torch.Tensor:
        own = private_step(
            collective,
            mechanism=mechanism(max_grad_norm=bound),
            sampler=FixedBatch(*records),
            **changes,
        )
        return own.noised_gradient(tiny_denoiser(), step=0) * own.mechanism.expected_batch

    return ThreadWorkers(world_size).run(step)[0]


def _contributions(world_size: int = 1, bound: float = BOUND, **changes: Any) -> list[float]:
    """||S(D) - S(D without x)|| / C for every record x of the batch in turn."""
    whole = _released(list(range(NUM_RECORDS)), world_size, bound, **changes)
    return [
        float((whole - _released(rest, world_size, bound, **changes)).double().norm()) / bound
        for _, rest in each_left_out(NUM_RECORDS)
    ]


@pytest.mark.parametrize("mode", ["full", "late", "surrogate"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("draws", [1, 4, 8])
def test_no_record_contributes_more_than_the_bound(mode: str, world_size: int, draws: int) -> None:
    maker = draw_maker(mode=mode, multiplicity=draws, shift=1, flip=True)
    found = _contributions(world_size, draws=maker)
    assert max(found) <= 1 + 1e-4
    assert max(found) > 0.99  # The clip was at work, or nothing was tested.


def _as_dpdm(**changes: Any) -> DrawMaker:
    """Draws as a recipe of method dpdm makes them: K = 32 of the whole schedule."""
    train = load_recipe("digits", ["method=dpdm"]).train
    assert (train.mode, train.multiplicity) == ("full", 32)
    return draw_maker(**{**asdict(train), "micro_batch": 4, **changes})


@pytest.mark.parametrize("law", ["auto", "cosine"])
def test_a_step_of_dpdm_keeps_the_bound(law: str) -> None:
    found = _contributions(draws=_as_dpdm(level_law=law, log_level_mean=None))
    assert max(found) <= 1 + 1e-4
    assert max(found) > 0.99


def test_the_bound_of_dpdm_would_notice_draws_that_are_clipped_one_by_one() -> None:
    """The fault of DP-LoRA's released code: one record adds up to K times what is accounted."""
    assert max(_contributions(draws=_as_dpdm(), engine=_clip_each_draw)) > 4


def test_records_below_the_bound_keep_their_own_length() -> None:
    found = _contributions(bound=1e4)
    assert 0 < max(found) < 0.9
    assert len({round(length, 6) for length in found}) == NUM_RECORDS


def _clip_each_draw(
    denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
) -> torch.Tensor:
    """The fault of K copies in the batch: each is clipped on its own."""
    return clipped_sum(denoiser, rows, 1, bound, mask.repeat_interleave(draws))


def _couple_losses(
    denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
) -> torch.Tensor:
    """The fault of clip factors [B] times losses [B, 1], which is [B, B]."""
    norms = record_norms(per_record_gradients(denoiser, rows, draws))
    factors = (bound / norms).clamp_max(1.0) * mask
    losses = row_losses(denoiser, rows).unflatten(0, (-1, draws)).mean(1)
    total = (factors * losses[:, None] * mask[:, None]).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, trainable(denoiser))])


class _BatchMean(Denoiser):
    """The fault of a layer that looks across the batch."""

    def forward(
        self, noised: torch.Tensor, noise_level: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        estimate = super().forward(noised, noise_level, labels)
        return estimate - estimate.mean(0)


def _through_batch_mean(denoiser: Denoiser, *others: Any) -> torch.Tensor:
    coupled = _BatchMean(denoiser.config, channels=1, size=8, num_classes=denoiser.num_classes)
    coupled.load_state_dict(denoiser.state_dict())
    return clipped_sum(coupled, *others)


@pytest.mark.parametrize("engine", [_clip_each_draw, _couple_losses, _through_batch_mean])
def test_the_contribution_test_would_notice(engine: Any) -> None:
    found = _contributions(draws=draw_maker(multiplicity=4), engine=engine)
    assert max(found) > 1.5


def test_the_contribution_test_would_notice_randomness_that_is_not_frozen() -> None:
    one, other = (private_step(attempt=a).noised_gradient(tiny_denoiser(), 0) for a in (1, 2))
    assert (one - other).norm() > 1.5


def _not_finite(value: float, victim: int) -> Any:
    def find(
        records: np.ndarray, clean: torch.Tensor, streams: list[np.random.Generator]
    ) -> torch.Tensor:
        found = references_of(records, clean, streams)
        found[torch.from_numpy(records == victim)] = value
        return found

    return find


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("draws", [1, 4])
def test_a_record_without_a_finite_gradient_contributes_exactly_zero(
    value: float, draws: int
) -> None:
    maker = draw_maker(
        mode="surrogate", multiplicity=draws, find_references=_not_finite(value, victim=3)
    )
    rows = maker.rows(np.arange(NUM_RECORDS), private_step().key, step=0, attempt=1)
    everyone = torch.ones(NUM_RECORDS, dtype=torch.bool)
    others = everyone.clone()
    others[3] = False
    denoiser = tiny_denoiser()
    with_victim = clipped_sum(denoiser, rows, draws, BOUND, everyone)
    assert torch.equal(with_victim, clipped_sum(denoiser, rows, draws, BOUND, others))
    assert with_victim.isfinite().all()
    assert with_victim.norm() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_gradient_without_a_finite_norm_adds_exactly_zero(value: float) -> None:
    gradients = [torch.tensor([[1.0, 2.0], [value, value]]), torch.ones(2, 3)]
    added = clip_and_sum(gradients, 1.0, torch.tensor([True, True]))
    assert added.isfinite().all()
    assert torch.equal(added, clip_and_sum(gradients, 1.0, torch.tensor([True, False])))


def test_the_zero_test_would_notice_a_clip_that_scales_what_is_not_finite() -> None:
    gradients = [torch.tensor([[1.0, 2.0], [float("inf"), 1.0]])]
    factors = 1 / record_norms(gradients)
    assert not (factors @ gradients[0]).isfinite().all()
    kept = clip_and_sum(gradients, 1.0, torch.tensor([True, True]))
    assert torch.equal(kept, clip_and_sum(gradients, 1.0, torch.tensor([True, False])))


def test_padding_contributes_exactly_zero() -> None:
    denoiser, rows = tiny_denoiser(), random_rows(4)
    real = torch.tensor([True, True, False, False])
    padded = clipped_sum(denoiser, rows, 1, BOUND, real)
    torch.testing.assert_close(
        padded, clipped_sum(denoiser, rows[0:2], 1, BOUND, real[:2]), rtol=1e-4, atol=1e-6
    )
    nobody = clipped_sum(denoiser, rows, 1, BOUND, torch.zeros(4, dtype=torch.bool))
    assert torch.equal(nobody, torch.zeros(flat_size(denoiser)))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e15, 3e38])
def test_the_clip_holds_at_every_magnitude(scale: float) -> None:
    gradients = [torch.full((1, 50), scale), torch.full((1, 7), -scale)]
    clipped = clip_and_sum(gradients, BOUND, torch.ones(1, dtype=torch.bool))
    assert clipped.double().norm() <= BOUND


def _longest(norm: Any) -> float:
    """The longest vector that clipping by ``norm`` leaves, over gradients that round badly."""
    longest = 0.0
    for value in torch.linspace(0.5, 1.0, 21).tolist():
        gradient = torch.full((1, 256 * 256 * 9), value)  # One wide layer, all entries equal.
        factor = BOUND * (1 - 2.0**-12) / norm([gradient])
        longest = max(longest, float((factor * gradient).double().norm()) / BOUND)
    return longest


def test_rounding_in_the_norm_of_a_wide_layer_does_not_pass_the_bound() -> None:
    assert _longest(record_norms) <= 1


def _short_norm(parts: torch.Tensor) -> torch.Tensor:
    """The norm of float32 [n, B] over n, summed in float32."""
    return torch.linalg.vector_norm(parts, dim=0)


def _hardest() -> torch.Tensor:
    """float32 [n, 2]: parts of a gradient, equal ones, whose float32 norm is the most too short."""
    candidates = [torch.full((100_000, 2), value) for value in torch.linspace(0.5, 1, 21).tolist()]
    return max(candidates, key=lambda c: float(c.double().norm(dim=0)[0] / _short_norm(c)[0]))


def test_rounding_in_the_norm_of_very_many_parts_does_not_pass_the_bound() -> None:
    # As many parts as a network of 400 million parameters has; here each is of one value.
    hardest = _hardest()
    norms = record_norms([part[:, None] for part in hardest])
    factors = BOUND * (1 - 2.0**-12) / norms
    assert (factors.double() * hardest.double().norm(dim=0)).max() <= BOUND


def test_the_test_of_many_parts_would_notice_a_float32_sum_of_them() -> None:
    hardest = _hardest()
    factors = BOUND * (1 - 2.0**-12) / _short_norm(hardest)
    assert (factors.double() * hardest.double().norm(dim=0)).max() > BOUND * (1 + 1e-4)


def test_the_rounding_test_would_notice_a_norm_in_one_long_sum() -> None:
    assert _longest(lambda gradients: torch.linalg.vector_norm(gradients[0], dim=1)) > 1
