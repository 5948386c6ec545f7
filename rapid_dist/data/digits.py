"""The 1,797 real 8x8 scans of digits that scikit-learn carries: no download, no network."""

import numpy as np
from sklearn.datasets import load_digits

from rapid_dist.data.glyphs import part_of
from rapid_dist.data.licences import LICENCES
from rapid_dist.data.pixels import scale_to_bytes
from rapid_dist.data.raw import Raw, Request, digit_names

_VALUE_RANGE = (0.0, 16.0)  # Each pixel counts the ink in a 4x4 block of the 32x32 scan.


def read_digits(request: Request) -> Raw:
    """All scans as one part; they come without a test split."""
    bunch = load_digits()
    images = scale_to_bytes(np.asarray(bunch.images), _VALUE_RANGE, "digits")
    return Raw(
        train=part_of(images, np.asarray(bunch.target), request),
        class_names=digit_names(10),
        licence=LICENCES["digits"],
    )
