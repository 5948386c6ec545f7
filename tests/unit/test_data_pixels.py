"""Resizing, colour and polarity by declared rules."""

import numpy as np
import pytest

from rapid_dist.data.pixels import fit, scale_to_bytes
from rapid_dist.errors import DataError


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_images_of_the_right_shape_come_back_unchanged() -> None:
    images = _random(5, 3, 16, 16)
    np.testing.assert_array_equal(fit(images, 16, 3), images)


def test_halving_averages_blocks_of_four_pixels() -> None:
    images = _random(4, 28, 28)
    blocks = images.reshape(4, 14, 2, 14, 2).astype(np.float64).mean((2, 4))
    assert np.abs(fit(images, 14, 1)[:, 0] - blocks).max() <= 0.5


@pytest.mark.parametrize("size", [8, 12, 20, 27])
def test_shrinking_by_any_ratio_keeps_the_mean(size: int) -> None:
    images = _random(3, 28, 28)
    assert np.abs(fit(images, size, 1).mean((1, 2, 3)) - images.mean((1, 2))).max() < 0.5


def test_shrinking_treats_an_image_alike_in_any_company() -> None:
    images = _random(7, 28, 28)
    np.testing.assert_array_equal(fit(images, 12, 1)[3:4], fit(images[3:4], 12, 1))


def test_growing_keeps_a_flat_image_flat() -> None:
    assert set(np.unique(fit(np.full((1, 10, 10), 200, np.uint8), 32, 1))) == {200}


def test_an_oblong_image_is_cut_to_its_centre() -> None:
    image = np.zeros((1, 10, 30), dtype=np.uint8)
    image[:, :, 10:20] = 255
    assert (fit(image, 10, 1) == 255).all()


def test_colour_becomes_grey_by_the_television_weights() -> None:
    image = np.zeros((1, 3, 8, 8), dtype=np.uint8)
    image[:, 1] = 100
    assert set(np.unique(fit(image, 8, 1))) == {59}


def test_grey_becomes_colour_by_repetition() -> None:
    image = _random(1, 8, 8)
    np.testing.assert_array_equal(fit(image, 8, 3), np.repeat(image[:, None], 3, axis=1))


def test_inversion_makes_dark_strokes_bright() -> None:
    image = _random(1, 8, 8)
    np.testing.assert_array_equal(fit(image, 8, 1, invert=True)[:, 0], 255 - image)


def test_a_margin_is_black_and_holds_the_whole_image() -> None:
    fitted = fit(np.full((1, 28, 28), 255, np.uint8), 28, 1, margin=0.25)[0, 0]
    assert fitted[:6].max() == 0
    assert fitted[:, -6:].max() == 0
    assert (fitted[8:20, 8:20] == 255).all()


@pytest.mark.parametrize("shape", [(4, 8), (4, 2, 8, 8), (4, 0, 8)])
def test_arrays_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="shape"):
        fit(np.zeros(shape, dtype=np.uint8), 8, 1)


def test_numbers_are_mapped_from_their_declared_range() -> None:
    values = np.array([-1.0, 0.0, 1.0])
    assert scale_to_bytes(values, (-1.0, 1.0), "x").tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [1.01, -1.01, np.nan, np.inf])
def test_a_number_outside_the_declared_range_is_refused_without_being_shown(value: float) -> None:
    with pytest.raises(DataError, match="value_range") as caught:
        scale_to_bytes(np.array([0.0, value]), (-1.0, 1.0), "scans")
    assert str(caught.value).startswith("scans: ")
    assert str(value) not in str(caught.value)
