"""From the bytes of image files to one array; the only place that opens a user's images."""

import io
import warnings
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

from rapid_dist.data.images import UInt8Array
from rapid_dist.data.pixels import fit
from rapid_dist.data.raw import Request
from rapid_dist.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")


_RUN = 64


def decode_all(contents: Iterable[bytes], request: Request) -> UInt8Array:
    """Decodes and fits images of any size, in order: uint8 [N, C, S, S].

    An unreadable image is named by its position only: a file's name can be a patient's.
    """
    fitted: list[UInt8Array] = []
    alike: list[npt.NDArray[np.uint8]] = []  # A run of images of one shape, fitted at once.
    for position, content in enumerate(contents):
        try:
            pixels = _decode(content)
        except Exception as error:  # Pillow's plugins raise whatever their formats break on.
            raise DataError(
                f"Source {request.source}: the image at position {position} (names sorted, from "
                f"0) cannot be read ({type(error).__name__}). Replace or remove it."
            ) from None
        if not (request.resize or pixels.shape[1:] == (request.size, request.size)):
            raise DataError(
                f"Source {request.source}: the image at position {position} (names sorted, from "
                f"0) is not {request.size}x{request.size}. Declare another size, or set resize to "
                "true: images are then cropped to squares and resized."
            )
        if alike and (len(alike) == _RUN or alike[0].shape != pixels.shape):
            fitted.append(_fit(alike, request))
            alike = []
        alike.append(pixels)
    if alike:
        fitted.append(_fit(alike, request))
    empty = np.zeros((0, request.channels, request.size, request.size), dtype=np.uint8)
    return np.concatenate([empty, *fitted])


def _fit(images: list[npt.NDArray[np.uint8]], request: Request) -> UInt8Array:
    return fit(
        np.stack(images),
        request.size,
        request.channels,
        invert=request.invert,
        margin=request.margin,
    )


def _decode(content: bytes) -> npt.NDArray[np.uint8]:
    """One image file -> uint8 [C, H, W], C = 1 for grey and 3 for anything with colour."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # A decompression bomb is only a warning to Pillow.
        image = Image.open(io.BytesIO(content))
        if image.mode in ("I;16", "I", "F"):
            raise ValueError("more than 8 bits a channel")
        grey = image.mode in ("1", "L", "LA")
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[None] if grey else pixels.transpose(2, 0, 1)
