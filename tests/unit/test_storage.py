"""The storage seam: one set of promises, kept by directories and by S3."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from rapid_dist.errors import ConfigError, LedgerError, StorageError
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.storage import (
    AlreadyExists,
    LocalStorage,
    S3Storage,
    Storage,
    StorageMissing,
    open_storage,
    require_reachable,
    s3_client,
    sha256_hex,
)


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, object]]:
    client = s3_client(
        endpoint_url=s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    name = "b" + sha256_hex(request.node.nodeid.encode())[:16]
    client.create_bucket(Bucket=name)
    yield name, client
    client.close()


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "directory":
        return LocalStorage(tmp_path / "store")
    name, client = request.getfixturevalue("bucket")
    return S3Storage(name, "some/prefix", client)


def test_what_was_written_is_read(storage: Storage) -> None:
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"
    assert storage.exists("a/b.bin")


def test_create_makes_a_name_once_and_keeps_its_first_content(storage: Storage) -> None:
    storage.create("entry", b"first")
    with pytest.raises(AlreadyExists, match="entry"):
        storage.create("entry", b"second")
    assert storage.read("entry") == b"first"
    assert storage.list() == ["entry"]


def test_of_many_creators_exactly_one_succeeds(storage: Storage) -> None:
    won: list[bytes] = []

    def creator(data: bytes) -> None:
        with contextlib.suppress(AlreadyExists):
            storage.create("entry", data)
            won.append(data)

    threads = [threading.Thread(target=creator, args=(b"%d" % i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("entry") == won[0]


def test_what_is_absent_is_said_to_be_missing(storage: Storage) -> None:
    assert not storage.exists("nothing")
    assert storage.list() == []
    with pytest.raises(StorageMissing, match="nothing"):
        storage.read("nothing")
    assert issubclass(StorageMissing, FileNotFoundError)
    storage.delete("nothing")


def test_names_are_listed_in_order_by_prefix_and_within_a_child(storage: Storage) -> None:
    for name in ["b/2", "b/10", "a", "bc/1"]:
        storage.write(name, b"")
    assert storage.list() == ["a", "b/10", "b/2", "bc/1"]
    assert storage.list("b/") == ["b/10", "b/2"]
    assert storage.list("b") == ["b/10", "b/2", "bc/1"]
    assert storage.child("b").list() == ["10", "2"]
    assert storage.child("b").uri == f"{storage.uri}/b"
    storage.child("b").delete("2")
    assert not storage.exists("b/2")


def test_s3_lists_more_names_than_fit_one_page(bucket: tuple[str, object]) -> None:
    storage = S3Storage(bucket[0], "many", bucket[1])
    for index in range(1_001):  # S3 answers 1,000 at a time.
        storage.write(f"{index:04d}", b"")
    assert len(storage.list()) == 1_001


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a/.tmp-1"])
def test_a_name_that_leaves_the_storage_is_refused(storage: Storage, name: str) -> None:
    for act in (storage.read, storage.exists, storage.delete, storage.child):
        with pytest.raises(ConfigError, match="must be relative"):
            act(name)


def _sync_log(watched: Path) -> tuple[list[str], Callable[[int], None]]:
    """Returns a log of what was synced, and whether ``watched`` was visible at that time."""
    log: list[str] = []

    def sync(descriptor: int) -> None:
        kind = "directory" if os.path.isdir(f"/dev/fd/{descriptor}") else "file"
        log.append(f"{kind}, name {'visible' if watched.exists() else 'hidden'}")
        os.fsync(descriptor)

    return log, sync


def test_a_created_file_is_synced_before_its_name_and_its_name_before_the_return(
    tmp_path: Path,
) -> None:
    log, sync = _sync_log(tmp_path / "entry")
    LocalStorage(tmp_path, sync=sync).create("entry", b"1")
    assert log == ["file, name hidden", "directory, name visible"]


def test_a_new_directory_is_itself_made_durable(tmp_path: Path) -> None:
    log, sync = _sync_log(tmp_path / "new/deep/entry")
    LocalStorage(tmp_path, sync=sync).write("new/deep/entry", b"1")
    assert log == ["directory, name hidden"] * 2 + ["file, name hidden", "directory, name visible"]


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path: Path) -> None:
    LocalStorage(tmp_path).write("entry", b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"entry cannot be written \(No space.*same command"):
        LocalStorage(tmp_path, sync=full_disk).write("entry", b"new")
    assert (tmp_path / "entry").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["entry"]


def test_a_killed_writer_leaves_nothing_that_is_listed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    assert LocalStorage(tmp_path).list() == []


def test_a_folder_that_cannot_be_looked_into_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert LocalStorage(tmp_path / "nothing").list() == []
    with pytest.raises(StorageError, match=r"loop/\* cannot be listed \(.*same command"):
        LocalStorage(tmp_path / "loop").list()


def test_private_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    open_storage(tmp_path / "mine", private=True).write("deep/x", b"1")
    assert (tmp_path / "mine/deep/x").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "mine/deep").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700


def test_a_uri_opens_the_storage_it_names(
    tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client = s3_client()
    client.create_bucket(Bucket="from-environment")
    client.close()
    storage = open_storage("s3://from-environment/runs/1/")
    storage.write("x", b"1")
    assert storage.uri == "s3://from-environment/runs/1"
    assert open_storage("s3://from-environment").list() == ["runs/1/x"]
    assert open_storage(tmp_path).uri == open_storage(f"file://{tmp_path}").uri == str(tmp_path)


def test_a_bucket_that_does_not_answer_is_refused_in_one_line(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(
        ConfigError, match=r"s3://nobodys/runs does not answer \(.*NoSuch"
    ) as caught:
        require_reachable("s3://nobodys/runs")
    assert "\n" not in str(caught.value)
    client = s3_client()
    client.create_bucket(Bucket="somebodys")
    client.close()
    require_reachable("s3://somebodys/runs")
    require_reachable(str(tmp_path / "not-made-yet"))  # A folder is made when it is written.


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3:///x", "http://host/x"])
def test_an_unknown_uri_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="Cannot open storage"):
        open_storage(uri)


def test_a_ledger_keeps_its_promises_on_every_storage(storage: Storage) -> None:
    event = GaussianEvent(noise_multiplier=9.0)
    old, new = Ledger.open(storage, "faces"), Ledger.open(storage, "faces")
    old.append("query", "run", attempt=old.begin_attempt("run"), event=event)
    assert new.begin_attempt("run") == 2
    with pytest.raises(LedgerError, match="fenced"):
        old.append("query", "run", attempt=1, event=event)
    new.append("query", "run", attempt=2, event=event)
    new.verify(known_head=Ledger.open(storage, "faces").head)
    assert new.events("run") == [event, event]
