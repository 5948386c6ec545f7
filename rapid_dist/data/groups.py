"""Groups of images: made-up ones, to show the unit on a set that names no patients, and a check."""

import hashlib

import numpy as np

from rapid_dist.data.images import Int64Array
from rapid_dist.errors import DataError

SYNTHETIC = "synthetic"  # The group column that no source has: its groups are made up here.


def synthetic_groups(num_images: int, num_groups: int) -> Int64Array:
    """Returns made-up group ids, int64 [num_images], of uneven sizes, none empty.

    A function of an image's position alone: the first images open one group each, every later one
    joins a group by a hash of its position. Nobody's images are together for a reason.
    """
    if not 1 <= num_groups <= num_images:
        raise DataError(
            f"num_groups={num_groups} synthetic groups cannot share {num_images} images. "
            "Declare between one group and one group an image."
        )
    later = [
        int.from_bytes(hashlib.sha256(str(position).encode()).digest()[:8], "big") % num_groups
        for position in range(num_groups, num_images)
    ]
    return np.array([*range(num_groups), *later], dtype=np.int64)


def check_groups_whole(name: str, train: Int64Array | None, held_out: Int64Array | None) -> None:
    """Refuses a split [N], [M] that has images of one group on both sides."""
    if train is None or held_out is None or not np.intersect1d(train, held_out).size:
        return
    raise DataError(  # Which group it is, is nobody's business (P9).
        f"{name}: a group has images in the train part and in the test part. Put all images of a "
        "group into one of them."
    )
