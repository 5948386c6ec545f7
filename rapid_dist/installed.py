"""Which code this is: a hash over the package's own source files.

A version number is what somebody has written down. What a run charges to the ledger, what an audit
has tried and what a release states is the hash of the files that were there.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from rapid_dist import __version__

SHORT = 16  # Hex digits of the hash that stand behind a version.


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Returns the SHA-256 of this package, read once a process."""
    return hash_of(Path(__file__).parent)


def hash_of(package: Path) -> str:
    """Returns the SHA-256 over names and contents of a folder's Python, YAML and JSON files.

    Line ends count as one, whatever system has checked the files out.
    """
    whole = hashlib.sha256()
    files = (path for path in package.rglob("*") if path.suffix in {".py", ".yaml", ".json"})
    for name, path in sorted((path.relative_to(package).as_posix(), path) for path in files):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        whole.update(f"{name} {len(content)}\n".encode())
        whole.update(content)
    return whole.hexdigest()


def code_version() -> str:
    """Returns version and hash in one: ``0.1.0+5d3c...``."""
    return f"{__version__}+{code_hash()[:SHORT]}"
