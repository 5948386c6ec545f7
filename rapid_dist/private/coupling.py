"""Whether a network keeps the rows of a batch apart, asked of the network itself (P11).

``check_layers`` knows layers by their types. What a module does between its layers it cannot see:
a mean over the batch has no parameter. So the network is also tried, before anything private is
read.
"""

import torch

from rapid_dist.diffusion.autoencoder import Autoencoder
from rapid_dist.diffusion.compute import device_of
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError

_REMEDY = "so no clip can bound what one record contributes. Take out what looks across the batch."


def check_rows_apart(denoiser: Denoiser) -> None:
    """Refuses a network in which the estimate of one row depends on another row, or its latents do.

    Without a path from one row to the other the derivative is exactly zero, so there is no
    tolerance to choose.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (3, denoiser.channels, denoiser.size, denoiser.size)
    device = device_of(denoiser)
    noised = torch.randn(shape, generator=generator).to(device).requires_grad_()
    level = torch.full((3,), 0.5, device=device)
    labels = torch.full((3,), denoiser.no_label, device=device)
    evaluations = denoiser.evaluations
    with torch.enable_grad():
        estimate = denoiser(noised, level, labels)
        (found,) = torch.autograd.grad(estimate[1].square().sum(), noised)
    denoiser.evaluations = evaluations
    if bool(found[[0, 2]].any()):
        raise ConfigError(
            f"The network's estimate of one row depends on other rows of its batch, {_REMEDY}"
        )
    if denoiser.autoencoder is not None:
        check_latents_apart(denoiser.autoencoder)


def check_latents_apart(autoencoder: Autoencoder) -> None:
    """Refuses an autoencoder in which the latents of one image depend on another image."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, *autoencoder.image_shape)
    images = (2 * torch.rand(shape, generator=generator) - 1).to(device_of(autoencoder))
    images.requires_grad_()
    with torch.enable_grad():
        mean, std = autoencoder.moments(images)
        (found,) = torch.autograd.grad((mean + std)[1].square().sum(), images)
    if bool(found[[0, 2]].any()):
        raise ConfigError(
            f"The autoencoder's latents of one image depend on others of its batch, {_REMEDY}"
        )
