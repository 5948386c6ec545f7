"""Ranks share one draw, and cut it into even parts of one shape."""

import numpy as np
import pytest

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.poisson import PoissonSampler, rank_slice

KEY = SecretKey(bytes(range(KEY_BYTES)))


def test_a_batch_holds_each_index_once_in_order() -> None:
    batch = PoissonSampler(KEY, 10_000, 0.05, attempt=1).batch(7)
    assert batch.dtype == np.int64
    assert (np.diff(batch) > 0).all()
    assert batch[0] >= 0
    assert batch[-1] < 10_000


def test_every_rank_draws_the_same_batch_whatever_it_drew_before() -> None:
    one = PoissonSampler(KEY, 1_000, 0.1, attempt=1)
    other = PoissonSampler(SecretKey.from_bytes(KEY.reveal()), 1_000, 0.1, attempt=1)
    expected = [one.batch(step) for step in range(5)]
    for step in (4, 0, 2):
        np.testing.assert_array_equal(other.batch(step), expected[step])


def test_a_new_attempt_draws_other_batches() -> None:
    one = PoissonSampler(KEY, 1_000, 0.1, attempt=1).batch(0)
    assert not np.array_equal(one, PoissonSampler(KEY, 1_000, 0.1, attempt=2).batch(0))


def test_rate_one_draws_everybody() -> None:
    batch = PoissonSampler(KEY, 50, 1.0, attempt=1).batch(0)
    np.testing.assert_array_equal(batch, np.arange(50))


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
