"""The two kinds of image sets, and the only conversions between pixels and the model's range.

``PublicImages`` and ``PrivateImages`` are deliberately unrelated types: a function written
for one refuses the other when mypy runs, so a private image cannot reach a public stage by
an accident of typing. Both hold uint8 pixels; [-1, 1] is reached by declared constants, never
by statistics of the data.

Letters: N images, C channels, H = W = S pixels a side.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from rapid_dist.errors import DataError

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

MIN_SIZE = 8
MAX_SIZE = 64
_HALF_RANGE = 127.5  # uint8 0..255 -> [-1, 1]; a constant of the format, not of the data.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpec:
    """What is declared of an image set. Every field is public."""

    name: str
    num_records: int  # Images, whatever the privacy unit.
    channels: int
    size: int  # Pixels a side.
    num_classes: int  # 0 = no labels.
    licence: str
    num_groups: int | None = None  # Declared groups (patients), where the source names them.

    def __post_init__(self) -> None:
        check_name(self.name)
        check_shape(self.size, self.channels)
        if self.num_records < 1:
            raise DataError(f"num_records must be positive, got {self.num_records}. Declare N.")
        if self.num_classes < 0:
            raise DataError(
                f"num_classes must not be negative, got {self.num_classes}. Use 0 for no labels."
            )

    @property
    def num_units(self) -> int:
        """Privacy units: groups where they are declared, otherwise images."""
        return self.num_records if self.num_groups is None else self.num_groups


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PublicImages:
    """Images that anyone may see: they may be hashed, logged, shown and released."""

    images: UInt8Array  # [N, C, S, S]
    labels: Int64Array  # [N]; zeros where the source has none.
    spec: ImageSpec
    fingerprint: str = field(init=False)  # sha256 over name, pixels and labels.

    def __post_init__(self) -> None:
        _check_arrays(self.images, self.labels, self.spec)
        digest = hashlib.sha256(f"{self.spec.name}\n{self.images.shape}\n".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Int64Array) -> "PublicImages":
        """Returns the images at ``indices`` int64 [n], in that order."""
        if len(indices) == 0:
            raise DataError(f"No image of {self.spec.name} was selected. Ask for more images.")
        return self.replaced(self.images[indices], self.labels[indices])

    def replaced(self, images: UInt8Array, labels: Int64Array) -> "PublicImages":
        """Returns other images of the same classes, uint8 [n, C, S, S] with labels int64 [n]."""
        spec = replace(self.spec, num_records=len(images))
        return PublicImages(images=images, labels=labels, spec=spec)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PrivateImages:
    """Images that only a mechanism may read; printing one shows its declaration alone."""

    images: UInt8Array = field(repr=False)  # [N, C, S, S]
    labels: Int64Array = field(repr=False)  # [N]; zeros where the source has none.
    groups: Int64Array | None = field(default=None, repr=False)  # [N], dense ids from 0.
    spec: ImageSpec

    def __post_init__(self) -> None:
        _check_arrays(self.images, self.labels, self.spec)
        if self.groups is not None and self.groups.shape != self.labels.shape:
            raise DataError(
                f"{self.spec.name}: groups have shape {self.groups.shape}, labels "
                f"{self.labels.shape}. Give one group id an image."
            )
        number = self.spec.num_groups
        found = np.empty(0) if self.groups is None else np.unique(self.groups)
        # A number without an image would be a unit that takes part by somebody else's.
        if number is not None and not np.array_equal(found, np.arange(number)):
            raise DataError(
                f"{self.spec.name}: the group ids are not all of 0..{number - 1}. Number the "
                "groups from 0, without gaps."
            )

    def __len__(self) -> int:
        return len(self.images)


def to_unit(images: UInt8Array) -> torch.Tensor:
    """uint8 [N, C, S, S] -> float32 in [-1, 1], by x / 127.5 - 1."""
    return torch.from_numpy(np.array(images, dtype=np.float32)) / _HALF_RANGE - 1.0


def from_unit(images: torch.Tensor) -> UInt8Array:
    """float [N, C, S, S] -> uint8, the inverse of ``to_unit``; values outside [-1, 1] clamp."""
    pixels = ((images.detach().float() + 1.0) * _HALF_RANGE).round().clamp(0, 255)
    result: UInt8Array = pixels.to(torch.uint8).cpu().numpy()
    return result


def content_hash(image: UInt8Array) -> bytes:
    """sha256, 32 bytes, of one image [C, S, S]: its shape and its pixels, nothing else."""
    shape = ",".join(str(side) for side in image.shape)
    return hashlib.sha256(shape.encode() + b"\n" + np.ascontiguousarray(image).tobytes()).digest()


def content_hashes(images: UInt8Array | Sequence[UInt8Array]) -> list[bytes]:
    """The content hash of every image of [N, C, S, S]."""
    return [content_hash(image) for image in images]


def hash_share(digest: bytes, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing but a content hash and a purpose.

    Purposes are hashed in, so a split for one purpose says nothing about a split for another.
    """
    mixed = hashlib.sha256(purpose.encode() + b"\n" + digest).digest()
    return int.from_bytes(mixed[:6], "big") / 2.0**48


def check_name(name: str) -> None:
    """Refuses a data set name that could not be a file or registry name."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"The data set name {name!r} is not usable. Use lower-case letters, digits and '-'."
        )


def check_shape(size: int, channels: int) -> None:
    """Refuses sizes and channel counts outside what the networks are built for."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise DataError(
            f"size must be {MIN_SIZE}..{MAX_SIZE} pixels, got {size}. Images are resized to it."
        )
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (colour), got {channels}.")


def _check_arrays(images: UInt8Array, labels: Int64Array, spec: ImageSpec) -> None:
    shape = (spec.num_records, spec.channels, spec.size, spec.size)
    if images.dtype != np.uint8 or labels.dtype != np.int64:
        raise DataError(
            f"{spec.name}: images are {images.dtype} and labels {labels.dtype}. "
            "Convert them to uint8 and int64."
        )
    if images.shape != shape or labels.shape != shape[:1]:
        raise DataError(
            f"{spec.name}: images have shape {images.shape} and labels {labels.shape}, declared "
            f"{shape}. Correct num_records, channels or size."
        )
    if ((labels < 0) | (labels >= max(spec.num_classes, 1))).any():
        raise DataError(
            f"{spec.name}: a label lies outside 0..{max(spec.num_classes, 1) - 1}. "
            f"Correct the labels, or num_classes={spec.num_classes}."
        )
