"""What the public denoiser sees in an image: an activation inside it, as a feature."""

import numpy as np
import torch
from torch.nn import functional

from rapid_dist.data.images import to_unit
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.seeds import normal_for
from rapid_dist.retrieval.shard_maker import FeaturesOf

_ROWS = 64  # Of every evaluation, filled up: sums of floats depend on the shape they are made in.


def activation_features(denoiser: Denoiser, level: float) -> FeaturesOf:
    """Returns the function from clean images, uint8 [n, C, H, W], to unit vectors float32 [n, F].

    The middle block of the U-Net, averaged over places, when the image is noised to ``level`` by
    one noise that is public and the same for all. Nothing in the network crosses rows, and no label
    is told, so each vector is a function of its image alone.
    """
    denoiser = denoiser.eval().requires_grad_(False)
    shape = (denoiser.channels, denoiser.size, denoiser.size)
    noise = normal_for(0, np.zeros(1, np.int64), shape, purpose="activations")

    def block(images: np.ndarray) -> np.ndarray:
        states = denoiser.encode(to_unit(images)) + level * noise
        seen: list[torch.Tensor] = []
        hook = denoiser.unet.mid_block.register_forward_hook(
            lambda module, inputs, output: seen.append(output)
        )
        try:
            labels = torch.full((len(states),), denoiser.no_label)
            denoiser(states, torch.full((len(states),), level), labels)
        finally:
            hook.remove()
        features: np.ndarray = functional.normalize(seen[0].mean(dim=(2, 3)), dim=1).numpy()
        return features

    @torch.no_grad()
    def features_of(images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), _ROWS):
            part = images[start : start + _ROWS]
            filled = np.zeros((_ROWS, *images.shape[1:]), np.uint8)
            filled[: len(part)] = part
            parts.append(block(filled)[: len(part)])
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    return features_of
