"""However a knowledge base is dealt into shards, its answers are the same to the bit."""

import numpy as np
import pytest

from rapid_dist.retrieval.merge import merge_neighbors
from rapid_dist.retrieval.vectors import VectorIndex

NEIGHBORS = 9


def _tied_keys() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Keys on a small grid (many ties on purpose), their ids, their classes, and queries."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 3, (240, 3)).astype(np.float32)
    return keys, rng.permutation(240), rng.integers(0, 3, 240), keys[:40]


def _search_shards(
    num_shards: int, queries: np.ndarray, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    keys, ids, classes, _ = _tied_keys()
    parts = np.array_split(np.random.default_rng(1).permutation(len(keys)), num_shards)
    found = [
        VectorIndex(keys[part], ids[part], classes[part]).search(queries, NEIGHBORS, labels)
        for part in parts
    ]
    return np.stack([part[0] for part in found]), np.stack([part[1] for part in found])


@pytest.mark.parametrize("num_shards", [1, 2, 5])
@pytest.mark.parametrize("by_class", [False, True])
def test_sharding_does_not_change_the_answer(num_shards, by_class):
    keys, ids, classes, queries = _tied_keys()
    labels = np.arange(len(queries)) % 3 if by_class else None
    whole = VectorIndex(keys, ids, classes).search(queries, NEIGHBORS, labels)
    merged = merge_neighbors(*_search_shards(num_shards, queries, labels), NEIGHBORS)
    np.testing.assert_array_equal(merged[0], whole[0])
    np.testing.assert_array_equal(merged[1], whole[1])


def test_a_merge_that_leaves_ties_as_they_come_would_change_the_answer():
    keys, ids, classes, queries = _tied_keys()
    whole = VectorIndex(keys, ids, classes).search(queries, NEIGHBORS)
    distances, found = _search_shards(5, queries)
    flat_distances = distances.transpose(1, 0, 2).reshape(len(queries), -1)
    flat_ids = found.transpose(1, 0, 2).reshape(len(queries), -1)
    order = np.argsort(flat_distances, axis=1, kind="stable")[:, :NEIGHBORS]
    np.testing.assert_array_equal(np.take_along_axis(flat_distances, order, 1), whole[0])
    assert np.mean(np.take_along_axis(flat_ids, order, 1) == whole[1]) < 0.5
