"""A knowledge base is a pure function of its images, seeds and settings."""

import json

import numpy as np
import pytest
import torch

from rapid_dist.data.images import PublicImages, content_hash
from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.public.build import (
    ShardTask,
    build_knowledge_base,
    plan_shards,
    write_manifest,
)
from rapid_dist.retrieval.knowledge_base import KnowledgeBase, KnowledgeBaseConfig
from rapid_dist.retrieval.manifest import Manifest
from rapid_dist.retrieval.merge import merge_neighbors
from rapid_dist.retrieval.searcher import ShardSearcher
from rapid_dist.retrieval.trajectory import noise_of, unit_images
from rapid_dist.storage import LocalStorage
from tests.knowledge import NUM_IMAGES, embedders, knowledge_base_spec, reference_images


def _build(folder, reference=None, **changes) -> LocalStorage:
    storage = LocalStorage(folder)
    build_knowledge_base(
        reference or reference_images(), knowledge_base_spec(**changes), embedders()[0], storage
    )
    return storage


def _contents(storage: LocalStorage) -> dict[str, bytes]:
    return {name: storage.read(name) for name in storage.list()}


def _queries(base: KnowledgeBase) -> np.ndarray:
    """Noised states of some references, embedded: near some keys, equal to others."""
    state = base.state(np.arange(40), 4.0)
    return embedders()[0](torch.cat([state, state + 0.5]))


def test_the_bytes_do_not_depend_on_order_threads_or_worker(tmp_path):
    expected = _contents(_build(tmp_path / "loop"))
    reference, spec = reference_images(), knowledge_base_spec()
    plans = plan_shards(reference, spec)
    storage, threads = LocalStorage(tmp_path / "others"), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        tasks = [ShardTask(storage.uri, reference_images, embedders) for _ in range(2)]
        records = [tasks[plan.place % 2].build(plan) for plan in reversed(plans)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    write_manifest(storage, plans, records, reference)
    assert _contents(storage) == expected


def test_the_byte_comparison_would_notice_another_seed(tmp_path):
    assert _contents(_build(tmp_path / "a")) != _contents(_build(tmp_path / "b", seeds=(0, 2)))


def test_the_number_of_shards_and_the_order_of_images_change_neither_ids_nor_answers(tmp_path):
    reference = reference_images()
    turned = reference.take(np.arange(NUM_IMAGES)[::-1])
    whole = KnowledgeBase.open(_build(tmp_path / "1", num_shards=1))
    queries, ids = _queries(whole), np.arange(len(whole))
    for num_shards in (2, 5):
        base = KnowledgeBase.open(_build(tmp_path / str(num_shards), turned, num_shards=num_shards))
        assert len(base.manifest.shards) == num_shards
        np.testing.assert_array_equal(base.images(ids), whole.images(ids))
        np.testing.assert_array_equal(base.labels(ids), whole.labels(ids))
        np.testing.assert_array_equal(base.search(queries, 6)[1], whole.search(queries, 6)[1])


def test_searching_shard_by_shard_gives_the_answer_of_the_whole(tmp_path):
    storage = _build(tmp_path)
    base = KnowledgeBase.open(storage)
    queries, labels = _queries(base), np.arange(80) % 5  # Nobody is in class 4.
    for wanted in (None, labels):
        parts = [
            ShardSearcher(storage, base.manifest, [place]).search(queries, 7, wanted)
            for place in range(5)
        ]
        merged = merge_neighbors(
            np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]), 7
        )
        whole = base.search(queries, 7, wanted)
        np.testing.assert_array_equal(merged[0], whole[0])
        np.testing.assert_array_equal(merged[1], whole[1])


def test_a_state_at_the_query_level_finds_itself(tmp_path):
    base = KnowledgeBase.open(_build(tmp_path))
    distances, ids = base.search(_queries(base)[:40], 1)
    np.testing.assert_array_equal(ids[:, 0], np.arange(40))
    assert distances.max() < 1e-6


def test_both_states_of_an_entry_lie_on_the_path_of_its_image_and_seed(tmp_path):
    base = KnowledgeBase.open(_build(tmp_path))
    ids = np.array([5, 0, 179])
    images, noise = base.images(ids), base.noise(ids)
    for level in (0.0, 1.5, 4.0):
        expected = unit_images(images) + np.float32(level) * noise
        np.testing.assert_array_equal(base.state(ids, level).numpy(), expected)
    for row, entry in enumerate(ids):
        path = noise_of(content_hash(images[row]), int(entry) % 2, (1, 8, 8))
        np.testing.assert_array_equal(noise[row], path)


def test_the_class_filter_answers_only_from_the_class(tmp_path):
    base = KnowledgeBase.open(_build(tmp_path))
    labels = np.arange(80) % 4
    _, ids = base.search(_queries(base), 4, labels)
    np.testing.assert_array_equal(base.labels(ids.ravel()), np.repeat(labels, 4))


def test_the_searched_keys_are_centred_and_scaled(tmp_path):
    storage = _build(tmp_path)
    manifest = KnowledgeBase.open(storage).manifest
    keys = np.concatenate(
        [manifest.framed(manifest.open_shard(storage, record).keys) for record in manifest.shards]
    )
    np.testing.assert_allclose(keys.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.square(keys).sum(axis=1).mean(), 1, rtol=1e-4)


def test_an_image_that_occurs_twice_with_one_label_is_kept_once(tmp_path):
    reference = reference_images()
    doubled = reference.take(np.concatenate([np.arange(NUM_IMAGES), np.arange(10)]))
    assert KnowledgeBase.open(_build(tmp_path, doubled)).manifest.num_images == NUM_IMAGES


def test_a_second_run_makes_only_what_is_missing_or_torn(tmp_path):
    storage = _build(tmp_path)
    expected = _contents(storage)
    shards = storage.list("shards/")
    storage.delete(shards[0])
    storage.write(shards[1], expected[shards[1]][:100])
    rows = []

    def counting_embed(states):
        rows.append(len(states))
        return embedders()[0](states)

    plans = plan_shards(reference_images(), knowledge_base_spec())
    build_knowledge_base(reference_images(), knowledge_base_spec(), counting_embed, storage)
    assert _contents(storage) == expected
    assert 0 < sum(rows) < sum(2 * len(plan.rows) + 16 for plan in plans) / 2
    rows.clear()
    build_knowledge_base(reference_images(), knowledge_base_spec(), counting_embed, storage)
    assert not rows


def test_an_unfinished_knowledge_base_is_refused(tmp_path):
    storage = _build(tmp_path)
    storage.delete("manifest.json")
    with pytest.raises(ShardError, match="no finished knowledge base"):
        KnowledgeBase.open(storage)


@pytest.mark.parametrize("damage", ["changed", "torn", "foreign", "missing"])
def test_a_damaged_shard_is_refused_by_name(tmp_path, damage):
    storage = _build(tmp_path)
    first, second = storage.list("shards/")[:2]
    data = bytearray(storage.read(first))
    if damage == "changed":
        data[len(data) // 2] ^= 1
        storage.write(first, bytes(data))
    elif damage == "torn":
        storage.write(first, bytes(data[:-7]))
    elif damage == "foreign":
        storage.write(first, storage.read(second))
    else:
        storage.delete(first)
    with pytest.raises(ShardError, match=first):
        KnowledgeBase.open(storage)


def test_a_knowledge_base_whose_noise_cannot_be_drawn_again_is_refused(tmp_path):
    storage = _build(tmp_path)
    manifest = storage.read("manifest.json").decode()
    known = KnowledgeBase.open(storage).manifest.noise_check
    storage.write("manifest.json", manifest.replace(known, "0" * 64).encode())
    with pytest.raises(ShardError, match="draws other noise"):
        KnowledgeBase.open(storage)


def test_another_knowledge_base_than_expected_is_refused(tmp_path):
    storage = _build(tmp_path)
    fingerprint = KnowledgeBase.open(storage).manifest.fingerprint
    assert len(KnowledgeBase.open(storage, fingerprint)) == 2 * NUM_IMAGES
    with pytest.raises(ConfigError, match="this run needs 1111"):
        KnowledgeBase.open(storage, "1" * 64)


def test_a_worker_with_other_images_than_planned_is_refused(tmp_path):
    def others() -> PublicImages:
        reference = reference_images()
        return PublicImages(
            images=255 - reference.images, labels=reference.labels, spec=reference.spec
        )

    task = ShardTask(str(tmp_path), others, embedders)
    with pytest.raises(ShardError, match="other reference images"):
        task.build(plan_shards(reference_images(), knowledge_base_spec())[0])


def test_a_manifest_needs_every_planned_shard(tmp_path):
    storage, reference = LocalStorage(tmp_path), reference_images()
    plans = plan_shards(reference, knowledge_base_spec())
    task = ShardTask(storage.uri, reference_images, embedders)
    with pytest.raises(ShardError, match=r"\[2\] of 5"):
        write_manifest(storage, plans, [task.build(p) for p in plans if p.place != 2], reference)


def test_settings_that_cannot_work_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"knowledge_base\.num_shards must be at least 1, got 0"):
        KnowledgeBaseConfig(num_shards=0)
    with pytest.raises(ConfigError, match="query_level must be positive"):
        knowledge_base_spec(query_level=0.0)
    assert KnowledgeBaseConfig(seeds_per_image=3, seed=5).seeds == (5, 6, 7)


def _extended(folder, first, second) -> tuple[LocalStorage, LocalStorage]:
    """A knowledge base of ``first``, and one beside it that adds ``second``."""
    old, new = LocalStorage(folder / "old"), LocalStorage(folder / "new")
    build_knowledge_base(first, knowledge_base_spec(), embedders()[0], old)
    plans = plan_shards(
        second, knowledge_base_spec(), without=[content_hash(one) for one in first.images]
    )
    task = ShardTask(new.uri, lambda: second, embedders)
    records = [task.build(plan) for plan in plans]
    write_manifest(new, plans, records, second, extends=Manifest.read(old), home="old")
    return old, new


def test_added_images_get_shards_of_their_own_and_no_other_is_written(tmp_path):
    reference = reference_images()
    first, more = reference.take(np.arange(60)), reference.take(np.arange(50, NUM_IMAGES))
    old, new = _extended(tmp_path, first, more)
    before = _contents(_build(tmp_path / "alone", first))
    assert _contents(old) == before
    assert not set(old.list("shards/")) & set(new.list("shards/"))
    base, earlier = KnowledgeBase.open(new), KnowledgeBase.open(old)
    assert base.manifest.num_images == NUM_IMAGES  # Ten were there already.
    ids = np.arange(len(earlier))
    np.testing.assert_array_equal(base.images(ids), earlier.images(ids))
    np.testing.assert_array_equal(base.noise(ids), earlier.noise(ids))


def test_an_extended_knowledge_base_finds_what_one_built_at_once_finds(tmp_path):
    reference = reference_images()
    _, new = _extended(
        tmp_path, reference.take(np.arange(60)), reference.take(np.arange(60, NUM_IMAGES))
    )
    whole = KnowledgeBase.open(_build(tmp_path / "whole"))
    base, queries = KnowledgeBase.open(new), _queries(whole)
    assert base.manifest.key_centre == whole.manifest.key_centre
    found, expected = base.search(queries, 6), whole.search(queries, 6)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(base.images(found[1].ravel()), whole.images(expected[1].ravel()))
    np.testing.assert_array_equal(base.noise(found[1].ravel()), whole.noise(expected[1].ravel()))


def test_an_extension_of_other_networks_or_of_a_lost_knowledge_base_is_refused(tmp_path):
    reference = reference_images()
    old, new = _extended(
        tmp_path, reference.take(np.arange(60)), reference.take(np.arange(60, NUM_IMAGES))
    )
    other = knowledge_base_spec(embedder="another")
    with pytest.raises(ConfigError, match="built with other settings or networks"):
        Manifest.of(other, Manifest.read(new).shards, "", Manifest.read(old), "old")
    lost = old.list("shards/")[0]
    old.delete(lost)
    with pytest.raises(ShardError, match=f"Shard {lost} is missing from .*old"):
        KnowledgeBase.open(new)


def test_a_manifest_without_extension_or_index_is_written_as_ever(tmp_path):
    content = json.loads(_build(tmp_path).read("manifest.json"))
    assert content.keys() == {
        "format", "spec", "public_fingerprint", "noise_check", "key_centre", "key_scale", "shards"
    }  # fmt: skip
    assert content["shards"][0].keys() == {
        "name", "sha256", "identity", "num_images", "num_entries", "num_bytes", "key_sums",
        "key_squares",
    }  # fmt: skip
