"""CIFAR: as WebP tiles of 25 x 40 images, or as the official binary batches. Never as pickle."""

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from rapid_dist.data.glyphs import open_arrays, part_of
from rapid_dist.data.licences import LICENCES
from rapid_dist.data.raw import (
    Raw,
    Request,
    cache_folder,
    digit_names,
    download_set,
    first_existing,
    require_file,
)
from rapid_dist.errors import DataError

_SIDE = 32
_ROWS, _COLUMNS = 25, 40  # Images down and across one tile.
_CIFAR10_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_RECORD_BYTES = 1 + 3 * _SIDE * _SIDE  # Of the binary version: a label, then planes R, G, B.


def read_tiles(request: Request, download: Callable[[str, Path], None] | None = None) -> Raw:
    """CIFAR-10, or the public fifth of CIFAR-100, whose classes CIFAR-10 does not have."""
    if request.source == "cifar100":
        tiles = require_file(request, "CIFAR100-20k/cifar100_20k_webp_tiles.zip")
        labels = _load_labels(tiles.parent / "labels.npy")
        part = part_of(read_webp_tiles(tiles), labels, request)
        return Raw(train=part, class_names=digit_names(100), licence=LICENCES[request.source])
    found = first_existing(request.root, "CIFAR10/cifar10_webp_tiles.zip")
    if found is None:
        return _read_binary(request, download)
    arrays = open_arrays(found.parent / "cifar10_labels.npz", "train_labels", "test_labels")
    images = read_webp_tiles(found)
    num_train = len(arrays["train_labels"])
    return Raw(
        train=part_of(images[:num_train], arrays["train_labels"], request),
        test=part_of(images[num_train:], arrays["test_labels"], request),
        class_names=_CIFAR10_NAMES,
        licence=LICENCES[request.source],
    )


def read_webp_tiles(path: Path) -> npt.NDArray[np.uint8]:
    """Every image of a zip of tiles, in order: uint8 [N, 3, 32, 32]."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if re.fullmatch(r"tile_\d+\.webp", n))
            tiles = [_cut(archive.read(name), path) for name in names]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}). Fetch it again."
        ) from None
    if not tiles:
        raise DataError(f"{path} holds no tile_NN.webp. Fetch it again.")
    return np.concatenate(tiles)


def _cut(content: bytes, path: Path) -> npt.NDArray[np.uint8]:
    try:
        tile = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"A tile of {path} is no image. Fetch it again.") from None
    if tile.shape != (_ROWS * _SIDE, _COLUMNS * _SIDE, 3):
        raise DataError(f"A tile of {path} has shape {tile.shape}. Fetch it again.")
    grid = tile.reshape(_ROWS, _SIDE, _COLUMNS, _SIDE, 3).transpose(0, 2, 4, 1, 3)
    return grid.reshape(_ROWS * _COLUMNS, 3, _SIDE, _SIDE)


def _load_labels(path: Path) -> npt.NDArray[np.generic]:
    try:
        labels: npt.NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}). Fetch it again."
        ) from None
    return labels


def _read_binary(request: Request, download: Callable[[str, Path], None] | None) -> Raw:
    folder = first_existing(request.root, "cifar-10-batches-bin")
    if folder is None:
        folder = cache_folder() / "cifar-10-batches-bin"
        if not folder.exists():
            download_set(request, "CIFAR10", download)
    parts = []
    for names in ([f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]):
        records = np.concatenate([_records(folder / name) for name in names])
        images = records[:, 1:].reshape(-1, 3, _SIDE, _SIDE)
        parts.append(part_of(images, records[:, 0], request))
    return Raw(
        train=parts[0], test=parts[1], class_names=_CIFAR10_NAMES, licence=LICENCES[request.source]
    )


def _records(path: Path) -> npt.NDArray[np.uint8]:
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}). Fetch it again."
        ) from None
    if content.size == 0 or content.size % _RECORD_BYTES:
        raise DataError(f"{path} is torn: {content.size} bytes. Fetch it again.")
    return content.reshape(-1, _RECORD_BYTES)
