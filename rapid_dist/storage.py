"""One seam to files and to S3: atomic writes, create-if-absent, hashes.

Names are relative, with ``/`` between parts. ``create`` is the operation that the privacy
ledger stands on: of any number of writers of one name exactly one succeeds, and what it wrote
is durable when the call returns.

A disk or a bucket that fails ends in one line (``StorageError``), after a finite number of finite
waits. Whether a write that failed has happened is then unknown: on S3 an answer can be lost after
the object is there. Writers whose second try would meet their own first (the ledger) tell them
apart by what they wrote.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from rapid_dist.errors import ConfigError, StorageError
from rapid_dist.errors import StorageMissing as StorageMissing
from rapid_dist.leftovers import TEMPORARY, temporary_name
from rapid_dist.secret import masked, require_plain

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_CONFLICT_TRIES = 5
# Of one request to S3. With the pauses between tries (up to 20 s each) about two minutes in all: a
# store that is away for longer ends the command, and the same command goes on.
S3_TRIES = 8
_READ_TRIES = 5  # Of a body that breaks off; boto begins none of those again.
_CONNECT_SEC, _ANSWER_SEC = 10.0, 60.0  # Of one try.
_QUICK = {"total_max_attempts": 2}  # For a question that only asks whether anybody is there.
SSE, SSE_KEY = "RAPID_DIST_S3_SSE", "RAPID_DIST_S3_KMS_KEY"  # Environment variables.
_SSE_KINDS = ("AES256", "aws:kms", "aws:kms:dsse")


class AlreadyExists(FileExistsError):
    """Somebody has already created this name."""


class Storage(Protocol):
    """A flat space of named bytes."""

    @property
    def uri(self) -> str: ...

    def read(self, name: str) -> bytes:
        """Returns the bytes under ``name``; raises StorageMissing if there are none."""

    def write(self, name: str, data: bytes) -> None:
        """Replaces ``name`` as a whole: a reader sees the old bytes or the new, never a part."""

    def create(self, name: str, data: bytes) -> None:
        """Writes ``name`` if it is absent, durable on return; raises AlreadyExists if not."""

    def exists(self, name: str) -> bool: ...

    def list(self, prefix: str = "") -> list[str]:
        """Returns all names that start with ``prefix``, sorted."""

    def delete(self, name: str) -> None:
        """Removes ``name``; it is no error if it is already gone."""

    def child(self, prefix: str) -> "Storage":
        """Returns the part of this storage under ``prefix/``."""


def open_storage(uri: str | Path, *, private: bool = False) -> Storage:
    """Opens a directory, or a bucket's prefix as ``s3://bucket/prefix``.

    S3 credentials, region and endpoint come from the usual AWS environment, and never with the
    address. RAPID_DIST_S3_SSE and RAPID_DIST_S3_KMS_KEY say how a bucket is to encrypt what is
    written.

    Args:
      private: local files are readable by their owner only. On S3 that is the bucket's policy.
    """
    text = str(uri)
    if isinstance(uri, str) and "://" in uri:
        parts = urlsplit(require_plain(uri, "The storage"))
        if parts.scheme == "s3" and parts.netloc:
            return S3Storage(parts.netloc, parts.path.strip("/"), encrypting(s3_client()))
        if parts.scheme == "file" and not parts.netloc:
            return LocalStorage(Path(parts.path), private=private)
        raise ConfigError(
            f"Cannot open storage {masked(text)!r}. Give a directory or s3://bucket/prefix."
        )
    return LocalStorage(Path(text), private=private)


def require_reachable(uri: str) -> None:
    """Asks a bucket one question; anywhere else there is nothing to ask.

    Raises:
      ConfigError: the bucket is not there, or does not answer to these credentials.
    """
    if not uri.startswith("s3://"):
        return
    try:
        parts = urlsplit(uri)
        S3Storage(parts.netloc, parts.path.strip("/"), s3_client(retries=_QUICK)).ask()
    except (BotoCoreError, ClientError, ValueError) as error:
        raise ConfigError(
            f"{uri} does not answer ({_in_one_line(error)}). Check the bucket's name, and "
            "endpoint, region and credentials in the environment (AWS_...)."
        ) from None


def encrypting(client: Any) -> Any:
    """Has a client ask for the server-side encryption that the environment names, at each write.

    Raises:
      ConfigError: the environment names none that S3 has, or a key without aws:kms.
    """
    kind, key = os.environ.get(SSE, ""), os.environ.get(SSE_KEY, "")
    if not kind and not key:
        return client  # The bucket's own default.
    if kind not in _SSE_KINDS or (key and kind == "AES256"):
        raise ConfigError(
            f"{SSE}={kind!r} with {SSE_KEY}={key!r} is no encryption of S3. Use "
            f"{', '.join(_SSE_KINDS)}; a key goes with aws:kms."
        )
    asked = {"ServerSideEncryption": kind, **({"SSEKMSKeyId": key} if key else {})}

    def ask(params: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {**params, **asked}

    for operation in ("PutObject", "CreateMultipartUpload", "CopyObject"):
        client.meta.events.register(f"provide-client-params.s3.{operation}", ask)
    return client


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class LocalStorage:
    """A directory. Every write is synced to the disk, its directory entry included."""

    def __init__(
        self, root: Path, *, private: bool = False, sync: Callable[[int], None] = os.fsync
    ) -> None:
        self._root = Path(root).expanduser().absolute()
        self._private = private
        self._sync = sync  # Makes an open file or directory durable.

    @property
    def uri(self) -> str:
        return str(self._root)

    def read(self, name: str) -> bytes:
        with self._asking("read", name):
            return self._path(name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with self._asking("written", name):
            path = self._path(name)
            temporary = self._write_temporary(path, data)
            os.replace(temporary, path)
            self._sync_directory(path.parent)

    def create(self, name: str, data: bytes) -> None:
        with self._asking("written", name):
            self._create(name, data)

    def _create(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = self._write_temporary(path, data)
        try:
            os.link(temporary, path)  # Unlike rename, fails if the name is taken.
        except FileExistsError as error:
            raise AlreadyExists(f"{self.uri} already holds {name!r}.") from error
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise ConfigError(
                f"The file system of {self.uri} refuses hard links ({error.strerror}), which "
                "create-if-absent needs. Use another file system, or s3://."
            ) from error
        finally:
            temporary.unlink()
        self._sync_directory(path.parent)

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def list(self, prefix: str = "") -> list[str]:
        start = self._root / prefix.rpartition("/")[0]
        names = []
        with self._asking("listed", f"{prefix}*"):
            for directory, _, files in os.walk(start, onerror=_raise_unless_absent):
                relative = Path(directory).relative_to(self._root)
                names += [(relative / f).as_posix() for f in files if not f.startswith(TEMPORARY)]
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            self._sync_directory(path.parent)

    def child(self, prefix: str) -> "LocalStorage":
        return LocalStorage(self._path(prefix), private=self._private, sync=self._sync)

    @contextlib.contextmanager
    def _asking(self, done: str, name: str) -> Iterator[None]:
        """Says a full or broken disk in one line; what was there before is still there."""
        try:
            yield
        except AlreadyExists:
            raise
        except OSError as error:
            if done == "read" and isinstance(error, _ABSENT):
                raise StorageMissing(_missing(self.uri, name)) from error
            raise StorageError(
                f"{self.uri}/{name} cannot be {done} ({error.strerror}). Make room there, or mend "
                "the disk or its permissions, then run the same command again to go on."
            ) from error

    def _path(self, name: str) -> Path:
        return self._root / _checked(name)

    def _write_temporary(self, path: Path, data: bytes) -> Path:
        self._make_directory(path.parent)
        temporary = path.parent / temporary_name()
        mode = 0o600 if self._private else 0o666  # Less what the process's umask takes away.
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
                file.flush()
                self._sync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _make_directory(self, path: Path) -> None:
        if path.is_dir():
            return
        self._make_directory(path.parent)
        path.mkdir(mode=0o700 if self._private else 0o777, exist_ok=True)
        # Else a crash could lose the directory with the file in it.
        self._sync_directory(path.parent)

    def _sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self._sync(descriptor)
        finally:
            os.close(descriptor)


class S3Storage:
    """A bucket's prefix. Writes are atomic, and durable on return, because S3's are."""

    def __init__(self, bucket: str, prefix: str, client: Any) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = client

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def ask(self) -> None:
        """Asks for one name: raises what boto does if nobody answers."""
        self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def read(self, name: str) -> bytes:
        with self._asking("read", name):
            for tries_left in reversed(range(_READ_TRIES)):
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
                try:
                    with contextlib.closing(answer["Body"]) as body:
                        data: bytes = body.read()
                    return data
                except (BotoCoreError, HTTPError, OSError):
                    if not tries_left:
                        raise
        raise AssertionError("The last try returns or raises.")

    def write(self, name: str, data: bytes) -> None:
        with self._asking("written", name):
            self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=data)

    def create(self, name: str, data: bytes) -> None:
        with self._asking("written", name):
            for tries_left in reversed(range(_CONFLICT_TRIES)):
                try:
                    self._client.put_object(
                        Bucket=self._bucket, Key=self._key(name), Body=data, IfNoneMatch="*"
                    )
                    return
                except ClientError as error:
                    if _status(error) == 412:
                        raise AlreadyExists(f"{self.uri} already holds {name!r}.") from error
                    # 409: a write of the same name is in flight. S3 asks to try again.
                    if _status(error) != 409 or not tries_left:
                        raise

    def exists(self, name: str) -> bool:
        try:
            with self._asking("looked for", name):
                self._client.head_object(Bucket=self._bucket, Key=self._key(name))
        except StorageMissing:
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        with self._asking("listed", f"{prefix}*"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return sorted(key.removeprefix(self._prefix) for key in keys)

    def delete(self, name: str) -> None:
        with self._asking("deleted", name):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    @contextlib.contextmanager
    def _asking(self, done: str, name: str) -> Iterator[None]:
        """Says in one line what a store has refused, or has not answered, at last."""
        try:
            yield
        except AlreadyExists:
            raise
        except (BotoCoreError, ClientError, HTTPError, OSError) as error:
            if isinstance(error, ClientError) and _is_missing(error):
                raise StorageMissing(_missing(self.uri, name)) from error
            raise StorageError(
                f"{self.uri}/{name} cannot be {done} ({_in_one_line(error)}). Run the same command "
                "again when the store answers; what it has taken is kept."
            ) from error

    def child(self, prefix: str) -> "S3Storage":
        return S3Storage(self._bucket, self._key(prefix), self._client)

    def _key(self, name: str) -> str:
        return self._prefix + _checked(name)


def s3_client(*, retries: dict[str, Any] | None = None, **options: Any) -> Any:
    """Returns a boto3 client that S3 look-alikes understand too.

    Many of them refuse the checksum trailers that newer boto3 sends unasked. No request waits for
    ever: each try has its time, and there are S3_TRIES of them, or AWS_MAX_ATTEMPTS if that is set.
    """
    tries = {} if os.environ.get("AWS_MAX_ATTEMPTS") else {"total_max_attempts": S3_TRIES}
    config = BotoConfig(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=_CONNECT_SEC,
        read_timeout=_ANSWER_SEC,
        retries={"mode": "standard", **tries, **(retries or {})},
        max_pool_connections=32,  # A ledger is read by 16 threads, and boto3 keeps 10 without this.
    )
    own = options.pop("config", None)
    return boto3.client("s3", config=config.merge(own) if own else config, **options)


def _checked(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or parts[-1].startswith(TEMPORARY):
        raise ConfigError(f"Storage name {name!r} must be relative, without '..'.")
    return "/".join(parts)


def _raise_unless_absent(error: OSError) -> None:
    """Of a folder that cannot be looked into: it is not an empty one."""
    if not isinstance(error, _ABSENT):
        raise error


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _is_missing(error: ClientError) -> bool:
    """Whether a name is absent; a bucket that is gone is no missing name."""
    return _status(error) == 404 and error.response.get("Error", {}).get("Code") != "NoSuchBucket"


def _missing(uri: str, name: str) -> str:
    return (
        f"{uri} holds no {name!r}: it was removed, or never finished. Restore it, or run the stage "
        "that makes it again."
    )


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
