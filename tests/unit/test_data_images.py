"""The two kinds of images, their conversions and hashes, and that mypy keeps them apart."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rapid_dist.data.images import (
    ImageSpec,
    PrivateImages,
    PublicImages,
    content_hash,
    from_unit,
    hash_share,
    to_unit,
)
from rapid_dist.data.pixels import fit, scale_to_bytes
from rapid_dist.errors import DataError

SPEC = ImageSpec(name="tiny", num_records=3, channels=1, size=8, num_classes=2, licence="none")


def _arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(seed).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    return images, np.array([0, 1, 0])


def test_every_pixel_value_survives_the_round_trip_through_the_unit_range() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    unit = to_unit(pixels)
    assert unit.dtype == torch.float32
    assert (unit.min().item(), unit.max().item()) == (-1.0, 1.0)
    np.testing.assert_array_equal(from_unit(unit), pixels)


def test_an_images_values_do_not_depend_on_the_images_beside_it() -> None:
    dark, bright = np.full((2, 1, 8, 8), 9, np.uint8), np.full((1, 1, 8, 8), 255, np.uint8)
    together = np.concatenate([dark, bright])
    assert torch.equal(to_unit(together)[:2], to_unit(dark))
    assert np.array_equal(fit(together, 8, 1)[:2], fit(dark, 8, 1))
    numbers = together.astype(np.float32) / 255
    scaled = scale_to_bytes(numbers, (0.0, 1.0), "a")
    assert np.array_equal(scaled[:2], scale_to_bytes(numbers[:2], (0.0, 1.0), "a"))


def test_pixels_outside_the_unit_range_clamp_instead_of_wrapping() -> None:
    assert from_unit(torch.tensor([[[[-9.0, 9.0]]]])).tolist() == [[[[0, 255]]]]


def test_a_content_hash_sees_every_pixel_and_the_shape() -> None:
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    changed = image.copy()
    changed[0, 3, 3] = 1
    hashes = {content_hash(i) for i in (image, changed, image.reshape(1, 4, 16))}
    assert len(hashes) == 3
    assert content_hash(image) == content_hash(image.copy())


def test_a_content_hash_ignores_how_the_pixels_lie_in_memory() -> None:
    image = _arrays()[0][0]
    assert content_hash(np.asfortranarray(image)) == content_hash(image)


def test_shares_for_different_purposes_are_unrelated() -> None:
    digests = [content_hash(np.full((1, 8, 8), i, dtype=np.uint8)) for i in range(200)]
    held_out = np.array([hash_share(d, "held-out") for d in digests])
    reference = np.array([hash_share(d, "reference") for d in digests])
    # |r| > 0.35 for 200 independent pairs has a chance below 1e-6; the same purpose gives 1.
    assert abs(np.corrcoef(held_out, reference)[0, 1]) < 0.35
    assert (held_out >= 0).all()
    assert (held_out < 1).all()


def test_printing_private_images_shows_nothing_but_their_declaration() -> None:
    images, labels = _arrays()
    shown = repr(PrivateImages(images=images, labels=labels, groups=labels, spec=SPEC))
    assert shown == f"PrivateImages(spec={SPEC!r})"


def test_the_fingerprint_of_public_images_depends_on_pixels_labels_and_name() -> None:
    images, labels = _arrays()
    other_spec = ImageSpec(
        name="other", num_records=3, channels=1, size=8, num_classes=2, licence="none"
    )
    variants = [
        PublicImages(images=images, labels=labels, spec=SPEC),
        PublicImages(images=_arrays(1)[0], labels=labels, spec=SPEC),
        PublicImages(images=images, labels=1 - labels, spec=SPEC),
        PublicImages(images=images, labels=labels, spec=other_spec),
    ]
    assert len({v.fingerprint for v in variants}) == 4
    again = PublicImages(images=images.copy(), labels=labels, spec=SPEC)
    assert again.fingerprint == variants[0].fingerprint


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((3, 1, 8, 8), np.float32), np.zeros(3, np.int64), "uint8"),
        (np.zeros((3, 1, 8, 8), np.uint8), np.zeros(3, np.int32), "int64"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.zeros(2, np.int64), "num_records"),
        (np.zeros((3, 1, 8, 9), np.uint8), np.zeros(3, np.int64), "shape"),
        (np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 1, 2]), "outside 0..1"),
        (np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 1, -1]), "outside 0..1"),
    ],
)
@pytest.mark.parametrize("kind", [PublicImages, PrivateImages])
def test_arrays_that_are_not_what_is_declared_are_refused(
    kind: type[PublicImages] | type[PrivateImages],
    images: np.ndarray,
    labels: np.ndarray,
    said: str,
) -> None:
    with pytest.raises(DataError, match=said):
        kind(images=images, labels=labels, spec=SPEC)


def test_groups_must_number_as_many_as_labels() -> None:
    images, labels = _arrays()
    with pytest.raises(DataError, match="groups"):
        PrivateImages(images=images, labels=labels, groups=labels[:2], spec=SPEC)


@pytest.mark.parametrize(("size", "channels"), [(7, 1), (65, 1), (28, 2), (28, 4)])
def test_a_shape_that_no_network_is_built_for_is_refused(size: int, channels: int) -> None:
    with pytest.raises(DataError):
        ImageSpec(name="x", num_records=1, channels=channels, size=size, num_classes=0, licence="")


@pytest.mark.parametrize("name", ["", "MNIST", "a/b", "-a", "a b", "../a"])
def test_a_name_that_could_not_be_a_file_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="name"):
        ImageSpec(name=name, num_records=1, channels=1, size=8, num_classes=0, licence="")


def test_the_privacy_unit_is_the_group_where_groups_are_declared() -> None:
    grouped = ImageSpec(
        name="x", num_records=9, channels=1, size=8, num_classes=0, licence="", num_groups=4
    )
    assert (SPEC.num_units, grouped.num_units) == (3, 4)


SNIPPET = """
from rapid_dist.data.images import {imported}

def pretrain(images: PublicImages) -> None: ...

def use(images: {given}) -> None:
    pretrain(images)
"""


@pytest.fixture(scope="module")
def mypy_report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says of the snippet given private images, and of its twin given public ones."""
    folder = tmp_path_factory.mktemp("snippets")
    paths = []
    for given in ("PrivateImages", "PublicImages"):
        paths.append(folder / f"given_{given}.py")
        imported = "PrivateImages, PublicImages" if given == "PrivateImages" else given
        paths[-1].write_text(SNIPPET.format(given=given, imported=imported))
    # Silent: the vendors' types are read, their sources are not checked.
    options = ["--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"--cache-dir={folder / 'cache'}", *paths],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "checked 2 source files" in checked.stdout, checked.stdout + checked.stderr
    return checked.stdout


def test_mypy_refuses_private_images_where_public_ones_are_wanted(mypy_report: str) -> None:
    faults = [line for line in mypy_report.splitlines() if "given_PrivateImages.py" in line]
    assert len(faults) == 1
    assert 'incompatible type "PrivateImages"; expected "PublicImages"' in faults[0]


def test_mypy_accepts_the_same_call_with_public_images(mypy_report: str) -> None:
    assert "given_PublicImages.py" not in mypy_report
