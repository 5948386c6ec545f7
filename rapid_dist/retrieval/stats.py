"""What a knowledge base holds, and how its answers are spread. Public data and public queries only.

Shapes: E entries, n images, Q queries, D key dimensions.
"""

from dataclasses import dataclass

import numpy as np

from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.manifest import IndexRecord, Manifest
from rapid_dist.retrieval.merge import NO_NEIGHBOR
from rapid_dist.retrieval.searcher import keys_of, search_by_parts
from rapid_dist.retrieval.vectors import VectorIndex
from rapid_dist.storage import Storage

_SAMPLE = 2_000  # Entries whose nearest neighbours are looked for.
_SEED = 0
_MOST_NEIGHBORS = 64  # Searched for one of another image, among an image's own entries and copies.


@dataclass(frozen=True, kw_only=True)
class KnowledgeBaseStats:
    """Counts, sizes and distances of a knowledge base."""

    entries: int
    images: int
    classes: int
    shards: int
    inherited_shards: int  # Of knowledge bases that this one extends.
    shard_bytes: int
    vector_bytes: int  # That a search over all of it holds in memory.
    key_dim: int
    class_sizes: dict[int, int]  # Images of each public class that has any.
    shard_balance: float  # Entries of the largest shard over the mean.
    class_balance: float  # Images of the largest class over the mean.
    duplicate_images: int  # Equal in content to an earlier one: of another class, or added later.
    duplicate_keys: int  # Sampled entries with an entry of another image at distance 0.
    sampled: int
    nearest: tuple[
        float, ...
    ]  # Squared distances to the nearest entry of another image, ascending.
    index: IndexRecord | None  # None = flat, exact.

    def quantile(self, share: float) -> float:
        """The distance below which this share of the sampled entries has its nearest neighbour."""
        return float(np.quantile(self.nearest, share)) if self.nearest else float("nan")

    def lines(self) -> list[str]:
        """Returns what a person wants to know, one fact a line."""
        inherited = f", {self.inherited_shards} of them inherited" * (self.inherited_shards > 0)
        return [
            f"entries      {self.entries:,} of {self.images:,} images in {self.classes:,} classes",
            f"shards       {self.shards:,}{inherited}; {_mib(self.shard_bytes)} stored",
            f"vectors      {self.key_dim} dimensions, {_mib(self.vector_bytes)} in memory",
            index_line(self.index).replace("index ", "index        ", 1),
            f"balance      largest shard {self.shard_balance:.2f} times the mean, largest class "
            f"{self.class_balance:.2f} times",
            f"duplicates   {self.duplicate_images:,} images equal to another; "
            f"{self.duplicate_keys:,} of {self.sampled:,} sampled keys equal to another image's",
            "nearest      squared distance to another image's entry: 1% "
            f"{self.quantile(0.01):.4f}, half {self.quantile(0.5):.4f}, 99% "
            f"{self.quantile(0.99):.4f}",
        ]


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def index_line(index: IndexRecord | None) -> str:
    """Says how a knowledge base is searched, and how much of the truth that finds."""
    if index is None:
        return "index flat: exact"
    recall = ", ".join(f"recall@{k} {share:.3f}" for k, share in sorted(index.recall.items()))
    ranked = f", {index.rerank} candidates a place re-ranked" if index.rerank else ""
    return (
        f"index {index.kind}: {index.lists:,} lists, {index.probes} looked into{ranked}; {recall} "
        f"on {index.recall_queries:,} public entries"
    )


def measure(base: KnowledgeBase, storage: Storage) -> KnowledgeBaseStats:
    """Measures a knowledge base and, shard by shard, the distances inside it."""
    manifest = base.manifest
    hashes = base.reference_hashes
    # An image is an own image by its content: one that occurs twice is no neighbour of itself.
    _, content, counts = np.unique(hashes, axis=0, return_inverse=True, return_counts=True)
    labels = base.labels(np.arange(0, len(base), len(manifest.spec.seeds)))
    classes, sizes = np.unique(labels, return_counts=True)
    entries = [record.num_entries for record in manifest.shards]
    nearest, zero = _nearest(storage, manifest, base.per_entry(content.ravel()))
    return KnowledgeBaseStats(
        entries=len(base),
        images=manifest.num_images,
        classes=len(classes),
        shards=len(manifest.shards),
        inherited_shards=sum(bool(record.home) for record in manifest.shards),
        shard_bytes=sum(record.num_bytes for record in manifest.shards),
        vector_bytes=manifest.vector_bytes,
        key_dim=manifest.key_dim,
        class_sizes={int(c): int(s) for c, s in zip(classes, sizes, strict=True)},
        shard_balance=max(entries) / float(np.mean(entries)),
        class_balance=float(sizes.max() / sizes.mean()),
        duplicate_images=int((counts - 1).sum()),
        duplicate_keys=zero,
        sampled=min(_SAMPLE, len(base)),
        nearest=tuple(float(d) for d in np.sort(nearest)),
        index=manifest.index,
    )


def _nearest(
    storage: Storage, manifest: Manifest, image_of_entry: np.ndarray
) -> tuple[np.ndarray, int]:
    """Squared distances of a fixed sample to the nearest entry of another image, float32 [<= Q].

    Entries that have only their own image among many neighbours are left out. And how many are 0.
    """
    num_entries = manifest.num_entries
    asked = np.sort(np.random.default_rng(_SEED).permutation(num_entries)[:_SAMPLE])
    keys, k = keys_of(storage, manifest, asked), min(_MOST_NEIGHBORS, num_entries)
    distances, ids = search_by_parts(
        storage, manifest, lambda part: VectorIndex(*part).search(keys, k)
    )
    foreign = (ids != NO_NEIGHBOR) & (image_of_entry[ids] != image_of_entry[asked][:, None])
    first = np.take_along_axis(distances, foreign.argmax(axis=1)[:, None], 1)[:, 0]
    first = first[foreign.any(axis=1)]
    return first, int((first == 0).sum())


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How evenly some queries are answered. Of public queries only: a record's are private (P9)."""

    queries: int
    unique_rate: float  # Different entries found, over queries.
    most_used_share: float  # Of all queries that got the entry most often found.


def diversity(ids: np.ndarray) -> Diversity:
    """Measures the entries that public queries found, int64 [Q], Q > 0."""
    _, counts = np.unique(ids, return_counts=True)
    return Diversity(
        queries=len(ids),
        unique_rate=len(counts) / len(ids),
        most_used_share=float(counts.max() / len(ids)),
    )
