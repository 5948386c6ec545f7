"""The slow oracle of ``clipped_sum``: one record, one ordinary autograd call over its K draws.

No hooks, no per-layer formulas: it is right by inspection, for any layer. Tests hold the fast
engine against it.
"""

import torch

from rapid_dist.diffusion.compute import device_of
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows, row_losses
from rapid_dist.private.per_example import flat_size, trainable


def reference_clipped_sum(
    denoiser: Denoiser, rows: Rows, draws: int, max_grad_norm: float, mask: torch.Tensor
) -> torch.Tensor:
    """The sum of clipped per-record gradients, float32 [P], one record at a time."""
    parameters = trainable(denoiser)
    total = torch.zeros(flat_size(denoiser), device=device_of(denoiser))
    for record, counted in enumerate(mask.tolist()):
        if not counted:
            continue
        own = rows[slice(record * draws, (record + 1) * draws)]
        grads = torch.autograd.grad(row_losses(denoiser, own).mean(), parameters, allow_unused=True)
        flat = torch.cat(
            [
                p.new_zeros(p.numel()) if g is None else g.float().flatten()
                for p, g in zip(parameters, grads, strict=True)
            ]
        )
        norm = flat.double().norm()
        if norm.isfinite():
            total += flat * min(1.0, max_grad_norm / max(float(norm), 1e-30))
    return total
