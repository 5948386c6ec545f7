"""Letters rendered from the fonts that matplotlib and Pillow ship: public data without a download.

Letters only, never digits: the public side of the embedded example must not hold its private
classes. Image i is a pure function of (seed, i): its letter, font, affine change, stroke weight
and blur are drawn from a counter-based stream, so neither the number of images nor the chunk in
which one is drawn changes it.

Letters: N images of S pixels a side, drawn at M = 4 S and averaged down; F fonts.
"""

from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.data.licences import LICENCES
from rapid_dist.data.raw import Part, Raw, Request
from rapid_dist.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DEFAULT_COUNT = 20_000
# The text fonts among those shipped. The others (*Display, cmsy10, cmex10, STIXSiz*, STIXNonUni*,
# LastResort) have symbols, boxes or nothing where letters should be.
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "BolIta", "Italic")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
_MASTER = 64  # Pixels a side of a master drawing.
_GLYPH = 44  # Pixels of a master that a glyph's longer side has.
_OVERSAMPLING = 4
_CHUNK = 2048
# Each draw is uniform in its range. The ranges are what any glyph data set would use, and were
# chosen without a look at private images. Fitting them to the private digits would be a selection
# on private data: the public letters would then carry what was seen there into every later stage,
# and no entry of the ledger would pay for it. Keep them so; tune on other public data only.
_ROTATION = (-0.30, 0.30)  # Radians.
_SHEAR = (-0.35, 0.35)
_SCALE = (0.72, 1.02)  # Share of the frame, less its margins, that a glyph's longer side fills.
_ASPECT = (0.75, 1.30)  # Width over height, beyond the font's own.
_SHIFT = (-0.10, 0.10)  # Share of the frame.
_WEIGHT = (-0.5, 1.0)  # Stroke: oversampled pixels it grows by on each side; eroded below 0.
_BLUR = (0.0, 1.0)  # Share of a blurred copy.


def read_letters(request: Request) -> Raw:
    """Renders ``count`` letters: 52 classes (fine), or 26 with the cases merged (coarse)."""
    count = DEFAULT_COUNT if request.count is None else request.count
    indices = np.arange(count, dtype=np.int64)
    images, labels = render_letters(request.seed, indices, request.size, margin=request.margin)
    names = tuple(LETTERS)
    if request.labels == "coarse":
        labels, names = labels % 26, names[:26]
    if request.invert:
        images = 255 - images
    images = np.repeat(images, request.channels, axis=1)
    return Raw(
        train=Part(images=images, labels=labels), class_names=names, licence=LICENCES["letters"]
    )


def render_letters(
    seed: int, indices: Int64Array, size: int, *, margin: float = 0.0
) -> tuple[UInt8Array, Int64Array]:
    """Returns the letters numbered ``indices`` int64 [N]: uint8 [N, 1, S, S] and labels [N]."""
    masters = torch.from_numpy(draw_masters())
    images = np.empty((len(indices), 1, size, size), dtype=np.uint8)
    labels = indices % len(LETTERS)  # Every letter equally often.
    for start in range(0, len(indices), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _render_chunk(masters, seed, indices[part], labels[part], size, margin)
    return images, labels


def draw_masters() -> npt.NDArray[np.float32]:
    """Every letter in every font, bright on black, centred: float32 [F, 52, 64, 64] in 0..1."""
    return np.stack([_draw_font(name) for name in (*FONTS, None)])


def _draw_font(name: str | None) -> npt.NDArray[np.float32]:
    """One font's letters, float32 [52, 64, 64]; None is the font inside Pillow."""
    try:
        if name is None:
            font = ImageFont.load_default(size=_MASTER)
        else:
            path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
            font = ImageFont.truetype(str(path), size=_MASTER)
    except OSError:
        raise DataError(
            f"Font {name or 'of Pillow'} cannot be opened. Reinstall matplotlib and pillow."
        ) from None
    glyphs = np.zeros((len(LETTERS), _MASTER, _MASTER), dtype=np.float32)
    for index, letter in enumerate(LETTERS):
        canvas = Image.new("L", (4 * _MASTER, 4 * _MASTER))
        ImageDraw.Draw(canvas).text((_MASTER, _MASTER), letter, fill=255, font=font)
        box = canvas.getbbox()
        if box is None:
            raise DataError(f"Font {name} draws nothing for {letter!r}. Reinstall matplotlib.")
        glyph = canvas.crop(box)
        shrink = _GLYPH / max(glyph.size)
        width, height = (max(round(side * shrink), 1) for side in glyph.size)
        top, left = (_MASTER - height) // 2, (_MASTER - width) // 2
        resized = glyph.resize((width, height), Image.Resampling.BICUBIC)
        glyphs[index, top : top + height, left : left + width] = np.asarray(resized)
    return glyphs / np.float32(255)


def _render_chunk(
    masters: torch.Tensor,
    seed: int,
    indices: Int64Array,
    labels: Int64Array,
    size: int,
    margin: float,
) -> UInt8Array:
    draws = _uniforms(seed, indices, 9)
    fonts = (draws[:, 0] * len(masters)).astype(np.int64)
    glyphs = masters[torch.from_numpy(fonts), torch.from_numpy(labels)][:, None]
    theta = torch.from_numpy(_inverse_affine(draws[:, 1:7], margin))
    side = size * _OVERSAMPLING
    grid = functional.affine_grid(theta, [len(indices), 1, side, side], align_corners=False)
    drawn = functional.grid_sample(glyphs, grid, align_corners=False)
    weight = _column(draws[:, 7], _WEIGHT)
    eroded = -functional.max_pool2d(-drawn, 3, 1, 1)
    drawn = torch.lerp(drawn, eroded, (-weight).clamp(0, 1))
    dilated = functional.max_pool2d(drawn, 3, 1, 1)
    drawn = torch.lerp(drawn, dilated, weight.clamp(0, 1))
    # Pooling, not convolution: its sums have one order, whatever the chunk or thread count.
    blurred = functional.avg_pool2d(functional.avg_pool2d(drawn, 3, 1, 1), 3, 1, 1)
    drawn = torch.lerp(drawn, blurred, _column(draws[:, 8], _BLUR))
    small = functional.avg_pool2d(drawn, _OVERSAMPLING)
    pixels: UInt8Array = (small * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


def _inverse_affine(draws: npt.NDArray[np.float64], margin: float) -> npt.NDArray[np.float32]:
    """Draws [N, 6] -> float32 [N, 2, 3], from places in the output to places in the master."""
    angle, shear = _between(draws[:, 0], _ROTATION), _between(draws[:, 1], _SHEAR)
    # The glyph fills _GLYPH of _MASTER; after scaling, the drawn share of the frame.
    scale = _between(draws[:, 2], _SCALE) * (1 - 2 * margin) * _MASTER / _GLYPH
    stretch = np.sqrt(_between(draws[:, 3], _ASPECT))
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    one, zero = np.ones_like(shear), np.zeros_like(shear)
    slant = np.stack([np.stack([one, shear], -1), np.stack([zero, one], -1)], -2)
    sizes = np.stack([scale * stretch, scale / stretch], -1)
    forward = rotation @ slant * sizes[:, None, :]
    inverse = np.linalg.inv(forward)
    # A frame is 2 wide in the sampler's coordinates.
    shift = 2 * np.stack([_between(draws[:, 4], _SHIFT), _between(draws[:, 5], _SHIFT)], -1)
    offset = -(inverse @ shift[:, :, None])
    theta: npt.NDArray[np.float32] = np.concatenate([inverse, offset], axis=2).astype(np.float32)
    return theta


def _between(
    draws: npt.NDArray[np.float64], bounds: tuple[float, float]
) -> npt.NDArray[np.float64]:
    return bounds[0] + (bounds[1] - bounds[0]) * draws


def _column(draws: npt.NDArray[np.float64], bounds: tuple[float, float]) -> torch.Tensor:
    return torch.from_numpy(_between(draws, bounds).astype(np.float32))[:, None, None, None]


def _uniforms(seed: int, indices: Int64Array, columns: int) -> npt.NDArray[np.float64]:
    """float64 [N, columns] in [0, 1): entry (i, c) is a function of (seed, i, c) alone.

    SplitMix64's finaliser over a counter; quality enough for pictures, not for privacy.
    """
    mask = (1 << 64) - 1
    counter = np.arange(columns, dtype=np.uint64) + (
        indices.astype(np.uint64)[:, None] * np.uint64(columns)
    )
    start = np.uint64(_mix(np.array([(seed + 1) & mask], dtype=np.uint64))[0])
    state = _mix(start + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
