"""A synthetic data set beside the model: an npz, the same as PNG files, and a page on it.

It is drawn from the released bundle and from nothing else, so it costs no privacy and anybody who
has the bundle can draw it again, to the bit.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.release.markup import Section, escape, facts, image, page, paragraph, table
from rapid_dist.release.plots import ImageSet, strip
from rapid_dist.release.report_style import STYLE
from rapid_dist.retrieval.arrays import pack_arrays

FOLDER = "synthetic"
SHOWN = 12  # Images of a class on the page: the first, nothing is selected.


def labels_of(count: int, class_names: Sequence[str]) -> Int64Array:
    """Returns the class of each image of the set, int64 [count]: the classes in turn."""
    return np.arange(count, dtype=np.int64) % max(1, len(class_names))


def write_synthetic(directory: Path, images: UInt8Array, labels: Int64Array) -> ImageSet:
    """Writes npz and PNG files of images uint8 [n, C, S, S] to the bundle's ``synthetic/``."""
    folder = directory / FOLDER
    folder.mkdir()
    (folder / "synthetic.npz").write_bytes(pack_arrays({"images": images, "labels": labels}))
    for number, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        # By number: a class may have a name that no file can have.
        path = folder / "images" / f"{label:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(pixels))
    return ImageSet(images=images, labels=labels)


def synthetic_page(passport: Mapping[str, Any], drawn: ImageSet) -> str:
    """Returns the page on a synthetic data set, self-contained."""
    names = passport["model"]["classes"] or ["all"]
    claim, told = passport["claim"], passport["synthetic"]
    _, channels, size, _ = drawn.images.shape
    about = facts(
        [
            ("images", f"{len(drawn.images):,}"),
            ("classes", str(len(names))),
            ("pixels", f"{size}x{size}, {'grey' if channels == 1 else 'colour'}"),
            ("seed", str(told["seed"])),
        ]
    ) + paragraph(
        "These images were drawn from the released generator and from nothing else. Drawing them "
        "has cost no privacy: the claim of the generator covers them."
    )
    about += paragraph(claim["sentence"])
    use = paragraph(
        "synthetic.npz holds images, uint8 [n, C, S, S], and labels, int64 [n]. images/ holds the "
        "same as PNG files, in a folder a class, numbered in the order below."
    )
    use += (
        "<pre><code>"
        + escape(
            'import numpy as np\n\nwith np.load("synthetic.npz", allow_pickle=False) as data:\n'
            '    images, labels = data["images"], data["labels"]'
        )
        + "</code></pre>"
    )
    sections = [
        Section(key="about", title="What this is", body=about, style="claim"),
        Section(key="use", title="How to read it", body=use),
        Section(key="classes", title="Classes", body=_classes(names, drawn)),
    ]
    return page(
        title=f"Synthetic data set: {passport['model']['name']}",
        lead=f"Drawn {passport['created']} from the generator of {passport['signer']['name']}",
        banner="",
        sections=sections,
        style=STYLE,
    )


def _classes(names: Sequence[str], drawn: ImageSet) -> str:
    counts: Int64Array = np.bincount(drawn.labels, minlength=len(names))
    rows = [
        [name, f"{label:03d}", f"{count:,}"]
        for label, (name, count) in enumerate(zip(names, counts.tolist(), strict=True))
    ]
    body = table("", ["class", "folder", "images"], rows, kind="narrow")
    for label, name in enumerate(names):
        if counts[label]:
            picture = strip(drawn.first(label, SHOWN))
            alt = f"The first images of class {name}"
            body += f"<h3>{escape(name)}</h3>" + '<div class="scroll">'
            body += image(picture.address, alt, picture.width, picture.height) + "</div>"
    return body


def _png(pixels: UInt8Array) -> bytes:
    """uint8 [C, S, S] -> PNG without any text in it."""
    file = io.BytesIO()
    shaped = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    Image.fromarray(shaped).save(file, format="PNG")
    return file.getvalue()
