"""Vectors that the mechanism released when nothing was learnt: noise, and nothing else.

The step, the loop and the keys are the subject's own; in place of the engine stands one that finds
nothing in anybody.
"""

import contextlib
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from rapid_dist.audit.contribution import LeavingOut, extreme_images
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.workers import ThreadWorkers
from rapid_dist.collective import SingleProcess
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.privacy.keeper import Attempt
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.noise import CHUNK
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.private.per_example import flat_size, trainable
from rapid_dist.storage import open_storage

WIDE = 2 * CHUNK + CHUNK // 2  # Parameters: three chunks of noise, the last one short.
_UNITS = 4
_LOOP_STEPS = 3
_WINDOWED = 2**19  # Values of one release that are searched for repeats.
_CHANCE_REPEATS = 1e-9  # Expected number of repeated windows in independent noise.


class Nobody(PoissonSampler):
    """Draws the empty batch."""

    def __init__(self) -> None:
        pass

    def batch(self, step: int) -> np.ndarray:
        return np.zeros(0, np.int64)


def _nothing(denoiser: Denoiser, *_: Any) -> torch.Tensor:
    """Zeros as whole numbers: they add to float32 sums and to the integer ones of secure noise."""
    return torch.zeros(flat_size(denoiser), dtype=torch.int64)


def muted(subject: Subject) -> Subject:
    """The subject on a few units, half of which a step draws, learning nothing from them."""
    units = min(_UNITS, subject.images.spec.num_units)
    small = subject.on(extreme_images(subject.images, units))
    return replace(
        small,
        engine=_nothing,
        config=replace(small.config, micro_batch=2, checkpoint_every=1),
        mechanism=replace(small.mechanism, expected_batch=units / 2, steps=_LOOP_STEPS),
    )


def step_release(
    subject: Subject,
    key: SecretKey,
    *,
    step: int = 0,
    attempt: int = 1,
    workers: ThreadWorkers | None = None,
    sampler: PoissonSampler | None = None,
    denoiser: Denoiser | None = None,
) -> list[np.ndarray]:
    """One step's released vector, float32 [P], as every rank holds it."""
    group = workers or ThreadWorkers(1)
    denoisers = [denoiser or subject.denoiser() for _ in range(group.world_size)]
    steps = [
        subject.step(group.collective(rank), key, attempt=attempt, sampler=sampler)
        for rank in range(group.world_size)
    ]
    found = group.run(lambda c: steps[c.rank].noised_gradient(denoisers[c.rank], step))
    return [vector.numpy() for vector in found]


def everybody(subject: Subject, key: SecretKey) -> PoissonSampler:
    return LeavingOut(subject, key, None)


def wide_release(subject: Subject) -> np.ndarray:
    """One step's released vector of a muted subject's wider network, float32 [WIDE].

    Recipes' networks may have fewer parameters than one chunk of noise has values.
    """
    network = nn.Module()
    network.weight = nn.Parameter(torch.zeros(WIDE))
    return step_release(subject, subject.new_key(), denoiser=cast(Denoiser, network))[0]


@dataclass(frozen=True, kw_only=True)
class LoopReleases:
    """What three runs of the product's own loop released, float32 [P] a step."""

    first: list[np.ndarray]  # Stopped by a crash after its second step, whose result is lost.
    resumed: list[np.ndarray]  # The same run, started again: makes the second step once more.
    second: list[np.ndarray]  # Another run of the same recipe.


def loop_releases(subject: Subject) -> LoopReleases:
    """Trains, crashes, resumes and trains anew; the updates are taken from ``grad``."""
    with tempfile.TemporaryDirectory() as folder:
        keeper = _Unlimited()
        return LoopReleases(
            first=_run(subject, keeper, Path(folder, "first"), crash_after=2),
            resumed=_run(subject, keeper, Path(folder, "first")),
            second=_run(subject, _Unlimited(), Path(folder, "second")),
        )


class _Crash(Exception):
    """Ends a run between the update and its checkpoint."""


class _Unlimited:
    """A keeper to whom every step is affordable: what is trained on is public."""

    def __init__(self) -> None:
        self._attempt = 0

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Attempt:
        self._attempt += 1
        return Attempt(number=self._attempt, affordable_steps=_LOOP_STEPS)

    def charge(self, step: int, attempt: int | None = None) -> None:
        pass

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        raise AssertionError("Every step is affordable.")


def _run(
    subject: Subject, keeper: _Unlimited, folder: Path, crash_after: int | None = None
) -> list[np.ndarray]:
    denoiser = subject.make_denoiser()
    released: list[np.ndarray] = []

    def on_step(figures: dict[str, float]) -> None:
        grads = [cast(torch.Tensor, parameter.grad) for parameter in trainable(denoiser)]
        released.append(torch.cat([grad.flatten() for grad in grads]).numpy().copy())
        if len(released) == crash_after:
            raise _Crash

    with contextlib.suppress(_Crash):
        subject.run(
            SingleProcess(), keeper, open_storage(folder), denoiser=denoiser, on_step=on_step
        )
    return released


def repeated_windows(releases: list[np.ndarray]) -> tuple[int, int]:
    """How many runs of ``width`` neighbouring magnitudes occur more than once, and the width.

    Single float32 numbers repeat by chance, those of a coarse grid often; the width is chosen so
    that a whole window's repeat would be a wonder.
    """
    magnitudes = [np.abs(release[:_WINDOWED]).view(np.uint32) for release in releases]
    values = np.concatenate(magnitudes)
    counts = np.unique(values, return_counts=True)[1].astype(np.float64)
    pairs = len(values) ** 2 / 2
    chance = max(float((counts * (counts - 1)).sum()) / 2 / pairs, 1 / pairs)
    width = min(16, max(2, math.ceil(math.log(_CHANCE_REPEATS / pairs) / math.log(chance))))
    windows = np.concatenate(
        [
            np.lib.stride_tricks.sliding_window_view(part, width)
            for part in magnitudes
            if len(part) >= width
        ]
    )
    rng = np.random.default_rng(0)
    odd = rng.integers(0, 2**63, width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.zeros(len(windows), np.uint64)
    for column, factor in zip(windows.T, odd, strict=True):
        hashes = (hashes ^ column) * factor  # Wraps: a hash, of which only equality counts.
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    repeats = (windows[order[same]] == windows[order[same + 1]]).all(axis=1)
    return int(repeats.sum()), width
