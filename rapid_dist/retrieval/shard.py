"""A shard of the knowledge base: some reference images, and the keys of their trajectories.

Stored compactly: every image once, its noise not at all (it is drawn again from the seed).
Entries are ordered by image, then by seed. The bytes are a pure function of the images, the
seeds, the query step's noise level and the embedder: no clock, no host, no worker. Shards are made
in ``shard_maker.py``; reading one needs no torch, so a process that only searches stays small.

Shapes: n images, s seeds an image, n * s entries, D key and F feature dimensions.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from rapid_dist.errors import ShardError
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays

_ARRAYS = ("images", "labels", "hashes", "seeds", "keys", "features")
LARGEST_KEY = 2.0**12  # Keeps the exact integer sums of key_moments far from overflow.
_KEY_UNIT = 2.0**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """The content of one shard."""

    images: np.ndarray  # uint8 [n, C, H, W]
    labels: np.ndarray  # int64 [n], public classes.
    hashes: np.ndarray  # uint8 [n, 32], content hashes.
    seeds: np.ndarray  # int64 [s]
    keys: np.ndarray  # float32 [n * s, D], as the embedder gave them.
    features: np.ndarray  # float32 [n, F], of the clean images.

    @classmethod
    def open(cls, data: bytes, expected_sha256: str, name: str) -> "Shard":
        """Opens stored bytes; refuses by name what is torn, foreign or tampered with."""
        found = hashlib.sha256(data).hexdigest()
        if found != expected_sha256:
            raise ShardError(
                f"Shard {name} has SHA-256 {found[:16]}, the manifest says "
                f"{expected_sha256[:16]}. Delete the knowledge base's done.json and run the same "
                "command again: only this shard is made."
            )
        arrays = unpack_arrays(data, f"Shard {name}")
        shard = cls(**{key: arrays[key] for key in _ARRAYS if key in arrays})
        assert len(shard.keys) == len(shard.images) * len(shard.seeds)
        return shard

    def to_bytes(self) -> bytes:
        return pack_arrays({key: getattr(self, key) for key in _ARRAYS})


def key_moments(keys: np.ndarray) -> tuple[tuple[int, ...], int]:
    """Returns the sum of float32 [M, D] keys per dimension and of all squares, in 2^-20 units.

    Integers, so that adding the moments of shards gives the same total for any sharding.
    """
    quantised = np.rint(keys.astype(np.float64) * _KEY_UNIT).astype(np.int64)
    squares = np.rint(np.square(keys.astype(np.float64)).sum(axis=1) * _KEY_UNIT).astype(np.int64)
    return tuple(int(total) for total in quantised.sum(axis=0)), sum(squares.tolist())


def key_frame(
    sums: tuple[int, ...], squares: int, num_entries: int
) -> tuple[tuple[float, ...], float]:
    """Returns the centre (D float32 values) and the scale that give keys a mean square of 1."""
    centre = np.array([total / num_entries / _KEY_UNIT for total in sums], np.float32)
    variance = squares / num_entries / _KEY_UNIT - float(np.square(centre.astype(np.float64)).sum())
    scale = np.float32(1.0 / np.sqrt(variance)) if variance > 1e-12 else np.float32(1.0)
    return tuple(float(value) for value in centre), float(scale)
