"""Makes the content of a shard: the keys of trajectories and the features of their images.

Shapes: n images, s seeds an image, B rows at once, D key and F feature dimensions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from rapid_dist.errors import ConfigError
from rapid_dist.retrieval.shard import LARGEST_KEY, Shard
from rapid_dist.retrieval.trajectory import noises_of, state_at, unit_images

Embed = Callable[[torch.Tensor], np.ndarray]  # States at k, float32 [B, C, H, W] -> [B, D].
Encode = Callable[[torch.Tensor], torch.Tensor]  # Images in [-1, 1] -> what is denoised.
FeaturesOf = Callable[[np.ndarray], np.ndarray]  # Clean uint8 [B, C, H, W] -> float32 [B, F].


def as_they_are(images: torch.Tensor) -> torch.Tensor:
    """For noise that is added to the images themselves."""
    return images


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
    encode: Encode = as_they_are,
) -> Shard:
    """Makes one shard from uint8 [n, C, H, W] images, n > 0, already in their final order.

    Embedder and features always see exactly ``batch`` rows (the last batch is filled up with
    copies of its first row) and one thread, so their arithmetic is the same on every worker.

    Args:
      encode: leads from images to where noise is added; row by row.
    """
    num_seeds = len(seeds)
    rows = np.repeat(np.arange(len(images)), num_seeds)
    entry_seeds = np.tile(seeds, len(images))
    clean = unit_images(images)

    def keys_of(entries: np.ndarray) -> np.ndarray:
        start = encode(torch.from_numpy(clean[rows[entries]])).numpy()
        noise = noises_of(
            [hashes[row] for row in rows[entries]],
            [int(seed) for seed in entry_seeds[entries]],
            start.shape[1:],
        )
        return embed(torch.from_numpy(state_at(start, noise, query_level)))

    with _one_torch_thread(), torch.no_grad():
        keys = _in_batches(keys_of, len(rows), batch)
        features = _in_batches(lambda chosen: features_of(images[chosen]), len(images), batch)
    if not np.isfinite(keys).all() or np.abs(keys).max() > LARGEST_KEY:
        raise ConfigError(
            f"The embedder gave keys that are not finite or exceed {LARGEST_KEY:.0f}. "
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
