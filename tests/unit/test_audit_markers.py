"""A private value is found in whatever form somebody might write it, and not where it is not."""

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from rapid_dist.audit.contained import contained
from rapid_dist.audit.markers import Markers, random_markers


def _markers() -> Markers:
    rng = np.random.default_rng(0)
    markers = random_markers(40, (1, 8, 8), 3, rng)
    for size in (19, 22, 17, 21, 20):
        markers.losses.append(rng.lognormal(1.0, 1.0, size).astype(np.float32))
        markers.norms.append(rng.lognormal(0.0, 1.0, size).astype(np.float32))
    return markers


def _npz(images: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, images=images)
    return file.getvalue()


def _sheet(images: np.ndarray) -> bytes:
    """A picture of two images side by side, three times as large, with a border."""
    row = np.concatenate([np.zeros((8, 2), np.uint8), images[4, 0], images[9, 0]], axis=1)
    file = io.BytesIO()
    Image.fromarray(row.repeat(3, axis=0).repeat(3, axis=1)).save(file, format="PNG")
    return file.getvalue()


def _zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.bin", data)
    return file.getvalue()


def _lines(name: str, values: list[float]) -> bytes:
    lines = [json.dumps({"step": step, "of": 5, name: v}) for step, v in enumerate(values)]
    return "\n".join(lines).encode()


LEAKS: dict[str, tuple[str, Callable[[Markers], bytes]]] = {
    "raw pixels": ("pixels", lambda m: b"x" * 7 + m.images[3].tobytes()),
    "scaled pixels": ("pixels", lambda m: (m.images[:2] / 127.5 - 1).astype("<f4").tobytes()),
    "shares of pixels": ("pixels", lambda m: (m.images[:2] / 255.0).tobytes()),
    "pixels in base64": ("pixels", lambda m: b"{" + base64.b64encode(m.images[:5].tobytes())),
    "pixels in hexadecimal": ("pixels", lambda m: m.images[8].tobytes().hex().encode()),
    "a list of pixels": ("pixels", lambda m: json.dumps(m.images[1].tolist()).encode()),
    "an archive": ("pixels", lambda m: _npz(m.images)),
    "an archive in an archive": ("pixels", lambda m: _zipped(_npz(m.images))),
    "a tensor file": ("pixels", lambda m: save({"a": torch.from_numpy(m.images[:3])})),
    "a picture": ("pixels", lambda m: _sheet(m.images)),
    "a picture in a page": (
        "pixels",
        lambda m: b'<img src="data:image/png;base64,' + base64.b64encode(_sheet(m.images)) + b'">',
    ),
    "a name": ("names", lambda m: f"cannot read {m.names[5]}.png".encode()),
    "labels": ("labels", lambda m: m.labels.tobytes()),
    "a list of labels": ("labels", lambda m: str(m.labels.tolist()).encode()),
    "the loss, three digits": (
        "mean losses",
        lambda m: _lines("loss", [float(f"{v.mean():.3g}") for v in m.losses]),
    ),
    "the summed loss": ("summed losses", lambda m: _lines("l", [float(v.sum()) for v in m.losses])),
    "the largest norm": (
        "largest norms",
        lambda m: np.array([v.max() for v in m.norms], "<f8").tobytes(),
    ),
    "the sizes of batches": ("batch sizes", lambda m: _lines("size", m.sizes)),
    "losses of records": ("losses", lambda m: b"abc" + m.losses[2].tobytes()),
    "losses of records as text": ("losses", lambda m: str(m.losses[2].tolist()[3:9]).encode()),
    "norms of records": ("norms", lambda m: m.norms[1].astype(np.float64).tobytes()),
}


@pytest.mark.parametrize("leak", list(LEAKS))
def test_a_private_value_is_found(leak: str) -> None:
    kind, written = LEAKS[leak]
    markers = _markers()
    assert kind in markers.found_in(written(markers))


@pytest.mark.parametrize("leak", list(LEAKS))
def test_the_same_file_of_other_data_holds_nothing(leak: str) -> None:
    markers, rng = _markers(), np.random.default_rng(1)
    others = random_markers(40, (1, 8, 8), 3, rng)
    for size in (20, 20, 21, 19, 23):
        others.losses.append(rng.lognormal(1.0, 1.0, size).astype(np.float32))
        others.norms.append(rng.lognormal(0.0, 1.0, size).astype(np.float32))
    assert markers.found_in(LEAKS[leak][1](others)) == set()


def test_progress_and_settings_hold_nothing() -> None:
    public = {"rows": 20, "steps": 5, "delta": 1e-4, "ledger": "3f" * 32}
    text = "\n".join(json.dumps({"step": step, **public}) for step in range(1, 6))
    assert _markers().found_in(text.encode()) == set()


def test_what_is_removed_or_replaced_is_kept_aside(tmp_path: Path) -> None:
    with contained(tmp_path) as said:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "short-lived.txt").write_text("one")
        Path(tmp_path, "new").write_text("three")
        Path(tmp_path, "old").write_text("two")
        Path(tmp_path, "new").replace(tmp_path / "old")
        print("four")
    kept = {path.read_text() for path in said.files().values()}
    assert kept == {"one", "two", "three"}
    assert said.printed == "four\n"


def test_nothing_is_kept_of_other_folders_or_afterwards(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    outside.mkdir()
    with contained(inside) as said:
        (outside / "a").write_text("a")
        (outside / "a").unlink()
    (inside / "b").write_text("b")
    (inside / "b").unlink()
    assert said.files() == {}
