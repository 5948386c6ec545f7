"""The knowledge base: public trajectories by id, and exact search over their keys.

    base = KnowledgeBase.open(storage)
    distances, ids = base.search(embed(states_at_k), k=1)
    surrogates = base.state(ids[:, 0], level=noise_level_at_v)

This one lives in the process that asks, so a query never leaves it. Queries are not logged,
cached or stored.

Shapes: E entries, Q queries, D key dimensions, n ids.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch

from rapid_dist.errors import ConfigError
from rapid_dist.retrieval.jitter import JitterConfig
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.retrieval.searcher import ShardSearcher
from rapid_dist.retrieval.trajectory import noises_of, state_at, unit_images
from rapid_dist.storage import Storage

IndexKind = Literal["flat", "ivf_flat", "ivf_pq"]


@dataclass(frozen=True, kw_only=True)
class KnowledgeBaseConfig:
    """How public reference images become a searchable knowledge base."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    seeds_per_image: int = 1  # Trajectories of every reference image.
    seed: int = 0  # First of an image's seeds.
    num_shards: int = 8  # Never depends on the number of actors.
    embed_batch: int = 64
    keys: Literal["contrast", "pixels"] = "contrast"  # What a query and a key are compared by.
    features: Literal["contrast", "pixels"] = "pixels"  # What the prior's clusters are made from.
    variants: int = 1  # Images made of each reference: itself, and jittered copies.
    variant_jitter: JitterConfig = field(default_factory=JitterConfig)
    clusters: int = 1_000  # Clusters of the prior.
    kmeans_iterations: int = 20
    kmeans_images: int = 100_000  # The centroids are fitted on at most as many images.
    index: IndexKind = "flat"  # The others are approximate, for a million entries and more.
    index_lists: int | None = None  # Of an inverted index; None = the power of 2 nearest 4 sqrt(E).
    index_probes: int = 32  # Lists that a query looks into.
    index_bytes: int = 32  # Of an entry, for ivf_pq.
    # Candidates a neighbour, for ivf_pq, ranked by whole keys on local disk; 0 = ranked by codes.
    index_rerank: int = 0
    index_keys: int = 100_000  # Keys that an inverted index is trained on at most.

    def __post_init__(self) -> None:
        for name in ("seeds_per_image", "num_shards", "embed_batch", "clusters", "variants"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"knowledge_base.{name} must be at least 1, got {getattr(self, name)}."
                )
        for name in ("index_lists", "index_probes", "index_bytes", "index_keys"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"knowledge_base.{name} must be at least 1, got {value}.")
        if self.index_rerank < 0 or (self.index_rerank and self.index != "ivf_pq"):
            raise ConfigError(
                f"knowledge_base.index_rerank={self.index_rerank} needs index=ivf_pq, got "
                f"{self.index!r}: the others keep whole keys. Set it to 0."
            )
        if self.seed < 0 or self.kmeans_iterations < 1:
            raise ConfigError(
                "knowledge_base.seed must be at least 0 and kmeans_iterations at least 1, got "
                f"{self.seed} and {self.kmeans_iterations}."
            )

        if self.variants > 1 and self.variant_jitter.is_off:
            raise ConfigError(
                f"knowledge_base.variants is {self.variants}, but knowledge_base.variant_jitter "
                "changes nothing. Give it a rotation, shear, scale or shift."
            )
        if self.kmeans_images < self.clusters:
            raise ConfigError(
                f"knowledge_base.kmeans_images={self.kmeans_images} is below clusters="
                f"{self.clusters}. Raise it."
            )

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seeds_per_image))


class KnowledgeBase:
    """All shards in one process. Public data only; every answer is exact."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self.manifest = manifest
        shards = [manifest.open_shard(storage, record) for record in manifest.shards]
        self._images = np.concatenate([shard.images for shard in shards])
        self._hashes = [bytes(row) for shard in shards for row in shard.hashes]
        self._image_labels = np.concatenate([shard.labels for shard in shards])
        self.features = np.concatenate([shard.features for shard in shards])
        """float32 [number of images, F]: features of the clean images, for clustering."""
        self._searcher = ShardSearcher(storage, manifest, range(len(manifest.shards)))

    @classmethod
    def open(cls, storage: Storage, expected_fingerprint: str | None = None) -> "KnowledgeBase":
        """Opens a finished knowledge base; refuses another than the expected manifest's."""
        manifest = Manifest.read(storage)
        if expected_fingerprint is not None and manifest.fingerprint != expected_fingerprint:
            raise ConfigError(
                f"{storage.uri} holds knowledge base {manifest.fingerprint[:16]}, this run needs "
                f"{expected_fingerprint[:16]}. Point the run at the one it was started with."
            )
        return cls(storage, manifest)

    def __len__(self) -> int:
        return self.manifest.num_entries

    def search(
        self, queries: np.ndarray, k: int, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k nearest entries of every query, exactly, ties to the smaller id.

        Args:
          queries: float32 [Q, D], as the embedder gives them.
          k: neighbors to find.
          labels: int64 [Q], the public class that each query must be answered from.

        Returns:
          squared L2 float32 [Q, k] between centred and scaled keys, ascending, and entry ids
          int64 [Q, k]; (inf, -1) where there are fewer than k.
        """
        return self._searcher.search(queries, k, labels)

    def image_of(self, ids: np.ndarray) -> np.ndarray:
        """Entries int64 [n] -> the reference image of each, int64 [n]: a row of ``features``."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            # Which ids, it does not say: a private record's neighbour is private (P9).
            raise ConfigError(
                f"Entry ids must be in 0..{len(self) - 1}. A search for more neighbors than there "
                "are, or by a query that is not finite, gives -1."
            )
        rows: np.ndarray = ids // len(self.manifest.spec.seeds)
        return rows

    @property
    def reference_images(self) -> np.ndarray:
        """All reference images, uint8 [number of images, C, H, W]."""
        return self._images

    @property
    def reference_hashes(self) -> np.ndarray:
        """The content hash of every reference image, uint8 [number of images, 32]."""
        return np.frombuffer(b"".join(self._hashes), np.uint8).reshape(-1, 32)

    def per_entry(self, values: np.ndarray) -> np.ndarray:
        """Spreads one value a reference image to one value an entry, [E]."""
        return np.repeat(values, len(self.manifest.spec.seeds), axis=0)

    def images(self, ids: np.ndarray) -> np.ndarray:
        """Entries int64 [n] -> their clean images, uint8 [n, C, H, W]."""
        images: np.ndarray = self._images[self.image_of(ids)]
        return images

    def labels(self, ids: np.ndarray) -> np.ndarray:
        """Entries int64 [n] -> their public classes, int64 [n]."""
        labels: np.ndarray = self._image_labels[self.image_of(ids)]
        return labels

    def noise(self, ids: np.ndarray) -> np.ndarray:
        """Entries int64 [n] -> the noise of their paths, float32 [n, C, H, W], drawn again."""
        seeds = self.manifest.spec.seeds
        hashes = [self._hashes[row] for row in self.image_of(ids)]
        return noises_of(hashes, [seeds[i % len(seeds)] for i in ids], self._images.shape[1:])

    def state(self, ids: np.ndarray, level: float) -> torch.Tensor:
        """Entries int64 [n] -> their states at noise level ``level``, float32 [n, C, H, W]."""
        return torch.from_numpy(state_at(unit_images(self.images(ids)), self.noise(ids), level))
