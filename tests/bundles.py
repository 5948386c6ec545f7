"""A bundle small enough to draw from in milliseconds."""

import numpy as np
import torch

from rapid_dist.diffusion.denoiser import Denoiser, NetworkConfig
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.release.bundle import Bundle, BundleFacts, References
from rapid_dist.release.query import Knowledge, PublicHalf, QueryFacts
from rapid_dist.retrieval.features import ContrastExtractor, ExtractorConfig
from rapid_dist.retrieval.prior import TrajectoryPrior


def tiny_denoiser(num_classes: int = 2) -> Denoiser:
    """Returns an untrained network for some classes of 8x8 grey images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NetworkConfig(widths=(16,), attention=(False,))
        denoiser = Denoiser(network, channels=1, size=8, num_classes=num_classes)
        # Untrained, diffusers' output layer is nearly zero: labels would not matter.
        torch.nn.init.normal_(denoiser.unet.class_embedding.weight, std=3.0)
        torch.nn.init.normal_(denoiser.unet.conv_out.weight, std=0.3)
    return denoiser


def tiny_facts(**changes: object) -> BundleFacts:
    """Returns facts that sample from a prior in three intervals, but for ``changes``."""
    facts = {
        "name": "tiny",
        "method": "rapid",
        "class_names": ("zero", "one"),
        "schedule": ScheduleConfig(),
        "source": "prior",
        "from_step": 500,
        "intervals": 3,
    }
    if changes.get("source") == "query":
        facts["query"] = QueryFacts(query_step=700, intervals=2, keys="contrast")
    return BundleFacts(**{**facts, **changes})


def tiny_references() -> References:
    """Returns four random images, each an entry of its own."""
    rng = np.random.default_rng(0)
    return References(
        images=rng.integers(0, 256, (4, 1, 8, 8), dtype=np.uint8),
        hashes=rng.integers(0, 256, (4, 32), dtype=np.uint8),
        image_of_entry=np.arange(4),
        seed_of_entry=np.arange(4),
    )


def tiny_prior() -> TrajectoryPrior:
    """Returns a prior under which no class ever draws entry 3."""
    return TrajectoryPrior(
        np.array([0, 1, 1, 2]), np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], np.float64)
    )


def tiny_public_half() -> PublicHalf:
    """Returns a public network, an extractor, and 40 entries on 20 images with random keys."""
    rng = np.random.default_rng(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        extractor = ContrastExtractor(ExtractorConfig(dim=8, width=8), 1, 8).freeze()
    keys = rng.normal(size=(40, 8))
    knowledge = Knowledge(
        images=rng.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8),
        image_of_entry=np.arange(40) // 2,
        keys=(keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32),
        centre=np.full(8, 0.1, np.float32),
        scale=np.array([1.5], np.float32),
    )
    return PublicHalf(denoiser=tiny_denoiser(3), extractor=extractor, knowledge=knowledge)


def tiny_bundle(**changes: object) -> Bundle:
    """Returns a bundle with those parts; ``changes`` are of its facts."""
    facts = tiny_facts(**changes)
    if facts.source == "query":
        return Bundle(facts=facts, denoiser=tiny_denoiser(), public=tiny_public_half())
    if facts.source == "noise":
        return Bundle(facts=facts, denoiser=tiny_denoiser())
    return Bundle(
        facts=facts, denoiser=tiny_denoiser(), prior=tiny_prior(), references=tiny_references()
    )
