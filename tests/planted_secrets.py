"""Secrets that can be met nowhere by chance, and every form in which a file may hold one."""

import base64
import io
import secrets
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rapid_dist.secret import SECRET_VARIABLES

MADE_BY_RAY = "RAY_AUTH_TOKEN"  # A cluster of ours makes one; a planted one it would take.


def planted_environment() -> dict[str, str]:
    """Returns a secret of its own for every variable that may hold one."""
    return {name: f"planted{secrets.token_hex(20)}" for name in SECRET_VARIABLES}


def forms_of(secret: bytes) -> set[bytes]:
    """Returns a secret as it is, in hexadecimal, in base64 at any place of a text, and in a URL."""
    whole = {secret, secret.hex().encode(), urllib.parse.quote(secret).encode()}
    coded = set()
    for skip in range(3):
        part = secret[skip : skip + (len(secret) - skip) // 3 * 3]
        coded |= {base64.b64encode(part), base64.urlsafe_b64encode(part)}
    return whole | coded


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search has come by."""

    bytes_searched: int
    places: int
    bytes_found: int
    where: tuple[str, ...]

    def told(self) -> str:
        return (
            f"{self.bytes_found} bytes of secrets in {self.bytes_searched / 2**20:.1f} MiB of "
            f"{self.places} files and texts{': ' if self.where else ''}{', '.join(self.where)}"
        )


def search(planted: Iterable[bytes], texts: Mapping[str, str], folders: Iterable[Path]) -> Search:
    """Looks for every form of every secret in texts, and in all files below some folders."""
    forms = {form for secret in planted for form in forms_of(secret)}
    contents = [(name, text.encode()) for name, text in texts.items()]
    size, places, found, where = 0, 0, 0, []
    for name, data in [*contents, *(one for folder in folders for one in _files(folder))]:
        size, places = size + len(data), places + 1
        here = sum(len(form) * data.count(form) for form in forms)
        if here:
            found += here
            where.append(name)
    return Search(bytes_searched=size, places=places, bytes_found=found, where=tuple(where))


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name, data = str(path.relative_to(folder.parent)), path.read_bytes()
            yield name, name.encode() + data
            if data.startswith(b"PK\x03\x04"):
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    for inner in archive.namelist():
                        yield f"{name}!{inner}", inner.encode() + archive.read(inner)
