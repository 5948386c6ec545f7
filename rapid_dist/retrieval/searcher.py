"""Search over some shards of a knowledge base, wherever they are held.

Needs neither torch nor a network: a search actor is little more than its vectors. They are read
shard by shard into the index' own memory, so that two copies of all of them never exist.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rapid_dist.retrieval.inverted import InvertedIndex
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.retrieval.merge import merge_neighbors
from rapid_dist.retrieval.vectors import Part, VectorIndex
from rapid_dist.storage import Storage


def read_parts(storage: Storage, manifest: Manifest, places: Sequence[int]) -> Iterator[Part]:
    """Yields the searched keys, ids and classes of one shard after the other."""
    first_ids = manifest.first_ids()
    for place in places:
        shard = manifest.open_shard(storage, manifest.shards[place])
        ids = first_ids[place] + np.arange(len(shard.keys))
        yield manifest.framed(shard.keys), ids, np.repeat(shard.labels, len(shard.seeds))


def keys_of(storage: Storage, manifest: Manifest, ids: np.ndarray) -> np.ndarray:
    """Returns the searched keys of entries int64 [n], float32 [n, D]; ids ascending."""
    keys = np.empty((len(ids), manifest.key_dim), np.float32)
    for vectors, part_ids, _ in read_parts(storage, manifest, range(len(manifest.shards))):
        rows = slice(*np.searchsorted(ids, [part_ids[0], part_ids[-1] + 1]))
        keys[rows] = vectors[ids[rows] - part_ids[0]]
    return keys


def search_by_parts(
    storage: Storage,
    manifest: Manifest,
    search: Callable[[Part], tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the answers of all shards, merged; one shard is held at a time."""
    best: tuple[np.ndarray, np.ndarray] | None = None
    for part in read_parts(storage, manifest, range(len(manifest.shards))):
        found = search(part)
        if best is not None:
            found = merge_neighbors(
                np.stack([best[0], found[0]]), np.stack([best[1], found[1]]), found[0].shape[1]
            )
        best = found
    assert best is not None
    return best


class ShardSearcher:
    """Searches some shards of a knowledge base, opened from storage when first asked."""

    def __init__(
        self, storage: Storage, manifest: Manifest, places: Sequence[int], *, on_gpu: bool = False
    ) -> None:
        """Takes the places of the shards in the manifest; at least one."""
        self._storage, self._manifest, self._places = storage, manifest, places
        self._on_gpu = on_gpu
        self._index: VectorIndex | InvertedIndex | None = None

    def search(
        self, queries: np.ndarray, k: int, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of these shards' entries; see ``KnowledgeBase.search``."""
        return self.index().search(self._manifest.framed(queries), k, labels)

    def index(self) -> VectorIndex | InvertedIndex:
        """Returns the index over these shards, checking every hash on first use."""
        if self._index is None:
            manifest = self._manifest
            if manifest.index is None:
                entries = sum(manifest.shards[place].num_entries for place in self._places)
                flat = VectorIndex.gather(
                    read_parts(self._storage, manifest, self._places), entries, manifest.key_dim
                )
                self._index = flat.to_gpu() if self._on_gpu else flat
            else:
                trained = manifest.open_index(self._storage)
                self._index = InvertedIndex(
                    trained,
                    manifest.index.probes,
                    read_parts(self._storage, manifest, self._places),
                    rerank=manifest.index.rerank,
                )
        return self._index


class ShardImages:
    """The reference images of some shards, read when first asked for."""

    def __init__(self, storage: Storage, manifest: Manifest, places: Sequence[int]) -> None:
        self._storage, self._manifest, self._places = storage, manifest, set(places)
        self._images: dict[int, np.ndarray] = {}  # By place.

    def images(self, ids: np.ndarray) -> np.ndarray:
        """Entries int64 [n] of these shards -> their images, uint8 [n, C, S, S]."""
        first_ids, spec = np.array(self._manifest.first_ids()), self._manifest.spec
        images = np.empty((len(ids), spec.channels, spec.size, spec.size), np.uint8)
        place_of = np.searchsorted(first_ids, ids, side="right") - 1
        for place in np.unique(place_of).tolist():
            assert place in self._places, "Every entry is asked of the actor that holds it."
            if place not in self._images:
                record = self._manifest.shards[place]
                self._images[place] = self._manifest.open_shard(self._storage, record).images
            chosen = place_of == place
            rows = (ids[chosen] - first_ids[place]) // len(spec.seeds)
            images[chosen] = self._images[place][rows]
        return images
