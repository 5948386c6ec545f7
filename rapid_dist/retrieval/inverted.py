"""Approximate search for a million entries and more: inverted lists, trained once, by FAISS.

Entries are put into lists by their nearest centroid, and a query looks into the few lists nearest
to it. ``ivf_flat`` keeps whole vectors, ``ivf_pq`` a code of a few bytes for each. The centroids
and codebooks are trained once, on a sample of the public keys, and sent to every shard as one
file: so the shards together look into the very lists that one index over everything would.

Which lists a vector belongs to and a query looks into is decided by exact search over the
centroids, and candidates are ranked by their distance to what is stored, computed again in
float64. With ``ivf_flat`` the answer is therefore a pure function of (query, lists looked into,
their entries): no batch, shard or thread count changes it. With ``ivf_pq`` that holds but for
entries whose codes are about equally far: distances are to what the codes stand for. Where it
re-ranks, codes only propose, several candidates a place, and distances are to whole vectors: those
lie in a file without a name, mapped into memory, of which a search reads a few rows.

Shapes: N vectors, Q queries, D dimensions, L lists, P lists looked into.
"""

import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import faiss
import numpy as np

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.retrieval.merge import NO_NEIGHBOR
from rapid_dist.retrieval.vectors import Part, VectorIndex, assign, fit_kmeans

Kind = Literal["ivf_flat", "ivf_pq"]

_QUERY_BATCH = 256
_OVER_FETCH = 8
_CODE_BITS = 8
_ROWS_AT_ONCE = 16_384
_LEAST_FOR_CODES = 2**_CODE_BITS  # Vectors that codebooks of 256 words need at least.


@dataclass(frozen=True, kw_only=True)
class InvertedShape:
    """How an inverted index is laid out."""

    kind: Kind
    lists: int
    code_bytes: int = 32  # Of one vector, for ivf_pq.
    iterations: int = 10  # Of k-means.
    # Codes stand for what is left of a vector when its centroid is taken away, and say more of it;
    # of whole vectors, one table a query ranks the entries of all its lists.
    of_residuals: bool = True


def train(vectors: np.ndarray, shape: InvertedShape, seed: int) -> bytes:
    """Returns a FAISS index without entries, trained on public float32 [N, D] vectors."""
    dim = vectors.shape[1]
    quantiser = faiss.IndexFlatL2(dim)
    quantiser.add(fit_kmeans(vectors, shape.lists, seed, shape.iterations))
    index: Any  # FAISS' stubs know less of its classes than its documentation does.
    if shape.kind == "ivf_flat":
        index = faiss.IndexIVFFlat(quantiser, dim, shape.lists)
    else:
        if dim % shape.code_bytes:
            raise ConfigError(
                f"knowledge_base.index_bytes={shape.code_bytes} does not divide the keys' {dim} "
                "dimensions. Choose a divisor."
            )
        if len(vectors) < _LEAST_FOR_CODES:
            raise ConfigError(
                f"knowledge_base.index=ivf_pq needs at least {_LEAST_FOR_CODES} keys to train on, "
                f"got {len(vectors)}. Use flat, which is exact and fast at that size."
            )
        index = faiss.IndexIVFPQ(quantiser, dim, shape.lists, shape.code_bytes, _CODE_BITS)
        index.by_residual = shape.of_residuals
        index.pq.cp.seed = seed
        index.pq.cp.min_points_per_centroid = 1  # Else FAISS prints that there are few.
    index.train(np.ascontiguousarray(vectors, np.float32))
    data: bytes = faiss.serialize_index(index).tobytes()
    return data


def _opened(trained: bytes) -> Any:
    try:
        index = cast(Any, faiss.deserialize_index(np.frombuffer(trained, np.uint8)))
    except RuntimeError as error:
        raise ShardError(
            f"The trained index is not FAISS's ({' '.join(str(error).split())[:80]}). Delete it "
            "and run the same command again to rebuild it."
        ) from error
    if not isinstance(index, faiss.IndexIVFFlat | faiss.IndexIVFPQ):
        raise ShardError(
            f"The trained index is a {type(index).__name__}, and no inverted lists of ours. Delete "
            "it and run the same command again to rebuild it."
        )
    return index


class InvertedIndex:
    """Searches a few lists of one shard, or of several."""

    def __init__(
        self, trained: bytes, probes: int, parts: Iterable[Part], *, rerank: int = 0
    ) -> None:
        """Fills a trained index; its bytes must have been checked against the manifest's hash.

        Args:
          rerank: candidates for every place of an answer, chosen from by whole vectors; 0 = by
            codes. Of no use where whole vectors are what is stored.
        """
        self._index = _opened(trained)
        if self._index.ntotal:
            raise ConfigError("The trained index holds entries already. Build it again.")
        direct_map: Any = getattr(faiss, "DirectMap")  # noqa: B009  (the stubs lack it)
        self._index.set_direct_map_type(direct_map.Array)
        self.dim = int(self._index.d)
        self._exact = isinstance(self._index, faiss.IndexIVFFlat)
        quantiser = faiss.downcast_index(self._index.quantizer)
        centroids = quantiser.reconstruct_n(0, quantiser.ntotal)
        self._centroids = VectorIndex(centroids, np.arange(len(centroids)))
        self.probes = min(probes, len(centroids))  # Lists looked into; may be changed any time.
        self.rerank = 0 if self._exact else rerank
        self._whole: np.ndarray | None = None
        ids, labels, largest = [], [], 0.0
        with tempfile.TemporaryFile() if self.rerank else nullcontext() as file:
            for vectors, part_ids, part_labels in parts:
                if not np.isfinite(vectors).all():
                    raise ConfigError("Keys to index must be finite. Check the extractor.")
                rows = np.ascontiguousarray(vectors, np.float32)
                lists = assign(rows, centroids)
                self._index.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(lists))
                ids.append(part_ids)
                labels.append(part_labels)
                squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
                largest = max(largest, float(squares.max(initial=0.0)))
                if file is not None:
                    file.write(rows.data)
            if file is not None:  # It has no name, and is gone with the mapping.
                file.flush()
                self._whole = np.memmap(file, np.float32, "r").reshape(-1, self.dim)
        self._ids, self._labels = np.concatenate(ids), np.concatenate(labels)
        self._largest_norm = float(np.sqrt(largest))
        # One bit an entry and class; made when a class is first asked for.
        self._members: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def search(
        self, queries: np.ndarray, k: int, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest entries in the lists nearest to each query; see ``VectorIndex.search``."""
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}.")
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), NO_NEIGHBOR, np.int64)
        finite = np.isfinite(queries).all(axis=1)
        classes = [None] if labels is None else [int(label) for label in np.unique(labels)]
        for label in classes:
            asked = np.flatnonzero(finite if label is None else finite & (labels == label))
            for start in range(0, len(asked), _QUERY_BATCH):
                chosen = asked[start : start + _QUERY_BATCH]
                distances[chosen], ids[chosen] = self._search_class(queries[chosen], k, label)
        return distances, ids

    def _search_class(
        self, queries: np.ndarray, k: int, label: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        queries = np.ascontiguousarray(queries, np.float32)
        near, lists = self._centroids.search(queries, self.probes)
        distances = np.full((len(queries), k), np.inf, np.float32)
        ids = np.full((len(queries), k), NO_NEIGHBOR, np.int64)
        left = np.arange(len(queries))
        fetch = min(max(k + _OVER_FETCH, self.rerank * k), len(self))
        while len(left):
            rough, rows = self._candidates(queries[left], near[left], lists[left], fetch, label)
            exact = self._distances(queries[left], rows)
            there = np.where(rows < 0, NO_NEIGHBOR, self._ids[rows])
            order = np.lexsort((there, exact), axis=1)[:, : min(k, fetch)]
            distances[left, : order.shape[1]] = np.take_along_axis(exact, order, 1)
            ids[left, : order.shape[1]] = np.take_along_axis(there, order, 1)
            if fetch == len(self) or not self._exact:
                break
            # A list may hold more that are as near as the last: ask these queries for more.
            open_ones = (rows[:, -1] >= 0) & (
                rough[:, -1] - self._rounding(queries[left]) <= distances[left, k - 1]
            )
            left, fetch = left[open_ones], min(4 * fetch, len(self))
        return distances, ids

    def _candidates(
        self,
        queries: np.ndarray,
        near: np.ndarray,
        lists: np.ndarray,
        fetch: int,
        label: int | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rough distances and rows [Q, fetch] of what the lists hold; -1 where there is no more."""
        rough = np.empty((len(queries), fetch), np.float32)
        rows = np.empty((len(queries), fetch), np.int64)
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = self.probes
        if label is not None:
            members = self._members_of(label)
            make_selector: Any = faiss.IDSelectorBitmap
            selector = make_selector(members)
            parameters.sel = selector  # Named, for FAISS keeps bare pointers to all of these.
        near, lists = np.ascontiguousarray(near), np.ascontiguousarray(lists)
        self._index.nprobe = self.probes
        self._index.search_preassigned_c(
            len(queries), faiss.swig_ptr(queries), fetch, faiss.swig_ptr(lists),
            faiss.swig_ptr(near), faiss.swig_ptr(rough), faiss.swig_ptr(rows), False, parameters,
        )  # fmt: skip
        return rough, rows

    def _members_of(self, label: int) -> np.ndarray:
        if label not in self._members:
            self._members[label] = np.packbits(self._labels == label, bitorder="little")
        return self._members[label]

    def _distances(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Squared L2 float32 [Q, M] to rows int64 [Q, M] as they are kept; inf where it is -1."""
        out = np.full(rows.size, np.inf, np.float32)
        flat, owner = rows.ravel(), np.repeat(np.arange(len(rows)), rows.shape[1])
        there = np.flatnonzero(flat >= 0)
        for start in range(0, len(there), _ROWS_AT_ONCE):
            part = there[start : start + _ROWS_AT_ONCE]
            kept = (
                self._index.reconstruct_batch(flat[part])
                if self._whole is None
                else self._whole[flat[part]]
            )
            gap = kept.astype(np.float64)
            gap -= queries[owner[part]]
            out[part] = np.square(gap).sum(axis=1)
        return out.reshape(rows.shape)

    def _rounding(self, queries: np.ndarray) -> np.ndarray:
        """Bounds |FAISS' distance - true distance| of whole vectors, as ``VectorIndex`` does."""
        norms = np.sqrt(np.einsum("qd,qd->q", queries, queries, dtype=np.float64))
        unit = float(np.finfo(np.float32).eps)
        bound: np.ndarray = (self.dim + 8) * unit * (norms + self._largest_norm) ** 2
        return bound
