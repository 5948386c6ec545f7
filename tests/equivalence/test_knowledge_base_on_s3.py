"""A knowledge base in a bucket: the same bytes, answers and refusals as in a directory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from rapid_dist.errors import ShardError
from rapid_dist.public.build import (
    ShardTask,
    build_knowledge_base,
    finished_record,
    plan_shards,
    write_manifest,
)
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.storage import LocalStorage, Storage, open_storage, s3_client, sha256_hex
from tests.knowledge import embedders, knowledge_base_spec, reference_images


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address that workers can open, as they do: by the environment."""
    name = "b" + sha256_hex(request.node.nodeid.encode())[:16]  # One process has one store.
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for setting, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(setting, value)
    client = s3_client()
    client.create_bucket(Bucket=name)
    client.close()
    yield f"s3://{name}/knowledge-base"
    server.stop()


def _build(uri: str, shards: slice = slice(None)) -> Storage:
    storage, reference = open_storage(uri), reference_images()
    plans = plan_shards(reference, knowledge_base_spec())
    task = ShardTask(uri, reference_images, embedders)
    records = [task.build(plan) for plan in plans[shards]]
    if len(records) == len(plans):
        write_manifest(storage, plans, records, reference)
    return storage


def test_a_bucket_holds_the_bytes_and_gives_the_answers_of_a_directory(
    bucket: str, tmp_path: Path
) -> None:
    alone = LocalStorage(tmp_path)
    build_knowledge_base(reference_images(), knowledge_base_spec(), embedders()[0], alone)
    storage = _build(bucket)
    assert storage.list() == alone.list()
    assert all(storage.read(name) == alone.read(name) for name in alone.list())
    there, here = KnowledgeBase.open(storage), KnowledgeBase.open(alone)
    queries = np.random.default_rng(0).normal(size=(20, there.manifest.key_dim))
    found, expected = (base.search(queries.astype(np.float32), 4) for base in (there, here))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_second_run_makes_only_what_a_bucket_lacks(bucket: str) -> None:
    storage = _build(bucket, slice(3))
    plans = plan_shards(reference_images(), knowledge_base_spec())
    finished = [finished_record(storage, plan) is not None for plan in plans]
    assert finished == [True, True, True, False, False]
    client = s3_client()

    def written() -> dict[str, object]:
        listed = client.list_objects_v2(Bucket=bucket.split("/")[2])["Contents"]
        return {one["Key"]: one["LastModified"] for one in listed}

    before = written()
    _build(bucket)
    after = written()
    client.close()
    assert len(after) == len(before) + 2 * 2 + 1
    assert {name: after[name] for name in before} == before


def test_a_tampered_shard_in_a_bucket_is_refused_by_name(bucket: str) -> None:
    storage = _build(bucket)
    name = storage.list("shards/")[0]
    storage.write(name, storage.read(name)[:-1] + b"?")
    with pytest.raises(ShardError, match=name):
        KnowledgeBase.open(storage)
