"""The Gaussian noise of a release: keyed, chunked, the same on every worker.

Noise is added once, to the vector that all workers already hold in sum. Every chunk of the
vector has a stream of its own, keyed by (step, attempt, chunk), so its values depend neither on
the world size nor on which worker makes them, and a repeated step gets fresh noise.

What "fast" noise does not give: Philox is not a cryptographic generator (its key is), and
float32 normals are a discrete set. The accounting is for ideal Gaussian noise.
"""

import math

import numpy as np
import torch

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.keys import SecretKey

CHUNK = 2**18  # Floats in one stream. Part of the mechanism: another size is other noise.


def add_noise_(
    flat: torch.Tensor,
    stddev: float,
    key: SecretKey,
    step: int,
    attempt: int,
    purpose: str = "noise",
) -> torch.Tensor:
    """Adds N(0, stddev^2) to every entry, in place, and returns the vector.

    Args:
      flat: float32 [P], on any device; the *sum* of clipped vectors, before the division.
      stddev: noise_multiplier * max_grad_norm.
      step: of the run; a triple (purpose, step, attempt) is used once.
      purpose: "noise" for training steps; every other query names its own stream.
    """
    if flat.dtype != torch.float32 or flat.dim() != 1:
        raise ConfigError(
            f"Noise is added to one float32 vector, got {flat.dtype} {list(flat.shape)}. "
            "Flatten and convert the sum first."
        )
    if not 0 < stddev < math.inf:
        raise ConfigError(f"The noise's stddev must be positive and finite, got {stddev}.")
    for chunk, part in enumerate(torch.split(flat, CHUNK)):
        rng = key.generator(purpose, step, attempt, chunk)
        normals = rng.standard_normal(len(part), dtype=np.float32)
        normals *= np.float32(stddev)
        part.add_(torch.from_numpy(normals).to(flat.device))
    return flat
