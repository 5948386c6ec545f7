"""Variants of reference images: more trajectories from the same public data.

The references are split off first and varied after, so no variant of a pretraining image is ever a
reference. A variant is an image of its own from here on: it has its own content hash, noise path
and entry.
"""

import numpy as np

from rapid_dist.data.images import PublicImages, from_unit, to_unit
from rapid_dist.diffusion.seeds import generator_for
from rapid_dist.retrieval.jitter import JitterConfig, jittered

_CHUNK = 4096


def with_variants(
    images: PublicImages, variants: int, jitter: JitterConfig, seed: int
) -> PublicImages:
    """Returns the images and, after them, ``variants`` - 1 changed copies of each.

    Copy c of image i is a pure function of (seed, c, i).
    """
    if variants == 1:
        return images
    parts = [images.images]
    for copy in range(1, variants):
        for start in range(0, len(images), _CHUNK):
            chunk = images.images[start : start + _CHUNK]
            streams = [
                generator_for(seed, f"variant {copy}", start + row) for row in range(len(chunk))
            ]
            parts.append(from_unit(jittered(to_unit(chunk), streams, jitter)))
    return images.replaced(np.concatenate(parts), np.tile(images.labels, variants))
