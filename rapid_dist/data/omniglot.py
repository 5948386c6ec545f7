"""Omniglot, 1,623 characters of 50 handwritten alphabets: an npz at 28x28, or the original PNGs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rapid_dist.data.decode import decode_all
from rapid_dist.data.glyphs import bytes_of, open_arrays, part_of
from rapid_dist.data.licences import LICENCES
from rapid_dist.data.raw import Part, Raw, Request, cache_folder, download_set, first_existing
from rapid_dist.errors import DataError

_FOLDER = "omniglot-py"  # torchvision's: <half>/<alphabet>/<character>/<drawing>.png
_HALVES = ("images_background", "images_evaluation")


def read_omniglot(request: Request, download: Callable[[str, Path], None] | None = None) -> Raw:
    """Labelled by character (fine) or by alphabet (coarse); bright strokes on black."""
    path = first_existing(request.root, "Omniglot/omniglot28.npz")
    if path is None:
        return _read_drawings(request, download)
    column, names = ("alphabet", "alphabet_names")
    if request.labels == "fine":
        column, names = ("labels", "char_names")
    arrays = open_arrays(path, "images", column, names)
    part = part_of(bytes_of(arrays["images"], path), arrays[column], request)
    class_names = tuple(str(name) for name in arrays[names])
    return Raw(train=part, class_names=class_names, licence=LICENCES["omniglot"])


def _read_drawings(request: Request, download: Callable[[str, Path], None] | None) -> Raw:
    folder = first_existing(request.root, _FOLDER)
    if folder is None:
        folder = cache_folder() / _FOLDER
        if not all((folder / half).exists() for half in _HALVES):
            download_set(request, "Omniglot", download)
    files = sorted(path for half in _HALVES for path in (folder / half).glob("*/*/*.png"))
    if not files:
        raise DataError(f"{folder} holds no drawing. Fetch Omniglot again.")
    # Parts of a path below the folder: half, alphabet, character, drawing.
    depth = 3 if request.labels == "fine" else 2
    names = ["/".join(path.relative_to(folder).parts[:depth]) for path in files]
    class_names, labels = np.unique(names, return_inverse=True)

    def contents() -> Iterator[bytes]:
        for path in files:
            yield path.read_bytes()

    # The originals are dark on white.
    images = decode_all(contents(), replace(request, invert=not request.invert))
    return Raw(
        train=Part(images=images, labels=labels.astype(np.int64)),
        class_names=tuple(str(name) for name in class_names),
        licence=LICENCES["omniglot"],
    )
