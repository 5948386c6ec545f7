"""What a reader is asked for and what it returns, before anything is tagged public or private.

A reader is a function ``Request -> Raw``. It knows one file format and no privacy: tagging,
splitting and the checks against the declaration are done once, in ``sources.py``.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Everything a reader may depend on."""

    source: str
    root: Path | None  # The folder that holds the named sources, each in its own sub-folder.
    size: int
    channels: int
    resize: bool = True  # Or else another size than the declared is refused, of folder and npz.
    num_classes: int | None = None  # Declared, of a private source.
    path: str | None = None  # Of folder and npz: local, or s3://.
    labels: str = "fine"  # fine, or coarse where a source has two levels.
    count: int | None = None  # Of rendered sources: how many.
    seed: int = 0  # Of rendered sources.
    invert: bool = False
    margin: float = 0.0
    value_range: tuple[float, float] = (0.0, 255.0)
    label_column: str | None = None
    group_column: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One split of a source: images [N, C, S, S], labels [N] and, perhaps, group ids [N]."""

    images: UInt8Array
    labels: Int64Array
    groups: Int64Array | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Raw:
    """A whole source as read: its train part and, where it comes with one, its test part."""

    train: Part
    test: Part | None = None
    class_names: tuple[str, ...]  # Empty for a source without labels.
    licence: str


def concatenate(parts: list[Part]) -> Part:
    """Joins parts in order; groups survive only if every part has them."""
    groups = [part.groups for part in parts if part.groups is not None]
    return Part(
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        groups=np.concatenate(groups) if len(groups) == len(parts) else None,
    )


def digit_names(num_classes: int) -> tuple[str, ...]:
    """Class names for a source whose classes are only numbered."""
    return tuple(str(label) for label in range(num_classes))


def first_existing(root: Path | None, *names: str) -> Path | None:
    """The first of ``names`` that exists under ``root``."""
    if root is None:
        return None
    return next((root / name for name in names if (root / name).exists()), None)


def require_file(request: Request, *names: str) -> Path:
    """The first of ``names`` under data.root, or an error that says where it was looked for."""
    found = first_existing(request.root, *names)
    if found is None:
        raise DataError(
            f"Source {request.source} needs {' or '.join(names)} under data.root="
            f"{request.root}. Put it there, or set data.root to the folder that holds it."
        )
    return found


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/rapid-dist, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rapid-dist"


def download_set(
    request: Request, name: str, download: Callable[[str, Path], None] | None = None
) -> None:
    """Fetches the set of torchvision's class ``name`` into the cache.

    Args:
      download: fetches a set, by that name, into a folder; by default torchvision.
    """
    fetch = download
    if fetch is None:
        # torchvision takes seconds to import; only a set that must be fetched pays for it.
        from rapid_dist.data.download import download_torchvision

        fetch = download_torchvision
    try:
        fetch(name, cache_folder())
    except DataError as error:
        raise DataError(
            f"Source {request.source} is not under data.root={request.root}. {error}"
        ) from None
