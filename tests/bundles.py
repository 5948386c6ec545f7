"""A bundle small enough to draw from in milliseconds."""

import numpy as np
import torch

from rapid_dist.diffusion.denoiser import Denoiser, NetworkConfig
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.release.bundle import Bundle, BundleFacts, References
from rapid_dist.retrieval.prior import TrajectoryPrior


def tiny_denoiser() -> Denoiser:
    """Returns an untrained network for two classes of 8x8 grey images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NetworkConfig(widths=(16,), attention=(False,))
        denoiser = Denoiser(network, channels=1, size=8, num_classes=2)
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


def tiny_bundle(**changes: object) -> Bundle:
    """Returns a bundle with those parts; ``changes`` are of its facts."""
    facts = tiny_facts(**changes)
    if facts.source == "noise":
        return Bundle(facts=facts, denoiser=tiny_denoiser())
    return Bundle(
        facts=facts, denoiser=tiny_denoiser(), prior=tiny_prior(), references=tiny_references()
    )
