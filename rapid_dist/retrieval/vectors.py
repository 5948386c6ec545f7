"""Exact vector search and k-means, by FAISS.

FAISS' arithmetic changes with the number of queries, of vectors and of threads (it picks
between two kernels, and one of them loses most digits on vectors far from the origin), and it
drops ties at the k-th place in an order of its own. So FAISS only proposes candidates here.
Each candidate's distance is computed again in a fixed order in float64, and a bound on FAISS'
rounding says when the candidates may be incomplete; those queries are searched by radius. An
answer is therefore a pure function of (query, vectors, ids): no batch size, shard, class
sub-index, thread count or GPU can change a bit of it.

Vectors are held once: ``gather`` takes them shard by shard into the index' own memory.

Shapes: N vectors, Q queries, D dimensions, K neighbors asked for.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import faiss
import numpy as np

from rapid_dist.errors import ConfigError
from rapid_dist.retrieval.exact import rounding_bound, true_distances
from rapid_dist.retrieval.merge import NO_NEIGHBOR

_QUERY_BATCH = 256  # Bounds memory only; see above.
_OVER_FETCH = 8  # Candidates beyond K, enough to settle most queries at once.
_MANY = 128  # Candidates beyond K for the few others, before they are searched by radius.
_COLUMNS_AT_ONCE = 16  # Of the vectors, while their rows are put in order: bounds memory only.
_ALWAYS_BLAS = 1  # FAISS' own threshold leaves 256 queries to a kernel that is 4 times slower.
_MOST_ON_GPU = 2_048  # Neighbors that FAISS finds on a GPU.
_TF32 = 2.0**-8  # Twice the relative error of a product in TF32, should a GPU round to it.
_ANY_SIZE = 1 << 30  # Lets k-means see all vectors it is given instead of a subsample.


Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # Vectors [n, D], ids [n], class labels [n].
# (queries [Q, D], number) -> rough distances and rows of roughly the nearest, both [Q, number].
Propose = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class Searches(Protocol):
    """What FAISS' indexes do: the same as ``Propose``."""

    def search(self, queries: np.ndarray, number: int, /) -> tuple[np.ndarray, np.ndarray]: ...


CopyToGpu = Callable[[Any], Searches]  # Takes FAISS' flat index.


class VectorIndex:
    """An exact index over float32 vectors by squared L2, with a sub-index for every class."""

    def __init__(
        self, vectors: np.ndarray, ids: np.ndarray, labels: np.ndarray | None = None
    ) -> None:
        """Copies float32 [N, D] vectors, int64 [N] ids and int64 [N] class labels."""
        if vectors.ndim != 2:
            raise ConfigError(_not_indexable(vectors.shape))
        labels = np.zeros(len(ids), np.int64) if labels is None else labels
        self._fill([(vectors, ids, labels)], *vectors.shape)

    @classmethod
    def gather(cls, parts: Iterable[Part], num_vectors: int, dim: int) -> "VectorIndex":
        """Returns an index over all parts, ``num_vectors`` in sum; holds one part at a time."""
        index = cls.__new__(cls)
        index._fill(parts, num_vectors, dim)
        return index

    def _fill(self, parts: Iterable[Part], num_vectors: int, dim: int) -> None:
        if num_vectors == 0:
            raise ConfigError(_not_indexable((num_vectors, dim)))
        self.dim = dim
        self._index = faiss.IndexFlatL2(dim)
        self._index.codes.resize(num_vectors * dim * np.dtype(np.float32).itemsize)
        self._index.ntotal = num_vectors
        # The index' own memory, filled and later read without a copy.
        stored = faiss.rev_swig_ptr(self._index.get_xb(), num_vectors * dim)
        self._vectors: np.ndarray = stored.reshape(num_vectors, dim)
        ids, labels = np.empty(num_vectors, np.int64), np.empty(num_vectors, np.int64)
        filled, largest = 0, 0.0
        for vectors, part_ids, part_labels in parts:
            if not np.isfinite(vectors).all():
                raise ConfigError(_not_indexable(vectors.shape))
            rows = slice(filled, filled + len(vectors))
            self._vectors[rows], ids[rows], labels[rows] = vectors, part_ids, part_labels
            squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
            largest = max(largest, float(squares.max(initial=0.0)))
            filled += len(vectors)
        assert filled == num_vectors, "The parts hold as many vectors as was said."
        self._largest_norm = float(np.sqrt(largest))
        order = np.lexsort((ids, labels))  # Each class is one range of rows, so it needs no copy.
        if (order[:-1] > order[1:]).any():
            for start in range(0, dim, _COLUMNS_AT_ONCE):
                columns = slice(start, start + _COLUMNS_AT_ONCE)
                self._vectors[:, columns] = self._vectors[order, columns]
        self._ids, labels = ids[order], labels[order]
        classes, starts = np.unique(labels, return_index=True)
        stops = np.append(starts[1:], num_vectors)
        self._rows_of = {
            int(label): (int(start), int(stop))
            for label, start, stop in zip(classes, starts, stops, strict=True)
        }
        self._coarse: Propose | None = None

    def to_gpu(self, copy_to_gpu: CopyToGpu | None = None) -> "VectorIndex":
        """Has a GPU propose the candidates of searches over all classes, and returns the index.

        Answers stay what they are to the bit. Needs faiss-gpu in place of faiss-cpu.

        Args:
          copy_to_gpu: makes the copy that searches; FAISS' own, onto the first GPU, by default.
        """
        copy = (copy_to_gpu or _faiss_copy)(self._index)

        def propose(queries: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
            found: tuple[np.ndarray, np.ndarray] = copy.search(queries, number)
            return found

        return self.propose_with(propose)

    def propose_with(self, propose: Propose) -> "VectorIndex":
        """Has something coarser propose candidates, at worst of TF32's precision."""
        self._coarse = propose
        return self

    def __len__(self) -> int:
        return len(self._ids)

    def search(
        self, queries: np.ndarray, k: int, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k nearest entries of every query, in its class where ``labels`` is given.

        Exact, ties to the smaller id. One query's answer does not depend on the others. Places
        that no entry can fill, and all places of a non-finite query, are (inf, NO_NEIGHBOR).

        Args:
          queries: float32 [Q, D].
          k: neighbors to find.
          labels: int64 [Q], the class that each query may be answered from.

        Returns:
          squared L2 float32 [Q, k], ascending, and ids int64 [Q, k].
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ConfigError(
                f"Queries must be [Q, {self.dim}] for this index, got {queries.shape}. "
                "Use the extractor that the knowledge base was built with."
            )
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}.")
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), NO_NEIGHBOR, np.int64)
        for chosen, rows in self._parts(queries, labels):
            distances[chosen], ids[chosen] = self._search_rows(queries[chosen], k, rows)
        return distances, ids

    def _parts(
        self, queries: np.ndarray, labels: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Yields (positions of queries, range of rows that may answer them)."""
        finite = np.isfinite(queries).all(axis=1)
        if labels is None:
            groups = [(np.flatnonzero(finite), (0, len(self)))]
        else:
            groups = [
                (np.flatnonzero(finite & (labels == label)), self._rows_of.get(int(label), (0, 0)))
                for label in np.unique(labels)
            ]
        for chosen, rows in groups:
            if rows[0] < rows[1]:
                for start in range(0, len(chosen), _QUERY_BATCH):
                    yield chosen[start : start + _QUERY_BATCH], rows

    def _search_rows(
        self, queries: np.ndarray, k: int, rows: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        queries = np.ascontiguousarray(queries, np.float32)
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), NO_NEIGHBOR, np.int64)
        open_ones = np.arange(len(queries))
        if self._coarse is not None and rows == (0, len(self)) and k <= _MOST_ON_GPU - _MANY:
            found = self._ranked(queries, k, rows, _OVER_FETCH, self._coarse)
            distances[:], ids[:], settled = found
            open_ones = np.flatnonzero(~settled)
        for over_fetch in (_OVER_FETCH, _MANY):
            if len(open_ones):
                found = self._ranked(queries[open_ones], k, rows, over_fetch)
                distances[open_ones], ids[open_ones], settled = found
                open_ones = open_ones[~settled]
        for query in open_ones:  # So many are all but equally near that only a radius holds them.
            keep = min(k, rows[1] - rows[0])
            rounding = rounding_bound(queries[query : query + 1], self._largest_norm)[0]
            radius = float(distances[query, keep - 1]) + 2 * rounding
            near = self._within(queries[query], radius, rows)
            near_distances = true_distances(queries, np.full(len(near), query), self._vectors, near)
            best = np.lexsort((self._ids[near], near_distances))[:k]
            distances[query], ids[query] = near_distances[best], self._ids[near[best]]
        return distances, ids

    def _ranked(
        self,
        queries: np.ndarray,
        k: int,
        rows: tuple[int, int],
        over_fetch: int,
        coarse: Propose | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ranks proposals by their true distance: distances and ids [Q, k], and which are sure."""
        num_rows = rows[1] - rows[0]
        fetch = min(k + over_fetch, num_rows)
        rounding = rounding_bound(queries, self._largest_norm)
        if coarse is None:
            rough, found = self._proposed(queries, fetch, rows)
        else:
            rough, found = coarse(queries, fetch)
            norms = np.sqrt(np.einsum("qd,qd->q", queries, queries, dtype=np.float64))
            rounding = rounding + 2 * _TF32 * norms * self._largest_norm
        keep = min(k, fetch)
        owner = np.repeat(np.arange(len(queries)), fetch)
        exact = true_distances(queries, owner, self._vectors, found.ravel())
        exact = exact.reshape(found.shape)
        order = np.lexsort((self._ids[found], exact), axis=1)[:, :keep]
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), NO_NEIGHBOR, np.int64)
        distances[:, :keep] = np.take_along_axis(exact, order, 1)
        ids[:, :keep] = self._ids[np.take_along_axis(found, order, 1)]
        settled: np.ndarray = rough[:, -1] - rounding > distances[:, keep - 1]
        return distances, ids, settled | (fetch == num_rows)

    def _proposed(
        self, queries: np.ndarray, fetch: int, rows: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        selector = faiss.IDSelectorRange(*rows)  # Held by a name: FAISS keeps a bare pointer to it.
        parameters = faiss.SearchParameters()
        parameters.sel = selector
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = _ALWAYS_BLAS
        try:
            rough, found = self._index.search(queries, fetch, params=parameters)
        finally:  # It is the process's own: what k-means finds may not depend on a search before.
            faiss.cvar.distance_compute_blas_threshold = before
        return rough, found

    def _within(self, query: np.ndarray, radius: float, rows: tuple[int, int]) -> np.ndarray:
        """Returns all rows of a range that FAISS sees nearer than ``radius``."""
        selector = faiss.IDSelectorRange(*rows)
        parameters = faiss.SearchParameters()
        parameters.sel = selector
        _, _, near = self._index.range_search(query[None], radius, params=parameters)
        found: np.ndarray = near.astype(np.int64)
        return found


class _OnGpu:
    """A flat index on the first GPU, with the GPU memory it computes in."""

    def __init__(self, index: Any) -> None:
        self._resources = faiss.StandardGpuResources()  # FAISS keeps a bare pointer to it.
        self._copy = faiss.index_cpu_to_gpu(self._resources, 0, index)

    def search(self, queries: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        found: tuple[np.ndarray, np.ndarray] = self._copy.search(queries, number)
        return found


def _faiss_copy(index: Any) -> Searches:
    if not has_gpu():
        raise ConfigError(
            "The index was asked onto a GPU, but this FAISS sees none. Install faiss-gpu in "
            "place of faiss-cpu on a node that has one, or give search actors no GPU."
        )
    return _OnGpu(index)


def has_gpu() -> bool:
    """Whether the FAISS that is installed can use a GPU that this process sees."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _not_indexable(shape: tuple[int, ...]) -> str:
    return (
        f"Vectors to index must be finite and [N, D] with N > 0, got {shape}. "
        "Check the reference images and the extractor."
    )


def fit_kmeans(
    vectors: np.ndarray,
    clusters: int,
    seed: int,
    iterations: int = 20,
    on_iteration: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Returns float32 [clusters, D] centroids of float32 [N, D] vectors.

    A pure function of its arguments on one machine and number of threads. All vectors are
    used, none is subsampled. Nothing private may be passed: centroids are not noised.

    Args:
      on_iteration: is told how many iterations are done.
    """
    if not 1 <= clusters <= len(vectors):
        raise ConfigError(
            f"clusters must be in 1..{len(vectors)} (the number of vectors), got {clusters}. "
            "Lower knowledge_base.clusters or add public reference images."
        )
    vectors = np.ascontiguousarray(vectors, np.float32)
    centroids = None
    # FAISS tells nothing on the way, so it is asked for one iteration at a time. The bits are those
    # of all at once: an iteration knows of the ones before by their centroids alone.
    for done in range(1, iterations + 1):
        kmeans = faiss.Kmeans(
            vectors.shape[1],
            clusters,
            niter=1,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=_ANY_SIZE // clusters,
        )
        kmeans.train(vectors, init_centroids=centroids)
        centroids = np.array(kmeans.centroids, np.float32).reshape(clusters, -1)
        on_iteration(done)
    assert centroids is not None, "There is at least one iteration."
    return centroids


def assign(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the nearest centroid of every vector, int64 [N]; ties go to the smaller index.

    Exact and per row: one vector's answer does not depend on the others.
    """
    _, nearest = VectorIndex(centroids, np.arange(len(centroids))).search(vectors, 1)
    return nearest[:, 0]


def nearest_codes(queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns how many bits every code uint8 [Q, B] differs in from the nearest of [N, B], N > 0.

    Exact whole numbers, int64 [Q], each a function of its query and the codes alone.
    """
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(np.ascontiguousarray(codes))
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _QUERY_BATCH):
        part = slice(start, start + _QUERY_BATCH)
        distances, _ = index.search(np.ascontiguousarray(queries[part]), 1)
        found[part] = distances[:, 0]
    return found
