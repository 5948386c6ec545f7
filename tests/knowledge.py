"""A small public image set and a small embedder, for tests of knowledge bases.

Top-level functions, so that a test can send them to another process.
"""

import numpy as np
import torch

from rapid_dist.data.images import ImageSpec, PublicImages
from rapid_dist.retrieval.features import ContrastExtractor, ExtractorConfig, pixel_features
from rapid_dist.retrieval.manifest import KnowledgeBaseSpec
from rapid_dist.retrieval.shard_maker import Embed, FeaturesOf

NUM_IMAGES = 90


def reference_images() -> PublicImages:
    rng = np.random.default_rng(7)
    spec = ImageSpec(
        name="planted", num_records=NUM_IMAGES, channels=1, size=8, num_classes=4, licence="none"
    )
    images = rng.integers(0, 256, (NUM_IMAGES, 1, 8, 8), dtype=np.uint8)
    return PublicImages(images=images, labels=rng.integers(0, 4, NUM_IMAGES), spec=spec)


def embedders() -> tuple[Embed, FeaturesOf]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        extractor = ContrastExtractor(ExtractorConfig(width=8, dim=16), 1, 8).freeze()

    def embed(states: torch.Tensor) -> np.ndarray:
        return extractor(states / 4).numpy()

    return embed, pixel_features


def knowledge_base_spec(**changes) -> KnowledgeBaseSpec:
    settings = {
        "channels": 1, "size": 8, "seeds": (0, 1), "query_level": 4.0, "num_shards": 5,
        "embed_batch": 16, "embedder": "test", "features": "pixels",
    }  # fmt: skip
    return KnowledgeBaseSpec(**{**settings, **changes})


def pixel_keys(images: np.ndarray) -> np.ndarray:
    """uint8 [N, C, S, S] -> float32 [N, D], the pixels themselves: to be recognised in a file."""
    keys: np.ndarray = (images.reshape(len(images), -1) / 127.5 - 1).astype(np.float32)
    return keys
