"""Ranks share one draw, and cut it into even parts of one shape."""

from fractions import Fraction

import numpy as np
import pytest

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.discrete import CipherStream
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.poisson import (
    CipherPoissonSampler,
    PoissonSampler,
    rank_slice,
    sampler_for,
)

KEY = SecretKey(bytes(range(KEY_BYTES)))
# Of 100 records at rate 0.08 under KEY, step 3 of attempt 1: what the first release drew.
FAST = [13, 34, 38, 51, 66, 79, 81, 90, 93, 99]
SECURE = [3, 16, 21, 23, 26, 39, 73, 89, 95, 98]

Sampler = type[PoissonSampler]
of_both_kinds = pytest.mark.parametrize("kind", [PoissonSampler, CipherPoissonSampler])


@of_both_kinds
def test_a_batch_holds_each_index_once_in_order(kind: Sampler) -> None:
    batch = kind(KEY, 10_000, 0.05, attempt=1).batch(7)
    assert batch.dtype == np.int64
    assert (np.diff(batch) > 0).all()
    assert batch[0] >= 0
    assert batch[-1] < 10_000


@of_both_kinds
def test_every_rank_draws_the_same_batch_whatever_it_drew_before(kind: Sampler) -> None:
    one = kind(KEY, 1_000, 0.1, attempt=1)
    other = kind(SecretKey.from_bytes(KEY.reveal()), 1_000, 0.1, attempt=1)
    expected = [one.batch(step) for step in range(5)]
    for step in (4, 0, 2):
        np.testing.assert_array_equal(other.batch(step), expected[step])


@of_both_kinds
def test_a_new_attempt_draws_other_batches(kind: Sampler) -> None:
    one = kind(KEY, 1_000, 0.1, attempt=1).batch(0)
    assert not np.array_equal(one, kind(KEY, 1_000, 0.1, attempt=2).batch(0))


@of_both_kinds
def test_rate_one_draws_everybody(kind: Sampler) -> None:
    batch = kind(KEY, 50, 1.0, attempt=1).batch(0)
    np.testing.assert_array_equal(batch, np.arange(50))


def test_each_noise_has_the_sampler_of_its_own_kind() -> None:
    assert sampler_for("fast") is PoissonSampler
    assert sampler_for("secure") is CipherPoissonSampler


def test_the_batches_under_a_key_are_the_same_for_ever() -> None:
    fast, secure = (
        kind(KEY, 100, 0.08, attempt=1) for kind in (PoissonSampler, CipherPoissonSampler)
    )
    assert fast.batch(3).tolist() == FAST
    assert secure.batch(3).tolist() == SECURE


@pytest.mark.parametrize("rate", [1 / 3, 2.0**-12, 1 - 2.0**-53, 0.3e-4, 1e-9])
def test_a_coin_of_the_cipher_falls_at_the_rate_and_never_above_it(rate: float) -> None:
    number = 70_000  # More than are tossed at once.
    words = CipherStream(KEY.derive("cipher poisson", 5, 2)).words(number).tolist()
    # In whole numbers: a word is one of 2^64, and those of whom this holds are at most rate 2^64.
    expected = [place for place, word in enumerate(words) if word + 1 <= Fraction(rate) * 2**64]
    assert CipherPoissonSampler(KEY, number, rate, attempt=2).batch(5).tolist() == expected
    assert (Fraction(rate) * 2**64).denominator == 1 or rate < 2.0**-12


@pytest.mark.parametrize("rate", [0.0, 1.01, float("nan")])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="sample_rate must be in"):
        PoissonSampler(KEY, 50, rate, attempt=1)


@pytest.mark.parametrize("size", [0, 1, 5, 8, 23])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_the_ranks_together_hold_each_drawn_record_once(size: int, world_size: int) -> None:
    indices = np.arange(size) * 3 + 1
    held = []
    counts = []
    for rank in range(world_size):
        parts = rank_slice(indices, rank, world_size, micro_batch=4)
        for padded, mask in parts:
            assert padded.shape == mask.shape == (4,)
            assert padded.dtype == np.int64
            assert mask.dtype == bool
            assert (padded[~mask] == 0).all()
        held += [padded[mask] for padded, mask in parts]
        counts.append(sum(int(mask.sum()) for _, mask in parts))
    np.testing.assert_array_equal(np.concatenate([*held, np.empty(0, np.int64)]), indices)
    assert max(counts) - min(counts) <= 1


def test_an_empty_batch_gives_a_rank_nothing_to_do() -> None:
    assert rank_slice(np.empty(0, np.int64), 0, 1, micro_batch=4) == []


def test_a_micro_batch_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="micro_batch must be at least 1"):
        rank_slice(np.arange(3), 0, 1, micro_batch=0)
