"""Faulty sums of per-record gradients, and a faulty network."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rapid_dist.audit.subject import Subject
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows, row_losses
from rapid_dist.private.per_example import (
    clip_and_sum,
    clipped_sum,
    per_record_gradients,
    record_norms,
    trainable,
)
from tests.faults.catalogue import Fault
from tests.faults.subjects import WIDTH, LayersDenoiser


class CopiesClippedApart:
    """K noised copies go through as K records: each is clipped on its own."""

    def __call__(
        self, denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        return clipped_sum(denoiser, rows, 1, bound, mask.repeat_interleave(draws))


class LossColumnBroadcast:
    """Clip factors [B] times losses [B, 1] are [B, B]: every factor scales every record."""

    def __call__(
        self, denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        norms = record_norms(per_record_gradients(denoiser, rows, draws))
        factors = (bound / norms).clamp_max(1.0) * mask
        losses = row_losses(denoiser, rows).unflatten(0, (-1, draws)).mean(1)
        total = (factors * losses[:, None] * mask[:, None]).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, trainable(denoiser))])


class NormsInBfloat16:
    """Norms are taken in the precision of the forward pass."""

    def __call__(
        self, denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        gradients = per_record_gradients(denoiser, rows, draws)
        norms = record_norms(gradients).bfloat16().float()
        return _scaled_sum(gradients, (bound / norms).clamp_max(1.0), mask)


class NonFiniteRecordPasses:
    """The factor of an infinite gradient is zero, and zero times infinity is not a number."""

    def __call__(
        self, denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        gradients = per_record_gradients(denoiser, rows, draws)
        factors = (bound * (1 - 2.0**-12) / record_norms(gradients)).clamp_max(1.0)
        return _scaled_sum(gradients, factors, mask)


class NormBeforeAveraging:
    """The norm is that of the first augmentation; what it scales is the mean of all K."""

    def __call__(
        self, denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        own = torch.arange(0, len(rows), draws)
        first = Rows(
            noised=rows.noised[own],
            noise_level=rows.noise_level[own],
            labels=rows.labels[own],
            clean=rows.clean[own],
        )
        norms = record_norms(per_record_gradients(denoiser, first, 1))
        gradients = per_record_gradients(denoiser, rows, draws)
        return _scaled_sum(gradients, (bound / norms).clamp_max(1.0), mask)


class LayersClippedApart:
    """Every layer is clipped to C, and one C is accounted."""

    def __call__(
        self, denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        gradients = per_record_gradients(denoiser, rows, draws)
        return torch.cat([clip_and_sum([gradient], bound, mask) for gradient in gradients])


class MicroBatchClipped:
    """The micro-batch's sum is clipped in place of its records: a sum of B of them was averaged."""

    def __call__(
        self, denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        total = clipped_sum(denoiser, rows, draws, 1e9, mask)
        return total * (bound / total.norm().clamp_min(1e-30)).clamp_max(1.0) * int(mask.sum())


class PaddingCounted:
    """The rows that fill up a micro-batch are summed: record 0 takes part where there are any."""

    def __call__(
        self, denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        return clipped_sum(denoiser, rows, draws, bound, torch.ones_like(mask))


class BatchNormDenoiser(LayersDenoiser):
    """A network whose layer in the middle normalises over the batch."""

    def mixed(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(hidden, None, None, training=True)


class ReflectingDenoiser(LayersDenoiser):
    """A convolution that pads by reflection, beside an engine whose norms assume zeros."""

    def __init__(self) -> None:
        super().__init__()
        weights = self.last.state_dict()
        self.last = nn.Conv2d(WIDTH, 1, 3, padding=1, padding_mode="reflect")
        self.last.load_state_dict(weights)


class GhostClipping:
    """Norms come from per-layer formulas, the sum from a second, unclipped pass of autograd."""

    def __call__(
        self, denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        norms = record_norms(per_record_gradients(denoiser, rows, draws))
        factors = (bound / norms).clamp_max(1.0) * mask
        losses = row_losses(denoiser, rows).unflatten(0, (-1, draws)).mean(1)
        found = torch.autograd.grad((factors * losses).sum(), trainable(denoiser))
        return torch.cat([gradient.flatten() for gradient in found])


def _scaled_sum(
    gradients: list[torch.Tensor], factors: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    return torch.cat([(factors * mask) @ gradient.flatten(1) for gradient in gradients])


def _engine(fault: Callable[..., torch.Tensor]) -> Callable[[Subject], Subject]:
    return lambda subject: replace(subject, engine=fault)


def _network(fault: type[Denoiser], **changes: Any) -> Callable[[Subject], Subject]:
    return lambda subject: replace(subject, make_denoiser=fault, **changes)


FAULTS = [
    Fault(
        name="K copies of a record are clipped one by one",
        what_happened="Published code of DP-LoRA: each image repeated K times before stock Opacus",
        build=_engine(CopiesClippedApart()),
        caught_by=("contribution",),
    ),
    Fault(
        name="The norm is taken before the augmentations are averaged",
        what_happened="K-fold samplers written by hand, where one copy stands for all",
        build=_engine(NormBeforeAveraging()),
        caught_by=("contribution",),
    ),
    Fault(
        name="A loss of shape (B, 1) is broadcast against the clip factors",
        what_happened="Opacus 1.6 in ghost mode, without an error: 41 times the bound",
        build=_engine(LossColumnBroadcast()),
        caught_by=("contribution",),
    ),
    Fault(
        name="Norms in bfloat16",
        what_happened="Opacus 1.6 under autocast or in bfloat16: up to 1.01 C",
        build=_engine(NormsInBfloat16()),
        caught_by=("contribution",),
    ),
    Fault(
        name="A record that is not finite passes",
        what_happened="Opacus 1.6: zero times infinity is in the update, one record ends the run",
        build=_engine(NonFiniteRecordPasses()),
        caught_by=("contribution",),
    ),
    Fault(
        name="Every layer is clipped to C, accounted as one clip",
        what_happened="Per-layer clipping switched on beside an accountant for flat clipping",
        build=_engine(LayersClippedApart()),
        caught_by=("contribution",),
    ),
    Fault(
        name="A micro-batch is clipped in place of its records",
        what_happened="Libraries that clip the mean gradient of a core and count it as records",
        build=_engine(MicroBatchClipped()),
        caught_by=("contribution",),
    ),
    Fault(
        name="Padding of a micro-batch is summed",
        what_happened="Fixed shapes for a compiler, with the mask forgotten",
        build=_engine(PaddingCounted()),
        caught_by=("contribution",),
    ),
    Fault(
        name="Norm formula and summed gradient disagree in one layer",
        what_happened="Opacus 1.6 in ghost mode ignores the padding mode of a convolution",
        build=_network(ReflectingDenoiser, engine=GhostClipping()),
        caught_by=("contribution",),
    ),
    Fault(
        name="BatchNorm in the network",
        what_happened="Any network of the time before; records then shape each other's gradients",
        build=_network(BatchNormDenoiser),
        caught_by=("contribution",),
    ),
]
