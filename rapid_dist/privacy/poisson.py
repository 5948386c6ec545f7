"""Poisson sampling: which records take part in a step.

The draw is one for the whole group of workers and a pure function of (key, attempt, step), so
every rank makes the same draw without communication and at any world size.
"""

import numpy as np

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.keys import SecretKey


class PoissonSampler:
    """Draws the batch of any step; holds no position, so nothing is lost in a restart."""

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
