"""Faulty steps: where noise is added, how much, by whom, and what the sum is divided by."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from rapid_dist.audit.subject import Subject
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.noise import add_noise_
from rapid_dist.privacy.poisson import rank_slice
from rapid_dist.private.per_example import flat_size
from rapid_dist.private.step import PrivateStep
from tests.faults.catalogue import Fault


class PlainStep(PrivateStep):
    """A right step, in pieces that a fault can replace."""

    def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
        total = self.local_sum(denoiser, step, self.batch(step))
        if self.collective.rank == 0:
            self.charge(step)
        self.collective.sum_(total)
        return self.noised(total, step) / self.divisor(step)

    def batch(self, step: int) -> np.ndarray:
        """This rank's records."""
        records = self.sampler.batch(step)
        return np.array_split(records, self.collective.world_size)[self.collective.rank]

    def local_sum(self, denoiser: Denoiser, step: int, records: np.ndarray) -> torch.Tensor:
        total = torch.zeros(flat_size(denoiser))
        for padded, mask in rank_slice(records, 0, 1, self.draws.config.micro_batch):
            total += self.engine(
                denoiser,
                self.draws.rows(padded, self.key, step, self.attempt),
                self.draws.config.rows_per_record,
                self.mechanism.max_grad_norm,
                torch.from_numpy(mask),
            )
        return total

    def noised(self, total: torch.Tensor, step: int) -> torch.Tensor:
        return add_noise_(total, self.mechanism.noise_stddev, self.key, step, self.attempt)

    def divisor(self, step: int) -> float:
        return self.mechanism.expected_batch

    def key_of_rank(self) -> SecretKey:
        return SecretKey(self.key.derive("rank", self.collective.rank))


class NoiseTooSmall(PlainStep):
    """The multiplier is 5% below what was accounted."""

    def noised(self, total: torch.Tensor, step: int) -> torch.Tensor:
        stddev = 0.95 * self.mechanism.noise_stddev
        return add_noise_(total, stddev, self.key, step, self.attempt)


class WholeNoiseOnEveryRank(PlainStep):
    """Stddev in full on each rank before the sum: sqrt(W) too much, and not what is reported."""

    def local_sum(self, denoiser: Denoiser, step: int, records: np.ndarray) -> torch.Tensor:
        total = super().local_sum(denoiser, step, records)
        return add_noise_(total, self.stddev(), self.key_of_rank(), step, self.attempt)

    def stddev(self) -> float:
        return self.mechanism.noise_stddev

    def noised(self, total: torch.Tensor, step: int) -> torch.Tensor:
        return total


class RootOfWMissing(WholeNoiseOnEveryRank):
    """Stddev / W on each of W ranks with different seeds: sqrt(W) too little in the sum."""

    def stddev(self) -> float:
        return super().stddev() / self.collective.world_size


class OwnNoiseAfterTheSum(PlainStep):
    """Every rank noises the sum for itself; replicas drift, and their mean has less noise."""

    def noised(self, total: torch.Tensor, step: int) -> torch.Tensor:
        stddev = self.mechanism.noise_stddev
        return add_noise_(total, stddev, self.key_of_rank(), step, self.attempt)


class NoiseOnRankZero(PlainStep):
    """Rank 0 adds all the noise before the sum: without its message there is none."""

    def local_sum(self, denoiser: Denoiser, step: int, records: np.ndarray) -> torch.Tensor:
        total = super().local_sum(denoiser, step, records)
        return super().noised(total, step) if self.collective.rank == 0 else total

    def noised(self, total: torch.Tensor, step: int) -> torch.Tensor:
        return total


class NoiseReusedInChunks(PlainStep):
    """One chunk of noise, laid over the whole vector again and again."""

    chunk = 2**16

    def noised(self, total: torch.Tensor, step: int) -> torch.Tensor:
        for part in torch.split(total, self.chunk):
            super().noised(part, step)
        return total


class NoiseReusedInLayers(NoiseReusedInChunks):
    """A generator seeded anew for every small tensor."""

    chunk = 16


class RestartWithTheSameSeed(PlainStep):
    """The stream is counted from the start of the process: a restart begins it again."""

    def noised(self, total: torch.Tensor, step: int) -> torch.Tensor:
        taken = self.__dict__.setdefault("taken", [])
        taken.append(step)
        return add_noise_(total, self.mechanism.noise_stddev, self.key, len(taken), 1)


class FreshTorchGenerator(PlainStep):
    """``torch.Generator()`` without a seed has one: the same in every process of the world."""

    def noised(self, total: torch.Tensor, step: int) -> torch.Tensor:
        generator = self.__dict__.setdefault("generator", torch.Generator())
        noise = torch.randn(len(total), generator=generator)
        return total + self.mechanism.noise_stddev * noise


class DividedByTheObserved(PlainStep):
    """The mean over those who were drawn."""

    def divisor(self, step: int) -> float:
        return max(1, len(self.sampler.batch(step)))


class EmptyStepsSkipped(PlainStep):
    """Nobody drawn: nothing charged, nothing noised, nothing done."""

    def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
        if len(self.sampler.batch(step)) == 0:
            return torch.zeros(flat_size(denoiser))
        return super().noised_gradient(denoiser, step)


class MasksOfEachRank(PlainStep):
    """Every rank flips coins for its fixed share of the records, all ranks with one seed."""

    def batch(self, step: int) -> np.ndarray:
        rank, size = self.collective.rank, self.collective.world_size
        mine = np.array_split(np.arange(self.mechanism.num_records), size)[rank]
        coins = self.key.generator("masks", step, self.attempt).random(len(mine))
        return mine[coins < self.mechanism.sample_rate]


class EmptyLocalBatchesSkipped(MasksOfEachRank):
    """Each rank has a seed of its own, and passes over draws in which it has nobody."""

    def batch(self, step: int) -> np.ndarray:
        if "mine" not in self.__dict__:
            self.__dict__["mine"] = self._batches()
        found: np.ndarray = next(self.__dict__["mine"])
        return found

    def _batches(self) -> Iterator[np.ndarray]:
        rank, size = self.collective.rank, self.collective.world_size
        mine = np.array_split(np.arange(self.mechanism.num_records), size)[rank]
        rng = self.key_of_rank().generator("masks", self.attempt)
        while True:
            for _ in range(1_000):  # At a rate near zero it would look for ever.
                drawn = mine[rng.random(len(mine)) < self.mechanism.sample_rate]
                if len(drawn):
                    break
            yield drawn


class WholeBatchOnEveryRank(PlainStep):
    """The sampler knows nothing of ranks: each of them takes the whole batch."""

    def batch(self, step: int) -> np.ndarray:
        return self.sampler.batch(step)


def _step(fault: type[PrivateStep]) -> Callable[[Subject], Subject]:
    return lambda subject: replace(subject, step_type=fault)


FAULTS = [
    Fault(
        name="Noise 5% too small",
        what_happened="Opacus' own test of its noise would pass 15%",
        build=_step(NoiseTooSmall),
        caught_by=("noise",),
    ),
    Fault(
        name="Noise / sqrt(W) missing",
        what_happened="fastDP told that all ranks have one seed, when they have not",
        build=_step(RootOfWMissing),
        caught_by=("noise",),
    ),
    Fault(
        name="The whole noise on every rank",
        what_happened="fastDP with its default number of GPUs, which is one",
        build=_step(WholeNoiseOnEveryRank),
        caught_by=("noise",),
    ),
    Fault(
        name="Every rank noises the sum for itself",
        what_happened="Opacus under a wrapper that it does not know as distributed",
        build=_step(OwnNoiseAfterTheSum),
        caught_by=("noise",),
    ),
    Fault(
        name="Noise only on a rank that may vanish",
        what_happened="Opacus: rank 0 adds it before the sum; an elastic group can lose rank 0",
        build=_step(NoiseOnRankZero),
        caught_by=("noise",),
    ),
    Fault(
        name="Noise reused from chunk to chunk",
        what_happened="Sharded parameters whose owners share a seed",
        build=_step(NoiseReusedInChunks),
        caught_by=("noise",),
    ),
    Fault(
        name="Noise reused from layer to layer",
        what_happened="A generator that is seeded for every tensor",
        build=_step(NoiseReusedInLayers),
        caught_by=("noise",),
    ),
    Fault(
        name="A restart repeats the noise of the start",
        what_happened="Opacus and its kin: no state of the generator in a checkpoint, one seed",
        build=_step(RestartWithTheSameSeed),
        caught_by=("noise",),
    ),
    Fault(
        name="A generator nobody seeded",
        what_happened="torch.Generator() is seeded with 67280421310721 everywhere",
        build=_step(FreshTorchGenerator),
        caught_by=("noise",),
    ),
    Fault(
        name="The sum is divided by the observed batch",
        what_happened="A mean in place of a sum, as in every other training loop",
        build=_step(DividedByTheObserved),
        caught_by=("noise", "sampling"),
    ),
    Fault(
        name="Steps on empty batches are skipped",
        what_happened="if len(batch) > 0, to spare the loop a special case",
        build=_step(EmptyStepsSkipped),
        caught_by=("noise", "sampling"),
    ),
    Fault(
        name="Masks of all ranks from one seed",
        what_happened="Opacus: its default generator after the same torch.manual_seed on each rank",
        build=_step(MasksOfEachRank),
        caught_by=("sampling",),
    ),
    Fault(
        name="An empty local batch is skipped",
        what_happened="Opacus' distributed sampler: one rank ends early, draws of two steps mix",
        build=_step(EmptyLocalBatchesSkipped),
        caught_by=("sampling",),
    ),
    Fault(
        name="Every rank takes the whole batch",
        what_happened="Opacus without a distributed sampler: all ranks train on the same data",
        build=_step(WholeBatchOnEveryRank),
        caught_by=("contribution", "sampling"),
    ),
]
