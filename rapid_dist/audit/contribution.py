"""Check 1: one unit moves the released sum by at most C, whatever it holds and however it is cut.

For every unit x of a batch in turn, S(D) - S(D without x) is measured on the real step, with all
randomness frozen by the key: there is no step without noise, but the noise of two steps that share
key, step and attempt is the same and cancels in the difference. Float32 leaves a rounding error of
the noised sums; it is orthogonal to the difference in all but chance, so it is allowed for in
quadrature.

C = max_grad_norm, W workers, K draws a unit.
"""

import itertools
import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.workers import ThreadWorkers
from rapid_dist.data.images import PrivateImages
from rapid_dist.diffusion.loss import Rows
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.private.draws import DrawMaker

CHECK = "contribution"
MARGIN = 1e-4  # Relative: what float32 may add to a clipped vector's norm.
WORLD_SIZES, DRAWS = (1, 2, 4), (1, 8)
UNITS: dict[Profile, int] = {"quick": 8, "full": 24}
# In units of the recipe's C. So tight that gradients are clipped, whatever the recipe's own C.
TIGHT = 2.0**-10
_MICRO_BATCH = 3  # Divides none of the slices, so that padding takes part.
_NOT_FINITE = (math.nan, math.inf, 1e30)  # The last one overflows on its way through the network.


@dataclass(frozen=True, kw_only=True)
class Longest:
    """The largest contribution of a unit, in units of C, and what float32 hides of it."""

    ratio: float
    rounding: float

    @property
    def bound(self) -> float:
        return math.hypot(1 + MARGIN, self.rounding)

    @property
    def passed(self) -> bool:
        return self.ratio <= self.bound  # Not so if it is NaN.


def check_contribution(subject: Subject, profile: Profile) -> list[CheckResult]:
    """Leaves every unit out in turn, the extreme ones too, at every W and K."""
    units = min(UNITS[profile], subject.images.spec.num_units)
    own = subject.on(extreme_images(subject.images, units))
    own = replace(
        own,
        config=replace(
            own.config, micro_batch=min(own.config.micro_batch or _MICRO_BATCH, _MICRO_BATCH)
        ),
    )
    tight = _bounded(own, TIGHT * own.mechanism.max_grad_norm)
    clipped = {
        (world_size, draws): longest_contribution(
            _drawn(tight, draws), ThreadWorkers(world_size), range(units)
        )
        for world_size, draws in itertools.product(WORLD_SIZES, DRAWS)
    }
    loose = longest_contribution(own, ThreadWorkers(1), range(units))
    poisoned = {
        value: longest_contribution(
            _drawn(tight, draws), ThreadWorkers(world_size), range(min(2, units)), poison=value
        )
        for value, (world_size, draws) in zip(
            _NOT_FINITE, itertools.cycle([(1, DRAWS[-1]), (2, DRAWS[0])]), strict=False
        )
    }
    return [
        _row(
            "Does no unit move the sum by more than C, at any number of workers and draws?",
            max(clipped.values(), key=_severity),
            f"{units} units left out in turn, black, white, random and doubled ones among them, "
            f"C made so small that they are clipped. {_listing(clipped)}",
        ),
        _row(
            "Does no unit move the sum by more than the recipe's own C?",
            loose,
            f"W=1 K={own.config.multiplicity}, C={own.mechanism.max_grad_norm:g}.",
        ),
        _row(
            "Does a unit without a finite gradient neither pass C nor spoil the sum?",
            max(poisoned.values(), key=_severity),
            " ".join(f"{value:g}: {found.ratio:.6f} C." for value, found in poisoned.items()),
        ),
        _at_work(max(found.ratio for found in clipped.values())),
    ]


def longest_contribution(
    subject: Subject, workers: ThreadWorkers, units: range, poison: float | None = None
) -> Longest:
    """Leaves each of ``units`` out in turn; with ``poison`` the rows of unit 0 hold that number."""
    key = subject.new_key()
    denoisers = [subject.denoiser() for _ in range(workers.world_size)]
    bound = subject.mechanism.max_grad_norm
    draws = subject.make_draws(subject.images, subject.config)
    if poison is not None:
        own = {field.name: getattr(draws, field.name) for field in fields(DrawMaker)}
        draws = _Poisoned(**own, inner=draws, value=poison)

    def released(left_out: int | None) -> torch.Tensor:
        sampler = LeavingOut(subject, key, left_out)
        steps = [
            subject.step(workers.collective(rank), key, sampler=sampler, draws=draws)
            for rank in range(workers.world_size)
        ]
        found = workers.run(lambda c: steps[c.rank].noised_gradient(denoisers[c.rank], 0))[0]
        return found.double() * subject.mechanism.expected_batch

    whole = released(None)
    lengths = [float((whole - released(unit)).norm()) / bound for unit in units]
    worst = max(lengths, key=lambda length: math.inf if math.isnan(length) else length)
    # Each coordinate of either vector was rounded twice: after the noise, after the division.
    rounding = 2 * math.sqrt(2) * torch.finfo(torch.float32).eps * float(whole.norm()) / bound
    return Longest(ratio=worst, rounding=rounding if math.isfinite(rounding) else 0.0)


class LeavingOut(PoissonSampler):
    """The subject's own sampler at rate 1, which draws everybody, but for one unit.

    To be zeroed out and not to be drawn is the same for a step's sum, which is what makes the
    zero-out relation one of batches.
    """

    def __init__(self, subject: Subject, key: SecretKey, left_out: int | None) -> None:
        self._inner = subject.sampler(key, rate=1.0)
        self._left_out = left_out

    def batch(self, step: int) -> np.ndarray:
        everybody = self._inner.batch(step)
        return everybody if self._left_out is None else everybody[everybody != self._left_out]


@dataclass(frozen=True, kw_only=True)
class _Poisoned(DrawMaker):
    """The subject's own rows, in which those of unit 0 hold a number that no pixel can be."""

    inner: DrawMaker
    value: float

    def rows(self, records: np.ndarray, key: SecretKey, step: int, attempt: int) -> Rows:
        rows = self.inner.rows(records, key, step, attempt)
        victims = torch.from_numpy(np.repeat(records == 0, len(rows) // len(records)))
        noised = torch.where(victims[:, None, None, None], self.value, rows.noised)
        return replace(rows, noised=noised)


def extreme_images(images: PrivateImages, units: int) -> PrivateImages:
    """The first units of ``images``; of them one black, one white, one random, two the same."""
    chosen = np.arange(units) if images.groups is None else np.flatnonzero(images.groups < units)
    pixels = images.images[chosen].copy()
    owner = chosen if images.groups is None else images.groups[chosen]
    shape = pixels.shape[1:]
    random = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    fill = [np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), random]
    for unit, content in enumerate(fill):
        pixels[owner == unit] = content
    if units > len(fill) + 1:
        twin = len(fill) + 1
        pixels[owner == len(fill)] = pixels[owner == twin][0]
    grouped = images.groups is not None
    spec = replace(images.spec, num_records=len(chosen), num_groups=units if grouped else None)
    return PrivateImages(
        images=pixels,
        labels=images.labels[chosen],
        groups=owner if grouped else None,
        spec=spec,
    )


def _bounded(subject: Subject, max_grad_norm: float) -> Subject:
    return replace(subject, mechanism=replace(subject.mechanism, max_grad_norm=max_grad_norm))


def _drawn(subject: Subject, draws: int) -> Subject:
    return replace(subject, config=replace(subject.config, multiplicity=draws))


def _severity(found: Longest) -> float:
    return math.inf if math.isnan(found.ratio) else found.ratio - found.bound


def _row(question: str, found: Longest, detail: str) -> CheckResult:
    return CheckResult(
        check=CHECK,
        question=question,
        statistic=f"longest contribution {found.ratio:.6f} C",
        bound=f"at most {found.bound:.6f} C",
        false_alarm=0.0,
        passed=found.passed,
        detail=f"{detail} Rounding of the noised sums: {found.rounding:.1e} C.",
    )


def _listing(found: dict[tuple[int, int], Longest]) -> str:
    return " ".join(f"W={w} K={k}: {one.ratio:.6f} C." for (w, k), one in found.items())


def _at_work(longest: float) -> CheckResult:
    return CheckResult(
        check=CHECK,
        question="Was the clip at work, so that the bound was tried at all?",
        statistic=f"longest contribution {longest:.6f} C",
        bound="at least 0.99 C",
        false_alarm=0.0,
        passed=longest >= 0.99,
        detail="A unit that the step does not heed when it is left out would seem harmless.",
    )
