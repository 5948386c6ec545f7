"""CelebA in torchvision's layout: faces, one of 40 attributes as label, the person as group."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rapid_dist.data.decode import decode_all
from rapid_dist.data.licences import LICENCES
from rapid_dist.data.raw import Part, Raw, Request, cache_folder, download_set, first_existing
from rapid_dist.errors import DataError

_DEFAULT_ATTRIBUTE = "Male"
_GROUP_COLUMN = "identity"
_TRAIN, _TEST = 0, 2  # Of list_eval_partition.txt; 1 is validation and left alone.


def read_celeba(request: Request, download: Callable[[str, Path], None] | None = None) -> Raw:
    """The official train and test parts, cut to the centred square."""
    folder = first_existing(request.root, "celeba")
    if folder is None:
        folder = cache_folder() / "celeba"
        if not folder.exists():
            download_set(request, "CelebA", download)
    attribute = request.label_column or _DEFAULT_ATTRIBUTE
    attributes = _attribute(folder / "list_attr_celeba.txt", attribute)
    parts = _table(folder / "list_eval_partition.txt")
    if request.group_column not in (None, _GROUP_COLUMN):
        raise DataError(
            f"Source celeba has no group column {request.group_column!r}. Use {_GROUP_COLUMN!r}."
        )
    people = _table(folder / "identity_CelebA.txt") if request.group_column else {}
    splits = []
    for split in (_TRAIN, _TEST):
        names = sorted(name for name, part in parts.items() if part == split)
        if any(name not in attributes or (people and name not in people) for name in names):
            raise DataError(f"{folder}: its lists name different images. Fetch CelebA again.")
        groups = np.array([people[name] for name in names], dtype=np.int64) if people else None
        splits.append(
            Part(
                images=decode_all(_files(folder / "img_align_celeba", names), request),
                labels=np.array([attributes[name] > 0 for name in names], dtype=np.int64),
                groups=groups,
            )
        )
    names_of_classes = (f"not {attribute}", attribute)
    return Raw(
        train=splits[0], test=splits[1], class_names=names_of_classes, licence=LICENCES["celeba"]
    )


def _files(folder: Path, names: list[str]) -> Iterator[bytes]:
    for name in names:
        path = folder / name
        yield path.read_bytes() if path.exists() else b""  # No decoder accepts an empty file.


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}). Fetch it again."
        ) from None


def _table(path: Path) -> dict[str, int]:
    try:
        return {name: int(value) for name, value in _lines(path)}
    except ValueError:
        raise DataError(f"{path} is not a list of names and numbers. Fetch it again.") from None


def _attribute(path: Path, attribute: str) -> dict[str, int]:
    lines = _lines(path)  # A count, the attributes' names, then one image a line.
    if len(lines) < 2 or attribute not in lines[1]:
        raise DataError(f"{path} has no attribute {attribute!r}. Set label_column to one it has.")
    column = 1 + lines[1].index(attribute)
    try:
        return {line[0]: int(line[column]) for line in lines[2:]}
    except (ValueError, IndexError):
        raise DataError(f"{path} has a torn line. Fetch it again.") from None
