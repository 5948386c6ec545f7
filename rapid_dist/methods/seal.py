"""``done.json``: that a folder of results is whole, whose it is, and the hash of each of its files.

It is written last. A public folder is its own name's, which is a hash of all that shaped it; a
folder of a run directory is the run's. So a file that was torn, replaced, or brought along from
another run is found when it is read, and named with what to do. Folders of versions that wrote no
hashes are read as they are.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rapid_dist.errors import CheckpointError, ShardError
from rapid_dist.storage import Storage, StorageMissing, sha256_hex

DONE = "done.json"
_FILES, _OF = "files", "of"
_BY_CONTENT = re.compile(r"[a-z-]+-[0-9a-f]{16}")  # A public folder.
_STAGES = {"adapted": "adapt", "private": "train", "samples": "generate"}
_SPENT = ("answers", "prior", "refined")  # To make these again is to ask the private data again.


def is_done(storage: Storage) -> bool:
    """Whether a folder has been finished."""
    return storage.exists(DONE)


def mark_done(
    storage: Storage,
    facts: Mapping[str, Any] | None = None,
    *,
    of: str = "",
    names: Iterable[str] = (),
    files: Mapping[str, str] | None = None,
) -> None:
    """Says that a folder is whole.

    Args:
      of: the run that the folder belongs to; by default it is its own name's.
      names: files that are read back, for their hashes.
      files: the SHA-256 of further files, by name.
    """
    found = {name: sha256_hex(storage.read(name)) for name in names} | dict(files or {})
    content = {**(facts or {}), _OF: of or _folder(storage), _FILES: found}
    storage.write(DONE, json.dumps(content, sort_keys=True).encode())


def read_done(storage: Storage) -> dict[str, Any]:
    """Returns the facts of a finished folder.

    Raises:
      CheckpointError: it is not finished, its seal is torn, or it is another folder's.
    """
    try:
        facts = json.loads(storage.read(DONE))
        if not isinstance(facts, dict) or not isinstance(facts.get(_FILES, {}), dict):
            raise ValueError("it is no table")
    except StorageMissing as error:
        raise CheckpointError(
            f"{storage.uri} is not finished: it holds no {DONE}. {remedy(storage)}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{storage.uri}/{DONE} is torn. {remedy(storage)}") from error
    folder = _folder(storage)
    if _BY_CONTENT.fullmatch(folder) and facts.get(_OF, folder) != folder:
        raise CheckpointError(
            f"{storage.uri} holds {facts[_OF]!r}, which was made from other data or settings. "
            f"{remedy(storage)}"
        )
    return facts


def whose(storage: Storage) -> str | None:
    """Returns whose a finished folder is; None of versions that did not say it."""
    return read_done(storage).get(_OF)


def sealed_names(storage: Storage) -> list[str]:
    """Returns the files that belong to a folder: the sealed ones, or all where none are."""
    files = read_done(storage).get(_FILES) if is_done(storage) else None
    return sorted(files) if files else [name for name in storage.list() if name != DONE]


def read_sealed(storage: Storage, name: str, facts: Mapping[str, Any] | None = None) -> bytes:
    """Returns a file of a folder, if it is the one that was sealed.

    Args:
      facts: the folder's, where they have been read already.

    Raises:
      CheckpointError: the file is missing or has other bytes.
    """
    if facts is None:
        facts = read_done(storage) if is_done(storage) else {}
    expected = facts.get(_FILES, {}).get(name)
    try:
        data = storage.read(name)
    except StorageMissing as error:
        raise CheckpointError(f"{storage.uri}/{name} is missing. {remedy(storage)}") from error
    if expected is not None and sha256_hex(data) != expected:
        raise CheckpointError(
            f"{storage.uri}/{name} has SHA-256 {sha256_hex(data)[:16]}, {DONE} says "
            f"{expected[:16]}: it was torn or replaced. {remedy(storage)}"
        )
    return data


def require_whole(storage: Storage) -> None:
    """Reads a folder's files and compares each with its seal.

    Raises:
      CheckpointError: names the first that is missing or has other bytes.
    """
    facts = read_done(storage)
    for name in facts.get(_FILES, {}):
        read_sealed(storage, name, facts)


def read_table(storage: Storage, name: str, otherwise: str) -> dict[str, Any]:
    """Returns a JSON file that holds a table.

    Args:
      otherwise: what to do about one that is torn.

    Raises:
      CheckpointError: names the file, and what to do.
      StorageMissing: there is none.
    """
    try:
        content = json.loads(storage.read(name))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{storage.uri}/{name} is torn. {otherwise}")
    return content


def require_manifest(storage: Storage, name: str, fingerprint: str) -> None:
    """Refuses another table of contents than the one a knowledge base was finished with.

    Raises:
      ShardError: names the file and the way to build it again.
    """
    if not is_done(storage):
        return
    expected = read_done(storage).get("manifest", fingerprint)
    if expected != fingerprint:
        raise ShardError(
            f"{storage.uri}/{name} has SHA-256 {fingerprint[:16]}, {DONE} says "
            f"{str(expected)[:16]}: it was torn or replaced. {remedy(storage)}"
        )


def remedy(storage: Storage) -> str:
    """What brings a damaged folder back, and what that costs."""
    folder = _folder(storage)
    if folder in _SPENT:
        return (
            "Restore it from a backup, or begin anew with another --out: what it has cost of the "
            "budget is spent."
        )
    if folder in _STAGES:
        marker = f"stages/{_STAGES[folder]}.json"
        return (
            f"Restore it from a backup; or delete {storage.uri}/{DONE} and the run's {marker}, and "
            "run the same command again to make it again."
        )
    return f"Delete {storage.uri}/{DONE} and run the same command again: it is made again."


def _folder(storage: Storage) -> str:
    return storage.uri.rstrip("/").rpartition("/")[2]
