"""Where actors go, and where private queries are answered."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rapid_dist.public.build import build_knowledge_base
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.runtime.placement import ActorPlacement, choose_search, lacks
from rapid_dist.storage import LocalStorage
from tests.knowledge import embedders, knowledge_base_spec, reference_images

NODES = [
    {"Alive": True, "Resources": {"CPU": 4.0}, "Labels": {"pool": "cpu"}},
    {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}, "Labels": {"pool": "gpu"}},
    {"Alive": False, "Resources": {"CPU": 64.0}, "Labels": {"pool": "cpu"}},
]


@pytest.mark.parametrize(
    ("wanted", "labels", "said"),
    [
        ({"CPU": 4}, {}, None),
        ({"CPU": 1, "GPU": 1}, {"pool": "gpu"}, None),
        ({"CPU": 5}, {}, "needs 5 CPU, a node has 4 CPU at most"),  # The dead one does not count.
        ({"CPU": 4, "GPU": 1}, {}, "4 CPU, 1 GPU on one node, and none has all"),
        ({"GPU": 1}, {"pool": "cpu"}, "needs 1 GPU"),
        ({"CPU": 1}, {"pool": "search"}, "labelled pool=search, and none of 2 is"),
    ],
)
def test_an_actor_that_fits_no_living_node_is_told_what_is_lacking(wanted, labels, said):
    found = lacks(wanted, labels, NODES)
    assert found is None if said is None else said in str(found)


def test_an_actor_without_a_gpu_cannot_see_one_and_one_with_a_gpu_can():
    hidden = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    assert ActorPlacement().options()["runtime_env"] == hidden
    assert "runtime_env" not in ActorPlacement(num_gpus=1).options()
    placed = ActorPlacement(resources={"shelf": 1}, labels={"pool": "cpu"}).options()
    assert placed["resources"] == {"shelf": 1}
    assert placed["label_selector"] == {"pool": "cpu"}


def test_a_knowledge_base_is_replicated_while_a_copy_fits_and_sharded_above(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    build_knowledge_base(reference_images(), knowledge_base_spec(), embedders()[0], storage)
    small = Manifest.read(storage)
    grown = tuple(replace(record, num_bytes=2**30) for record in small.shards)  # 5 GB in all.
    large = replace(small, shards=grown)
    assert choose_search("auto", small, 1.0).kind == "replicated"
    above = choose_search("auto", large, 4.0)
    assert above.kind == "sharded"
    assert "a copy takes 5 GB, runtime.memory_gb is 4" in above.reason
    assert choose_search("auto", large, 5.0).kind == "replicated"
    assert choose_search("sharded", small, 1.0).kind == "sharded"
    assert "runtime.search is replicated" in choose_search("replicated", large, 1.0).reason


def test_a_searching_process_needs_no_torch():
    code = (
        "import sys, rapid_dist.runtime.search_pool\n"
        "sys.exit('torch is loaded' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
