"""Stages on the Ray cluster that is connected: train workers, shard builders and searchers."""

from collections.abc import Mapping, Sequence

from rapid_dist.config import RuntimeConfig
from rapid_dist.methods.context import Keeper, Searcher, Workers
from rapid_dist.public.build import ShardPlan, ShardTask
from rapid_dist.retrieval.manifest import Manifest, ShardRecord
from rapid_dist.runtime.backend import KeeperMaker, OnNote, OnReport
from rapid_dist.runtime.cluster import cluster_resources
from rapid_dist.runtime.keeper_client import keep_beside_driver
from rapid_dist.runtime.metrics import StageMeter
from rapid_dist.runtime.placement import choose_search
from rapid_dist.runtime.placement_roles import actor_place, phases
from rapid_dist.runtime.ray_meter import RayMeter
from rapid_dist.runtime.search_pool import SearchPool
from rapid_dist.runtime.signals import Notice
from rapid_dist.runtime.train_workers import RayWorkers
from rapid_dist.runtime.trajectory_pool import TrajectoryPool
from rapid_dist.storage import Storage


def device_on_cluster(runtime: RuntimeConfig, resources: Mapping[str, float]) -> str:
    """Returns where all workers compute: on CUDA if each can have a device of its own."""
    if runtime.device == "auto":
        return "cuda" if resources.get("GPU", 0.0) >= runtime.workers else "cpu"
    return runtime.device


class RayBackend:
    """Train workers, shard builders and searchers on the cluster that is connected."""

    def __init__(
        self,
        runtime: RuntimeConfig,
        make_keeper: KeeperMaker,
        on_report: OnReport,
        on_note: OnNote = lambda line: None,
        notice: Notice | None = None,
    ) -> None:
        self.device = device_on_cluster(runtime, cluster_resources(runtime.worker_labels))
        self._training = RayWorkers(
            threads=runtime.threads_per_worker,
            device=self.device,
            max_failures=runtime.max_failures,
            on_report=on_report,
            labels=runtime.worker_labels,
            run=make_keeper.run,
            hang_minutes=runtime.hang_minutes,
            notice=notice,
        )
        self.workers: Workers = self._training
        self.num_workers = runtime.workers
        self._runtime = runtime
        self._make_keeper = make_keeper
        self._on_report = on_report
        self._on_note = on_note
        self._pools: list[SearchPool] = []
        self._meter = StageMeter(meter=RayMeter(make_keeper.run))

    def keeper(self) -> Keeper:
        return keep_beside_driver(self._make_keeper)

    def build_shards(self, plans: Sequence[ShardPlan], task: ShardTask) -> list[ShardRecord]:
        self._training.release()  # Builders may need the CPUs that trainers held.
        ((builder,),) = phases(self._runtime)[1:2]
        pool = TrajectoryPool(task, num_actors=builder.count, place=actor_place(builder))
        return pool.build(
            plans, lambda done, total: self._on_report("index", {"step": done, "steps": total})
        )

    def searcher(self, storage: Storage) -> Searcher:
        return self._pool(storage, private=False)

    def private_searcher(self, storage: Storage) -> Searcher | None:
        runtime = self._runtime
        choice = choose_search(runtime.search, Manifest.read(storage), runtime.memory_gb)
        self._on_note(f"private queries are {choice.kind}: {choice.reason}")
        return self._pool(storage, private=True) if choice.kind == "sharded" else None

    def _pool(self, storage: Storage, *, private: bool) -> SearchPool:
        self._training.release()  # For the same reason: a searcher without a place waits for ever.
        ((searcher,),) = phases(self._runtime)[2:]
        pool = SearchPool(
            storage.uri,
            num_actors=self._runtime.search_actors,
            replicas=self._runtime.search_replicas,
            place=actor_place(searcher),
            private=private,
            observe=None if private else self._meter.on_search,
        )
        self._pools.append(pool)
        return pool

    def close(self) -> None:
        """Ends workers and searchers; everything else ends by itself."""
        while self._pools:
            self._pools.pop().close()
        self._training.release()
