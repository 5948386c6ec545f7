"""Trains the approximate index of a knowledge base once, and measures what it finds.

    manifest = write_index(storage, exact, "knowledge-base-of-exact", config, seed)

An approximate knowledge base is an exact one, whose shards it lists where they are, and this index.
The trained part is a small file, listed in the manifest by its hash and read by every searcher.
What it finds is measured against exact search on a fixed sample of the public entries themselves,
shard by shard, so that no machine has to hold all of them.

Shapes: Q queries, k neighbours, D dimensions.
"""

import math
from dataclasses import replace

import numpy as np

from rapid_dist.retrieval.inverted import InvertedIndex, InvertedShape, train
from rapid_dist.retrieval.knowledge_base import KnowledgeBaseConfig
from rapid_dist.retrieval.manifest import MANIFEST, IndexRecord, Manifest
from rapid_dist.retrieval.searcher import keys_of, search_by_parts
from rapid_dist.retrieval.vectors import VectorIndex
from rapid_dist.storage import Storage, sha256_hex

RECALL_AT = (1, 10)
_QUERIES = 500  # Entries of the fixed sample.
_KEYS_A_LIST = 8  # Fewer would leave a centroid to a handful of keys.


def write_index(
    storage: Storage, exact: Manifest, home: str, config: KnowledgeBaseConfig, seed: int
) -> Manifest:
    """Trains the index that the settings ask for over the shards of ``exact``, and writes both.

    Args:
      home: the name of the folder that the exact knowledge base lies in, beside ``storage``.
    """
    assert config.index != "flat", "A flat index is searched as it is."
    manifest = replace(
        exact, shards=tuple(replace(one, home=one.home or home) for one in exact.shards)
    )
    rng = np.random.default_rng(seed)
    order = rng.permutation(manifest.num_entries)
    keys = keys_of(storage, manifest, np.sort(order[: config.index_keys]))
    lists = min(config.index_lists or default_lists(manifest.num_entries), len(keys))
    if config.index_lists is None:
        lists = max(1, min(lists, len(keys) // _KEYS_A_LIST))
    shape = InvertedShape(
        kind=config.index,
        lists=lists,
        code_bytes=config.index_bytes,
        of_residuals=not config.index_rerank,  # Where codes only propose, they may be coarse.
    )
    trained = train(keys, shape, seed)
    sha256 = sha256_hex(trained)
    name = f"index/{sha256[:32]}.faiss"
    storage.write(name, trained)
    asked = np.sort(order[-_QUERIES:])  # The last to be trained on, if at all.
    probes = min(config.index_probes, lists)
    recall = measured_recall(storage, manifest, trained, probes, asked, rerank=config.index_rerank)
    whole = manifest.key_dim * np.dtype(np.float32).itemsize
    record = IndexRecord(
        name=name,
        sha256=sha256,
        kind=config.index,
        lists=lists,
        probes=probes,
        code_bytes=config.index_bytes if config.index == "ivf_pq" else whole,
        recall={str(k): value for k, value in recall.items()},
        recall_queries=len(asked),
        rerank=config.index_rerank,
    )
    manifest = replace(manifest, index=record)
    storage.write(MANIFEST, manifest.to_bytes())  # Last: what it lists is there.
    return manifest


def default_lists(num_entries: int) -> int:
    """The power of two nearest to 4 sqrt(E), FAISS' own advice for inverted lists."""
    return int(2 ** round(math.log2(4 * math.sqrt(num_entries))))


def measured_recall(
    storage: Storage,
    manifest: Manifest,
    trained: bytes,
    probes: int,
    asked: np.ndarray,
    *,
    rerank: int = 0,
) -> dict[int, float]:
    """Returns, for k of ``RECALL_AT``, the share of the true k nearest that the lists give.

    Args:
      asked: ids of entries, int64 [Q]; none counts as its own neighbour.
    """
    queries, k = keys_of(storage, manifest, asked), max(RECALL_AT)
    exact = search_by_parts(storage, manifest, lambda p: VectorIndex(*p).search(queries, k + 1))
    found = search_by_parts(
        storage,
        manifest,
        lambda p: InvertedIndex(trained, probes, [p], rerank=rerank).search(queries, k + 1),
    )
    true, given = _others(exact[1], asked), _others(found[1], asked)
    return {
        at: float(
            np.mean([np.isin(t[:at], g[:at]).mean() for t, g in zip(true, given, strict=True)])
        )
        for at in RECALL_AT
    }


def _others(ids: np.ndarray, own: np.ndarray) -> list[np.ndarray]:
    return [row[row != one] for row, one in zip(ids, own, strict=True)]
