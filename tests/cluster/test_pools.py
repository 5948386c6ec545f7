"""Ray actors build and search a knowledge base to the bit as one process does, deaths included."""

import os
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle

from rapid_dist.audit.markers import Markers, random_markers
from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.public.build import (
    ShardPlan,
    ShardTask,
    build_knowledge_base,
    plan_shards,
    write_manifest,
)
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.manifest import ShardRecord
from rapid_dist.runtime.placement import ActorPlacement
from rapid_dist.runtime.search_pool import PRIVATE_BYTES, SearchPool
from rapid_dist.runtime.trajectory_pool import TrajectoryPool
from rapid_dist.storage import AlreadyExists, LocalStorage
from tests import knowledge
from tests.knowledge import embedders, knowledge_base_spec, pixel_keys, reference_images

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module", autouse=True)
def _tests_travel_by_value():
    """Actors cannot import this folder: another package may be called ``tests`` there."""
    modules = [knowledge, sys.modules[__name__]]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


HALF = ActorPlacement(num_cpus=0.5)


class DyingTask(ShardTask):
    """Kills its own process on the first try of one shard, after it was stored or before."""

    def __init__(self, storage_uri: str, place: int, *, deaths: int, stored: bool = False) -> None:
        super().__init__(storage_uri, reference_images, embedders)
        self._graves = LocalStorage(storage_uri + "-graves")
        self._place, self._deaths, self._stored = place, deaths, stored

    def build(self, plan: ShardPlan) -> ShardRecord:
        if plan.place == self._place:
            if self._stored:
                super().build(plan)
            for death in range(self._deaths):
                try:
                    self._graves.create(str(death), b"")
                except AlreadyExists:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().build(plan)


class HangingTask(ShardTask):
    """Whoever is first at shard 3 never comes back."""

    def __init__(self, storage_uri: str) -> None:
        super().__init__(storage_uri, reference_images, embedders)
        self._graves = LocalStorage(storage_uri + "-graves")

    def build(self, plan: ShardPlan) -> ShardRecord:
        if plan.place == 3:
            try:
                self._graves.create("hangs", b"")
                time.sleep(3600)
            except AlreadyExists:
                pass
        return super().build(plan)


class FailingTask:
    def build(self, plan: ShardPlan) -> ShardRecord:
        raise ShardError(f"Shard {plan.place} cannot be made.")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A knowledge base built in this process; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    build_knowledge_base(
        reference_images(), knowledge_base_spec(), embedders()[0], LocalStorage(folder)
    )
    return folder


@pytest.fixture
def alone(built, tmp_path) -> LocalStorage:
    """A copy of it, to do something to."""
    return LocalStorage(shutil.copytree(built, tmp_path / "alone"))


def _contents(storage: LocalStorage) -> dict[str, bytes]:
    return {name: storage.read(name) for name in storage.list()}


def _build_on_ray(storage, task, **options) -> None:
    reference = reference_images()
    plans = plan_shards(reference, knowledge_base_spec())
    progress = options.pop("progress", None)
    records = TrajectoryPool(task, place=HALF, **options).build(plans, progress)
    write_manifest(storage, plans, records, reference)


def _queries(base: KnowledgeBase) -> np.ndarray:
    states = base.state(np.arange(60), 4.0)
    shift = 0.3 * (torch.arange(60) % 2)  # Every second query is a key itself.
    return embedders()[0](states + shift[:, None, None, None])


@pytest.mark.parametrize("num_actors", [1, 3])  # And two, who die, below.
def test_the_bytes_do_not_depend_on_the_number_of_actors(alone, tmp_path, num_actors):
    storage = LocalStorage(tmp_path / "ray")
    seen = []
    _build_on_ray(
        storage,
        ShardTask(storage.uri, reference_images, embedders),
        num_actors=num_actors,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert _contents(storage) == _contents(alone)
    assert seen == [(done, 5) for done in range(1, 6)]


@pytest.mark.parametrize("stored", [False, True])
def test_a_builder_killed_in_its_work_changes_nothing(alone, tmp_path, stored):
    storage = LocalStorage(tmp_path / "ray")
    _build_on_ray(storage, DyingTask(storage.uri, 1, deaths=2, stored=stored), num_actors=2)
    assert len(LocalStorage(storage.uri + "-graves").list()) == 2
    assert _contents(storage) == _contents(alone)


def test_a_shard_that_always_kills_its_builder_ends_the_build_and_keeps_the_others(tmp_path):
    storage = LocalStorage(tmp_path / "ray")
    task = DyingTask(storage.uri, 4, deaths=9)
    with pytest.raises(ShardError, match="Actors died 2 times while building 5 shards"):
        _build_on_ray(storage, task, num_actors=1, max_failures=1)
    assert len(storage.list("shards/")) == 4


def test_an_idle_builder_takes_over_a_shard_that_hangs(alone, tmp_path):
    storage = LocalStorage(tmp_path / "ray")
    _build_on_ray(storage, HangingTask(storage.uri), num_actors=2)
    assert _contents(storage) == _contents(alone)


def test_an_error_of_the_task_reaches_the_caller_as_it_is(tmp_path):
    with pytest.raises(ShardError, match=r"^Shard 0 cannot be made\.$"):
        _build_on_ray(LocalStorage(tmp_path), FailingTask(), num_actors=1)


def test_an_actor_that_fits_nowhere_is_refused_instead_of_awaited(tmp_path):
    plans = plan_shards(reference_images(), knowledge_base_spec())
    with pytest.raises(ConfigError, match="needs 4096 CPU"):
        TrajectoryPool(FailingTask(), place=ActorPlacement(num_cpus=4096)).build(plans)


@pytest.mark.parametrize("num_actors", [2, 5])
def test_the_pool_answers_like_one_process(alone, num_actors):
    base = KnowledgeBase.open(alone)
    queries, labels = _queries(base), np.arange(60) % 5  # Nobody is in class 4.
    with SearchPool(alone.uri, num_actors=num_actors, place=HALF) as pool:
        assert len(pool) == len(base)
        for k, wanted in ((1, None), (200, None), (4, labels)):
            found, expected = pool.search(queries, k, wanted), base.search(queries, k, wanted)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_replicas_take_turns_and_one_that_is_lost_for_good_is_not_missed(alone):
    base = KnowledgeBase.open(alone)
    queries = np.tile(_queries(base), (20, 1))  # Five pieces of 256.
    expected = base.search(queries, 3)
    with SearchPool(alone.uri, replicas=2, place=HALF, max_restarts=0) as pool:
        for _ in range(2):
            found = pool.search(queries, 3)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
            if len(pool._groups) == 2:
                os.kill(_process_of(pool._groups[0][1]), signal.SIGKILL)
        assert len(pool._groups) == 1


def test_a_private_pool_answers_alike_and_keeps_queries_and_answers_off_the_object_store(alone):
    base = KnowledgeBase.open(alone)
    queries = np.tile(_queries(base), (50, 1))  # 3,000 rows: four times what one call may hold.
    assert queries.nbytes > 3 * PRIVATE_BYTES
    expected, images = base.search(queries, 4), base.images(np.arange(180))
    with SearchPool(alone.uri, place=HALF, private=True) as pool:
        before = _stored_bytes()
        found = pool.search(queries, 4)
        np.testing.assert_array_equal(pool.images(np.arange(180)), images)
        assert _stored_bytes() == before
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    with SearchPool(alone.uri, place=HALF) as pool:
        pool.search(queries, 4)
        assert _stored_bytes() > before + PRIVATE_BYTES


def _traces(markers: Markers, since: float) -> set[str]:
    """What of the planted images stands in a file that Ray has written since then."""
    node = ray._private.worker._global_node
    assert node is not None
    session = Path(node.get_session_dir_path())
    written = [p for p in session.rglob("*") if p.is_file() and p.stat().st_mtime >= since]
    assert written  # Ray's own logs are among them.
    return {kind for path in written for kind in markers.found_in(path.read_bytes())}


def test_private_queries_leave_nothing_in_rays_folder(tmp_path):
    storage = LocalStorage(tmp_path)
    build_knowledge_base(
        reference_images(), knowledge_base_spec(), lambda s: s.flatten(1).numpy(), storage
    )
    markers = random_markers(40, (1, 8, 8), 4, np.random.default_rng(3))
    queries, since = pixel_keys(markers.images), time.time() - 1
    with SearchPool(storage.uri, place=HALF, private=True) as pool:
        _, ids = pool.search(queries, 3, markers.labels)
        pool.images(ids.ravel())
        os.kill(_process_of(pool._groups[0][0]), signal.SIGKILL)  # Its end may be told, not why.
        pool.search(queries, 3)
        assert _traces(markers, since) == set()
        told = markers.images[0].ravel().tolist()
        ray.get(pool._groups[0][0].__ray_call__.remote(lambda _: print(told, flush=True)))
        assert "pixels" in _traces(markers, since)  # An actor that printed a query is noticed.


def test_nobody_else_can_enter_the_folder_in_which_ray_has_its_own():
    node = ray._private.worker._global_node
    assert node is not None
    session = Path(node.get_session_dir_path())
    modes = {up: stat.S_IMODE(up.stat().st_mode) for up in session.parents}
    assert modes[session.parent] == 0o777  # Ray's doing, whatever it was before.
    assert modes[session.parent.parent] == 0o700


def test_a_private_answer_too_large_for_a_call_is_refused(alone):
    with (
        SearchPool(alone.uri, place=HALF, private=True) as pool,
        pytest.raises(ConfigError, match="Ask for fewer neighbours"),
    ):
        pool.search(_queries(KnowledgeBase.open(alone)), 5_000)


def test_a_killed_search_actor_answers_the_same_after_its_restart(alone):
    with SearchPool(alone.uri, num_actors=2, place=HALF) as pool:
        queries = _queries(KnowledgeBase.open(alone))
        before = pool.search(queries, 5)
        for actor in pool._groups[0]:
            victim = _process_of(actor)
            os.kill(victim, signal.SIGKILL)
            after = pool.search(queries, 5)
            np.testing.assert_array_equal(after[0], before[0])
            np.testing.assert_array_equal(after[1], before[1])
            assert _process_of(actor) != victim


def test_more_search_actors_than_there_is_room_for_are_given_up_in_one_line(alone):
    four = ActorPlacement(num_cpus=4.0)  # One of them fits the cluster's six CPUs.
    with pytest.raises(ShardError, match="of 2 search actors have found no place") as refused:
        SearchPool(alone.uri, num_actors=2, place=four, patience_sec=2.0)
    assert "\n" not in str(refused.value)
    assert "Lower runtime.search_actors" in str(refused.value)
    with SearchPool(alone.uri, num_actors=1, place=four) as pool:  # Both have left.
        assert len(pool) > 0


def test_a_search_actor_that_may_not_restart_is_reported(alone):
    with SearchPool(alone.uri, num_actors=2, place=HALF, max_restarts=0) as pool:
        os.kill(_process_of(pool._groups[0][0]), signal.SIGKILL)
        with pytest.raises(ShardError, match="died more often than it may be restarted"):
            pool.search(_queries(KnowledgeBase.open(alone)), 1)


def test_a_tampered_shard_is_refused_by_name(alone):
    name = alone.list("shards/")[0]
    alone.write(name, alone.read(name)[:-1] + b"?")
    with pytest.raises(ShardError, match=name):
        SearchPool(alone.uri, num_actors=2, place=HALF)


def test_a_knowledge_base_replaced_under_the_pool_is_refused(alone):
    with SearchPool(alone.uri, num_actors=2, place=HALF) as pool:
        queries = _queries(KnowledgeBase.open(alone))
        build_knowledge_base(
            reference_images(), knowledge_base_spec(seeds=(8,)), embedders()[0], alone
        )
        os.kill(_process_of(pool._groups[0][0]), signal.SIGKILL)
        with pytest.raises(ShardError, match="built anew"):
            pool.search(queries, 1)


def test_actors_go_where_a_resource_is_or_are_refused(alone):
    name = next(n for n in ray.nodes()[0]["Resources"] if n.startswith("node:") and "head" not in n)
    there = ActorPlacement(num_cpus=0.5, resources={name: 0.01})
    with SearchPool(alone.uri, num_actors=1, place=there) as pool:
        assert len(pool) == 180
    nowhere = ActorPlacement(num_cpus=0.5, labels={"pool": "search"})
    with pytest.raises(ConfigError, match="labelled pool=search"):
        SearchPool(alone.uri, num_actors=1, place=nowhere)


def test_search_actors_see_no_gpu(alone):
    with SearchPool(alone.uri, num_actors=1, place=HALF) as pool:
        call = pool._groups[0][0].__ray_call__.remote(lambda _: os.environ["CUDA_VISIBLE_DEVICES"])
        assert ray.get(call) == ""


def _process_of(actor) -> int:
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))


def _stored_bytes() -> int:
    """What has ever been put into the object stores of the cluster."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.cumulative_created_bytes
