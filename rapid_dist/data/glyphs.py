"""Glyph sets of the MNIST family: idx files, plain or gzipped, and one npz.

Every set comes out with bright strokes on black, which is how MNIST is. The files of MNIST,
Fashion-MNIST, KMNIST, Kannada-MNIST and notMNIST are stored that way already; EMNIST is too, but
with rows and columns exchanged.
"""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rapid_dist.data.licences import LICENCES
from rapid_dist.data.pixels import fit
from rapid_dist.data.raw import (
    Part,
    Raw,
    Request,
    cache_folder,
    digit_names,
    download_set,
    require_file,
)
from rapid_dist.errors import DataError

_UBYTE = 0x08  # The idx code of unsigned bytes, the only type these sets use.


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """One set in torchvision's layout: <folder>/raw/<prefix><split>-images-idx3-ubyte[.gz]."""

    folder: str  # Also the name of torchvision's class.
    prefix: str = ""
    train: str = "train"
    test: str = "t10k"
    classes: tuple[str, ...] = tuple("0123456789")
    first_label: int = 0
    transposed: bool = False
    licence: str


_CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat")
_SHOES_AND_MORE = ("sandal", "shirt", "sneaker", "bag", "ankle-boot")


def _family(source: str) -> _Family:
    if source == "mnist":
        return _Family(folder="MNIST", licence=LICENCES[source])
    if source == "fashion_mnist":
        return _Family(
            folder="FashionMNIST", classes=_CLOTHES + _SHOES_AND_MORE, licence=LICENCES[source]
        )
    if source == "kmnist":
        return _Family(folder="KMNIST", licence=LICENCES[source])
    assert source == "emnist_letters", source
    return _Family(
        folder="EMNIST",
        prefix="emnist-letters-",
        test="test",
        classes=tuple("abcdefghijklmnopqrstuvwxyz"),
        first_label=1,
        transposed=True,
        licence=LICENCES[source],
    )


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Reads one idx file of unsigned bytes, gzipped or not, as uint8 of any rank."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}). Fetch it again."
        ) from None
    if len(content) < 4 or content[:3] != bytes([0, 0, _UBYTE]) or not 1 <= content[3] <= 4:
        raise DataError(f"{path} is not an idx file of unsigned bytes. Fetch it again.")
    rank = content[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise DataError(f"{path} ends inside its header. Fetch it again.")
    shape = tuple(int(side) for side in np.frombuffer(content, ">u4", rank, 4))
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path} holds {len(content) - header} bytes for shape {shape}. Fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def open_arrays(path: Path, *names: str) -> dict[str, npt.NDArray[np.generic]]:
    """Reads the named arrays of an npz without pickle."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except KeyError as error:
        raise DataError(f"{path} has no array {error}. It needs {', '.join(names)}.") from None
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a torn file.
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}). Fetch it again."
        ) from None


def part_of(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.generic],
    request: Request,
) -> Part:
    """Fits images of a common size to the request and pairs them with their labels."""
    if len(images) != len(labels):
        raise DataError(
            f"Source {request.source} has {len(images)} images and {len(labels)} labels. "
            "Fetch both files again."
        )
    fitted = fit(
        images, request.size, request.channels, invert=request.invert, margin=request.margin
    )
    return Part(images=fitted, labels=labels.astype(np.int64).reshape(-1))


def read_family(request: Request, download: Callable[[str, Path], None] | None = None) -> Raw:
    """MNIST, Fashion-MNIST, KMNIST or EMNIST letters in torchvision's layout.

    Args:
      download: fetches a set, by torchvision's class name, into a folder; by default torchvision.
    """
    family = _family(request.source)
    raw = _locate(request, family, download)
    parts = []
    for split in (family.train, family.test):
        images = read_idx(_idx_file(raw, f"{family.prefix}{split}-images-idx3-ubyte"))
        labels = read_idx(_idx_file(raw, f"{family.prefix}{split}-labels-idx1-ubyte"))
        if family.transposed:
            images = images.transpose(0, 2, 1)
        parts.append(part_of(images, labels.astype(np.int64) - family.first_label, request))
    return Raw(train=parts[0], test=parts[1], class_names=family.classes, licence=family.licence)


def read_kmnist(request: Request) -> Raw:
    """KMNIST's test part as an npz where there is one, otherwise the whole set."""
    path = None if request.root is None else request.root / "KMNIST-test" / "kmnist-test.npz"
    if path is None or not path.exists():
        return read_family(request)
    arrays = open_arrays(path, "images", "labels")
    part = part_of(bytes_of(arrays["images"], path), arrays["labels"], request)
    family = _family("kmnist")
    return Raw(train=part, class_names=family.classes, licence=family.licence)


def read_kannada(request: Request) -> Raw:
    """Kannada-MNIST's two small parts, 10,000 and 10,240 handwritten Kannada digits."""
    folder = require_file(request, "Kannada-MNIST")
    images = []
    labels = []
    for part in ("kannada_MNIST_test", "dig_MNIST"):
        images.append(read_idx(_idx_file(folder, f"X_{part}-idx3-ubyte")))
        labels.append(read_idx(_idx_file(folder, f"y_{part}-idx1-ubyte")))
    whole = part_of(np.concatenate(images), np.concatenate(labels), request)
    return Raw(train=whole, class_names=digit_names(10), licence=LICENCES["kannada"])


def read_notmnist(request: Request) -> Raw:
    """notMNIST: 10,000 letters A to J of many fonts, filling the frame."""
    folder = require_file(request, "notMNIST-10k")
    images = read_idx(_idx_file(folder, "t10k-images-idx3-ubyte"))
    labels = read_idx(_idx_file(folder, "t10k-labels-idx1-ubyte"))
    return Raw(
        train=part_of(images, labels, request),
        class_names=tuple("ABCDEFGHIJ"),
        licence=LICENCES["notmnist"],
    )


def bytes_of(array: npt.NDArray[np.generic], path: Path) -> npt.NDArray[np.uint8]:
    """An array that must hold uint8 already."""
    if array.dtype != np.uint8:
        raise DataError(f"{path} holds images of {array.dtype}, not uint8. Fetch it again.")
    return array.view(np.uint8)


def _idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.exists():
            return candidate
    raise DataError(f"{folder} holds neither {name}.gz nor {name}. Fetch the set again.")


def _locate(
    request: Request, family: _Family, download: Callable[[str, Path], None] | None
) -> Path:
    """The set's raw folder under data.root, or in the cache, downloading it there if need be."""
    marker = f"{family.prefix}{family.train}-images-idx3-ubyte"
    folders = [cache_folder() / family.folder / "raw"]
    if request.root is not None:
        folders.insert(0, request.root / family.folder / "raw")
    for folder in folders:
        if (folder / marker).exists() or (folder / f"{marker}.gz").exists():
            return folder
    download_set(request, family.folder, download)
    return folders[-1]
