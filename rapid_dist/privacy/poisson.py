"""Poisson sampling: which records take part in a step.

The draw is one for the whole group of workers and a pure function of (key, attempt, step), so
every rank makes the same draw without communication and at any world size.

It has two kinds, as noise has, and comes with it: who takes part is a secret that the accounting
counts on just as it counts on the noise.
"""

import numpy as np

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.discrete import CipherStream
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import NoiseKind

_BLOCK = 2**15  # Coins tossed at once: their words stay in a core's cache.


class PoissonSampler:
    """Draws the batch of any step; holds no position, so nothing is lost in a restart.

    Of noise ``fast``: numpy's binomial and subset, from a Philox stream.
    """

    def __init__(self, key: SecretKey, num_records: int, sample_rate: float, attempt: int) -> None:
        if not 0 < sample_rate <= 1:
            raise ConfigError(f"sample_rate must be in (0, 1], got {sample_rate}.")
        self._key = key
        self._num_records = num_records
        self._sample_rate = sample_rate
        self._attempt = attempt

    def batch(self, step: int) -> np.ndarray:
        """Returns the indices of the records in a step's batch, int64 [B], ascending.

        Guarantees: every record is in with chance ``sample_rate``, independently of all other
        records and steps. A batch may be empty; its step still takes noise and is charged.
        """
        rng = self._key.generator("poisson", step, self._attempt)
        # A binomial size, then a uniform set of that size: in law, one coin for every record.
        size = rng.binomial(self._num_records, self._sample_rate)
        chosen = rng.choice(self._num_records, size, replace=False, shuffle=False)
        return np.sort(chosen).astype(np.int64)


class CipherPoissonSampler(PoissonSampler):
    """The draw of noise ``secure``: a coin for every record, from 64 bits of a ChaCha20 stream.

    A record's chance is ``sample_rate`` rounded down to a multiple of 2^-64: the very rate from
    2^-12 on, and below that a smaller one, which costs no more privacy. The work is the same
    whoever is drawn.
    """

    def batch(self, step: int) -> np.ndarray:
        """Returns the indices of the records in a step's batch, as PoissonSampler does."""
        if self._sample_rate == 1:
            return np.arange(self._num_records)
        stream = CipherStream(self._key.derive("cipher poisson", step, self._attempt))
        below = np.uint64(int(self._sample_rate * 2.0**64))  # The product of a power of two: exact.
        parts = []
        for start in range(0, self._num_records, _BLOCK):
            words = stream.words(min(_BLOCK, self._num_records - start))
            parts.append(np.flatnonzero(words < below) + start)
        return np.concatenate(parts)


def sampler_for(noise: NoiseKind) -> type[PoissonSampler]:
    """Returns the sampler whose randomness is as good as that of the noise."""
    return PoissonSampler if noise == "fast" else CipherPoissonSampler


def rank_slice(
    indices: np.ndarray, rank: int, world_size: int, micro_batch: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns one rank's even part of a batch, in micro-batches of one fixed shape.

    Padding repeats record 0 with mask False: its gradient must be dropped after clipping. The
    list is empty if the rank has no record.

    Args:
      indices: int64 [B], the global batch.

    Returns:
      Pairs of indices int64 [micro_batch] and mask bool [micro_batch], True for real records.
    """
    if micro_batch < 1:
        raise ConfigError(f"micro_batch must be at least 1, got {micro_batch}.")
    assert 0 <= rank < world_size
    mine = np.array_split(indices, world_size)[rank]
    parts = []
    for start in range(0, len(mine), micro_batch):
        real = mine[start : start + micro_batch]
        padded = np.zeros(micro_batch, np.int64)
        padded[: len(real)] = real
        parts.append((padded, np.arange(micro_batch) < len(real)))
    return parts
