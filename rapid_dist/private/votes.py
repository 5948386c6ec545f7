"""The private prior's one query: each record votes for its cluster, in its class.

Zeroing out one record changes one cell of the histogram by one, so the L2 sensitivity is 1. Where
the unit is a group, its images share its vote: it changes cells by amounts that add up to one, and
the L2 norm of those is at most 1. The histogram leaves this room once, with Gaussian noise; the
counts themselves never do.
"""

from collections.abc import Callable

import numpy as np
import torch

from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.noise import add_noise_

Assign = Callable[[np.ndarray], np.ndarray]  # uint8 [N, C, H, W] -> cluster int64 [N], per record


def noised_histogram(
    images: PrivateImages,
    clusters: np.ndarray,
    *,
    num_classes: int,
    num_clusters: int,
    noise_multiplier: float,
    key: SecretKey,
    attempt: int,
) -> np.ndarray:
    """Returns the class-by-cluster histogram plus noise, float64 [Y, M].

    The query must be in the ledger before this is called (P6).

    Args:
      clusters: int64 [N], every record's cluster, each a function of that record alone; -1 for
        one whose features are not finite: it casts no vote.
      noise_multiplier: stddev of the noise; the sensitivity is 1.
    """
    cells = images.labels * num_clusters + np.maximum(clusters, 0)
    votes = np.ones(len(cells)) if images.groups is None else _shares(images.groups)
    votes = np.where(clusters >= 0, votes, 0.0)
    counts = np.bincount(cells, votes, minlength=num_classes * num_clusters)
    flat = torch.from_numpy(counts.astype(np.float32))  # Exact below 2^24 records a cell.
    add_noise_(flat, noise_multiplier, key, step=0, attempt=attempt, purpose="prior")
    return flat.double().numpy().reshape(num_classes, num_clusters)


def _shares(groups: np.ndarray) -> np.ndarray:
    """int64 [N] group ids -> float64 [N], one over the size of each image's group."""
    shares: np.ndarray = 1.0 / np.bincount(groups)[groups]
    return shares
