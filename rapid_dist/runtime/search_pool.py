"""Searches a knowledge base that is spread over Ray actors.

Each actor holds some shards; answers are merged exactly, ties to the smaller id, so they are
those of ``KnowledgeBase.search`` to the bit. An actor that dies is started again by Ray, opens
its shards from storage, and answers the same.

Queries pass through Ray's object store, which may spill to a node's disk. Search for private
records therefore stays in the process that holds them (``KnowledgeBase``); this pool is for
public queries and for knowledge bases that no single process can hold.
"""

from types import TracebackType
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.retrieval.knowledge_base import ShardSearcher
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.retrieval.merge import merge_neighbors
from rapid_dist.runtime.trajectory_pool import placement
from rapid_dist.storage import open_storage

_UNLIMITED = -1  # Task retries end with the actor's restarts.


class _Searcher:
    """The actor. Opens its shards when asked: a bad shard is then an error, not a dead actor."""

    def __init__(self, storage_uri: str, manifest_fingerprint: str, places: list[int]) -> None:
        self._storage_uri, self._fingerprint = storage_uri, manifest_fingerprint
        self._places = places
        self._searcher: ShardSearcher | None = None

    def open(self) -> int:
        """Opens all shards and returns the number of entries."""
        if self._searcher is None:
            storage = open_storage(self._storage_uri)
            manifest = Manifest.read(storage)
            if manifest.fingerprint != self._fingerprint:
                raise ShardError(
                    f"{self._storage_uri} was built anew while it was being searched. "
                    "Open the search again."
                )
            self._searcher = ShardSearcher(storage, manifest, self._places)
        return len(self._searcher.index())

    def search(
        self, queries: np.ndarray, k: int, labels: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        self.open()
        assert self._searcher is not None
        return self._searcher.search(queries, k, labels)


class SearchPool:
    """``KnowledgeBase.search``, from two or more actors. Close it, or use it in ``with``."""

    def __init__(
        self,
        storage_uri: str,
        *,
        num_actors: int = 2,
        num_cpus: float = 0.5,
        max_restarts: int = 16,
    ) -> None:
        """Starts the actors and waits until every one has opened its shards.

        Args:
          num_actors: at most one per shard is started.
          num_cpus: CPUs of each actor; FAISS uses as many threads, at least one.
          max_restarts: deaths that each actor survives.
        """
        if num_actors < 1:
            raise ConfigError(f"num_actors must be at least 1, got {num_actors}.")
        self.manifest = Manifest.read(open_storage(storage_uri))
        places = range(len(self.manifest.shards))
        options = placement(num_cpus) | {
            "max_restarts": max_restarts,
            "max_task_retries": _UNLIMITED,
        }
        actor_class = ray.remote(**options)(_Searcher)
        self._actors: list[Any] = [
            actor_class.remote(
                storage_uri, self.manifest.fingerprint, list(places[first::num_actors])
            )
            for first in range(min(num_actors, len(places)))
        ]
        try:
            held = self._ask("open")
        except BaseException:
            self.close()
            raise
        assert sum(held) == self.manifest.num_entries

    def __len__(self) -> int:
        return self.manifest.num_entries

    def search(
        self, queries: np.ndarray, k: int, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns what ``KnowledgeBase.search`` returns, to the bit.

        float32 [Q, D], int64 [Q] -> squared L2 float32 [Q, k], ascending, and ids int64 [Q, k].
        """
        self.manifest.framed(queries)  # Refuses a wrong shape here rather than on every actor.
        found = self._ask("search", ray.put(queries), k, labels)  # Stored once, not once per actor.
        distances, ids = (np.stack(part) for part in zip(*found, strict=True))
        return merge_neighbors(distances, ids, k)

    def close(self) -> None:
        """Ends the actors. A closed pool cannot be searched."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def __enter__(self) -> "SearchPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        assert self._actors, "the pool is closed"
        try:
            return list(ray.get([getattr(a, method).remote(*arguments) for a in self._actors]))
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise ShardError(
                f"A search actor of {self.manifest.fingerprint[:16]} died more often than it may "
                "be restarted. Give the actors more memory, or use more of them."
            ) from error
