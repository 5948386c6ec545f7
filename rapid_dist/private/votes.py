"""The private prior's query: each record votes for its cluster, in its class.

The same query serves a second round, where the clusters are candidate images of the class.

Zeroing out one record changes one cell of the histogram by one, so the L2 sensitivity is 1. Where
the unit is a group, its images share its vote: it changes cells by amounts that add up to one at
most, and the L2 norm of those is at most 1. Shares are multiples of 2^-10, rounded down, so that
their sum is exact and no rounding carries a group over its one vote. The histogram leaves this room
once, with Gaussian noise; the counts themselves never do. Secure noise is added to whole numbers, a
vote being so many that each share is one.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import GaussianEvent, NoiseKind
from rapid_dist.privacy.noise import new_noise
from rapid_dist.private.loop import Keeper

_TICKS = 1024  # Parts of a group's vote. A cell's sum in float32 is exact below 2^14 groups.


class QueryKeeper(Keeper, Protocol):
    """Who pays for votes: the ledger's keeper, wherever it lives."""

    def charge_query(self, event: GaussianEvent, purpose: str) -> None: ...


def charged_histogram(
    images: PrivateImages,
    clusters: np.ndarray,
    query: GaussianEvent,
    *,
    num_classes: int,
    num_clusters: int,
    keeper: QueryKeeper,
    note: str,
    noise: NoiseKind = "fast",
    purpose: str = "prior",
    new_key: Callable[[], SecretKey] = SecretKey.generate,
    histogram: Callable[..., np.ndarray] | None = None,
) -> tuple[np.ndarray, int]:
    """Charges one round of votes in an attempt of its own, then counts and noises them.

    Args:
      query: what the plan has for it, and so its noise.
      note: what the ledger calls it.
      new_key, histogram: the audit's and the tests'; nobody else gives them.

    Returns:
      The noised histogram, float64 [Y, M], and the number of the attempt.

    Raises:
      BudgetError: the run's budget does not pay for it; nothing was counted.
    """
    attempt = keeper.begin_attempt().number
    keeper.charge_query(query, note)  # Durable on return (P6).
    counted = (histogram or noised_histogram)(
        images,
        clusters,
        num_classes=num_classes,
        num_clusters=num_clusters,
        noise_multiplier=query.noise_multiplier,
        key=new_key(),
        attempt=attempt,
        noise=noise,
        purpose=purpose,
    )
    return counted, attempt


def noised_histogram(
    images: PrivateImages,
    clusters: np.ndarray,
    *,
    num_classes: int,
    num_clusters: int,
    noise_multiplier: float,
    key: SecretKey,
    attempt: int,
    noise: NoiseKind = "fast",
    purpose: str = "prior",
) -> np.ndarray:
    """Returns the class-by-cluster histogram plus noise, float64 [Y, M].

    The query must be in the ledger before this is called (P6).

    Args:
      clusters: int64 [N], every record's cluster, each a function of that record alone; -1 for
        one whose features are not finite: it casts no vote.
      noise_multiplier: stddev of the noise; the sensitivity is 1.
      purpose: names the stream of the noise; each round of votes has its own.
    """
    cells, num_cells = images.labels * num_clusters + clusters, num_classes * num_clusters
    votes = clusters >= 0
    if images.groups is None:
        counts = np.bincount(cells[votes], minlength=num_cells).astype(np.float64)
    else:
        sizes = np.bincount(images.groups)  # Of all images: one without a vote lends it to none.
        counts = _shared(images.groups[votes], cells[votes], sizes, num_cells)
    mechanism = new_noise(noise, 1.0, noise_multiplier, key, attempt, purpose)
    if mechanism.units is None:
        flat = torch.from_numpy(counts.astype(np.float32))  # Exact below 2^24 records a cell.
    else:
        flat = torch.from_numpy((counts * mechanism.units).astype(np.int64))  # Exact: 2^22 / 2^10.
    return mechanism.release(flat, step=0).double().numpy().reshape(num_classes, num_clusters)


def _shared(groups: np.ndarray, cells: np.ndarray, sizes: np.ndarray, num_cells: int) -> np.ndarray:
    """Votes that the images [n] of a group share, float64 [num_cells], in multiples of 2^-10.

    Args:
      groups, cells: int64 [n], of every image that has a vote.
      sizes: int64 [number of groups], images of each group.
    """
    pairs, images = np.unique(groups * num_cells + cells, return_counts=True)
    shares = images * _TICKS // sizes[pairs // num_cells]  # Of one group: at most _TICKS together.
    counts: np.ndarray = np.bincount(pairs % num_cells, shares, minlength=num_cells) / _TICKS
    return counts
