"""A small subject of the audit of a private index; its keys are fixed, as in ``subjects.py``."""

from typing import Any

import numpy as np

from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.privacy.mechanism import RetrievalConfig
from rapid_dist.privacy.settings import Budget
from tests.models import SIZE, fixed_keys, private_images

DIM = 6


def embed(images: np.ndarray) -> np.ndarray:
    """uint8 [n, 1, 8, 8] -> float32 [n, DIM], length 1 at most, each row of its image alone."""
    axes = np.random.default_rng(0).standard_normal((SIZE * SIZE, DIM))
    rows = (images.reshape(len(images), -1, 1) / 255.0 * axes).sum(axis=1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: np.ndarray = (rows / np.maximum(1e-9, lengths)).astype(np.float32)
    return found


def small_index_subject(**changes: Any) -> IndexSubject:
    settings = {
        "images": private_images(12),
        "embed": embed,
        "mechanism": RetrievalConfig(
            num_records=12, sample_rate=0.5, steps=4, neighbors=3, noise_multiplier=1.5
        ),
        "budget": Budget(epsilon=20.0, delta=1e-3),
        "new_key": fixed_keys(),
    }
    return IndexSubject(**{**settings, **changes})
