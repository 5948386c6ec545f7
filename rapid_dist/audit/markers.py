"""Private values that can be recognised anywhere, and where in a file one of them stands.

Pixels are random and labels are in random order, so that none of them is anywhere by chance.
Losses, norms and batch sizes are written down while the engine works. All are looked for as they
are, as arrays of the usual types, and as text; pixels also in base64, in hexadecimal, and inside
PNG pictures that are enlarged up to ``MOST_ENLARGED`` times; archives are opened.

Not found is what is compressed otherwise, encrypted, or rounded to fewer than three digits.
"""

import base64
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from rapid_dist.diffusion.loss import row_losses
from rapid_dist.private.per_example import per_record_gradients, record_norms
from rapid_dist.private.step import ClippedSum

MOST_ENLARGED = 6
_STRIDES = 40  # Numbers at most from one value of a series to the next, in a text.
_ROUNDED = 2e-3  # Relative: a value of a series may be rounded to three digits.
_DIGITS = 1e-7  # Relative: a value on its own must be told to float32's precision.
_TOLD = 4  # Values at the head of an embedding by which it is told.
_SINGLE = 3  # So many of them in one text are no chance.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_PNG, _ZIP = b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"
_EMBEDDED = re.compile(rb"data:image/png;base64,([A-Za-z0-9+/=]+)")


@dataclass(kw_only=True)
class Markers:
    """What no run may tell: given before it, and written down while it lasts."""

    images: np.ndarray  # uint8 [n, C, S, S], random.
    labels: np.ndarray  # int64 [n], in random order.
    names: tuple[str, ...] = ()  # Of files, or of persons.
    # One entry a call of the engine, which is one a step where a micro-batch holds a whole batch.
    losses: list[np.ndarray] = field(default_factory=list)  # float32 [B] each, a record's mean.
    norms: list[np.ndarray] = field(default_factory=list)  # float32 [B] each, before the clip.
    # Of a private index: float [N, D], what stands in it, and one entry a round.
    embeddings: np.ndarray | None = None
    drawn: list[int] = field(default_factory=list)  # Records in a round's sample.
    _forms: dict[str, list[bytes]] = field(default_factory=dict)
    _forms_of: int = -1  # Calls of the engine that the forms know of.

    @property
    def sizes(self) -> list[int]:
        return [len(losses) for losses in self.losses] or self.drawn

    def watching(self, engine: ClippedSum) -> ClippedSum:
        """Returns the engine, which now leaves what it learns of its records here."""

        def watched(
            denoiser: torch.nn.Module,
            rows: object,
            draws: int,
            max_grad_norm: float,
            mask: torch.Tensor,
            *more: object,
        ) -> torch.Tensor:
            with torch.no_grad():
                losses = row_losses(denoiser, rows).reshape(-1, draws).mean(1)  # type: ignore[arg-type]
            norms = record_norms(per_record_gradients(denoiser, rows, draws))  # type: ignore[arg-type]
            self.losses.append(losses[mask].numpy())
            self.norms.append(norms[mask].numpy())
            return engine(denoiser, rows, draws, max_grad_norm, mask, *more)

        return watched

    def found_in(self, data: bytes) -> set[str]:
        """Returns the kinds of private values that these bytes hold."""
        found: set[str] = set()
        for part in _unpacked(data):
            found |= self._in_bytes(part)
            text = _text(part)
            if text is not None:
                found |= self._in_text(text)
        return found

    def _in_bytes(self, data: bytes) -> set[str]:
        if self._forms_of != len(self.sizes):  # They are many, and so are the files.
            self._forms, self._forms_of = self._make_forms(), len(self.sizes)
        return {kind for kind, forms in self._forms.items() if any(form in data for form in forms)}

    def _make_forms(self) -> dict[str, list[bytes]]:
        """Every private value as bytes, by its kind."""
        forms = {
            "pixels": [form for row in self._rows() for form in _pixel_forms(row)],
            "names": [name.encode() for name in self.names],
            "losses": _value_forms(self.losses),
            "norms": _value_forms(self.norms),
        }
        if self.embeddings is not None:
            forms["embeddings"] = [
                row[:_TOLD].astype(kind).tobytes()
                for row in self.embeddings
                for kind in ("<f4", "<f8")
            ]
        if self._labels_tell():
            types = ("<i8", "<i4", "<f4", "u1")
            forms["labels"] = [self.labels[:32].astype(kind).tobytes() for kind in types]
        for name, series in self._series().items():
            kinds = ("<i8", "<i4") if name == "batch sizes" else ("<f4", "<f8")
            if len(series) >= 3:
                forms[name] = [np.asarray(series).astype(kind).tobytes() for kind in kinds]
        return forms

    def _in_text(self, text: str) -> set[str]:
        told = _NUMBER.findall(text)
        numbers = np.array([float(one) for one in told])
        found = set()
        if any(_stands_in(numbers, row.astype(float)) for row in self._rows()):
            found.add("pixels")
        if self.embeddings is not None and any(
            _strided(numbers, row[:_TOLD], _ROUNDED, strides=1) for row in self.embeddings
        ):
            found.add("embeddings")
        if self._labels_tell() and _stands_in(numbers, self.labels[:32].astype(float)):
            found.add("labels")
        for name, series in self._series().items():
            exact = name == "batch sizes"
            if len(series) >= 3 and _strided(numbers, np.array(series), 0.0 if exact else _ROUNDED):
                found.add(name)
        precise = np.array([float(o) for o in told if sum(c.isdigit() for c in o) >= 8])
        for name, values in (("losses", self.losses), ("norms", self.norms)):
            if _shared(precise, np.concatenate([[], *values])) >= _SINGLE:
                found.add(name)
        return found

    def _rows(self) -> Iterator[np.ndarray]:
        """One row of pixels of every image, uint8 [S]."""
        for number, image in enumerate(self.images):
            flat = image.reshape(-1, image.shape[-1])
            yield flat[number % len(flat)]

    def _labels_tell(self) -> bool:
        return len(self.labels) >= 32 and len(np.unique(self.labels)) > 1

    def _series(self) -> dict[str, Sequence[float]]:
        """Values over the steps that somebody might follow."""
        losses, norms = ([v for v in values if len(v)] for values in (self.losses, self.norms))
        return {
            "mean losses": [float(v.mean()) for v in losses],
            "summed losses": [float(v.sum()) for v in losses],
            "mean norms": [float(v.mean()) for v in norms],
            "largest norms": [float(v.max()) for v in norms],
            "batch sizes": self.sizes,
        }


def random_markers(
    count: int, shape: tuple[int, int, int], num_classes: int, rng: np.random.Generator
) -> Markers:
    """Returns ``count`` images of random pixels with random labels, every class among them."""
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = rng.permutation(np.arange(count, dtype=np.int64) % max(1, num_classes))
    names = tuple(f"person-{rng.bytes(6).hex()}" for _ in range(count))
    return Markers(images=images, labels=labels, names=names)


def _pixel_forms(row: np.ndarray) -> list[bytes]:
    raw = row.tobytes()
    scaled = [row / 127.5 - 1.0, row / 255.0]
    floats = [values.astype(kind).tobytes() for values in scaled for kind in ("<f4", "<f8")]
    # In base64 a row's first bytes share a letter with what stands before it: three alignments.
    coded = [base64.b64encode(raw[skip : skip + (len(raw) - skip) // 3 * 3]) for skip in range(3)]
    return [raw, raw.hex().encode(), *floats, *(code for code in coded if len(code) >= 8)]


def _value_forms(values: list[np.ndarray]) -> list[bytes]:
    """Single values in float64 and pairs in float32: eight bytes that are nowhere by chance."""
    forms = []
    for batch in values:
        usable = batch[np.isfinite(batch) & (batch != 0)]
        forms += [np.float64(value).tobytes() for value in usable[:4]]
        forms += [
            usable[at : at + 2].astype("<f4").tobytes() for at in range(min(3, len(usable) - 1))
        ]
    return forms


def _unpacked(data: bytes) -> Iterator[bytes]:
    """The bytes, what is in them if they are an archive, and their pictures' pixels."""
    yield data
    if data.startswith(_ZIP):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from _unpacked(archive.read(name))
    pictures = [data] if data.startswith(_PNG) else []
    pictures += [base64.b64decode(code) for code in _EMBEDDED.findall(data)]
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(picture)))
        planes = [pixels] if pixels.ndim == 2 else list(np.moveaxis(pixels, -1, 0))
        yield b"|".join(view for plane in planes for view in _reduced(plane))


def _reduced(plane: np.ndarray) -> Iterator[bytes]:
    """A plane of pixels at every scale, from every place where an enlarged pixel may begin."""
    for times in range(1, MOST_ENLARGED + 1):
        for down in range(times):
            for right in range(times):
                yield np.ascontiguousarray(plane[down::times, right::times]).tobytes()


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _stands_in(numbers: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether the numbers of a text hold ``wanted`` one after the other."""
    return _strided(numbers, wanted, 0.0, strides=1)


def _strided(
    numbers: np.ndarray, series: np.ndarray, tolerance: float, strides: int = _STRIDES
) -> bool:
    """Whether the series stands in the numbers, at some constant distance from value to value."""

    def near(at: np.ndarray, value: float) -> np.ndarray:
        close: np.ndarray = np.abs(numbers[at] - value) <= tolerance * abs(value)
        return close

    starts = np.flatnonzero(near(np.arange(len(numbers)), series[0]))
    for stride in range(1, strides + 1):
        left = starts[starts + stride * (len(series) - 1) < len(numbers)]
        for place, value in enumerate(series[1:], start=1):
            left = left[near(left + stride * place, value)]
        if len(left):
            return True
    return False


def _shared(numbers: np.ndarray, values: np.ndarray) -> int:
    """How many of the values stand among the numbers."""
    if not len(numbers):
        return 0
    ordered, width = np.sort(numbers), _DIGITS * np.abs(values)
    low = np.searchsorted(ordered, values - width, side="left")
    high = np.searchsorted(ordered, values + width, side="right")
    return int((high > low).sum())
