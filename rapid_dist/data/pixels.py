"""From pixels as a file holds them to uint8 [N, C, S, S], by rules that read no statistics.

The rules, in order: centred square crop; optional inversion (bright strokes on black); optional
black margin; grey by ITU-R 601 weights, or colour by repetition; then exact area averaging
where the image shrinks, bicubic interpolation where it grows.
"""

import functools

import numpy as np
import numpy.typing as npt
import torch

from rapid_dist.data.images import UInt8Array
from rapid_dist.errors import DataError

_GREY_WEIGHTS = (0.299, 0.587, 0.114)
_CHUNK = 4096  # Images resized at once; bounds the float32 copy.


def fit(
    images: npt.NDArray[np.uint8],
    size: int,
    channels: int,
    *,
    invert: bool = False,
    margin: float = 0.0,
) -> UInt8Array:
    """uint8 [N, H, W] or [N, C, H, W] of any size -> uint8 [N, channels, size, size].

    Args:
      margin: share of the frame left black on each side, for glyphs that touch the border.
    """
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 1:
        raise DataError(
            f"Images have shape {images.shape}, which is neither [N, H, W] nor [N, C, H, W] "
            "with 1 or 3 channels. Reshape them."
        )
    images = _centre_square(images)
    fitted = np.empty((len(images), channels, size, size), dtype=np.uint8)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        fitted[start : start + _CHUNK] = _fit_chunk(chunk, size, channels, invert, margin)
    return fitted


def scale_to_bytes(
    values: npt.NDArray[np.generic], value_range: tuple[float, float], name: str
) -> npt.NDArray[np.uint8]:
    """Maps numbers from their declared range onto 0..255; refuses numbers outside it."""
    low, high = value_range
    if values.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return np.asarray(values, dtype=np.uint8)
    numbers = np.asarray(values, dtype=np.float32)
    if not (np.isfinite(numbers).all() and (numbers >= low).all() and (numbers <= high).all()):
        raise DataError(
            f"{name}: a pixel lies outside the declared value_range ({low:g}, {high:g}). "
            "Declare the range that the file uses."
        )
    scaled: UInt8Array = np.rint((numbers - low) * np.float32(255.0 / (high - low))).astype(
        np.uint8
    )
    return scaled


def _centre_square(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


def _fit_chunk(
    images: npt.NDArray[np.uint8], size: int, channels: int, invert: bool, margin: float
) -> npt.NDArray[np.uint8]:
    if invert:
        images = 255 - images
    if margin > 0:
        pad = round(images.shape[2] * margin / (1 - 2 * margin))
        images = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    if images.shape[1] == 3 and channels == 1:
        grey = np.tensordot(
            images.astype(np.float32), np.array(_GREY_WEIGHTS, np.float32), axes=(1, 0)
        )
        images = np.rint(grey).astype(np.uint8)[:, None]
    side = images.shape[2]
    if side > size:
        shrink = _area_weights(side, size)
        images = np.rint(shrink @ images.astype(np.float32) @ shrink.T).astype(np.uint8)
    elif side < size:
        grown = torch.nn.functional.interpolate(
            torch.from_numpy(images.astype(np.float32)), size=(size, size), mode="bicubic"
        )
        images = grown.round().clamp(0, 255).to(torch.uint8).numpy()
    return np.broadcast_to(images, (len(images), channels, size, size))


@functools.lru_cache(maxsize=64)
def _area_weights(source: int, target: int) -> npt.NDArray[np.float32]:
    """float32 [target, source]: the share of each source pixel in each target pixel's area."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: npt.NDArray[np.float32] = np.maximum(overlap, 0) * np.float32(target / source)
    return weights.astype(np.float32)
