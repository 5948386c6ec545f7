"""Trajectories of public images: every state of an entry lies on one noise path.

A state at noise level s is x_0 + s * n (variance exploding). Both states of an entry, the one
at the query step and the one at the split step, use the same n, so they belong to one
trajectory. n is a pure function of (image, seed): it is never stored, and is the same on any
machine, in any order and for any number of actors. An image is named by the hash of its content,
which the caller passes.

Shapes: N images, C channels, H x W pixels.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

_HALF_RANGE = 127.5  # uint8 pixels to [-1, 1]: declared, never measured.


def noise_of(image_hash: bytes, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the standard normal float32 ``shape`` noise of the path (image, seed)."""
    key = hashlib.sha256(image_hash + b"|" + str(seed).encode() + b"|trajectory").digest()
    philox = np.random.Philox(key=int.from_bytes(key[:16], "little"))  # Philox keys have 128 bits.
    return np.random.Generator(philox).standard_normal(shape, dtype=np.float32)


def noises_of(
    image_hashes: Sequence[bytes], seeds: Sequence[int], shape: tuple[int, ...]
) -> np.ndarray:
    """Returns float32 [N, *shape]: row i is ``noise_of(image_hashes[i], seeds[i], shape)``."""
    noise = np.empty((len(image_hashes), *shape), np.float32)
    for row, (image_hash, seed) in enumerate(zip(image_hashes, seeds, strict=True)):
        noise[row] = noise_of(image_hash, int(seed), shape)
    return noise


def unit_images(images: np.ndarray) -> np.ndarray:
    """uint8 [N, C, H, W] -> float32 [N, C, H, W] in [-1, 1]."""
    return images.astype(np.float32) / np.float32(_HALF_RANGE) - np.float32(1.0)


def state_at(image: np.ndarray, noise: np.ndarray, level: float) -> np.ndarray:
    """Returns the float32 state at noise level ``level`` of the path through ``image``.

    Args:
      image: float32 in [-1, 1], [C, H, W] or [N, C, H, W].
      noise: float32, same shape; all states of one path take the same noise.
      level: noise level, 0 gives the image itself.
    """
    return image + np.float32(level) * noise


def noise_check() -> str:
    """Returns a hex digest of one known path, to notice a generator that draws otherwise.

    NumPy may change a distribution's stream between releases. A knowledge base carries this
    digest, and is refused where it differs, since its states could not be rebuilt there.
    """
    return hashlib.sha256(noise_of(bytes(32), 0, (4, 64)).tobytes()).hexdigest()
