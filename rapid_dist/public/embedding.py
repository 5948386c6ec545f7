"""What a state at the query step is compared by: the key of a trajectory, and of a query."""

import numpy as np
import torch

from rapid_dist.data.images import from_unit
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.retrieval.features import ContrastExtractor, pixel_features
from rapid_dist.retrieval.shard_maker import Embed


@torch.no_grad()
def clean_estimate(denoiser: Denoiser, state: torch.Tensor, level: float) -> torch.Tensor:
    """The image of the one-evaluation estimate of x_0 from a state, float32 [B, C, H, W].

    Labels are left out on purpose: a private query has none of the public ones.
    """
    noise_level = torch.full((len(state),), level, device=state.device)
    labels = torch.full((len(state),), denoiser.no_label, device=state.device)
    estimate: torch.Tensor = denoiser(state, noise_level, labels)
    return denoiser.decode(estimate).clamp(-1, 1)


def embedder(denoiser: Denoiser, extractor: ContrastExtractor | None, level: float) -> Embed:
    """Returns the function from states at the query step, float32 [n, C, H, W], to keys [n, D].

    A key is h of the one-evaluation clean estimate; without an extractor h, that estimate's pooled
    pixels.

    Args:
      denoiser: the public one, in eval mode, where the states are.
      level: the noise level of the query step.
    """

    @torch.no_grad()
    def embed(states: torch.Tensor) -> np.ndarray:
        estimate = clean_estimate(denoiser, states, level)
        if extractor is None:
            return pixel_features(from_unit(estimate.cpu()))
        keys: np.ndarray = extractor(estimate).cpu().numpy()
        return keys

    return embed
