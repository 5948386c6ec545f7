"""Search without FAISS: the same answers to the bit."""

import numpy as np
import pytest

from rapid_dist.errors import ConfigError
from rapid_dist.retrieval.exact import ExactSearch
from rapid_dist.retrieval.merge import NO_NEIGHBOR
from rapid_dist.retrieval.vectors import VectorIndex


def _planted(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors [N, D] and queries [Q, D], float32."""
    rng = np.random.default_rng(5)
    if kind == "ties":  # A small grid: most distances are shared by many.
        return (
            rng.integers(0, 3, (900, 4)).astype(np.float32),
            rng.integers(0, 3, (60, 4)).astype(np.float32),
        )
    if kind == "far":  # All but equal, far from the origin: float32 products lose the difference.
        base = np.float32(3_000)
        return (
            base + rng.normal(0, 0.01, (500, 16)).astype(np.float32),
            base + rng.normal(0, 0.01, (40, 16)).astype(np.float32),
        )
    if kind == "many":  # More than are compared at once.
        return (
            rng.integers(-9, 9, (70_000, 2)).astype(np.float32) / 7,
            rng.normal(size=(30, 2)).astype(np.float32),
        )
    return rng.normal(size=(700, 33)).astype(np.float32), rng.normal(size=(64, 33)).astype("f4")


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("kind", ["plain", "ties", "far", "many"])
def test_numpy_finds_what_faiss_finds(kind: str, k: int) -> None:
    vectors, queries = _planted(kind)
    expected = VectorIndex(vectors, np.arange(len(vectors))).search(queries, k)
    found = ExactSearch(vectors).search(queries, k)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    alone = ExactSearch(vectors).search(queries[7:8], k)
    np.testing.assert_array_equal(alone[1], found[1][7:8])


def test_the_comparison_would_notice_a_search_that_believes_float32() -> None:
    vectors, queries = _planted("far")
    norms = np.square(vectors).sum(axis=1)
    believed = np.argmin(norms - 2 * (queries @ vectors.T), axis=1)
    assert (believed != ExactSearch(vectors).search(queries, 1)[1][:, 0]).any()


def test_places_that_nothing_can_fill_have_no_neighbour() -> None:
    vectors = np.eye(3, dtype=np.float32)
    queries = np.array([[1, 0, 0], [np.nan, 0, 0]], np.float32)
    distances, ids = ExactSearch(vectors).search(queries, 5)
    np.testing.assert_array_equal(ids[0], [0, 1, 2, NO_NEIGHBOR, NO_NEIGHBOR])
    np.testing.assert_array_equal(ids[1], [NO_NEIGHBOR] * 5)
    np.testing.assert_array_equal(distances[0], np.array([0, 2, 2, np.inf, np.inf], np.float32))


@pytest.mark.parametrize(
    ("vectors", "queries"), [((0, 3), (1, 3)), ((2, 3), (1, 4)), ((2, 3), (3,))]
)
def test_shapes_that_do_not_fit_are_refused(
    vectors: tuple[int, ...], queries: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError):
        ExactSearch(np.zeros(vectors, np.float32)).search(np.zeros(queries, np.float32), 1)
