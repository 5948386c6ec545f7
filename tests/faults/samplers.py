"""Faulty draws: not Poisson, but accounted as if they were."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rapid_dist.audit.subject import Subject
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.poisson import PoissonSampler
from tests.faults.catalogue import Fault


class KnownSampler(PoissonSampler):
    """A right sampler whose parts a fault can see."""

    def __init__(self, key: SecretKey, num_records: int, sample_rate: float, attempt: int) -> None:
        super().__init__(key, num_records, sample_rate, attempt)
        self.key, self.num_records, self.rate, self.attempt = key, num_records, sample_rate, attempt
        self.size = max(1, round(num_records * sample_rate))


class FixedSize(KnownSampler):
    """Always as many as are expected, uniformly chosen."""

    def batch(self, step: int) -> np.ndarray:
        rng = self.key.generator("fixed", step, self.attempt)
        return np.sort(rng.choice(self.num_records, self.size, replace=False))


class ShuffledEpochs(KnownSampler):
    """Cuts a shuffled list into batches: everybody once an epoch."""

    def batch(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, max(1, self.num_records // self.size))
        order = self.key.generator("epoch", epoch, self.attempt).permutation(self.num_records)
        return np.sort(order[place * self.size : (place + 1) * self.size])


class EmptyDrawsSkipped(KnownSampler):
    """Yields the next draw that has somebody."""

    def batch(self, step: int) -> np.ndarray:
        for again in range(10_000):
            rng = self.key.generator("again", step, self.attempt, again)
            drawn = np.flatnonzero(rng.random(self.num_records) < self.rate)
            if len(drawn) or self.rate * self.num_records < 1e-6:
                break
        return drawn


class SomebodyWhenEmpty(KnownSampler):
    """Puts a random record into a batch that would be empty."""

    def batch(self, step: int) -> np.ndarray:
        drawn = super().batch(step)
        rng = self.key.generator("somebody", step, self.attempt)
        return drawn if len(drawn) else rng.integers(0, self.num_records, 1)


class TwoDrawsInOneStep(KnownSampler):
    """A stale flag merges two draws: who is in both is counted twice, in one step."""

    def batch(self, step: int) -> np.ndarray:
        return np.sort(np.concatenate([super().batch(step), super().batch(step + 1)]))


class SmoothedSizes(KnownSampler):
    """Draws as Poisson says, then cuts to the expected size and fills up to it."""

    def batch(self, step: int) -> np.ndarray:
        drawn = super().batch(step)[: self.size]
        rng = self.key.generator("fill", step, self.attempt)
        others = np.setdiff1d(np.arange(self.num_records), drawn)
        filled = rng.choice(others, self.size - len(drawn), replace=False)
        return np.sort(np.concatenate([drawn, filled]))


class SameDrawInEveryAttempt(KnownSampler):
    """A key of the run's that forgets the attempt: a restart draws the same batches again."""

    def __init__(self, key: SecretKey, num_records: int, sample_rate: float, attempt: int) -> None:
        super().__init__(key, num_records, sample_rate, 1)


def _sampler(fault: type[PoissonSampler]) -> Callable[[Subject], Subject]:
    return lambda subject: replace(subject, sampler_type=fault)


FAULTS = [
    Fault(
        name="A fixed batch size, accounted as Poisson",
        what_happened="private-transformers and fastDP; Opacus with poisson_sampling=False",
        build=_sampler(FixedSize),
        caught_by=("sampling",),
    ),
    Fault(
        name="Shuffled epochs, accounted as Poisson",
        what_happened="Common in published code; audits find 4 times the claim (arXiv 2411.10614)",
        build=_sampler(ShuffledEpochs),
        caught_by=("sampling",),
    ),
    Fault(
        name="Empty draws are skipped",
        what_happened="Opacus' distributed sampler: if len > 0: yield",
        build=_sampler(EmptyDrawsSkipped),
        caught_by=("sampling",),
    ),
    Fault(
        name="An empty batch gets a random record",
        what_happened="Opacus' rand_on_empty",
        build=_sampler(SomebodyWhenEmpty),
        caught_by=("sampling",),
    ),
    Fault(
        name="Two draws are merged into one step",
        what_happened="Opacus' BatchMemoryManager after a loop that was left early",
        build=_sampler(TwoDrawsInOneStep),
        caught_by=("contribution", "sampling"),
    ),
    Fault(
        name="Batches are cut and filled to one size",
        what_happened="Fixed shapes for a compiler, without the accounting of truncation",
        build=_sampler(SmoothedSizes),
        caught_by=("sampling",),
    ),
    Fault(
        name="A restart draws the same batches again",
        what_happened="A sampler seeded by the run and the step alone",
        build=_sampler(SameDrawInEveryAttempt),
        caught_by=("sampling",),
    ),
]
