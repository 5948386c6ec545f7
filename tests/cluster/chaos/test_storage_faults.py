"""Disks and buckets that fail: nothing is lost or charged twice, and one line says what."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.errors import StorageError
from rapid_dist.privacy.ledger import Entry, Ledger
from rapid_dist.storage import LocalStorage
from tests.cluster.chaos import storage_faults
from tests.cluster.chaos.proxy import Fault, FaultyProxy
from tests.cluster.chaos.storage_faults import Bucket, Row, rows, try_row

# In `make test`; the whole table is slow.
HANDFUL = {
    "lost answer at create", "500 at write", "torn body at read", "reset at list",
    "500 after at ledger entry", "lost answer at ledger entry", "late at checkpoint",
    "reset for good at checkpoint",
}  # fmt: skip
TABLE = rows()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def bucket(endpoint: str) -> Iterator[Bucket]:
    with FaultyProxy(endpoint) as proxy:
        opened = Bucket(endpoint, proxy, "faults")
        yield opened
        opened.close()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=() if row.name in HANDFUL else pytest.mark.slow)
        for row in TABLE
    ],
)
def test_after_every_fault_the_work_is_done_or_stops_with_one_line_and_goes_on(
    row: Row, bucket: Bucket, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    found = try_row(row, bucket, tmp_path)
    record_property("stopped", found.stopped)
    if row.lasting or row.kind == "full disk":
        assert found.stopped


def test_the_table_has_at_least_80_faults_all_of_them_different() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE) >= 80
    assert {row.name for row in TABLE} >= HANDFUL


def test_the_table_would_notice_a_ledger_that_does_not_know_its_own_entry(
    bucket: Bucket, tmp_path: Path
) -> None:
    class Forgetful(Ledger):
        """Charges again, as one would that takes its own first try for another writer's."""

        def append(self, kind: Any, run: str, **named: Any) -> Entry:
            entry = super().append(kind, run, **named)
            return super().append(kind, run, **named) if named.get("event") else entry

    row = Row(kind="500 after", point="ledger entry", seed=1)
    with pytest.raises(AssertionError):
        try_row(row, bucket, tmp_path, ledger_type=Forgetful)


def test_the_proxy_hands_on_what_no_fault_takes(bucket: Bucket) -> None:
    bucket.proxy.plan(Fault(kind="500", key="other", times=3))
    storage = bucket.faulty("plain")
    storage.write("a b/c", b"\x00" * 100_000)
    assert storage.read("a b/c") == b"\x00" * 100_000
    assert storage.list() == ["a b/c"]
    assert storage.exists("a b/c")
    assert bucket.proxy.hits == []


@pytest.mark.slow
def test_a_run_on_a_disk_that_is_really_full_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """A small tmpfs, where whoever runs this may mount one."""
    import subprocess

    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        said: list[str] = []

        def with_room() -> None:
            if said:
                subprocess.run(
                    ["mount", "-o", "remount,size=64m", str(place)], check=True, capture_output=True
                )

        storage = LocalStorage(place)
        storage_faults._train_through(storage, storage, said, with_room)
        assert "No space left" in said[0]
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_store_that_is_gone_for_good_ends_in_finite_time_and_names_the_file(
    bucket: Bucket,
) -> None:
    bucket.proxy.plan(Fault(kind="reset", times=10**9))
    with pytest.raises(StorageError, match=r"s3://faults/gone/step-\* cannot be listed"):
        Checkpoints(bucket.faulty("gone")).latest()
    bucket.proxy.plan()
