"""Search is exact to the bit whatever FAISS does, and clustering is repeatable."""

import faiss
import numpy as np
import pytest

from rapid_dist.errors import ConfigError
from rapid_dist.retrieval.merge import NO_NEIGHBOR, merge_neighbors
from rapid_dist.retrieval.vectors import VectorIndex, assign, fit_kmeans, has_gpu


def _by_hand(queries, vectors, ids, k):
    """Every distance in float64, rounded once, ties to the smaller id."""
    distances = np.full((len(queries), k), np.inf, np.float32)
    found = np.full((len(queries), k), NO_NEIGHBOR, np.int64)
    for row, query in enumerate(queries):
        all_distances = np.square(vectors.astype(np.float64) - query).sum(axis=1)
        all_distances = all_distances.astype(np.float32)
        best = np.lexsort((ids, all_distances))[:k]
        distances[row, : len(best)], found[row, : len(best)] = all_distances[best], ids[best]
    return distances, found


def _normal(rows, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "vectors"),
    [
        ("ties", np.random.default_rng(0).integers(0, 3, (800, 3)).astype(np.float32)),
        ("normal", _normal(1_500, 48)),
        ("far from the origin", _normal(1_500, 48) + np.float32(1_000)),
        ("all equal", np.ones((300, 4), np.float32)),
    ],
)
def test_search_finds_what_a_search_by_hand_finds(name, vectors):
    ids = np.random.default_rng(1).permutation(len(vectors)) + 10
    queries = vectors[:260] + (0 if name in ("ties", "all equal") else _normal(260, 48, 2) / 4)
    queries = queries.astype(np.float32)
    for k in (1, 7, 30):
        found = VectorIndex(vectors, ids).search(queries, k)
        expected = _by_hand(queries, vectors, ids, k)
        np.testing.assert_array_equal(found[0], expected[0], err_msg=name)
        np.testing.assert_array_equal(found[1], expected[1], err_msg=name)


def test_the_index_underneath_alone_would_fail_far_from_the_origin():
    vectors = _normal(1_500, 48) + np.float32(1_000)
    queries = np.tile(vectors, (2, 1)) + _normal(3_000, 48, 2) / 4
    index = VectorIndex(vectors, np.arange(1_500))
    _, rows = index._index.search(queries, 7)  # Enough queries for its faster, coarser kernel.
    assert np.mean(index._ids[rows[:200]] != index.search(queries[:200], 7)[1]) > 0.5


def test_one_query_gets_the_same_answer_alone_and_in_any_batch():
    index = VectorIndex(_normal(2_000, 300), np.arange(2_000))
    queries = _normal(700, 300, 3)
    distances, ids = index.search(queries, 5)
    for row in (0, 255, 256, 699):
        alone = index.search(queries[row : row + 1], 5)
        np.testing.assert_array_equal(alone[0][0], distances[row])
        np.testing.assert_array_equal(alone[1][0], ids[row])


def test_a_class_filter_answers_like_an_index_of_that_class_alone():
    rng = np.random.default_rng(5)
    vectors = rng.integers(0, 3, (400, 3)).astype(np.float32)
    labels, ids = rng.integers(0, 6, 400), rng.permutation(400)
    labels[labels == 4] = 3  # Nobody is in class 4.
    queries, wanted = vectors[:120], rng.integers(0, 6, 120)
    distances, found = VectorIndex(vectors, ids, labels).search(queries, 9, wanted)
    for label in range(6):
        asked, members = wanted == label, labels == label
        expected = _by_hand(queries[asked], vectors[members], ids[members], 9)
        np.testing.assert_array_equal(distances[asked], expected[0])
        np.testing.assert_array_equal(found[asked], expected[1])
    assert (found[wanted == 4] == NO_NEIGHBOR).all()


def test_an_index_filled_part_by_part_is_the_index_of_the_whole():
    rng = np.random.default_rng(8)
    vectors = rng.integers(0, 3, (500, 40)).astype(np.float32)
    labels, ids = rng.integers(0, 4, 500), rng.permutation(500)
    cuts = np.split(np.arange(500), [3, 200, 200, 431])
    parts = ((vectors[cut], ids[cut], labels[cut]) for cut in cuts)
    gathered, whole = VectorIndex.gather(parts, 500, 40), VectorIndex(vectors, ids, labels)
    for wanted in (None, np.arange(90) % 5):
        for found, expected in zip(
            gathered.search(vectors[:90], 6, wanted), whole.search(vectors[:90], 6, wanted),
            strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(AssertionError, match="as many vectors"):
        VectorIndex.gather([(vectors, ids, labels)], 501, 40)


def _coarsely(vectors, order):
    """Proposes by distances of TF32's precision, as a GPU may."""
    cut = _tf32(vectors)

    def propose(queries, number):
        rough = _tf32(queries) @ cut.T
        rough = np.square(queries).sum(1)[:, None] + np.square(vectors).sum(1) - 2 * rough
        rows = np.argsort(rough, axis=1, kind="stable")[:, :number]
        return np.take_along_axis(rough, rows, 1), order[rows]

    return propose


def _tf32(values):
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("spread", [1.0, 0.01])  # With 0.01 most proposals are in a wrong order.
def test_proposals_in_coarse_arithmetic_change_no_bit_of_an_answer(spread):
    vectors = (1 + spread * _normal(900, 24)).astype(np.float32)
    queries = (1 + spread * _normal(120, 24, 4)).astype(np.float32)
    index = VectorIndex(vectors, np.arange(900))
    expected = index.search(queries, 5)
    rough = _coarsely(vectors, np.arange(900))
    assert spread == 1 or (rough(queries, 5)[1] != expected[1]).any(axis=1).mean() > 0.5
    for found, wanted in zip(index.propose_with(rough).search(queries, 5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


class FakeGpu:
    """Holds FAISS' vectors as a GPU would, and counts what it is asked."""

    def __init__(self, index, keep=None) -> None:
        self._vectors = index.reconstruct_n(0, index.ntotal)
        self._rows = np.arange(index.ntotal) if keep is None else keep
        self.asked = 0

    def search(self, queries, number):
        self.asked += len(queries)
        return _coarsely(self._vectors[self._rows], self._rows)(queries, number)


def test_a_gpu_proposes_for_all_classes_and_the_cpu_answers_single_ones():
    vectors, labels = _normal(900, 24), np.arange(900) % 3
    queries, wanted = _normal(120, 24, 4), np.arange(120) % 3
    expected = VectorIndex(vectors, np.arange(900), labels)
    gpus = []

    def copy_to_gpu(flat):
        gpus.append(FakeGpu(flat))
        return gpus[0]

    index = VectorIndex(vectors, np.arange(900), labels).to_gpu(copy_to_gpu)
    for classes in (None, wanted):
        for found, true in zip(
            index.search(queries, 5, classes), expected.search(queries, 5, classes), strict=True
        ):
            np.testing.assert_array_equal(found, true)
    assert gpus[0].asked == 120


def test_what_a_gpu_proposes_is_what_is_answered_from():
    vectors, queries = _normal(900, 24), _normal(120, 24, 4)
    true = VectorIndex(vectors, np.arange(900)).search(queries, 5)[1]
    half = VectorIndex(vectors, np.arange(900)).to_gpu(lambda i: FakeGpu(i, np.arange(0, 900, 2)))
    assert (half.search(queries, 5)[1] != true).any()  # Rows that it does not hold are missed.


@pytest.mark.skipif(has_gpu(), reason="FAISS sees a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="this FAISS sees none"):
        VectorIndex(_normal(5, 4), np.arange(5)).to_gpu()


def test_places_beyond_the_last_entry_are_marked_and_survive_the_merge():
    small = VectorIndex(_normal(2, 4), np.array([5, 6]))
    large = VectorIndex(_normal(9, 4, 1), np.arange(10, 19))
    parts = [index.search(_normal(3, 4, 2), 6) for index in (small, large)]
    assert (parts[0][1][:, 2:] == NO_NEIGHBOR).all()
    assert np.isinf(parts[0][0][:, 2:]).all()
    _, ids = merge_neighbors(np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]), 6)
    assert (ids != NO_NEIGHBOR).all()


def test_a_query_that_is_not_finite_finds_nothing_and_harms_nobody():
    index, queries = VectorIndex(_normal(50, 4), np.arange(50)), _normal(4, 4, 1)
    expected = index.search(queries, 2)[1]
    queries[1, 0] = np.nan
    found = index.search(queries, 2)[1]
    assert (found[1] == NO_NEIGHBOR).all()
    np.testing.assert_array_equal(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_wrong_widths_and_empty_indexes_are_refused():
    with pytest.raises(ConfigError, match=r"\[Q, 4\]"):
        VectorIndex(_normal(5, 4), np.arange(5)).search(_normal(2, 3), 1)
    with pytest.raises(ConfigError, match="N > 0"):
        VectorIndex(np.empty((0, 4), np.float32), np.arange(0))
    with pytest.raises(ConfigError, match="k=3"):
        merge_neighbors(np.zeros((1, 1, 2), np.float32), np.zeros((1, 1, 2), np.int64), 3)


def test_kmeans_is_repeatable_and_finds_planted_clusters():
    centres = _normal(12, 6) * 20
    vectors = np.repeat(centres, 400, axis=0) + _normal(4_800, 6, 1)
    centroids = fit_kmeans(vectors, 12, seed=3, iterations=15)
    np.testing.assert_array_equal(centroids, fit_kmeans(vectors, 12, seed=3, iterations=15))
    assert not np.array_equal(centroids, fit_kmeans(vectors, 12, seed=4, iterations=15))
    clusters = assign(vectors, centroids)
    within = np.square(vectors - centroids[clusters]).sum() / np.square(vectors).sum()
    assert within < 0.2


def test_kmeans_uses_every_vector():
    # One far vector in 20,000: a subsample of 256 a centroid, FAISS' default, would miss it
    # with chance 0.97, and no centroid would move towards it.
    vectors = _normal(20_000, 2)
    vectors[-1] = 5_000
    assert np.abs(fit_kmeans(vectors, 2, seed=0)).max() > 4_000


@pytest.mark.parametrize(("clusters", "iterations"), [(40, 9), (400, 4), (1, 2)])
def test_kmeans_says_how_far_it_is_and_gives_faiss_own_bits(clusters, iterations):
    # Every fifth vector is there five times, so that clusters run empty and are split.
    vectors = np.concatenate([_normal(200, 5), np.repeat(_normal(40, 5, 1), 5, axis=0)])
    told: list[int] = []
    found = fit_kmeans(vectors, clusters, seed=2, iterations=iterations, on_iteration=told.append)
    assert told == list(range(1, iterations + 1))
    at_once = faiss.Kmeans(
        5, clusters, niter=iterations, seed=2, min_points_per_centroid=1,
        max_points_per_centroid=1_000,
    )  # fmt: skip
    at_once.train(vectors)
    np.testing.assert_array_equal(found, at_once.centroids)
    at_once.train(vectors[::-1])
    assert not np.array_equal(found, at_once.centroids)


def test_assign_gives_the_nearest_and_the_first_of_equals():
    centroids = np.array([[0.0], [2.0], [2.0]], np.float32)
    vectors = np.array([[0.4], [1.0], [1.9]], np.float32)
    np.testing.assert_array_equal(assign(vectors, centroids), [0, 0, 1])


def test_more_clusters_than_vectors_are_refused():
    with pytest.raises(ConfigError, match=r"1\.\.3 .* got 4"):
        fit_kmeans(_normal(3, 2), 4, seed=0)
