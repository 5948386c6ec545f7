"""Two workers do what one does: one batch, one noise, one set of parameters (P2, P5)."""

from typing import Any

import pytest
import torch

from rapid_dist.collective import Collective
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import CheckpointError
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.noise import add_noise_
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.private.loop import train_private
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.private.step import ClippedSum, PrivateStep
from tests.fakes import MemoryStorage, ThreadWorkers
from tests.models import (
    KEY,
    CountingKeeper,
    draw_maker,
    mechanism,
    private_step,
    tiny_denoiser,
)

STEPS = 3


def _poisson_step(collective: Collective) -> PrivateStep:
    plan = mechanism()
    return private_step(
        collective,
        draws=draw_maker(mode="surrogate", multiplicity=2, shift=1),
        sampler=PoissonSampler(KEY, plan.num_records, plan.sample_rate, attempt=1),
    )


def _released(collective: Collective) -> torch.Tensor:
    step, denoiser = _poisson_step(collective), tiny_denoiser()
    return torch.stack([step.noised_gradient(denoiser, number) for number in range(STEPS)])


@pytest.mark.parametrize("world_size", [2, 3, 8])  # With 8 ranks, some have no record at all.
def test_every_rank_holds_the_same_bits_as_every_other(world_size: int) -> None:
    first, *others = ThreadWorkers(world_size).run(_released)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_the_released_vector_does_not_depend_on_the_number_of_workers(world_size: int) -> None:
    (alone,) = ThreadWorkers(1).run(_released)
    together = ThreadWorkers(world_size).run(_released)[0]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def _own_key(collective: Collective) -> torch.Tensor:
    """The fault of noise that every rank draws for itself, after the reduction."""
    step = private_step(collective, key=SecretKey(bytes([collective.rank] * 32)))
    return step.noised_gradient(tiny_denoiser(), step=0)


def _own_batch(collective: Collective) -> torch.Tensor:
    """The fault of a sampler that every rank seeds for itself."""
    own = PoissonSampler(SecretKey(bytes([collective.rank] * 32)), 12, 0.5, attempt=1)
    return private_step(collective, sampler=own).noised_gradient(tiny_denoiser(), step=0)


def _noise_before_the_sum(collective: Collective) -> torch.Tensor:
    """The fault of noise that every rank adds before the reduction."""
    step = private_step(collective)
    total = step._local_sum(tiny_denoiser(), 0)
    add_noise_(total, step.mechanism.noise_stddev, step.key, 0, step.attempt)
    collective.sum_(total)
    return total / step.mechanism.expected_batch


def test_the_bit_test_would_notice_noise_of_each_rank_s_own() -> None:
    one, other = ThreadWorkers(2).run(_own_key)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("fault", [_own_batch, _noise_before_the_sum])
def test_the_world_size_test_would_notice(fault) -> None:
    (alone,), together = ThreadWorkers(1).run(fault), ThreadWorkers(2).run(fault)[0]
    assert (alone - together).norm() > 0.1


class _Crash(Exception):
    pass


def _train(
    collective: Collective,
    denoiser: Denoiser,
    keeper: CountingKeeper,
    storage: MemoryStorage,
    crash_at: int = 0,
    **plan: Any,
) -> torch.Tensor:
    def on_step(figures: dict[str, float]) -> None:
        if figures["step"] == crash_at:
            raise _Crash

    train_private(
        denoiser,
        draw_maker(checkpoint_every=2),
        mechanism(**plan),
        collective=collective,
        keeper=keeper,
        checkpoints=Checkpoints(storage),
        on_step=on_step,
    )
    return torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])


def test_training_leaves_the_same_weights_on_every_rank_and_charges_each_step_once() -> None:
    keeper, storage = CountingKeeper(), MemoryStorage()
    one, other = ThreadWorkers(2).run(lambda c: _train(c, tiny_denoiser(), keeper, storage))
    assert torch.equal(one, other)
    assert keeper.charged == [(1, step) for step in range(mechanism().steps)]


@pytest.mark.parametrize("after", [1, 3])
def test_after_a_crash_another_number_of_workers_goes_on(after: int) -> None:
    keeper, storage = CountingKeeper(), MemoryStorage()
    with pytest.raises(_Crash):
        ThreadWorkers(2).run(lambda c: _train(c, tiny_denoiser(), keeper, storage, crash_at=3))
    found = ThreadWorkers(after).run(lambda c: _train(c, tiny_denoiser(seed=1), keeper, storage))
    assert all(torch.equal(held, found[0]) for held in found)
    steps = range(mechanism().steps)
    assert keeper.charged == [(1, 0), (1, 1), (1, 2), *((2, step) for step in steps[2:])]


def test_after_a_crash_another_batch_does_not_go_on_whatever_the_number_of_workers() -> None:
    keeper, storage = CountingKeeper(), MemoryStorage()
    with pytest.raises(_Crash):
        ThreadWorkers(2).run(lambda c: _train(c, tiny_denoiser(), keeper, storage, crash_at=3))
    with pytest.raises(CheckpointError, match=r"expected_batch=6\.0, the plan has 3\.0"):
        ThreadWorkers(1).run(
            lambda c: _train(c, tiny_denoiser(), keeper, storage, expected_batch=3.0)
        )


def _sized(sizes: set[int]) -> ClippedSum:
    """The engine, which notes the sizes of the micro-batches that it is given."""

    def engine(*parts: Any) -> torch.Tensor:
        sizes.add(len(parts[4]))
        return clipped_sum(*parts)

    return engine


def _cut(collective: Collective, micro_batch: int) -> tuple[set[int], torch.Tensor]:
    """Sizes of the micro-batches of a run with secure noise, and the weights that it leaves."""
    sizes: set[int] = set()
    denoiser = tiny_denoiser()
    train_private(
        denoiser,
        draw_maker(micro_batch=micro_batch),
        mechanism(noise="secure"),
        collective=collective,
        keeper=CountingKeeper(),
        checkpoints=Checkpoints(MemoryStorage()),
        on_step=lambda figures: None,
        engine=_sized(sizes),
        new_key=lambda: KEY,
    )
    return sizes, torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])


def test_workers_of_different_memory_cut_their_slices_alike() -> None:
    ((alone, weights),) = ThreadWorkers(1).run(lambda c: _cut(c, 2))
    together = ThreadWorkers(2).run(lambda c: _cut(c, 5 - 3 * c.rank))
    assert [sizes for sizes, _ in together] == [{2}, {2}] == [alone, alone]
    assert all(torch.equal(held, weights) for _, held in together)


def test_the_size_test_would_notice_a_worker_that_keeps_its_own() -> None:
    def own(collective: Collective) -> set[int]:
        sizes: set[int] = set()
        draws = draw_maker(micro_batch=5 - 3 * collective.rank)
        step = private_step(collective, draws=draws, engine=_sized(sizes))
        step.noised_gradient(tiny_denoiser(), 0)
        return sizes

    assert ThreadWorkers(2).run(own) == [{5}, {2}]


def test_a_worker_that_starts_from_other_weights_is_refused() -> None:
    keeper = CountingKeeper()
    with pytest.raises(CheckpointError, match="other weights"):
        ThreadWorkers(2).run(
            lambda c: _train(c, tiny_denoiser(seed=c.rank), keeper, MemoryStorage())
        )


def test_a_worker_that_does_not_see_the_checkpoints_of_rank_0_is_refused() -> None:
    keeper, seen = CountingKeeper(), MemoryStorage()
    ThreadWorkers(1).run(lambda c: _train(c, tiny_denoiser(), keeper, seen))
    with pytest.raises(CheckpointError, match="other weights"):
        ThreadWorkers(2).run(
            lambda c: _train(c, tiny_denoiser(), keeper, MemoryStorage() if c.rank else seen)
        )
