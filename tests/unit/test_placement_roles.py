"""What a recipe asks of single nodes, and that what does not fit is said before anything waits."""

from typing import Any

import pytest

from rapid_dist.config import RuntimeConfig, load_recipe, method_settings
from rapid_dist.methods import artifacts
from rapid_dist.public.build import build_knowledge_base
from rapid_dist.runtime import pipeline
from rapid_dist.runtime.placement_roles import (
    Role,
    actor_place,
    assign,
    bundles,
    misfit,
    phases,
    placement_told,
    unsafe_driver,
)
from rapid_dist.runtime.room import searchers_beside
from rapid_dist.storage import LocalStorage
from tests.knowledge import embedders, knowledge_base_spec, reference_images


def _node(name: str, cpus: float, gpus: float = 0, gb: float = 64, **labels: str) -> dict[str, Any]:
    resources = {"CPU": cpus, "GPU": gpus, "memory": gb * 2**30}
    return {"Alive": True, "Resources": resources, "Labels": labels, "NodeManagerAddress": name}


POOLS = RuntimeConfig(
    workers=2,
    threads_per_worker=4,
    device="cuda",
    worker_labels={"pool": "train"},
    search_labels={"pool": "memory"},
    trajectory_labels={"pool": "spot"},
)
CLUSTER = [
    _node("head", 0, pool="head"),
    _node("gpu-1", 8, 1, pool="train"),
    _node("gpu-2", 8, 1, pool="train"),
    _node("big", 8, pool="memory"),
    _node("cheap", 8, pool="spot"),
]


def test_every_role_goes_to_the_nodes_of_its_label():
    training, building, searching = phases(POOLS)
    assert assign(training, CLUSTER) == {"training": ["gpu-1", "gpu-2"]}
    assert assign(building, CLUSTER) == {"trajectories": ["cheap", "cheap"]}
    assert assign(searching, CLUSTER) == {"search": ["big", "big"]}
    assert misfit(phases(POOLS), CLUSTER) is None


def test_enough_cpus_in_all_are_not_enough_when_no_node_has_them():
    runtime = RuntimeConfig(workers=2, threads_per_worker=4)
    scattered = [_node(str(n), 3) for n in range(4)]  # Twelve, of which eight are asked for.
    line = misfit(phases(runtime), scattered)
    assert line is not None
    assert "Role training" in line
    assert "a node has 3 CPU at most" in line
    assert misfit(phases(runtime), [_node("a", 4), _node("b", 4)]) is None


def test_what_fits_alone_and_not_together_is_counted():
    runtime = RuntimeConfig(workers=5, threads_per_worker=2)
    line = misfit(phases(runtime), [_node("a", 4), _node("b", 4)])
    assert line is not None
    assert "has room for 4 of them" in line
    assert "runtime.workers" in line


def test_memory_is_a_nodes_own():
    line = misfit(phases(RuntimeConfig(workers=2, memory_gb=6)), [_node("a", 8, gb=10)])
    assert line is not None
    assert "has room for 1 of them" in line
    alone = misfit(phases(RuntimeConfig(memory_gb=16)), [_node("a", 8, gb=10)])
    assert alone is not None
    assert "needs 16 GB of memory, a node has 10 GB of memory at most" in alone


def test_a_dead_node_holds_nothing():
    dead = {**_node("a", 8), "Alive": False}
    assert "labelled" in str(misfit(phases(POOLS), [dead]))
    assert misfit(phases(RuntimeConfig()), [dead]) is not None


def test_sharded_search_has_to_fit_beside_training():
    runtime = RuntimeConfig(workers=2, search="sharded", search_actors=2)
    assert misfit(phases(runtime), [_node("a", 2)]) is not None
    assert misfit(phases(runtime), [_node("a", 3)]) is None
    assert misfit(phases(RuntimeConfig(workers=2)), [_node("a", 2)]) is None


ASKS = ["train.mode=surrogate", "train.surrogate=query"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], False),  # Nothing is looked up while it trains.
        (["runtime.search=sharded"], False),
        (ASKS, True),  # By its size, which nobody knows before it is made.
        ([*ASKS, "runtime.search=replicated"], False),
        ([*ASKS, "runtime.search=sharded"], True),
        ([*ASKS, "method=references"], False),
    ],
)
def test_searchers_are_counted_beside_training_where_training_may_ask_them(options, expected):
    recipe = load_recipe("digits", options)
    assert searchers_beside(method_settings(recipe), recipe.runtime) is expected
    described = pipeline.prepare(recipe, "out").described()
    assert described["resources"]["cpus"] == (3 if expected else 2)
    assert described["placement"]["search"].endswith(", beside training") is expected


def test_a_knowledge_base_that_is_there_decides_by_its_size(tmp_path):
    recipe = load_recipe("digits", ASKS)
    settings = method_settings(recipe)
    place = LocalStorage(tmp_path).child(artifacts.knowledge_base_name(settings))
    build_knowledge_base(reference_images(), knowledge_base_spec(), embedders()[0], place)
    unfinished = searchers_beside(settings, recipe.runtime, str(tmp_path))
    artifacts.mark_done(place)
    assert unfinished
    assert not searchers_beside(settings, recipe.runtime, str(tmp_path))
    small = recipe.runtime.model_copy(update={"memory_gb": 1e-6})
    assert searchers_beside(settings, small, str(tmp_path))


def test_searchers_without_room_beside_training_are_refused_with_the_way_out():
    line = misfit(phases(RuntimeConfig(workers=2), beside=True), [_node("a", 2)])
    assert line is not None
    assert "beside training; the cluster has room for 0" in line
    assert "runtime.search to replicated" in line
    assert misfit(phases(RuntimeConfig(workers=2), beside=True), [_node("a", 3)]) is None


def test_labels_of_one_kind_win_over_those_of_all_actors():
    runtime = RuntimeConfig(actor_labels={"pool": "cpu"}, search_labels={"pool": "memory"})
    _, (building,), (searching,) = phases(runtime)
    assert (building.labels, searching.labels) == ({"pool": "cpu"}, {"pool": "memory"})
    assert actor_place(searching).options()["label_selector"] == {"pool": "memory"}


def test_a_driver_is_refused_where_only_trajectories_may_be_lost():
    line = unsafe_driver(phases(POOLS), {"pool": "spot"})
    assert line is not None
    assert "pool=spot" in line
    assert unsafe_driver(phases(POOLS), {"pool": "head"}) is None
    same = RuntimeConfig(worker_labels={"pool": "cpu"}, trajectory_labels={"pool": "cpu"})
    assert unsafe_driver(phases(same), {"pool": "cpu"}) is None  # One kind of node for all.
    assert unsafe_driver(phases(RuntimeConfig()), {}) is None


def test_an_autoscaler_is_asked_for_a_bundle_a_process():
    wanted, labels = bundles(phases(POOLS))
    assert len(wanted) == len(labels) == 6
    assert wanted[0] == {"CPU": 4, "GPU": 1, "memory": 2**30}
    assert labels[0] == {"pool": "train"}


def test_a_dry_run_tells_where_every_role_would_go():
    options = ["runtime.worker_labels.pool=train", "runtime.device=cuda"]
    told = pipeline.prepare(load_recipe("digits", options), "out").described()["placement"]
    assert told["training"] == "2 x 1 CPU, 1 GPU, 1 GB on nodes labelled pool=train"
    assert told["search"] == "2 x 0.5 CPU, 1 GB on any node"
    assert placement_told(RuntimeConfig(backend="process")).keys() == {"driver"}


@pytest.mark.parametrize("count", [1, 3])
def test_a_role_of_own_resources_is_placed_by_them(count):
    role = Role(name="search", count=count, cpus=0.5, resources={"shelf": 1.0})
    node = _node("a", 8)
    node["Resources"]["shelf"] = 2.0
    assert isinstance(assign((role,), [node]), dict) == (count <= 2)
