"""The prior over trajectories: from which public entry a sample of class y starts.

Public entries are clustered on public features alone. A noised class-by-cluster histogram of
votes (made and charged elsewhere) becomes one distribution over clusters for every class;
inside a cluster all entries are equally likely, or those nearest to its centre are
(``prior.nearest``). Everything here is post-processing of that histogram and of public data.

Shapes: E entries, Y classes, M clusters, n samples.
"""

import hashlib
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays
from rapid_dist.retrieval.jitter import JitterConfig


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """How records vote, and how the noised histogram is read. None of it changes what it costs."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    threshold: float = 3.0  # Counts below this many noise stddevs count as none.
    jitter: JitterConfig = field(default_factory=JitterConfig)  # One variant a sample.
    # What a record is compared with clusters by: the knowledge base's own features, pixels, the
    # extractor h, or an activation of D_pub at the noise level of ``feature_step``.
    features: Literal["knowledge_base", "pixels", "contrast", "denoiser"] = "knowledge_base"
    feature_step: int = 300
    # Of each cluster's references, only so many are drawn, those nearest to its centre; null = all
    # alike. Fewer are more like what was voted for, and repeat themselves more.
    nearest: int | None = None
    # Of the second round of votes, where privacy.candidate_share pays for one:
    candidates: int = 64  # Images of each class that are made to be voted for.
    candidate_weight: float = (
        0.5  # Of the second round in the refined prior; the first has the rest.
    )

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ConfigError(f"prior.threshold must not be negative, got {self.threshold}.")
        if self.feature_step < 1 or self.candidates < 1:
            raise ConfigError(
                "prior.feature_step and prior.candidates must be at least 1, got "
                f"{self.feature_step} and {self.candidates}."
            )
        if self.nearest is not None and self.nearest < 1:
            raise ConfigError(
                f"prior.nearest must be at least 1, got {self.nearest}. null draws from all alike."
            )
        if not 0 <= self.candidate_weight <= 1:
            raise ConfigError(
                f"prior.candidate_weight must be in [0, 1], got {self.candidate_weight}."
            )


def estimate(noised_histogram: np.ndarray, noise: float, config: PriorConfig) -> np.ndarray:
    """float64 [Y, M] noised counts -> float64 [Y, M] probabilities p(cluster | class).

    Args:
      noise: stddev of the histogram's noise.
    """
    return normalise(noised_histogram, config.threshold * noise)


def normalise(noised_histogram: np.ndarray, threshold: float) -> np.ndarray:
    """float64 [Y, M] noised counts -> float64 [Y, M] probabilities, every row summing to 1.

    Counts below ``threshold`` (or not above zero) become 0. A row in which nothing is left says
    nothing about its class: it becomes uniform over all clusters.
    """
    if not np.isfinite(noised_histogram).all():
        raise ConfigError("The noised histogram has non-finite counts. Check the noise multiplier.")
    kept = np.where(noised_histogram >= threshold, np.maximum(noised_histogram, 0.0), 0.0)
    kept[kept.sum(axis=1) == 0] = 1.0
    probabilities: np.ndarray = kept / kept.sum(axis=1, keepdims=True)
    return probabilities


def cells_above(noised_histogram: np.ndarray, noise: float, config: PriorConfig) -> np.ndarray:
    """Returns how many cells of each class have a count that passes the threshold, int64 [Y]."""
    above = (noised_histogram >= config.threshold * noise) & (noised_histogram > 0)
    each: np.ndarray = above.sum(axis=1)
    return each


def told_votes(noised_histogram: np.ndarray, noise: float, config: PriorConfig) -> str:
    """Says how many cells are left above the threshold; of the noised histogram alone.

    Cells are clusters of a class, or the candidates of a second round.
    """
    each = cells_above(noised_histogram, noise, config)
    line = f"votes above the threshold: {each.min()} to {each.max()} cells a class"
    silent = int((each == 0).sum())
    if silent:
        line += (
            f"; {silent} of {len(each)} classes have none, and the votes say nothing of them: give "
            "votes more of the budget, or fewer cells"
        )
    return line


def with_nearest(
    cluster_of_entry: np.ndarray, distances: np.ndarray, num_clusters: int, nearest: int
) -> np.ndarray:
    """Returns int64 [E] in which all but each cluster's nearest entries are in ``num_clusters``.

    That cluster is nobody's: no record votes for it, and its probability is 0.

    Args:
      distances: float [E], of each entry to the centre of its cluster; ties go to the first entry.
      nearest: entries that each cluster keeps.
    """
    order = np.lexsort((distances, cluster_of_entry))
    sizes = np.bincount(cluster_of_entry, minlength=num_clusters)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - first[cluster_of_entry[order]]
    return np.where(place < nearest, cluster_of_entry, num_clusters)


class TrajectoryPrior:
    """p(entry | class): a distribution over clusters, uniform over the entries of a cluster."""

    def __init__(self, cluster_of_entry: np.ndarray, probabilities: np.ndarray) -> None:
        """Takes int64 [E] clusters of entries and float64 [Y, M] probabilities of clusters.

        Clusters without entries cannot be drawn: their mass is shared out in proportion among
        the other clusters of the class (evenly, if it was all of it).
        """
        num_clusters = probabilities.shape[1]
        if len(cluster_of_entry) == 0 or not (
            0 <= cluster_of_entry.min() <= cluster_of_entry.max() < num_clusters
        ):
            raise ConfigError(
                f"cluster_of_entry must name clusters 0..{num_clusters - 1} for at least one "
                "entry. Assign the entries with the centroids that the histogram was made with."
            )
        self.cluster_of_entry = cluster_of_entry.astype(np.int64)
        self._sizes = np.bincount(self.cluster_of_entry, minlength=num_clusters)
        usable = np.where(self._sizes > 0, probabilities, 0.0).astype(np.float64)
        usable[usable.sum(axis=1) == 0] = self._sizes > 0
        self.probabilities = usable / usable.sum(axis=1, keepdims=True)
        self._by_cluster = np.argsort(self.cluster_of_entry, kind="stable")
        self._first = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        cumulative = np.cumsum(self.probabilities, axis=1)
        self._cumulative = cumulative / cumulative[:, -1:]  # Ends in exactly 1, above any draw.

    @property
    def num_classes(self) -> int:
        return len(self.probabilities)

    def draw(self, labels: np.ndarray, seed: int, ids: np.ndarray) -> np.ndarray:
        """Returns the entry that each sample starts from, int64 [n].

        Sample i is a pure function of (labels[i], seed, ids[i]): neither the batch nor the
        worker it is drawn in matters.

        Args:
          labels: int64 [n], classes in 0..Y-1.
          seed: one seed for a whole generation.
          ids: int64 [n], every sample's own number, at least 0.
        """
        self._check(labels)
        uniform = _uniforms(seed, ids)
        clusters = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            chosen = labels == label
            clusters[chosen] = np.searchsorted(
                self._cumulative[label], uniform[chosen, 0], side="right"
            )
        places = (uniform[:, 1] * self._sizes[clusters]).astype(np.int64)
        places = np.minimum(places, self._sizes[clusters] - 1)  # u * size may round up to size.
        entries: np.ndarray = self._by_cluster[self._first[clusters] + places]
        return entries

    def to_bytes(self) -> bytes:
        """Returns an npz without pickle, the same bytes for the same prior."""
        return pack_arrays(
            {"cluster_of_entry": self.cluster_of_entry, "probabilities": self.probabilities}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrajectoryPrior":
        """Opens ``to_bytes``; refuses a torn file and other arrays."""
        arrays = unpack_arrays(data, "The prior")
        if arrays.keys() != {"cluster_of_entry", "probabilities"}:
            raise ShardError(f"The prior holds {sorted(arrays)}; it was written by something else.")
        return cls(arrays["cluster_of_entry"], arrays["probabilities"])

    def _check(self, labels: np.ndarray) -> None:
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ConfigError(
                f"Labels must be in 0..{self.num_classes - 1} for this prior, got "
                f"{labels.min()}..{labels.max()}. A prior is drawn for a given class only."
            )


def refined(
    prior: TrajectoryPrior, entries: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> TrajectoryPrior:
    """Returns the prior in which entries that were voted for weigh more.

    (1 - weight) of a class's mass stays where it was, to the last entry; its weight of it goes to
    the entries that its candidates were made from, by the candidates' probabilities. Each of those
    entries is then a cluster of its own.

    Args:
      entries: int64 [Y, C], the entry that each candidate of a class was made from.
      probabilities: float64 [Y, C], of the candidates; every row sums to 1.
      weights: float64 [Y], of each class; 0 for one of which the second round says nothing.
    """
    chosen, place = np.unique(entries, return_inverse=True)
    place = place.reshape(entries.shape)
    old = prior.cluster_of_entry
    num_clusters = prior.probabilities.shape[1]
    sizes = np.bincount(old, minlength=num_clusters)
    taken = np.bincount(old[chosen], minlength=num_clusters)
    share = prior.probabilities / np.maximum(sizes, 1)  # Of one entry of each cluster.
    voted = np.zeros((prior.num_classes, len(chosen)))
    for label in range(prior.num_classes):
        np.add.at(voted[label], place[label], probabilities[label])
    stays = (1 - weights[:, None]) * np.hstack([share * (sizes - taken), share[:, old[chosen]]])
    stays[:, num_clusters:] += weights[:, None] * voted
    clusters = old.copy()
    clusters[chosen] = num_clusters + np.arange(len(chosen))
    return TrajectoryPrior(clusters, stays)


def _uniforms(seed: int, ids: np.ndarray) -> np.ndarray:
    """Returns float64 [n, 2] in [0, 1): row i is a pure function of (seed, ids[i])."""
    digest = hashlib.sha256(f"{seed}|prior".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    raw = np.empty((len(ids), 2), np.uint64)
    for row, sample in enumerate(ids):
        # The id is the counter's highest word, so no two samples share a block.
        raw[row] = np.random.Philox(key=key, counter=int(sample) << 192).random_raw(2)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
