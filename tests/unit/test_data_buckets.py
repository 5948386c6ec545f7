"""Images in a bucket: a user's own, and named sources below data.root."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto import mock_aws

from rapid_dist.data.sources import PrivateSource, PublicSource, load_private, load_public
from rapid_dist.errors import DataError
from tests.unit.test_data_folder import write_npz, write_tree


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="scans")
        yield "scans"


def test_a_folder_and_an_npz_read_alike_from_s3_and_from_disk(bucket: str, tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", {"a": 2, "b": 3})
    write_npz(tmp_path / "x.npz")
    client = boto3.client("s3")
    for path in [*sorted((tmp_path / "tree").rglob("*.png")), tmp_path / "x.npz"]:
        key = f"some/{path.relative_to(tmp_path).as_posix()}"
        client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    for source, name in (("folder", "tree"), ("npz", "x.npz")):
        local, remote = (
            load_public([PublicSource(source=source, path=f"{base}/{name}")], size=8, channels=1)
            for base in (tmp_path, f"s3://{bucket}/some")
        )
        assert local.fingerprint == remote.fingerprint


def test_a_named_set_reads_alike_from_s3_and_from_disk(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    set_of_it = tmp_path / "root" / "PneumoniaMNIST" / "pneumoniamnist.npz"
    set_of_it.parent.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    labels = np.arange(8) % 2
    np.savez(
        set_of_it,
        **{f"{part}_images": images for part in ("train", "test")},
        **{f"{part}_labels": labels for part in ("train", "test")},
    )
    key = "sets/PneumoniaMNIST/pneumoniamnist.npz"
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=set_of_it.read_bytes())
    source = PrivateSource(
        source="pneumonia", name="pneumonia", num_records=8, num_classes=2, size=28
    )
    local, remote = (
        load_private(source, root)[0] for root in (tmp_path / "root", f"s3://{bucket}/sets")
    )
    np.testing.assert_array_equal(local.images, remote.images)
    np.testing.assert_array_equal(local.labels, remote.labels)
    assert list(temporary.iterdir()) == []  # Nothing of the copy is left.


def test_a_named_set_that_a_bucket_lacks_or_has_torn_is_refused_by_the_buckets_name(
    bucket: str,
) -> None:
    root = f"s3://{bucket}/sets"
    with pytest.raises(DataError, match=f"mednist is not under data.root={root}"):
        load_public([PublicSource(source="mednist")], root, size=8, channels=1)
    boto3.client("s3").put_object(Bucket=bucket, Key="sets/KMNIST-test/kmnist-test.npz", Body=b"x")
    with pytest.raises(DataError, match=f"{root}/KMNIST-test/kmnist-test.npz cannot be read"):
        load_public([PublicSource(source="kmnist")], root, size=8, channels=1)
    letters = load_public([PublicSource(source="letters", count=9)], root, size=8, channels=1)
    assert len(letters) == 9  # What needs no files asks no bucket.


@pytest.mark.parametrize(
    ("source", "name"), [("npz", "x.npz"), ("folder", "x.zip"), ("folder", "x")]
)
def test_what_is_absent_on_s3_is_refused(bucket: str, source: str, name: str) -> None:
    public = PublicSource(source=source, path=f"s3://{bucket}/some/{name}")
    with pytest.raises(DataError, match=r"does not exist|no image"):
        load_public([public], size=8, channels=1)
