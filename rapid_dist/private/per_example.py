"""Per-example gradients of a denoiser, clipped one record at a time.

One forward and one backward pass over R = B * K rows (B records, K draws each). Hooks hand over
every layer's input A and output gradient G; the K draws of a record are folded into the position
axis, so a record's weight gradient is one matrix product and its memory does not grow with K. The
gradients are materialised, clipped and then summed: what is clipped is what is summed, so a wrong
norm could cost quality but never the bound (P3).

Letters: B records, K draws, T positions, p outputs, d inputs of a layer, C = max_grad_norm.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows, row_losses
from rapid_dist.errors import ConfigError
from rapid_dist.private.grid import grid_factors, rounded_sum

# A clipped vector is scaled to C (1 - 2^-12), so that fp32 rounding cannot carry it over C.
_SHRINK = 1.0 - 2.0**-12
# Squares that one fp32 sum takes up. Half a million equal ones lose 5e-4, more than the shrink.
_NORM_CHUNK = 4096

GradSampler = Callable[[nn.Module, torch.Tensor, torch.Tensor, int], dict[str, torch.Tensor]]


def _conv(
    layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor, draws: int
) -> dict[str, torch.Tensor]:
    """The B records become B groups of one convolution, the K draws its batch.

    One call of the vendor's weight gradient then costs what the plain one does: no im2col, and no
    memory that grows with K.
    """
    assert isinstance(layer, nn.Conv2d)
    records = len(inputs) // draws
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0):
        found = _linear(layer, inputs.flatten(2).mT, grads.flatten(2).mT, draws)
        return {"weight": found["weight"][..., None, None], "bias": found["bias"]}

    def group(rows: torch.Tensor) -> torch.Tensor:  # [B * K, c, H, W] -> [K, B * c, H, W]
        by_draw = rows.reshape(records, draws, *rows.shape[1:]).transpose(0, 1)
        return by_draw.reshape(draws, -1, *rows.shape[2:])

    shape = (records * layer.out_channels, *layer.weight.shape[1:])
    _, weight, bias = torch.ops.aten.convolution_backward(
        group(grads),
        group(inputs),
        layer.weight.new_empty(1).expand(shape),  # Only its shape is read.
        [shape[0]],
        list(layer.stride),
        list(layer.padding),
        list(layer.dilation),
        False,
        [0, 0],
        records,
        [False, True, layer.bias is not None],
    )
    found = {"weight": weight.unflatten(0, (records, -1))}
    if bias is not None:
        found["bias"] = bias.unflatten(0, (records, -1))
    return found


def _linear(
    layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor, draws: int
) -> dict[str, torch.Tensor]:
    records = len(inputs) // draws
    left = grads.reshape(records, -1, grads.shape[-1])  # [B, K * T, p]
    right = inputs.reshape(records, -1, inputs.shape[-1])  # [B, K * T, d]
    return {"weight": torch.bmm(left.mT, right), "bias": left.sum(dim=1)}


def _registered(
    layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor, draws: int
) -> dict[str, torch.Tensor]:
    """Opacus' own sampler for small layers: one gradient a row, then the sum over a record."""
    parameters = dict(layer.named_parameters(recurse=False))
    for parameter in parameters.values():
        parameter.requires_grad_(True)  # Opacus skips what is frozen, as all is during capture.
    per_row = GradSampleModule.GRAD_SAMPLERS[type(layer)](layer, [inputs], grads)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return {
        name: per_row[parameter].unflatten(0, (-1, draws)).sum(dim=1)
        for name, parameter in parameters.items()
    }


_SAMPLERS: dict[type[nn.Module], GradSampler] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.GroupNorm: _registered,
    nn.Embedding: _registered,
}


def check_layers(network: nn.Module) -> None:
    """Refuses every layer whose per-example gradient is not known to be right (P11).

    Raises:
      ConfigError: a module couples examples, trained or not; or a trainable one is not on the
        allow-list, pads otherwise than with zeros, has grouped channels or shares a parameter.
    """
    seen: dict[int, str] = {}
    for path, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if list(module.buffers(recurse=False)):
            raise ConfigError(
                f"Layer {path} ({type(module).__name__}) keeps buffers, which may carry one "
                "example into another's gradient. Use GroupNorm in place of BatchNorm."
            )
        # Opacus would look at trainable modules only; a frozen BatchNorm couples examples as well.
        refusal = ModuleValidator.VALIDATORS.get(type(module))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (refusal and refusal(module)):
            raise ConfigError(
                f"Layer {path} ({type(module).__name__}) makes an example's gradient depend on the "
                "others of its batch, or has none of its own. Use GroupNorm in place of BatchNorm."
            )
        if own and type(module) not in _SAMPLERS:
            raise ConfigError(
                f"Layer {path} ({type(module).__name__}) has no per-example gradient here. "
                f"Freeze it, or use one of {', '.join(sorted(t.__name__ for t in _SAMPLERS))}."
            )
        if isinstance(module, nn.Conv2d) and own:
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise ConfigError(
                    f"Layer {path} pads by {module.padding_mode!r}/{module.padding!r}; only "
                    "numeric zero padding has a per-example gradient here."
                )
            if module.groups != 1:
                raise ConfigError(
                    f"Layer {path} has {module.groups} channel groups; only 1 is supported."
                )
        if isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq):
            raise ConfigError(
                f"Layer {path} changes its own weights or scales by frequency. Switch "
                "max_norm and scale_grad_by_freq off."
            )
        for parameter in own:
            first = seen.setdefault(id(parameter), path)
            if first != path:
                raise ConfigError(
                    f"Layers {first} and {path} share a parameter, which has two gradients a "
                    "record. Untie it."
                )


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

    Parameters stand outside the graph meanwhile, so autograd computes input gradients only: the
    summed weight gradients, which nobody may use, are never formed. A watched layer whose output
    would not be in the graph starts it there, so nothing below the lowest trainable layer runs.
    """
    parameters = trainable(network)
    watched = {
        module: [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]
        for module in network.modules()
    }

    def watch(
        layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        inputs = args[0].detach()
        if not output.requires_grad:
            output = output.detach().requires_grad_()
            leaves.append(output)

        def collect(grads: torch.Tensor) -> None:
            found = _SAMPLERS[type(layer)](layer, inputs, grads.detach(), draws)
            for name in watched[layer]:
                key = id(getattr(layer, name))
                # A layer called twice in one pass has two contributions.
                gradients[key] = gradients[key] + found[name] if key in gradients else found[name]

        output.register_hook(collect)  # type: ignore[no-untyped-call]
        return output

    handles = [module.register_forward_hook(watch) for module, names in watched.items() if names]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def per_record_gradients(denoiser: Denoiser, rows: Rows, draws: int) -> list[torch.Tensor]:
    """Gradient of each record's mean loss over its K draws; one float32 [B, *shape] a parameter.

    Rows of one record stand together: rows i*K .. i*K + K - 1 belong to record i.
    """
    parameters = trainable(denoiser)
    records = len(rows) // draws
    gradients: dict[int, torch.Tensor] = {}
    leaves: list[torch.Tensor] = []
    with _captured(denoiser, draws, gradients, leaves), torch.enable_grad():
        loss = row_losses(denoiser, rows).sum() / draws
        torch.autograd.grad(loss, leaves, allow_unused=True)
    return [
        gradients[id(p)].float() if id(p) in gradients else p.new_zeros((records, *p.shape))
        for p in parameters
    ]


def record_norms(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of each record's gradient over all parameters together, float32 [B]."""
    norms = [
        torch.linalg.vector_norm(chunk, dim=1)
        for gradient in gradients
        for chunk in torch.split(gradient.flatten(1), _NORM_CHUNK, dim=1)
    ]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
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
      gradients: one float32 [B, *shape] a parameter.
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
        flat = gradient.flatten(1)
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
