"""Inverted lists: what they find depends on the lists looked into, and on nothing else."""

import numpy as np
import pytest

from rapid_dist.errors import ConfigError
from rapid_dist.retrieval.inverted import InvertedIndex, InvertedShape, Kind, train
from rapid_dist.retrieval.merge import NO_NEIGHBOR, merge_neighbors
from rapid_dist.retrieval.vectors import VectorIndex, assign

SIZE, DIM = 3_000, 16


def _planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors around 40 centres, every tenth one twice; shuffled ids; classes."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(40, DIM))[rng.integers(40, size=SIZE)]
    vectors = (vectors + 0.8 * rng.normal(size=(SIZE, DIM))).astype(np.float32)
    vectors[1::10] = vectors[::10]
    return vectors, rng.permutation(SIZE), rng.integers(0, 3, SIZE)


def _index(kind: Kind, probes: int, parts: int = 1, lists: int = 32) -> list[InvertedIndex]:
    vectors, ids, labels = _planted()
    trained = train(vectors, InvertedShape(kind=kind, lists=lists, code_bytes=8), seed=3)
    dealt = np.array_split(np.random.default_rng(1).permutation(SIZE), parts)
    return [
        InvertedIndex(trained, probes, [(vectors[part], ids[part], labels[part])]) for part in dealt
    ]


def test_looking_into_every_list_finds_what_the_exact_index_finds() -> None:
    vectors, ids, labels = _planted()
    index, exact = _index("ivf_flat", probes=32)[0], VectorIndex(vectors, ids, labels)
    for wanted in (None, np.arange(300) % 4):  # Nobody is in class 3.
        found, expected = (one.search(vectors[:300], 7, wanted) for one in (index, exact))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_ties_beyond_the_candidates_still_go_to_the_smaller_id() -> None:
    vectors, ids = np.repeat(_planted()[0][[0, 2]], 400, axis=0), np.arange(800)[::-1].copy()
    trained = train(vectors, InvertedShape(kind="ivf_flat", lists=2), seed=0)
    index = InvertedIndex(trained, 2, [(vectors, ids, np.zeros(800, np.int64))])
    np.testing.assert_array_equal(index.search(vectors[:1], 5)[1][0], np.arange(400, 405))


def test_more_probes_find_more_and_few_are_not_exact() -> None:
    vectors, ids, _ = _planted()
    queries = vectors[:300] + np.float32(0.3)
    truth = VectorIndex(vectors, ids).search(queries, 10)[1]

    def recall(probes: int) -> float:
        found = _index("ivf_flat", probes)[0].search(queries, 10)[1]
        return float(
            np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
        )

    assert recall(1) < recall(4) < recall(32) == 1.0


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq"])
@pytest.mark.parametrize("by_class", [False, True])
def test_shards_with_one_training_find_together_what_one_index_finds(
    kind: Kind, by_class: bool
) -> None:
    queries = _planted()[0][:200] + np.float32(0.1)
    labels = np.arange(200) % 3 if by_class else None
    whole = _index(kind, 5)[0].search(queries, 6, labels)
    parts = [part.search(queries, 6, labels) for part in _index(kind, 5, parts=4)]
    merged = merge_neighbors(np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]), 6)
    np.testing.assert_array_equal(merged[0], whole[0])
    if kind == "ivf_flat":  # Codes are coarse: many entries have one, and only some are fetched.
        np.testing.assert_array_equal(merged[1], whole[1])


def test_shards_trained_apart_would_not_agree() -> None:
    vectors, ids, labels = _planted()
    queries, whole = vectors[:200] + np.float32(0.3), _index("ivf_flat", 2)[0]
    parts = []
    for part in np.array_split(np.arange(SIZE), 4):
        own = train(vectors[part], InvertedShape(kind="ivf_flat", lists=32), seed=3)
        index = InvertedIndex(own, 2, [(vectors[part], ids[part], labels[part])])
        parts.append(index.search(queries, 6))
    merged = merge_neighbors(np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]), 6)
    assert (merged[1] != whole.search(queries, 6)[1]).any()


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq"])
def test_one_query_gets_the_same_answer_alone_and_in_any_batch(kind: Kind) -> None:
    index, queries = _index(kind, 4)[0], _planted(5)[0][:600]
    distances, ids = index.search(queries, 5)
    for row in (0, 255, 256, 599):
        alone = index.search(queries[row : row + 1], 5)
        np.testing.assert_array_equal(alone[0][0], distances[row])
        np.testing.assert_array_equal(alone[1][0], ids[row])


def test_a_query_that_is_not_finite_finds_nothing_and_harms_nobody() -> None:
    index, queries = _index("ivf_flat", 4)[0], _planted(5)[0][:4].copy()
    expected = index.search(queries, 2)[1]
    queries[1, 0] = np.nan
    found = index.search(queries, 2)[1]
    assert (found[1] == NO_NEIGHBOR).all()
    np.testing.assert_array_equal(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_training_is_repeatable_and_leaves_the_index_without_entries() -> None:
    vectors = _planted()[0]
    for kind in ("ivf_flat", "ivf_pq"):
        shape = InvertedShape(kind=kind, lists=16, code_bytes=8)
        assert train(vectors, shape, seed=1) == train(vectors, shape, seed=1)
        assert train(vectors, shape, seed=1) != train(vectors, shape, seed=2)


def _coded(rerank: int, parts: int = 1, probes: int = 32) -> list[InvertedIndex]:
    vectors, ids, labels = _planted()
    trained = train(vectors, InvertedShape(kind="ivf_pq", lists=32, code_bytes=4), seed=3)
    dealt = np.array_split(np.random.default_rng(1).permutation(SIZE), parts)
    return [
        InvertedIndex(trained, probes, [(vectors[p], ids[p], labels[p])], rerank=rerank)
        for p in dealt
    ]


def test_ranking_by_whole_vectors_finds_what_codes_miss_and_gives_true_distances() -> None:
    vectors, ids, _ = _planted()
    queries = vectors[:200] + np.float32(0.3)
    exact = VectorIndex(vectors, ids).search(queries, 5)
    recall = {}
    for rerank in (0, 20):
        distances, found = _coded(rerank)[0].search(queries, 5)
        recall[rerank] = np.mean(
            [np.isin(t, f).mean() for t, f in zip(exact[1], found, strict=True)]
        )
        hit = found == exact[1]
        assert (distances[hit] == exact[0][hit]).all() == (rerank > 0)
    assert recall[0] < 0.9 < recall[20]


def test_shards_that_rank_by_whole_vectors_find_no_less_together_than_one_index() -> None:
    queries = _planted()[0][:100] + np.float32(0.1)
    whole = _coded(20)[0].search(queries, 5)
    parts = [part.search(queries, 5) for part in _coded(20, parts=3)]
    merged = merge_neighbors(np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]), 5)
    assert (merged[0] <= whole[0]).all()


def test_codes_that_do_not_fit_are_refused() -> None:
    vectors = _planted()[0]
    with pytest.raises(ConfigError, match="index_bytes=5 does not divide"):
        train(vectors, InvertedShape(kind="ivf_pq", lists=4, code_bytes=5), seed=0)
    with pytest.raises(ConfigError, match="at least 256 keys"):
        train(vectors[:100], InvertedShape(kind="ivf_pq", lists=4, code_bytes=8), seed=0)


def test_every_vector_lies_in_the_list_of_its_nearest_centroid() -> None:
    vectors = _planted()[0]
    index = _index("ivf_flat", 1, lists=8)[0]
    centroids = index._centroids._vectors
    distances, found = index.search(vectors[:200], 1)
    assert (distances == 0).all()  # Its own list is looked into, so it finds itself or its copy.
    assert len(np.unique(assign(vectors, centroids))) == 8
    assert found.shape == (200, 1)
