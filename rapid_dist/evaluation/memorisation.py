"""Whether samples lie closer to training records than fresh records of the same kind do.

For every sample, the distance to its nearest private training record is set against the same
distance of held-out records, which training never saw. A generator that copies gives distances
that held-out records do not have. It is no proof of privacy, which the accounting gives; it is
the look that would notice a broken mechanism. The summary is an internal result (P13).

Letters: M samples, H held-out records, N training records, D features.
"""

from dataclasses import asdict, dataclass

import numpy as np
import scipy.stats
import torch

from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.fidelity import Float32Array

CHUNK_ROWS = 500  # Rows of a distance matrix held at once.
CLOSE_QUANTILE = 0.01  # "Close": nearer than 99% of held-out records are.


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Distances to the nearest training record: samples against held-out records."""

    median_sample_distance: float
    median_held_out_distance: float
    median_ratio: float  # Sample / held-out; well below 1 is suspicious.
    close_share: float  # Share of samples closer than 99% of held-out records; 0.01 is chance.
    exact_copies: int  # Samples at distance 0 of a training record.
    closer_chance: float  # P(sample closer than held-out), ties half; 0.5 if alike.
    closer_p_value: float  # One-sided Mann-Whitney: such closeness, if both were alike.

    def to_json(self) -> dict[str, float]:
        """Returns every figure by name."""
        return asdict(self)


def memorisation(
    samples: Float32Array, train: Float32Array, held_out: Float32Array
) -> Memorisation:
    """Compares samples float32 [M, D] and held-out records [H, D] with training records [N, D]."""
    for name, features in (("samples", samples), ("train", train), ("held_out", held_out)):
        if len(features) == 0:
            raise ConfigError(f"Memorisation needs images, but {name} is empty. Add some.")
    # In float64, or small p-values would round to 0.
    of_samples = nearest_distances(samples, train).astype(np.float64)
    of_held_out = nearest_distances(held_out, train).astype(np.float64)
    threshold = np.quantile(of_held_out, CLOSE_QUANTILE)
    test = scipy.stats.mannwhitneyu(of_samples, of_held_out, alternative="less")
    later = float(test.statistic) / (len(of_samples) * len(of_held_out))
    sample_median, held_out_median = float(np.median(of_samples)), float(np.median(of_held_out))
    return Memorisation(
        median_sample_distance=sample_median,
        median_held_out_distance=held_out_median,
        median_ratio=sample_median / held_out_median if held_out_median else float("inf"),
        close_share=float(np.mean(of_samples < threshold)),
        exact_copies=int(np.sum(of_samples == 0)),
        closer_chance=1 - later,
        closer_p_value=float(test.pvalue),
    )


def nearest_distances(points: Float32Array, others: Float32Array) -> Float32Array:
    """Returns each point's Euclidean distance to its nearest neighbour in ``others``, [M].

    The neighbour is found with a fast product and its distance then taken exactly, so that a copy
    is at distance 0 and not at a rounding error.
    """
    rows, columns = torch.from_numpy(points), torch.from_numpy(others)
    center = columns.mean(0)  # Distances of centred vectors lose the fewest digits.
    centered = columns - center
    nearest = torch.cat(
        [torch.cdist(part - center, centered).argmin(1) for part in torch.split(rows, CHUNK_ROWS)]
    )
    distances: Float32Array = (rows - columns[nearest]).norm(dim=1).numpy()
    return distances
