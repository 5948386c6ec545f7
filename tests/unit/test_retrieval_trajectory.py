"""Both states of an entry lie on one noise path, and the path is named by (image, seed)."""

import hashlib

import numpy as np

from rapid_dist.retrieval.trajectory import (
    noise_check,
    noise_of,
    noises_of,
    state_at,
    unit_images,
)

SHAPE = (1, 8, 8)


def _image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def _hash(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def test_two_states_of_an_entry_share_their_noise():
    image = _image()
    x0, noise = unit_images(image[None])[0], noise_of(_hash(image), 3, SHAPE)
    early, late = state_at(x0, noise, 40.0), state_at(x0, noise, 2.0)
    np.testing.assert_allclose((early - x0) / 40.0, (late - x0) / 2.0, atol=1e-5)


def test_noise_does_not_depend_on_which_other_paths_are_made():
    hashes = [_hash(_image(i)) for i in range(5)]
    together = noises_of(hashes, [7] * 5, SHAPE)
    for row in (4, 0, 2):
        np.testing.assert_array_equal(together[row], noise_of(hashes[row], 7, SHAPE))


def test_another_image_or_another_seed_has_other_noise():
    first, second = _hash(_image(0)), _hash(_image(1))
    noise = noise_of(first, 0, SHAPE)
    assert not np.array_equal(noise, noise_of(second, 0, SHAPE))
    assert not np.array_equal(noise, noise_of(first, 1, SHAPE))


def test_the_noise_is_standard_normal():
    noise = noise_of(bytes(32), 0, (200_000,)).astype(np.float64)
    # Six standard errors of the mean, the variance and the fourth moment: chance below 1e-8.
    assert abs(noise.mean()) < 6 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 6 * np.sqrt(2 / noise.size)
    assert abs((noise**4).mean() - 3) < 6 * np.sqrt(96 / noise.size)


def test_unit_images_use_declared_constants():
    ends = np.array([[[[0, 255]]], [[[51, 102]]]], np.uint8)
    np.testing.assert_allclose(unit_images(ends).ravel(), [-1, 1, -0.6, -0.2], atol=1e-7)


def test_the_noise_check_is_stable_within_a_process():
    assert noise_check() == noise_check()
