"""Searches a knowledge base that is spread over Ray actors.

Each actor holds some shards; answers are merged exactly, ties to the smaller id, so they are
those of ``KnowledgeBase.search`` to the bit. An actor that dies is started again by Ray, opens
its shards from storage by their hashes, and answers the same. Replicas are whole copies of the
pool that take turns; one that is lost for good leaves the others to answer.

What passes through Ray's object store may be spilled to a node's disk. So a pool is for public
queries, unless it is ``private``: then queries and answers travel inside the calls themselves, in
pieces too small for Ray to put them anywhere, and are gone with the call (P9).
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from rapid_dist.confined import no_core_dumps
from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.retrieval.merge import merge_neighbors
from rapid_dist.retrieval.searcher import ShardImages, ShardSearcher
from rapid_dist.runtime.placement import ActorPlacement
from rapid_dist.storage import open_storage

BATCH = 256  # Queries of one call at most: bounds an actor's memory, and no answer depends on it.
PRIVATE_BYTES = 48 * 1024  # Of a private call or answer; Ray keeps up to 100 KiB off its store.
PATIENCE_SEC = 600.0  # For actors to find a place: a lost node may be replaced meanwhile.
_IN_FLIGHT = 2  # Pieces asked of a replica at once: one is searched while the next one travels.
_ANSWER_BYTES = 12  # Of a distance and an id.


class _Searcher:
    """The actor. Opens its shards when asked: a bad shard is then an error, not a dead actor."""

    def __init__(
        self, storage_uri: str, manifest_fingerprint: str, places: list[int], on_gpu: bool
    ) -> None:
        no_core_dumps()  # It may be asked private queries.
        self._storage_uri, self._fingerprint = storage_uri, manifest_fingerprint
        self._places, self._on_gpu = places, on_gpu
        self._opened: tuple[ShardSearcher, ShardImages] | None = None

    def ready(self) -> None:
        """Answers once the actor has a place."""

    def open(self) -> int:
        """Opens all shards and returns the number of entries."""
        return len(self._open()[0].index())

    def search(
        self, queries: np.ndarray, k: int, labels: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._open()[0].search(queries, k, labels)

    def images(self, ids: np.ndarray) -> np.ndarray:
        return self._open()[1].images(ids)

    def _open(self) -> tuple[ShardSearcher, ShardImages]:
        if self._opened is None:
            storage = open_storage(self._storage_uri)
            manifest = Manifest.read(storage)
            if manifest.fingerprint != self._fingerprint:
                raise ShardError(
                    f"{self._storage_uri} was built anew while it was being searched. "
                    "Open the search again."
                )
            self._opened = (
                ShardSearcher(storage, manifest, self._places, on_gpu=self._on_gpu),
                ShardImages(storage, manifest, self._places),
            )
        return self._opened


class SearchPool:
    """``KnowledgeBase.search``, from two or more actors. Close it, or use it in ``with``."""

    def __init__(
        self,
        storage_uri: str,
        *,
        num_actors: int = 2,
        replicas: int = 1,
        place: ActorPlacement | None = None,
        max_restarts: int = 16,
        patience_sec: float = PATIENCE_SEC,
        private: bool = False,
        observe: Callable[[float, int], None] | None = None,
    ) -> None:
        """Starts the actors and waits until every one has opened its shards.

        Args:
          num_actors: of one replica; at most one per shard is started.
          replicas: whole copies, for throughput.
          place: what each actor needs of its node; FAISS uses as many threads as CPUs.
          max_restarts: deaths that each actor survives, and tries of each call.
          patience_sec: how long to wait for all actors to have a place.
          private: whether queries and answers must not touch Ray's object store.
          observe: is told of every piece how many seconds its answer took, and how many pieces
            wait. Not of private queries: how long one takes is theirs (P9).
        """
        if private and observe is not None:
            raise ConfigError("Private queries are not observed. Leave out observe.")
        self._observe = observe
        if num_actors < 1 or replicas < 1:
            raise ConfigError(
                f"num_actors and replicas must be at least 1, got {num_actors} and {replicas}."
            )
        self.manifest = Manifest.read(open_storage(storage_uri))
        self.private = private
        place = place or ActorPlacement(num_cpus=0.5)
        place.require_room(ray.nodes())  # type: ignore[no-untyped-call]
        num_shards = len(self.manifest.shards)
        num_actors = min(num_actors, num_shards)
        options = place.options() | {"max_restarts": max_restarts, "max_task_retries": max_restarts}
        actor_class = ray.remote(**options)(_Searcher)
        self._owner = np.arange(num_shards) % num_actors  # Shard -> actor of a replica.
        self._first_ids = np.array(self.manifest.first_ids())
        self._turn = 0
        self._groups: list[list[Any]] = [
            [
                actor_class.remote(
                    storage_uri,
                    self.manifest.fingerprint,
                    np.flatnonzero(self._owner == actor).tolist(),
                    place.num_gpus > 0,
                )
                for actor in range(num_actors)
            ]
            for _ in range(replicas)
        ]
        try:
            self._await_places(place, patience_sec)
            opening = [[actor.open.remote() for actor in group] for group in self._groups]
            held = [sum(self._fetched(refs)) for refs in opening]
        except RayActorError as error:
            self.close()
            raise ShardError(self._died()) from error
        except BaseException:
            self.close()
            raise
        assert held == [self.manifest.num_entries] * replicas

    def _await_places(self, place: ActorPlacement, patience_sec: float) -> None:
        """Refuses, after a while, actors that the cluster has no room for: Ray would wait."""
        asked = [actor.ready.remote() for group in self._groups for actor in group]
        _, waiting = ray.wait(asked, num_returns=len(asked), timeout=patience_sec)
        if waiting:
            raise ShardError(
                f"{len(waiting)} of {len(asked)} search actors have found no place for "
                f"{patience_sec:g} seconds; each needs {place.num_cpus:g} CPU. Lower "
                "runtime.search_actors or runtime.search_replicas, or add a node."
            )

    def __len__(self) -> int:
        return self.manifest.num_entries

    def search(
        self, queries: np.ndarray, k: int, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns what ``KnowledgeBase.search`` returns, to the bit.

        float32 [Q, D], int64 [Q] -> squared L2 float32 [Q, k], ascending, and ids int64 [Q, k].
        """
        self.manifest.framed(queries[:0])  # Refuses a wrong shape here rather than on every actor.
        queries = np.asarray(queries, np.float32)
        distances = np.empty((len(queries), k), np.float32)
        ids = np.empty((len(queries), k), np.int64)
        width = max(self.manifest.key_dim * queries.itemsize, k * _ANSWER_BYTES)

        def ask(group: list[Any], rows: slice) -> list[Any]:
            asked: Any = queries[rows] if self.private else ray.put(queries[rows])
            wanted = None if labels is None else labels[rows]
            return [actor.search.remote(asked, k, wanted) for actor in group]

        for rows, found in self._answers(self._pieces(len(queries), width), ask):
            near, which = (np.stack(part) for part in zip(*found, strict=True))
            distances[rows], ids[rows] = merge_neighbors(near, which, k)
        return distances, ids

    def images(self, ids: np.ndarray) -> np.ndarray:
        """Entries int64 [n] -> their reference images, uint8 [n, C, S, S]."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            # Which ids, it does not say: a private record's neighbour is private (P9).
            raise ConfigError(f"Entry ids must be in 0..{len(self) - 1}.")
        spec = self.manifest.spec
        shape = (spec.channels, spec.size, spec.size)
        images = np.empty((len(ids), *shape), np.uint8)
        owners = self._owner[np.searchsorted(self._first_ids, ids, side="right") - 1]

        def ask(group: list[Any], rows: slice) -> list[Any]:
            # All are asked, so that which of them hold a private record's neighbours stays unsaid.
            return [
                actor.images.remote(ids[rows][owners[rows] == number])
                for number, actor in enumerate(group)
            ]

        for rows, found in self._answers(self._pieces(len(ids), int(np.prod(shape))), ask):
            part = images[rows]
            for number, some in enumerate(found):
                part[owners[rows] == number] = some
        return images

    def close(self) -> None:
        """Ends the actors. A closed pool cannot be searched."""
        for group in self._groups:
            for actor in group:
                ray.kill(actor)
        self._groups = []

    def __enter__(self) -> "SearchPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _pieces(self, num_rows: int, row_bytes: int) -> list[slice]:
        size = BATCH
        if self.private:
            if row_bytes > PRIVATE_BYTES:
                raise ConfigError(
                    f"One private query or its answer takes {row_bytes} bytes, above "
                    f"{PRIVATE_BYTES}, where Ray would store it. Ask for fewer neighbours."
                )
            size = min(BATCH, PRIVATE_BYTES // row_bytes)
        return [slice(start, start + size) for start in range(0, num_rows, size)]

    def _answers(
        self, pieces: list[slice], ask: Callable[[list[Any], slice], list[Any]]
    ) -> Iterator[tuple[slice, list[Any]]]:
        """Yields every piece with the answers of one whole replica, a few pieces in flight."""
        waiting = deque(pieces)
        running: deque[tuple[slice, list[Any], list[Any], float]] = deque()
        while waiting or running:
            assert self._groups, "the pool is closed"
            while waiting and len(running) < _IN_FLIGHT * len(self._groups):
                group = self._groups[self._turn % len(self._groups)]
                self._turn += 1
                rows = waiting.popleft()
                running.append((rows, group, ask(group, rows), time.monotonic()))
            rows, group, refs, asked = running.popleft()
            try:
                found = self._fetched(refs)
            except RayActorError as error:
                if group in self._groups:
                    self._groups.remove(group)
                    for actor in group:
                        ray.kill(actor)
                if not self._groups:
                    raise ShardError(self._died()) from error
                waiting.appendleft(rows)  # Another replica answers the same.
                continue
            if self._observe is not None:
                self._observe(time.monotonic() - asked, len(waiting) + len(running))
            yield rows, found

    @staticmethod
    def _fetched(refs: list[Any]) -> list[Any]:
        try:
            return list(ray.get(refs))
        except RayTaskError as error:
            raise error.cause from error

    def _died(self) -> str:
        return (
            f"A search actor of {self.manifest.fingerprint[:16]} died more often than it may be "
            "restarted. Give the actors more memory, or use more of them."
        )
