"""How near images are to being copies: by their pixels, by where they grow lighter, by features.

Three measures, from narrow to wide. *Equal*: the same content hash. *Gradient hash*: the share of
bits that differ, of bits that say where a pooled image grows lighter or darker by a declared
amount; another brightness or file format hardly moves it. *Features*: squared distance between
unit vectors of the contrastive extractor. Every image is compared on its own: nothing about one
can change another's answer (P14), and nothing is kept.

Shapes: N and M images, C channels, S pixels a side, F features, B bytes of a hash.
"""

from dataclasses import dataclass

import numpy as np

from rapid_dist.retrieval.features import pixel_features
from rapid_dist.retrieval.vectors import VectorIndex, nearest_codes

_STEP = 16 / 127.5  # Grey levels that a neighbour must differ by, in the range of [-1, 1].


@dataclass(frozen=True, kw_only=True, eq=False)
class Prints:
    """What images are compared by."""

    hashes: list[bytes]  # Of the content.
    codes: np.ndarray  # uint8 [N, B], gradient hashes.
    features: np.ndarray  # float32 [N, F], unit vectors.

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """How near each of N images comes to any of M others."""

    equal: np.ndarray  # bool [N]
    bits: np.ndarray  # float32 [N], share of the gradient hash that differs.
    features: np.ndarray  # float32 [N], squared distance; inf where features are not finite.


def gradient_hashes(images: np.ndarray) -> np.ndarray:
    """uint8 [N, C, S, S] -> uint8 [N, B]; by pooled grey pixels, of 16 a side at most.

    A bit for every pair of neighbours and direction: is the second lighter, is it darker.
    """
    pooled = pixel_features(images)
    side = round((pooled.shape[1] / images.shape[1]) ** 0.5)
    grey = pooled.reshape(len(images), images.shape[1], side, side).mean(axis=1)
    right, down = grey[:, :, 1:] - grey[:, :, :-1], grey[:, 1:] - grey[:, :-1]
    steps = [step.reshape(len(images), side * (side - 1)) for step in (right, -right, down, -down)]
    packed: np.ndarray = np.packbits(np.concatenate(steps, axis=1) > _STEP, axis=1)
    return packed


def num_bits(size: int) -> int:
    """Returns the bits of a gradient hash of images of ``size`` pixels a side, padding left out."""
    while size > 16:
        size = (size + 1) // 2
    return 4 * size * (size - 1)


def prints_of(images: np.ndarray, hashes: list[bytes], features: np.ndarray) -> Prints:
    """Returns what images uint8 [N, C, S, S] are compared by, given content hashes and features."""
    return Prints(hashes=hashes, codes=gradient_hashes(images), features=features)


def nearest_of(asked: Prints, others: Prints, size: int) -> Nearest:
    """Compares N images with M > 0 others, exactly, each with all of them."""
    held = frozenset(others.hashes)
    finite = np.flatnonzero(np.isfinite(others.features).all(axis=1))
    features = np.full(len(asked), np.inf, np.float32)
    if len(finite):
        index = VectorIndex(others.features[finite], np.arange(len(finite)))
        features = index.search(asked.features, 1)[0][:, 0]
    return Nearest(
        equal=np.array([digest in held for digest in asked.hashes], bool),
        bits=(nearest_codes(asked.codes, others.codes) / num_bits(size)).astype(np.float32),
        features=features,
    )


def nearer(one: Nearest, other: Nearest) -> Nearest:
    """Returns how near the same images come to either of two sets."""
    return Nearest(
        equal=one.equal | other.equal,
        bits=np.minimum(one.bits, other.bits),
        features=np.minimum(one.features, other.features),
    )
