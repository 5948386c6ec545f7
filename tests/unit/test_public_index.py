"""A knowledge base with an approximate index: trained once, measured, and loaded by its hash."""

import numpy as np
import pytest

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.public.build import build_knowledge_base
from rapid_dist.public.index import default_lists, measured_recall, write_index
from rapid_dist.retrieval.knowledge_base import IndexKind, KnowledgeBase, KnowledgeBaseConfig
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.retrieval.merge import merge_neighbors
from rapid_dist.retrieval.searcher import ShardSearcher
from rapid_dist.storage import LocalStorage
from tests.knowledge import embedders, knowledge_base_spec, reference_images


@pytest.fixture
def exact(tmp_path) -> LocalStorage:
    storage = LocalStorage(tmp_path / "exact")
    spec = knowledge_base_spec(seeds=(0, 1, 2))
    build_knowledge_base(reference_images(), spec, embedders()[0], storage)
    return storage


def _indexed(exact: LocalStorage, kind: IndexKind = "ivf_flat", **settings) -> LocalStorage:
    name = "-".join([kind, *(str(value) for value in settings.values())])
    storage = LocalStorage(exact.uri.replace("exact", name))
    config = KnowledgeBaseConfig(
        **{"index": kind, "index_lists": 12, "index_probes": 3, "index_bytes": 8, **settings}
    )
    write_index(storage, Manifest.read(exact), "exact", config, seed=1)
    return storage


def _queries(base: KnowledgeBase) -> np.ndarray:
    queries: np.ndarray = embedders()[0](base.state(np.arange(60), 4.0) + 0.5)
    return queries


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq"])
def test_the_index_stands_beside_the_exact_shards_and_says_what_it_finds(exact, kind):
    before = {name: exact.read(name) for name in exact.list()}
    storage = _indexed(exact, kind)
    assert {name: exact.read(name) for name in exact.list()} == before
    assert storage.list("shards/") == []  # They are listed where they are.
    manifest = Manifest.read(storage)
    assert manifest.index is not None
    assert manifest.index.name in storage.list()
    assert manifest.vector_bytes == manifest.num_entries * (64 if kind == "ivf_flat" else 8)
    recall = manifest.index.recall
    assert 0.05 < recall["10"] < 1  # Three lists of twelve do not hold everything.
    assert manifest.index.recall_queries == 270


def test_every_list_looked_into_gives_the_exact_answer_and_full_recall(exact):
    storage, base = _indexed(exact, index_probes=12), KnowledgeBase.open(exact)
    manifest = Manifest.read(storage)
    assert manifest.index is not None
    assert manifest.index.recall == {"1": 1.0, "10": 1.0}
    queries = _queries(base)
    for found, expected in zip(
        KnowledgeBase.open(storage).search(queries, 5), base.search(queries, 5), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_whole_keys_behind_the_codes_raise_recall_and_are_what_a_search_uses(exact):
    storage = _indexed(exact, "ivf_pq", index_probes=12, index_bytes=2, index_rerank=30)
    codes = _indexed(exact, "ivf_pq", index_probes=12, index_bytes=2)
    one, other = (Manifest.read(place).index for place in (storage, codes))
    assert one is not None
    assert other is not None
    assert other.recall["10"] < one.recall["10"]
    assert b"rerank" not in codes.read("manifest.json")  # As such manifests always were.
    base = KnowledgeBase.open(exact)
    near, ids = KnowledgeBase.open(storage).search(_queries(base), 1)
    expected = base.search(_queries(base), 1)
    same = ids == expected[1]
    assert same.mean() > 0.9
    np.testing.assert_array_equal(near[same], expected[0][same])


def test_the_recall_of_an_index_that_looks_into_one_list_is_lower(exact):
    storage, asked = _indexed(exact), np.arange(270)
    manifest = Manifest.read(storage)
    trained = manifest.open_index(storage)
    few, many = (measured_recall(storage, manifest, trained, n, asked)[10] for n in (1, 8))
    assert few < many


def test_shards_searched_apart_find_together_what_one_searcher_finds(exact):
    storage = _indexed(exact)
    manifest = Manifest.read(storage)
    queries = _queries(KnowledgeBase.open(exact))
    for labels in (None, np.arange(60) % 4):
        parts = [ShardSearcher(storage, manifest, [p]).search(queries, 4, labels) for p in range(5)]
        merged = merge_neighbors(
            np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]), 4
        )
        whole = ShardSearcher(storage, manifest, range(5)).search(queries, 4, labels)
        np.testing.assert_array_equal(merged[0], whole[0])
        np.testing.assert_array_equal(merged[1], whole[1])


def test_an_index_file_is_loaded_only_if_the_manifest_has_its_hash(exact):
    storage = _indexed(exact)
    name = storage.list("index/")[0]
    whole = storage.read(name)
    storage.write(name, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ShardError, match=f"{name} has SHA-256"):
        KnowledgeBase.open(storage).search(np.zeros((1, 16), np.float32), 1)
    storage.delete(name)
    with pytest.raises(ShardError, match=f"{name} is missing"):
        KnowledgeBase.open(storage).search(np.zeros((1, 16), np.float32), 1)


def test_lists_follow_from_the_number_of_entries():
    assert [default_lists(n) for n in (1, 10_000, 1_000_000)] == [4, 512, 4096]
    with pytest.raises(ConfigError, match="index_probes must be at least 1"):
        KnowledgeBaseConfig(index_probes=0)
