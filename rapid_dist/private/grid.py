"""Clipped gradients as whole numbers, so that their sum has no rounding of its own.

A record's gradient g becomes f g rounded towards zero, on a grid of C / U, where U = units stands
for the clip bound C. Rounding towards zero makes no entry longer, so the integers' norm is at most
||f g||, and f takes that to U (1 - 2^-10) at most. It is not left to the analysis either: the
vector that is rounded is measured, with room for the worst error of the measurement, and a record
above the bound adds nothing.

Sums are of whole numbers below 2^63 and thus exact: the same bits in whatever order records,
micro-batches and workers are added.
"""

from collections.abc import Sequence

import torch

# Columns rounded at once: they stay in a cache, and the error of one sum of so many fp32 squares is
# at most a share of 8192 * 2^-24 = 2^-11 in whatever order it is made, so the norm's is 2^-12.
_TILE = 8192
_SHRINK = 1.0 - 2.0**-10  # Room for the errors of both norms, the one clipped by and the measured.
_MEASURED = 1.0 - 2.0**-11  # A measured norm up to U times this is a true norm up to U.


def grid_factors(
    norms: torch.Tensor, usable: torch.Tensor, max_grad_norm: float, units: int
) -> torch.Tensor:
    """Returns what each record's gradient is multiplied by before it is rounded, float32 [B].

    Args:
      norms: float32 [B], of the gradients.
      usable: bool [B]; the others get zero.
    """
    factors = (units * _SHRINK / norms.clamp_min(1e-30)).clamp_max(units / max_grad_norm)
    return torch.where(usable, factors, factors.new_zeros(()))


def rounded_sum(
    gradients: Sequence[torch.Tensor], factors: torch.Tensor, units: int
) -> torch.Tensor:
    """Returns the sum of the records' whole numbers, int64 [P].

    Guarantees: the integers of each record have a norm of at most ``units``, or are all zero.

    Args:
      gradients: one float32 [B, *shape] a parameter; finite wherever a factor is not zero.
      factors: float32 [B].
    """
    total, norms = _rounded(gradients, factors, units)
    kept = norms <= units * _MEASURED  # False for NaN.
    if not bool(kept.all()):
        factors = torch.where(kept, factors, factors.new_zeros(()))
        total, _ = _rounded(gradients, factors, units)
    return total


def _rounded(
    gradients: Sequence[torch.Tensor], factors: torch.Tensor, units: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of whole numbers, int64 [P], and each record's norm before rounding, float64 [B]."""
    dropped = factors == 0
    any_dropped = bool(dropped.any())
    count = len(factors)
    # int32 is faster, and enough while no column can leave it; a sum that did is thrown away.
    sums_in = torch.int32 if count * units < 2**31 else torch.int64
    total = factors.new_empty(sum(g[0].numel() for g in gradients), dtype=sums_in)
    scaled_in, whole_in = (factors.new_empty(count * _TILE, dtype=d) for d in (None, sums_in))
    norms, start = [], 0
    for gradient in gradients:
        for tile in torch.split(gradient.flatten(1), _TILE, dim=1):
            end = start + tile.shape[1]
            scaled, whole = (b[: tile.numel()].view_as(tile) for b in (scaled_in, whole_in))
            torch.mul(tile, factors[:, None], out=scaled)
            if any_dropped:
                scaled[dropped] = 0.0  # 0 * inf is NaN: it must be replaced, not scaled.
            norms.append(torch.linalg.vector_norm(scaled, dim=1))
            whole.copy_(scaled)  # The conversion rounds towards zero.
            torch.sum(whole, 0, dtype=sums_in, out=total[start:end])
            start = end
    return total.long(), torch.stack(norms).double().norm(dim=0)
