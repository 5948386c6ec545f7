"""The checksums of a bundle: which files it has, and what is in each. Needs no vendor at all.

A bundle is plain files in plain folders. A link could show other bytes to whoever checks than to
whoever loads, so one is refused wherever it points.
"""

import hashlib
import json
import os
import stat
from pathlib import Path

from rapid_dist.errors import CheckpointError

CHECKSUMS = "checksums.json"
SIGNATURE = "signature.json"  # Signs the checksums, so it cannot be among them.
_BLOCK = 1 << 20


def checksums_of(directory: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file but checksums and signature, by its path in the bundle.

    Raises:
      CheckpointError: something in the folder is no plain file or folder.
    """
    found: dict[str, str] = {}
    odd: list[str] = []
    for folder, folders, files in os.walk(directory, followlinks=False):
        for name in (*folders, *files):
            path = Path(folder, name)
            place = path.relative_to(directory).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode) or not place.isprintable():
                odd.append(f"{place!r} is {_kind(mode)}")
            elif place not in (CHECKSUMS, SIGNATURE):
                found[place] = _digest(path)
    if odd:
        raise CheckpointError(
            f"The bundle {directory} is not what was released: {'; '.join(sorted(odd))}, and a "
            "bundle holds plain files alone. Fetch it again."
        )
    return dict(sorted(found.items()))


def write_checksums(directory: Path) -> str:
    """Writes the checksums of a folder and returns their own SHA-256."""
    content = json.dumps(checksums_of(directory), indent=2, sort_keys=True).encode()
    (directory / CHECKSUMS).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def verify_checksums(directory: Path) -> str:
    """Compares every file with its checksum and returns the SHA-256 of the checksums.

    Only files that were found in the folder are read: a path that the checksums name and that
    leads elsewhere is a missing file.

    Raises:
      CheckpointError: names every file that is missing, changed or not listed.
    """
    try:
        if (directory / CHECKSUMS).is_symlink():
            raise OSError("it is a link")
        content = (directory / CHECKSUMS).read_bytes()
        expected = json.loads(content)
        if not isinstance(expected, dict):
            raise ValueError("it is no table")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory} is no bundle: {CHECKSUMS} cannot be read ({error}). Fetch it again."
        ) from error
    found = checksums_of(directory)
    faults = [
        f"{name} is {'missing' if name not in found else 'unlisted'}"
        for name in sorted(expected.keys() ^ found.keys())
    ]
    faults += [
        f"{name} has changed"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    if faults:
        raise CheckpointError(
            f"The bundle {directory} is not what was released: {'; '.join(faults)}. Fetch it again."
        )
    return hashlib.sha256(content).hexdigest()


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            whole.update(block)
    return whole.hexdigest()


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    return "an odd name" if stat.S_ISREG(mode) else "a special file"
