"""Small images side by side as one PNG, made of pixels alone: nothing is drawn around them."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rapid_dist.data.images import UInt8Array

GAP = 2  # Pixels between two images, before they are enlarged.
PAPER = 127  # Of the gaps: neither ink nor paper of most images.
SIDE = 48  # Screen pixels that an image is enlarged to, in whole steps.


def tiled_png(rows: Sequence[UInt8Array]) -> bytes:
    """Returns rows of images, each uint8 [n, C, S, S], as a PNG; every pixel a square of pixels."""
    channels, size = rows[0].shape[1], rows[0].shape[-1]
    columns = max(len(row) for row in rows)
    step = size + GAP
    shape = (channels, len(rows) * step + GAP, columns * step + GAP)
    sheet = np.full(shape, PAPER, np.uint8)
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            top, left = GAP + down * step, GAP + across * step
            sheet[:, top : top + size, left : left + size] = image
    scale = max(1, SIDE // size)
    large = sheet.repeat(scale, axis=1).repeat(scale, axis=2)
    pixels = large[0] if channels == 1 else np.moveaxis(large, 0, -1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")
    return file.getvalue()
