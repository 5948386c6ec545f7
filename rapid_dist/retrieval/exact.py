"""Exact distances and exact search by NumPy alone, for whoever has no FAISS.

A true distance is summed in float64 in a fixed order. Faster arithmetic only proposes candidates,
and a bound on its rounding says which of them must be looked at. So an answer is a pure function
of (query, vectors), the same here as in ``vectors.py``, which has FAISS propose.

Shapes: N vectors, Q queries, D dimensions, K neighbors asked for, M pairs.
"""

from itertools import pairwise

import numpy as np

from rapid_dist.errors import ConfigError
from rapid_dist.retrieval.merge import NO_NEIGHBOR, merge_neighbors

_PAIRS_AT_ONCE = 16_384  # Whose distance is computed at once: bounds memory only.
_VECTORS_AT_ONCE = 65_536  # That all queries are compared with at once: the same.


def true_distances(
    queries: np.ndarray, owner: np.ndarray, vectors: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Squared L2 float32 [M] between queries[owner[m]] and vectors[rows[m]], in a fixed order."""
    out = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        gap = vectors[rows[part]].astype(np.float64)
        gap -= queries[owner[part]]
        np.square(gap, out=gap)
        out[part] = gap.sum(axis=1)
    return out


def rounding_bound(queries: np.ndarray, largest_norm: float) -> np.ndarray:
    """Bounds |a float32 distance - the true one| for any vector up to a norm, float64 [Q].

    With unit roundoff u = eps / 2, summing (q - x)^2, or |q|^2 + |x|^2 - 2 q.x, over D terms
    errs by at most about (D + 4) u (|q| + |x|)^2, in any order of summation. Twice that.
    """
    norms = np.sqrt(np.einsum("qd,qd->q", queries, queries, dtype=np.float64))
    unit = float(np.finfo(np.float32).eps)
    bound: np.ndarray = (queries.shape[1] + 8) * unit * (norms + largest_norm) ** 2
    return bound


class ExactSearch:
    """All vectors in memory, held once; an entry's id is its row."""

    def __init__(self, vectors: np.ndarray) -> None:
        """Takes float32 [N, D], N > 0, all finite."""
        if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
            raise ConfigError(
                f"Vectors to search must be finite and [N, D] with N > 0, got {vectors.shape}."
            )
        self._vectors = np.ascontiguousarray(vectors, np.float32)
        squares = np.einsum("nd,nd->n", self._vectors, self._vectors, dtype=np.float64)
        self._largest_norm = float(np.sqrt(squares.max()))
        self._squares = squares.astype(np.float32)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k nearest vectors of every query float32 [Q, D], ties to the smaller id.

        Returns:
          squared L2 float32 [Q, k], ascending, and ids int64 [Q, k]; (inf, ``NO_NEIGHBOR``) where
          there are fewer than k, and everywhere for a query that is not finite.
        """
        dim = self._vectors.shape[1]
        if queries.ndim != 2 or queries.shape[1] != dim or k < 1:
            raise ConfigError(
                f"Queries must be [Q, {dim}] and k at least 1, got {queries.shape} and k={k}."
            )
        finite = np.flatnonzero(np.isfinite(queries).all(axis=1))
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), NO_NEIGHBOR, np.int64)
        asked = np.ascontiguousarray(queries[finite], np.float32)
        for start in range(0, len(self._vectors), _VECTORS_AT_ONCE):
            rows = slice(start, min(start + _VECTORS_AT_ONCE, len(self._vectors)))
            found = self._search_rows(asked, k, rows)
            distances[finite], ids[finite] = merge_neighbors(
                np.stack([distances[finite], found[0]]), np.stack([ids[finite], found[1]]), k
            )
        return distances, ids

    def _search_rows(
        self, queries: np.ndarray, k: int, rows: slice
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same among some rows, whose ids stay what they are."""
        vectors = self._vectors[rows]
        norms = np.einsum("qd,qd->q", queries, queries, dtype=np.float64).astype(np.float32)
        rough = norms[:, None] + self._squares[rows] - 2 * (queries @ vectors.T)
        keep = min(k, len(vectors))
        # The k-th nearest lies no farther than the k-th in rough order seems to, give or take.
        reach = np.partition(rough, keep - 1, axis=1)[:, keep - 1].astype(np.float64)
        reach += 2 * rounding_bound(queries, self._largest_norm)
        owner, near = np.nonzero(rough <= reach[:, None])
        exact = true_distances(queries, owner, vectors, near)
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), NO_NEIGHBOR, np.int64)
        edges = np.searchsorted(owner, np.arange(len(queries) + 1))
        for query, (first, last) in enumerate(pairwise(edges)):
            best = np.lexsort((near[first:last], exact[first:last]))[:keep]
            distances[query, :keep] = exact[first:last][best]
            ids[query, :keep] = rows.start + near[first:last][best]
        return distances, ids
