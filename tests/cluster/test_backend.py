"""What a run's workers, builders and searchers leave to each other on a cluster that is full."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from rapid_dist.collective import Collective
from rapid_dist.config import RuntimeConfig
from rapid_dist.methods.task import Report
from rapid_dist.public.build import ShardTask, plan_shards, write_manifest
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.runtime.ray_backend import RayBackend
from rapid_dist.storage import LocalStorage
from tests import knowledge
from tests.knowledge import embedders, knowledge_base_spec, reference_images

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module", autouse=True)
def _knowledge_travels_by_value() -> Iterator[None]:
    """Actors cannot import this folder: another package may be called ``tests`` there."""
    cloudpickle.register_pickle_by_value(knowledge)
    yield
    cloudpickle.unregister_pickle_by_value(knowledge)


class SaysHello:
    def __call__(self, collective: Collective, report: Report) -> None:
        report({"world": float(collective.world_size)})


def test_idle_workers_make_room_for_builders_and_searchers(tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, float]]] = []
    runtime = RuntimeConfig(workers=1, threads_per_worker=6)  # All that the tests' cluster has.
    keeper: Any = SimpleNamespace(run="digits-1")  # Nothing is charged.
    backend = RayBackend(runtime, keeper, lambda name, figures: said.append((name, figures)))
    storage, reference = LocalStorage(tmp_path), reference_images()
    plans = plan_shards(reference, knowledge_base_spec())
    try:
        backend.workers.run(SaysHello(), name="contrast", num_workers=1, private=False)
        records = backend.build_shards(plans, ShardTask(storage.uri, reference_images, embedders))
        write_manifest(storage, plans, records, reference)
        backend.workers.run(SaysHello(), name="adapt", num_workers=1, private=False)
        queries = np.zeros((2, Manifest.read(storage).key_dim), np.float32)
        _, ids = backend.searcher(storage).search(queries, 3)
    finally:
        backend.close()
    assert ids.shape == (2, 3)
    assert [name for name, _ in said] == ["contrast", *["index"] * len(plans), "adapt"]
