"""A private score: how many held-out units are named right, released with noise.

Classifiers that were trained on synthetic images alone are asked for the class of every held-out
record. A record's answer is a function of that record and the released model, and its share of
right answers is at most 1; a group's images share one answer. Replacing a unit by nothing takes
its share away, so the sensitivity of the sum is 1.
"""

from collections.abc import Sequence

import numpy as np
import torch

from rapid_dist.data.images import Int64Array, PrivateImages
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import NoiseKind
from rapid_dist.privacy.noise import new_noise

_TICKS = 1024  # Parts of a unit's share. A sum in float32 is exact below 2^14 units.


def noised_score(
    held_out: PrivateImages,
    predicted: Sequence[Int64Array],
    *,
    noise_multiplier: float,
    key: SecretKey,
    attempt: int,
    noise: NoiseKind = "fast",
) -> float:
    """Returns the number of units named right, plus noise; not their share, which would need N.

    The query must be in the ledger before this is called (P6).

    Args:
      predicted: of each classifier, the classes int64 [N] that it gives the held-out records.
      noise_multiplier: stddev of the noise; the sensitivity is 1.
    """
    right = np.mean([answer == held_out.labels for answer in predicted], axis=0)
    count = float(_shares(right, held_out.groups).sum())
    mechanism = new_noise(noise, 1.0, noise_multiplier, key, attempt, purpose="score")
    if mechanism.units is None:
        flat = torch.tensor([count], dtype=torch.float32)
    else:
        flat = torch.tensor([round(count * mechanism.units)], dtype=torch.int64)  # Exact.
    return float(mechanism.release(flat, step=0)[0])


def _shares(right: np.ndarray, groups: Int64Array | None) -> np.ndarray:
    """Each unit's share of right answers, float64 [units], rounded down to multiples of 2^-10."""
    if groups is not None:
        ids = np.unique(groups, return_inverse=True)[1]  # Held-out ids need not be dense.
        right = np.bincount(ids, right) / np.bincount(ids)
    shares: np.ndarray = np.floor(right * _TICKS) / _TICKS
    return shares
