"""Writes to a bucket ask for the encryption that the environment names."""

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from rapid_dist.errors import ConfigError
from rapid_dist.storage import S3Storage, encrypting, s3_client

KIND, KEY = "x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id"


class _Empty:
    def stream(self) -> Iterator[bytes]:
        yield b""


def _storage(sent: list[dict[str, str]]) -> S3Storage:
    """A bucket behind a client that notes the headers of what it would send."""
    client = encrypting(
        s3_client(
            endpoint_url="http://127.0.0.1:1",
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )
    )

    def answer(request: Any, **_: Any) -> AWSResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        sent.append({name: _text(headers[name]) for name in (KIND, KEY) if name in headers})
        return AWSResponse(request.url, 200, {}, _Empty())

    client.meta.events.register("before-send.s3", answer)
    return S3Storage("bucket", "runs", client)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize(
    ("kind", "key", "asked"),
    [
        ("", "", {}),
        ("AES256", "", {KIND: "AES256"}),
        ("aws:kms", "", {KIND: "aws:kms"}),
        ("aws:kms", "alias/runs", {KIND: "aws:kms", KEY: "alias/runs"}),
    ],
)
def test_every_write_asks_for_the_encryption_that_the_environment_names(
    kind: str, key: str, asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAPID_DIST_S3_SSE", kind)
    monkeypatch.setenv("RAPID_DIST_S3_KMS_KEY", key)
    sent: list[dict[str, str]] = []
    storage = _storage(sent)
    storage.write("written", b"x")
    storage.create("created", b"x")
    assert sent == [asked, asked]


@pytest.mark.parametrize(("kind", "key"), [("kms", ""), ("AES256", "alias/a"), ("", "alias/a")])
def test_an_encryption_that_s3_does_not_have_is_refused_before_anything_is_written(
    kind: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAPID_DIST_S3_SSE", kind)
    monkeypatch.setenv("RAPID_DIST_S3_KMS_KEY", key)
    with pytest.raises(ConfigError, match="is no encryption of S3"):
        _storage([])
