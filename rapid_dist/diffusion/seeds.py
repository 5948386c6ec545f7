"""Randomness that belongs to a sample, not to a batch or a worker.

Row ``i`` of every draw is a pure function of (seed, purpose, id of the sample), so the images of a
run do not depend on the batch size or on the number of workers (Karras et al. 2024 do likewise).
Only public randomness may come from here: a seed is a setting, and settings are published.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch


def generator_for(seed: int, purpose: str, sample_id: int) -> np.random.Generator:
    """Returns the generator of one sample and one purpose."""
    digest = hashlib.sha256(f"{seed}|{purpose}|{sample_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def normal_for(
    seed: int, ids: np.ndarray, shape: Sequence[int], purpose: str = "noise"
) -> torch.Tensor:
    """Returns standard normal draws, float32 [N, *shape], one row for each id."""
    rows = np.empty((len(ids), *shape), dtype=np.float32)
    for row, sample_id in enumerate(ids.tolist()):
        rows[row] = generator_for(seed, purpose, sample_id).standard_normal(
            tuple(shape), dtype=np.float32
        )
    return torch.from_numpy(rows)


def churn_for(seed: int, ids: np.ndarray, shape: Sequence[int]) -> Callable[[int], torch.Tensor]:
    """Returns what gives every sample its own fresh noise for an interval of a sampling path."""
    return lambda interval: normal_for(seed, ids, shape, purpose=f"churn {interval}")
