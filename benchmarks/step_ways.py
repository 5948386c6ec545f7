"""The ways to a sum of clipped gradients that are compared, each a function of a ``Case``.

All but ``plain`` and ``opacus ghost`` give the same sum. Opacus' ghost clipping knows no draws: it
clips every row, so with K > 1 its time is that of another result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call, grad, vmap

from rapid_dist.diffusion.denoiser import Denoiser, weights_of
from rapid_dist.diffusion.loss import Rows, row_losses
from rapid_dist.private.per_example import clip_and_sum, clipped_sum, trainable
from rapid_dist.private.reference import reference_clipped_sum

CLIP = 1.0

Call = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement's network and rows."""

    denoiser: Denoiser
    rows: Rows
    draws: int

    @property
    def mask(self) -> torch.Tensor:
        records = len(self.rows) // self.draws
        return torch.ones(records, dtype=torch.bool, device=self.rows.noised.device)


def plain(case: Case) -> Call:
    """The step without privacy: the mean loss of the same rows, and its gradient."""

    def call() -> torch.Tensor:
        parameters = trainable(case.denoiser)
        loss = row_losses(case.denoiser, case.rows).mean()
        found = torch.autograd.grad(loss, parameters)
        return torch.cat([part.float().flatten() for part in found])

    return call


def ours(case: Case) -> Call:
    return lambda: clipped_sum(case.denoiser, case.rows, case.draws, CLIP, case.mask)


def reference(case: Case) -> Call:
    return lambda: reference_clipped_sum(case.denoiser, case.rows, case.draws, CLIP, case.mask)


def opacus_hooks(case: Case) -> Call:
    """Opacus' per-row gradients, averaged over the draws of a record, then our clip."""
    from opacus.grad_sample import GradSampleModule

    hooked = GradSampleModule(case.denoiser, loss_reduction="sum")

    def call() -> torch.Tensor:
        hooked.enable_hooks()
        parameters: list[Any] = trainable(case.denoiser)
        _loss_of(case).sum().backward()  # type: ignore[no-untyped-call]
        found = [p.grad_sample.unflatten(0, (-1, case.draws)).mean(dim=1) for p in parameters]
        for parameter in parameters:
            parameter.grad = parameter.grad_sample = None
        return clip_and_sum(found, CLIP, case.mask)

    return call


def opacus_ghost(case: Case) -> Call:
    """Opacus' two passes: norms without gradients where it can, then the weighted loss."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    hooked: Any = GradSampleModuleFastGradientClipping(
        case.denoiser, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
    )

    def call() -> torch.Tensor:
        parameters: list[Any] = trainable(case.denoiser)
        hooked.enable_hooks()
        losses = _loss_of(case)
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        factors = hooked.get_clipping_coef()
        for parameter in parameters:
            parameter.grad = None
        hooked.disable_hooks()
        (factors * losses).sum().backward()
        total = torch.cat([p.grad.float().flatten() for p in parameters])
        for parameter in parameters:
            parameter.grad = None
        return total

    return call


def by_vmap(case: Case) -> Call:
    denoiser, rows = case.denoiser, case.rows
    fixed = {n: p.detach() for n, p in denoiser.named_parameters() if not p.requires_grad}

    def loss(values: dict[str, torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
        noised, level, labels, clean = parts
        estimate: torch.Tensor = functional_call(
            denoiser, {**fixed, **values}, (noised, level, labels)
        )
        error = (estimate - clean).square().flatten(1).mean(dim=1)
        return (weights_of(level, denoiser.data_std) * error).mean()

    def call() -> torch.Tensor:
        values = {n: p.detach() for n, p in denoiser.named_parameters() if p.requires_grad}
        split = [
            part.unflatten(0, (-1, case.draws))  # type: ignore[no-untyped-call]
            for part in (rows.noised, rows.noise_level, rows.labels, rows.clean)
        ]
        found = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(values, *split)
        return clip_and_sum([found[name] for name in values], CLIP, case.mask)

    return call


def _loss_of(case: Case) -> torch.Tensor:
    rows = case.rows
    # Opacus' hooks want an input that has a gradient.
    noised = rows.noised.clone().requires_grad_()
    losses = row_losses(
        case.denoiser,
        Rows(noised=noised, noise_level=rows.noise_level, labels=rows.labels, clean=rows.clean),
    )
    return losses


WAYS: dict[str, Callable[[Case], Call]] = {
    "plain": plain,
    "ours": ours,
    "opacus hooks": opacus_hooks,
    "opacus ghost": opacus_ghost,
    "vmap": by_vmap,
    "reference": reference,
}
