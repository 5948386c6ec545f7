"""A subject so small that a whole check of it takes a second.

Its keys are fixed: a check that is right fails, and one that notices a fault passes, every time or
never. How often they would under keys of its own a check says itself.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rapid_dist.audit.subject import Subject
from rapid_dist.data.images import PrivateImages
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.settings import TrainConfig
from tests.models import (
    CLASSES,
    SIZE,
    draw_maker,
    fixed_keys,
    mechanism,
    private_images,
    tiny_network,
)

WIDTH = 8
PRIOR, CANDIDATES = GaussianEvent(noise_multiplier=3.0), GaussianEvent(noise_multiplier=5.0)


class LayersDenoiser(Denoiser):
    """A layer of each kind that the U-Net has, and no more."""

    def __init__(self, seed: int = 0) -> None:
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(seed)
        self.config, self.channels, self.size = tiny_network(), 1, SIZE
        self.num_classes, self.data_std, self.evaluations = CLASSES, 0.5, 0
        self.autoencoder = None
        self.first = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.classes = nn.Embedding(CLASSES + 1, WIDTH)
        self.level = nn.Linear(1, WIDTH)
        self.norm = nn.GroupNorm(2, WIDTH)
        self.last = nn.Conv2d(WIDTH, 1, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(
        self, noised: torch.Tensor, noise_level: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        self.evaluations += len(noised)
        level = self.level(noise_level.log()[:, None])
        hidden = self.first(noised / (1 + noise_level.square()).sqrt()[:, None, None, None])
        hidden = self.mixed(hidden + (self.classes(labels) + level)[:, :, None, None])
        estimate: torch.Tensor = self.last(functional.silu(self.norm(hidden)))
        return estimate

    def mixed(self, hidden: torch.Tensor) -> torch.Tensor:
        """What a faulty layer in the middle does; nothing here."""
        return hidden


def _draws(images: PrivateImages, config: TrainConfig) -> DrawMaker:
    return replace(draw_maker(images=images), config=config)


def small_subject(**changes: Any) -> Subject:
    settings = {
        "make_denoiser": LayersDenoiser,
        "make_draws": _draws,
        "images": private_images(12),
        "config": TrainConfig(mode="surrogate", multiplicity=2, shift=1, flip=True, micro_batch=4),
        "mechanism": mechanism(max_grad_norm=0.5, noise_multiplier=0.7),
        "queries": (PRIOR, CANDIDATES),
        "prior": PRIOR,
        "candidates": CANDIDATES,
        "budget": Budget(epsilon=20.0, delta=1e-3),
        "new_key": fixed_keys(),
    }
    return Subject(**{**settings, **changes})
