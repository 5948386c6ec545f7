"""A shard of the knowledge base: some reference images, and the keys of their trajectories.

Stored compactly: every image once, its noise not at all (it is drawn again from the seed).
Entries are ordered by image, then by seed. The bytes are a pure function of the images, the
seeds, the query step's noise level and the embedder: no clock, no host, no worker.

Shapes: n images, s seeds an image, n * s entries, D key and F feature dimensions.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from rapid_dist.errors import ConfigError, ShardError
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays
from rapid_dist.retrieval.trajectory import noises_of, state_at, unit_images

Embed = Callable[[torch.Tensor], np.ndarray]  # States at k, float32 [B, C, H, W] -> [B, D].
FeaturesOf = Callable[[np.ndarray], np.ndarray]  # Clean uint8 [B, C, H, W] -> float32 [B, F].

_ARRAYS = ("images", "labels", "hashes", "seeds", "keys", "features")
_LARGEST_KEY = 2.0**12  # Keeps the exact integer sums of key_moments far from overflow.
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
                f"{expected_sha256[:16]}. Build the knowledge base again; only this shard is made."
            )
        arrays = unpack_arrays(data, f"Shard {name}")
        shard = cls(**{key: arrays[key] for key in _ARRAYS if key in arrays})
        assert len(shard.keys) == len(shard.images) * len(shard.seeds)
        return shard

    def to_bytes(self) -> bytes:
        return pack_arrays({key: getattr(self, key) for key in _ARRAYS})


def build_shard(
    *,
    images: np.ndarray,
    labels: np.ndarray,
    hashes: list[bytes],
    seeds: tuple[int, ...],
    query_level: float,
    embed: Embed,
    features_of: FeaturesOf,
    batch: int,
) -> Shard:
    """Makes one shard from uint8 [n, C, H, W] images, n > 0, already in their final order.

    Embedder and features always see exactly ``batch`` rows (the last batch is filled up with
    copies of its first row) and one thread, so their arithmetic is the same on every worker.
    """
    num_seeds = len(seeds)
    rows = np.repeat(np.arange(len(images)), num_seeds)
    entry_seeds = np.tile(seeds, len(images))
    clean = unit_images(images)

    def keys_of(entries: np.ndarray) -> np.ndarray:
        noise = noises_of(
            [hashes[row] for row in rows[entries]],
            [int(seed) for seed in entry_seeds[entries]],
            images.shape[1:],
        )
        return embed(torch.from_numpy(state_at(clean[rows[entries]], noise, query_level)))

    with _one_torch_thread(), torch.no_grad():
        keys = _in_batches(keys_of, len(rows), batch)
        features = _in_batches(lambda chosen: features_of(images[chosen]), len(images), batch)
    if not np.isfinite(keys).all() or np.abs(keys).max() > _LARGEST_KEY:
        raise ConfigError(
            f"The embedder gave keys that are not finite or exceed {_LARGEST_KEY:.0f}. "
            "Train the denoiser and the extractor again, or scale the keys."
        )
    return Shard(
        images=images,
        labels=labels.astype(np.int64),
        hashes=np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), 32),
        seeds=np.array(seeds, np.int64),
        keys=keys,
        features=features,
    )


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


def _in_batches(
    function: Callable[[np.ndarray], np.ndarray], num_rows: int, batch: int
) -> np.ndarray:
    parts = []
    for start in range(0, num_rows, batch):
        rows = np.arange(start, min(start + batch, num_rows))
        filled = np.concatenate([rows, np.full(batch - len(rows), rows[0])])
        parts.append(np.asarray(function(filled), np.float32)[: len(rows)])
    return np.concatenate(parts)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Shards are made side by side; inside one, a thread count would change the arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
