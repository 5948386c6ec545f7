"""A folder of images in sub-folders, one a class: local, on S3, or inside a zip."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rapid_dist.data.decode import EXTENSIONS, decode_all
from rapid_dist.data.licences import LICENCES
from rapid_dist.data.raw import Part, Raw, Request
from rapid_dist.errors import DataError
from rapid_dist.storage import Storage, StorageMissing, open_storage


def read_folder(request: Request) -> Raw:
    """Reads class/name.png, or train/class/name.png with test/class/name.png.

    Images that lie in no sub-folder make a source without classes. A path that ends in .zip is
    read as such a folder.
    """
    assert request.path is not None, "the declaration requires a path"
    return read_tree(_open(request.path), request, licence=LICENCES["folder"])


def read_tree(tree: "Storage | ZipTree", request: Request, *, licence: str) -> Raw:
    """Reads a tree of named image files; classes are the sub-folders, sorted."""
    names = [name for name in tree.list() if name.lower().endswith(EXTENSIONS)]
    if not names:
        raise DataError(
            f"Source {request.source} has no image under {request.path}. "
            f"Image files end in {', '.join(EXTENSIONS)}."
        )
    has_parts = all(name.split("/")[0] in ("train", "test") for name in names)
    prefixes = ("train/", "test/") if has_parts else ("",)
    parts = [[n for n in names if n.startswith(prefix)] for prefix in prefixes]
    depth = 1 if has_parts else 0
    class_names = _class_names(names, depth, request)
    read = [_read_part(tree, part, depth, class_names, request) for part in parts if part]
    if has_parts and not parts[0]:
        raise DataError(f"Source {request.source} has a test part and no train part. Add train/.")
    test = read[1] if len(read) == 2 else None
    return Raw(train=read[0], test=test, class_names=class_names, licence=licence)


class ZipTree:
    """The files of a zip under the names that a storage would give them."""

    def __init__(self, content: bytes | Path, name: str = "of images") -> None:
        try:
            opened = io.BytesIO(content) if isinstance(content, bytes) else content
            self._archive = zipfile.ZipFile(opened)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(
                f"The zip {name} cannot be opened ({type(error).__name__}). Fetch it again."
            ) from None

    def list(self) -> list[str]:
        """All names, sorted; folders are not among them."""
        return sorted(name for name in self._archive.namelist() if not name.endswith("/"))

    def read(self, name: str) -> bytes:
        """The bytes of one file; torn ones come back empty, which no image decoder accepts."""
        try:
            return self._archive.read(name)
        except zipfile.BadZipFile:
            return b""


def _open(path: str) -> "Storage | ZipTree":
    missing = DataError(f"Source folder has path={path}, which does not exist. Correct the path.")
    if not path.startswith("s3://"):
        path = str(Path(path).expanduser())
        if not Path(path).exists():
            raise missing
    if not path.lower().endswith(".zip"):
        return open_storage(path)
    parent, _, name = path.rpartition("/")
    try:
        return ZipTree(open_storage(parent or ".").read(name), path)
    except StorageMissing:
        raise missing from None


def _class_names(names: Sequence[str], depth: int, request: Request) -> tuple[str, ...]:
    folders = {len(name.split("/")) - depth - 1 for name in names}
    if folders == {0}:
        return ()
    if 0 in folders:
        raise DataError(
            f"Source {request.source} has images both inside and outside class folders under "
            f"{request.path}. Move them all into class folders, or none."
        )
    return tuple(sorted({name.split("/")[depth] for name in names}))


def _read_part(
    tree: "Storage | ZipTree",
    names: Sequence[str],
    depth: int,
    class_names: Sequence[str],
    request: Request,
) -> Part:
    def contents() -> Iterator[bytes]:
        for name in names:
            yield tree.read(name)

    if class_names:
        label_of = {name: label for label, name in enumerate(class_names)}
        labels = np.array([label_of[name.split("/")[depth]] for name in names], dtype=np.int64)
    else:
        labels = np.zeros(len(names), dtype=np.int64)
    return Part(images=decode_all(contents(), request), labels=labels)
