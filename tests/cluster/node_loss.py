"""Builds and searches a knowledge base on a cluster that loses nodes: run by test_node_loss.py.

A process of its own, for it needs a cluster of its own: actors get what is here by value, and
nothing else of this folder. Writes found.json into the folder.
"""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster

from rapid_dist.data.images import ImageSpec, PublicImages
from rapid_dist.public.build import ShardTask, build_knowledge_base, plan_shards, write_manifest
from rapid_dist.retrieval.features import pixel_features
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.manifest import KnowledgeBaseSpec
from rapid_dist.retrieval.shard_maker import Embed, FeaturesOf
from rapid_dist.runtime.placement import ActorPlacement
from rapid_dist.runtime.search_pool import SearchPool
from rapid_dist.runtime.trajectory_pool import TrajectoryPool
from rapid_dist.storage import LocalStorage

_STORE_BYTES = 80 * 2**20  # The least that Ray takes.
_SYSTEM = {"health_check_period_ms": 1_000, "health_check_failure_threshold": 5}


SPEC = KnowledgeBaseSpec(
    channels=1, size=8, seeds=(0, 1), query_level=4.0, num_shards=24, embed_batch=16,
    embedder="pixels", features="pixels",
)  # fmt: skip


def reference_images() -> PublicImages:
    rng = np.random.default_rng(7)
    spec = ImageSpec(
        name="random", num_records=240, channels=1, size=8, num_classes=4, licence="none"
    )
    images = rng.integers(0, 256, (240, 1, 8, 8), dtype=np.uint8)
    return PublicImages(images=images, labels=rng.integers(0, 4, 240), spec=spec)


def embed(states: torch.Tensor) -> np.ndarray:
    keys: np.ndarray = states.flatten(1).numpy()
    return keys


def embedders() -> tuple[Embed, FeaturesOf]:
    return embed, pixel_features


class SlowTask(ShardTask):
    """Leaves the node that it runs on beside the shards, and takes long enough to lose it."""

    def build(self, plan):
        if self._opened is None:
            place = Path(self._storage_uri + "-nodes")
            place.mkdir(exist_ok=True)
            (place / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(0.5)
        return super().build(plan)


def _contents(storage: LocalStorage) -> dict[str, bytes]:
    return {name: storage.read(name) for name in storage.list()}


def main(folder: Path) -> None:
    reference = reference_images()
    alone, storage = LocalStorage(folder / "alone"), LocalStorage(folder / "ray")
    build_knowledge_base(reference, SPEC, embed, alone)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0, "object_store_memory": _STORE_BYTES, "_system_config": _SYSTEM,
            "include_dashboard": False,
        },
    )  # fmt: skip

    def add_node():
        return cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        first, second = add_node(), add_node()
        cluster.wait_for_nodes()
        plans = plan_shards(reference, SPEC)
        nodes = Path(storage.uri + "-nodes")
        lost_at: list[int] = []

        def lose(node) -> None:
            while len(storage.list("records/")) < 3 or len(list(nodes.iterdir())) < 2:
                time.sleep(0.05)
            cluster.remove_node(node, allow_graceful=False)
            lost_at.append(len(storage.list("records/")))

        loser = threading.Thread(target=lose, args=(first,))
        loser.start()
        place = ActorPlacement(num_cpus=1.0)
        task = SlowTask(storage.uri, reference_images, embedders)
        records = TrajectoryPool(task, num_actors=2, place=place).build(plans)
        loser.join()
        write_manifest(storage, plans, records, reference)
        base = KnowledgeBase.open(alone)
        queries = np.random.default_rng(0).normal(size=(40, base.manifest.key_dim))
        queries = queries.astype(np.float32)
        expected = base.search(queries, 5)
        add_node()  # One actor fits a node.
        cluster.wait_for_nodes()
        with SearchPool(storage.uri, num_actors=2, place=place) as pool:
            before = pool.search(queries, 5)
            add_node()  # Where the actor of the lost one starts again.
            cluster.remove_node(second, allow_graceful=False)
            after = pool.search(queries, 5)
        found = {
            "plans": len(plans),
            "lost_at": lost_at[0],
            "nodes": len(list(nodes.iterdir())),
            "same_bytes": _contents(storage) == _contents(alone),
            "same_before": all(map(np.array_equal, before, expected)),
            "same_after": all(map(np.array_equal, after, expected)),
        }
        (folder / "found.json").write_text(json.dumps(found))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
