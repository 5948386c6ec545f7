"""An .npz of images and labels, local or on S3, read without pickle.

Arrays: ``images`` [N, H, W], [N, C, H, W] or [N, H, W, C]; ``labels`` [N] (or the declared
label column; absent for a source without classes); the declared group column [N]; and, where
the source has a test part, the same with the prefix ``test_``.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rapid_dist.data.glyphs import part_of
from rapid_dist.data.images import UInt8Array
from rapid_dist.data.licences import LICENCES
from rapid_dist.data.pixels import scale_to_bytes
from rapid_dist.data.raw import Part, Raw, Request, digit_names
from rapid_dist.errors import DataError
from rapid_dist.storage import StorageMissing, open_storage

_Arrays = dict[str, npt.NDArray[np.generic]]


def read_npz(request: Request) -> Raw:
    """Reads the arrays and maps pixel values from the declared range onto 0..255."""
    assert request.path is not None, "the declaration requires a path"
    arrays = _load(request.path)
    train = _part(arrays, "", request)
    test = _part(arrays, "test_", request) if "test_images" in arrays else None
    num_classes = 0
    if (request.label_column or "labels") in arrays:
        # A private source declares its classes; only a public one may be asked for them.
        num_classes = request.num_classes or int(max(train.labels.max(initial=0), 0)) + 1
    return Raw(
        train=train,
        test=test,
        class_names=digit_names(num_classes),
        licence=LICENCES["npz"],
    )


def _load(path: str) -> _Arrays:
    parent, _, name = path.rpartition("/")
    folder = parent if path.startswith("s3://") else str(Path(parent or ".").expanduser())
    try:
        content = open_storage(folder).read(name)
    except StorageMissing:
        raise DataError(f"Source npz has path={path}, which does not exist. Correct it.") from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except Exception as error:  # numpy and zipfile raise a dozen kinds; objects a ValueError.
        raise DataError(
            f"{path} is not an npz of plain arrays ({type(error).__name__}). "
            "Save it with numpy.savez_compressed, without object arrays."
        ) from None


def _part(arrays: _Arrays, prefix: str, request: Request) -> Part:
    images = _column(arrays, f"{prefix}images", request)
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    label_column = request.label_column or "labels"
    # Only the default label column may be absent: naming one declares it.
    if request.label_column is None and f"{prefix}{label_column}" not in arrays:
        labels: npt.NDArray[np.generic] = np.zeros(len(images), dtype=np.int64)
    else:
        labels = _column(arrays, f"{prefix}{label_column}", request)
    if labels.dtype.kind not in "iub" or labels.size != len(labels):
        raise DataError(
            f"{request.path}: labels are {labels.dtype} of shape {labels.shape}. "
            "Store one integer an image."
        )
    part = part_of(_to_bytes(images, request), labels, request)
    if request.group_column is None:
        return part
    groups = _column(arrays, f"{prefix}{request.group_column}", request).reshape(-1)
    if len(groups) != len(part.labels):
        raise DataError(
            f"{request.path}: {len(groups)} groups for {len(part.labels)} images. "
            "Store one group an image."
        )
    return Part(images=part.images, labels=part.labels, groups=_group_ids(groups))


def _to_bytes(images: npt.NDArray[np.generic], request: Request) -> UInt8Array:
    if images.dtype.kind not in "uifb":
        raise DataError(f"{request.path}: images are {images.dtype}. Store numbers.")
    side = request.size
    if not request.resize and images.ndim > 2 and images.shape[-2:] != (side, side):
        raise DataError(
            f"{request.path}: images are not {side}x{side}. Declare another size, or set resize to "
            "true: images are then cropped to squares and resized."
        )
    return scale_to_bytes(images, request.value_range, request.path or "npz")


def _column(arrays: _Arrays, name: str, request: Request) -> npt.NDArray[np.generic]:
    if name not in arrays:
        raise DataError(
            f"{request.path} has no array {name!r}. It has {', '.join(sorted(arrays))}."
        )
    return arrays[name]


def _group_ids(groups: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Group names or numbers -> int64, each a function of the group's own name alone.

    A rank among the groups would change when somebody else's images are removed.
    """
    names, places = np.unique(groups, return_inverse=True)
    digests = [hashlib.sha256(str(name).encode()).digest() for name in names]
    ids = np.array([int.from_bytes(d[:8], "big") >> 1 for d in digests], dtype=np.int64)
    return ids[places]
