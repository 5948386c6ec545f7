"""Per-example gradients of a denoiser, clipped one record at a time.

One forward and one backward pass over R = B * K rows (B records, K draws each). Hooks hand over
a layer's input and output gradient, and ``layer_gradients.py`` makes a gradient a record of them;
a GroupNorm's come from autograd, out of parameters for every row. The gradients are materialised,
clipped and then summed: what is clipped is what is summed, so a wrong gradient could cost quality
but never the bound (P3).

Under autocast a layer's gradient is kept in the precision that the layer computed in; its norm, its
factor and the sum are float32.

Letters: B records, K draws, C = max_grad_norm.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows, row_losses
from rapid_dist.private.grid import grid_factors, rounded_sum
from rapid_dist.private.layer_gradients import GRADIENTS, group_norm_by_row

# A clipped vector is scaled to C (1 - 2^-12), so that fp32 rounding cannot carry it over C.
_SHRINK = 1.0 - 2.0**-12
# Squares that one fp32 sum takes up. Half a million equal ones lose 5e-4, more than the shrink.
_NORM_CHUNK = 4096


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that DP-SGD moves, in the order of every flat vector."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def flat_size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in trainable(network))


@contextmanager
def _captured(
    network: nn.Module, draws: int, gradients: dict[int, torch.Tensor], leaves: list[torch.Tensor]
) -> Iterator[None]:
    """While open, a backward pass to ``leaves`` adds per-record gradients to ``gradients``.

    Layers hand over inputs and output gradients by hooks; a GroupNorm gets parameters for every row
    in place of its own. The network's parameters stand outside the graph meanwhile, so the summed
    weight gradients, which nobody may use, are never formed. A watched layer whose output would not
    be in the graph starts it there, so nothing below the lowest trainable layer runs.
    """
    parameters = trainable(network)
    watched = {
        module: [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]
        for module in network.modules()
    }

    def add(parameter: nn.Parameter, found: torch.Tensor) -> None:
        key = id(parameter)
        # A layer called twice in one pass has two contributions.
        gradients[key] = gradients[key] + found if key in gradients else found

    def watch(
        layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
            leaves.append(output)
        # A bias has the sum of the output's gradient, whatever the input was.
        inputs = args[0].detach() if "weight" in watched[layer] else output.new_empty(0)
        if inputs.is_floating_point():
            inputs = inputs.to(output.dtype)  # What autocast gave the layer.
        held = [inputs]  # Until its gradient is made: the graph keeps hooks to the end of the pass.
        del inputs

        def collect(grads: torch.Tensor) -> None:
            found = GRADIENTS[type(layer)](layer, held.pop(), grads.detach(), draws, watched[layer])
            for name in watched[layer]:
                add(getattr(layer, name), found[name])

        output.register_hook(collect)  # type: ignore[no-untyped-call]
        return output

    def watch_norm(layer: nn.GroupNorm, inputs: torch.Tensor) -> torch.Tensor:
        output, own = group_norm_by_row(layer, inputs, watched[layer])

        def collect(name: str, found: torch.Tensor) -> None:
            by_record = found.detach().view(-1, draws, layer.num_channels).sum(dim=1)
            add(getattr(layer, name), by_record)

        for name, rows in own.items():
            rows.register_hook(partial(collect, name))  # type: ignore[no-untyped-call]
            leaves.append(rows)
        return output

    handles = []
    for module, names in watched.items():
        if names and isinstance(module, nn.GroupNorm):
            module.forward = partial(watch_norm, module)  # type: ignore[method-assign]
        elif names:
            handles.append(module.register_forward_hook(watch))
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()
        for module in watched:
            module.__dict__.pop("forward", None)


def per_record_gradients(denoiser: Denoiser, rows: Rows, draws: int) -> list[torch.Tensor]:
    """Gradient of each record's mean loss over its K draws; one [B, *shape] a parameter.

    float32, or bf16 where autocast made it so. Rows of one record stand together: rows i*K ..
    i*K + K - 1 belong to record i.
    """
    parameters = trainable(denoiser)
    records = len(rows) // draws
    gradients: dict[int, torch.Tensor] = {}
    leaves: list[torch.Tensor] = []
    with _captured(denoiser, draws, gradients, leaves), torch.enable_grad():
        loss = row_losses(denoiser, rows).sum() / draws
        torch.autograd.grad(loss, leaves, allow_unused=True)
    return [
        gradients[id(p)] if id(p) in gradients else p.new_zeros((records, *p.shape))
        for p in parameters
    ]


def record_norms(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of each record's gradient over all parameters together, float32 [B]."""
    norms = [
        torch.linalg.vector_norm(chunk, dim=1, dtype=torch.float32)
        for gradient in gradients
        for chunk in torch.split(gradient.flatten(1), _NORM_CHUNK, dim=1)
    ]
    # As many as the network has chunks: their sum in fp32 would lose what the short ones keep.
    total: torch.Tensor = torch.stack(norms).double().norm(dim=0).float()
    return total


def clip_and_sum(
    gradients: Sequence[torch.Tensor],
    max_grad_norm: float,
    mask: torch.Tensor,
    units: int | None = None,
) -> torch.Tensor:
    """Clips each record's gradient over all parameters together and adds them up.

    Guarantees: a record adds a vector of norm at most C (or ``units``); a record whose gradient is
    not finite, or which ``mask`` says is padding, adds exactly zero.

    Args:
      gradients: one float32 or bf16 [B, *shape] a parameter.
      mask: bool [B]; False marks padding.
      units: with secure noise, the whole number that stands for C.

    Returns:
      float32 [P], all parameters flattened in order; int64 [P] whole numbers if ``units`` is given.
    """
    norms = record_norms(gradients)
    usable = mask & norms.isfinite()
    norms = torch.where(usable, norms, norms.new_ones(()))
    if units is not None:
        factors = grid_factors(norms, usable, max_grad_norm, units)
        return rounded_sum(gradients, factors, units)
    factors = (max_grad_norm * _SHRINK / norms.clamp_min(1e-30)).clamp_max(1.0)
    factors = torch.where(usable, factors, factors.new_zeros(()))
    parts = []
    for gradient in gradients:
        flat = gradient.flatten(1).float()
        if not bool(usable.all()):
            # 0 * inf is NaN: a non-finite row must be replaced, not scaled.
            flat = torch.where(usable[:, None], flat, flat.new_zeros(()))
        parts.append(factors @ flat)
    return torch.cat(parts)


def clipped_sum(
    denoiser: Denoiser,
    rows: Rows,
    draws: int,
    max_grad_norm: float,
    mask: torch.Tensor,
    units: int | None = None,
) -> torch.Tensor:
    """The sum of clipped per-record gradients of one micro-batch, as of ``clip_and_sum``.

    Abadi et al. (2016), Algorithm 1, with Dockhorn et al.'s (2023) noise multiplicity K = draws
    averaged before the clip.
    """
    return clip_and_sum(per_record_gradients(denoiser, rows, draws), max_grad_norm, mask, units)
