"""Pictures: strips and grids of images as PNG, and the curve of epsilon as SVG.

A picture shows the first images of a class in order of their ids; nothing is selected. The SVG
takes its colours from the page it stands in, so it follows light and dark.

Letters: n images, C channels, S pixels a side.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.errors import ConfigError

TILE = 80  # An image is enlarged by a whole number until it is at least this many pixels.
GAP = 6  # Pixels between two tiles.


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images uint8 [n, C, S, S] and their labels int64 [n], in order of their ids."""

    images: UInt8Array
    labels: Int64Array

    def first(self, label: int, count: int) -> UInt8Array:
        """Returns the first ``count`` images of a class, or as many as there are."""
        found: UInt8Array = self.images[np.flatnonzero(self.labels == label)[:count]]
        return found


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG as a data address, with the size at which a page shows it."""

    address: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class EpsilonCurve:
    """Epsilon spent over the releases of a run: one line for what is claimed or an accountant."""

    lines: Mapping[str, Sequence[tuple[int, float]]]  # (releases so far, epsilon), ascending.
    budget: float

    def __post_init__(self) -> None:
        for name, points in self.lines.items():
            counts = [count for count, _ in points]
            if not counts or any(after <= before for before, after in pairwise(counts)):
                raise ConfigError(
                    f"The curve of {name} is over {counts[:5]}. Give at least one point, in "
                    "ascending order."
                )
        if not self.lines:
            raise ConfigError("A curve of epsilon has no line. Give at least one.")


def strip(images: UInt8Array) -> Picture:
    """Returns images [n, C, S, S] side by side, shown at half size for dense screens."""
    picture = _tiles(images, columns=max(len(images), 1))
    data = base64.b64encode(_png(picture)).decode()
    return Picture(
        address=f"data:image/png;base64,{data}",
        width=picture.width // 2,
        height=picture.height // 2,
    )


def samples_png(samples: ImageSet, class_names: Sequence[str], per_class: int = 10) -> bytes:
    """Returns a PNG grid with one named row a class, or plain rows where there are none."""
    if not class_names:
        return _png(_on_white(_tiles(samples.images[: per_class**2], columns=per_class)))
    rows = [
        _on_white(_tiles(samples.first(label, per_class), columns=per_class))
        for label in range(len(class_names))
    ]
    font = ImageFont.load_default(size=TILE // 3)
    margin = GAP + math.ceil(max(font.getlength(name) for name in class_names)) + 2 * GAP
    height = rows[0].height + GAP
    page = Image.new("RGB", (margin + rows[0].width + GAP, height * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(page)
    for label, (name, row) in enumerate(zip(class_names, rows, strict=True)):
        top = GAP + label * height
        draw.text((GAP, top + row.height // 2), name, fill="black", font=font, anchor="lm")
        page.paste(row, (margin, top))
    return _png(page)


def epsilon_svg(curve: EpsilonCurve) -> str:
    """Returns the curve as inline SVG, with the budget as a dashed line."""
    width, height = 720, 320
    left, right, top, bottom = 56, 24, 16, 44
    most = max(curve.budget, *(epsilon for line in curve.lines.values() for _, epsilon in line))
    x_end = max(1, *(line[-1][0] for line in curve.lines.values()))
    x_ticks, y_ticks = _ticks(x_end, whole=True), _ticks(most * 1.08)
    y_end = max(y_ticks[-1], most * 1.08)

    def x(step: float) -> float:
        return round(left + (width - left - right) * step / x_end, 1)

    def y(epsilon: float) -> float:
        return round(height - bottom - (height - top - bottom) * epsilon / y_end, 1)

    said = "; ".join(f"{name} ends at {line[-1][1]:.2f}" for name, line in curve.lines.items())
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="curve-title curve-desc">',
        '<title id="curve-title">Epsilon spent over the releases of the run</title>',
        f'<desc id="curve-desc">{html.escape(said)}; the budget is {curve.budget:g}.</desc>',
    ]
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick)}" '
                     f'y2="{y(tick)}"/><text x="{left - 8}" y="{y(tick) + 4}" '
                     f'text-anchor="end">{tick:g}</text>')  # fmt: skip
    for tick in x_ticks:
        parts.append(f'<text x="{x(tick)}" y="{height - bottom + 20}" '
                     f'text-anchor="middle">{tick:,g}</text>')  # fmt: skip
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 4}" '
                 'text-anchor="middle">releases charged to the ledger</text>')  # fmt: skip
    parts.append(f'<line class="budget" x1="{left}" x2="{width - right}" y1="{y(curve.budget)}" '
                 f'y2="{y(curve.budget)}"/><text class="budget-label" x="{left + 6}" '
                 f'y="{y(curve.budget) - 6}">budget {curve.budget:g}</text>')  # fmt: skip
    for number, line in enumerate(curve.lines.values()):
        points = " ".join(f"{x(count)},{y(epsilon)}" for count, epsilon in line)
        parts.append(f'<polyline class="line line-{number}" points="{points}"/>')
    return "".join([*parts, "</svg>"])


def _ticks(end: float, *, whole: bool = False) -> list[float]:
    """Returns a few round numbers from 0 up to at most ``end``; ``whole`` ones count things."""
    raw = end / 5
    power = 10.0 ** math.floor(math.log10(raw))
    sizes = [m * power for m in (1, 2, 2.5, 5, 10)]
    if whole:
        sizes = [size for size in sizes if size == round(size)] or [1.0]
    step = min(sizes, key=lambda size: abs(size - raw))
    return [round(index * step, 10) for index in range(int(end / step + 1e-9) + 1)]


def _tiles(images: UInt8Array, columns: int) -> Image.Image:
    """Returns images [n, C, S, S] in rows of ``columns``, enlarged, with clear gaps."""
    _, channels, size, _ = images.shape
    scale = -(-TILE // size)
    side = size * scale
    rows = max(-(-len(images) // columns), 1)
    width, height = columns * (side + GAP) - GAP, rows * (side + GAP) - GAP
    mode = "LA" if channels == 1 else "RGBA"
    page = Image.new(mode, (width, height), (0,) * len(mode))
    for index, image in enumerate(images.repeat(scale, axis=2).repeat(scale, axis=3)):
        tile = Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0))
        place = ((index % columns) * (side + GAP), (index // columns) * (side + GAP))
        page.paste(tile.convert(mode), place)
    return page


def _on_white(picture: Image.Image) -> Image.Image:
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture.getchannel("A"))
    return page


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
