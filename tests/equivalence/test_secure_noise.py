"""With secure noise any number of workers releases the same bits, and pays for it first."""

import json
import threading

import numpy as np
import pytest
import torch

from rapid_dist.collective import Collective
from rapid_dist.errors import BudgetError
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import UNITS, DiscreteDpSgdEvent
from rapid_dist.privacy.noise import SecureNoise
from rapid_dist.privacy.poisson import CipherPoissonSampler
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.per_example import flat_size
from rapid_dist.private.step import PrivateStep
from rapid_dist.private.votes import noised_histogram
from tests.fakes import MemoryStorage, ThreadWorkers
from tests.models import (
    KEY,
    FixedBatch,
    draw_maker,
    each_left_out,
    mechanism,
    private_images,
    private_step,
    tiny_denoiser,
)

STEPS = 3


def _step(collective: Collective, noise: str = "secure") -> PrivateStep:
    own = mechanism(noise=noise)
    return private_step(
        collective,
        mechanism=own,
        draws=draw_maker(mode="surrogate", multiplicity=2, shift=1),
        sampler=CipherPoissonSampler(KEY, own.num_records, own.sample_rate, attempt=1),
    )


def _released(collective: Collective, noise: str = "secure") -> torch.Tensor:
    step, denoiser = _step(collective, noise), tiny_denoiser()
    return torch.stack([step.noised_gradient(denoiser, number) for number in range(STEPS)])


def test_any_number_of_workers_releases_the_same_bits() -> None:
    (alone,) = ThreadWorkers(1).run(_released)
    for world_size in (2, 4):
        for held in ThreadWorkers(world_size).run(_released):
            assert torch.equal(held, alone)


def _whole_numbers(*records: int) -> torch.Tensor:
    """int64 [P]: what a batch of these records adds up to before its noise."""
    step = private_step(
        mechanism=mechanism(noise="secure"),
        draws=draw_maker(mode="surrogate", multiplicity=2, shift=1),
        sampler=FixedBatch(*records),
    )
    return step._local_sum(tiny_denoiser(), 0)


def test_leaving_a_record_out_takes_its_own_whole_numbers_out_and_no_other() -> None:
    # The others then stand elsewhere in their micro-batches of 4, beside others.
    whole = _whole_numbers(*range(12))
    for record, others in each_left_out(12):
        own = _whole_numbers(record)
        assert torch.equal(whole - _whole_numbers(*others), own)
        assert 0 < float(own.double().norm()) <= UNITS


def test_the_bit_test_would_notice_a_sum_of_floats() -> None:
    (alone,) = ThreadWorkers(1).run(lambda c: _released(c, "fast"))
    assert any(
        not torch.equal(ThreadWorkers(size).run(lambda c: _released(c, "fast"))[0], alone)
        for size in (2, 4)
    )


def test_an_empty_batch_releases_noise_alone() -> None:
    own = mechanism(noise="secure", expected_batch=4.0)
    denoiser = tiny_denoiser()
    step = private_step(mechanism=own, sampler=FixedBatch())
    noise = SecureNoise(own.max_grad_norm, own.noise_multiplier, KEY, 1)
    alone = noise.release(torch.zeros(flat_size(denoiser), dtype=torch.int64), 2)
    assert torch.equal(step.noised_gradient(denoiser, 2), alone / 4.0)


def test_a_refused_step_releases_nothing_and_leaves_no_thread() -> None:
    def refuse(step: int) -> None:
        raise BudgetError("Nothing is left.")

    before = threading.active_count()
    step = private_step(mechanism=mechanism(noise="secure"), charge=refuse)
    with pytest.raises(BudgetError):
        step.noised_gradient(tiny_denoiser(), 0)
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(timeout=30)
    assert threading.active_count() <= before


def test_an_engine_that_sums_floats_is_refused() -> None:
    step = private_step(
        mechanism=mechanism(noise="secure"),
        engine=lambda denoiser, *others: torch.ones(flat_size(denoiser)),
    )
    with pytest.raises(RuntimeError, match="Long"):
        step.noised_gradient(tiny_denoiser(), 0)


def test_the_ledger_says_which_mechanism_it_was() -> None:
    storage, own = MemoryStorage(), mechanism(noise="secure")
    ledger = Ledger.open(storage, "secret")
    keeper = LedgerKeeper(ledger, "run", Budget(epsilon=50, delta=1e-5), own.event(), own.steps)
    keeper.begin_attempt()
    step = private_step(mechanism=own, charge=keeper.charge)
    step.noised_gradient(tiny_denoiser(), 0)
    entries = [json.loads(data) for data in storage.files.values()]
    (event,) = [entry["event"] for entry in entries if entry["event"] is not None]
    assert event["mechanism"] == "discrete_dp_sgd"
    assert event["units"] == UNITS
    again = Ledger.open(storage, "secret").events("run")
    assert again == [own.event()]
    assert isinstance(again[0], DiscreteDpSgdEvent)


def _histogram(noise: str, multiplier: float, groups: np.ndarray | None = None) -> np.ndarray:
    return noised_histogram(
        private_images(12, groups),
        np.arange(12) % 5,
        num_classes=3,
        num_clusters=5,
        noise_multiplier=multiplier,
        key=KEY,
        attempt=1,
        noise=noise,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("groups", [None, np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2])])
def test_votes_are_noised_on_the_grid_too(groups: np.ndarray | None) -> None:
    secure, fast = _histogram("secure", 1e-5, groups), _histogram("fast", 1e-5, groups)
    np.testing.assert_allclose(secure, fast, atol=2e-4)
    places = secure * UNITS
    np.testing.assert_array_equal(places, np.rint(places))
    assert not np.array_equal(fast * UNITS, np.rint(fast * UNITS))


def test_secure_votes_carry_the_stream_of_their_own_purpose() -> None:
    counts = np.rint(_histogram("secure", 1e-5))
    noise = SecureNoise(1.0, 2.0, KEY, 1, "prior").release(torch.zeros(15, dtype=torch.int64), 0)
    found = (_histogram("secure", 2.0) - counts).ravel()
    np.testing.assert_allclose(found, noise.double().numpy(), atol=1e-5)
