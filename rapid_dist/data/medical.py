"""PneumoniaMNIST's chest X-rays and MedNIST's six kinds of medical images."""

import numpy as np

from rapid_dist.data.folder import ZipTree, read_tree
from rapid_dist.data.glyphs import open_arrays, part_of
from rapid_dist.data.licences import LICENCES
from rapid_dist.data.pixels import scale_to_bytes
from rapid_dist.data.raw import Raw, Request, require_file

_RANGE = (0.0, 255.0)


def read_pneumonia(request: Request) -> Raw:
    """The official train and test parts; the validation part is left alone."""
    path = require_file(request, "PneumoniaMNIST/pneumoniamnist.npz")
    splits = []
    for split in ("train", "test"):
        arrays = open_arrays(path, f"{split}_images", f"{split}_labels")
        images = scale_to_bytes(arrays[f"{split}_images"], _RANGE, str(path))
        labels = np.asarray(arrays[f"{split}_labels"]).reshape(-1)
        splits.append(part_of(images, labels, request))
    return Raw(
        train=splits[0],
        test=splits[1],
        class_names=("normal", "pneumonia"),
        licence=LICENCES["pneumonia"],
    )


def read_mednist(request: Request) -> Raw:
    """12,000 grey images of six kinds; its chest X-rays are the class CXR."""
    path = require_file(request, "MedNIST64/MedNIST64_2000_per_class.zip")
    return read_tree(ZipTree(path), request, licence=LICENCES["mednist"])
