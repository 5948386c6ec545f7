"""Faulty private indexes: whom they sample, what they sum, and by what noise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.noise import Noise, new_noise
from rapid_dist.privacy.poisson import PoissonSampler, sampler_for
from rapid_dist.private.index import PrivateIndex
from tests.faults.catalogue import IndexFault
from tests.models import private_images


class MeanOfFound(PrivateIndex):
    """The sum is divided by the number of neighbours that were there."""

    def _sums(self, present: np.ndarray, questions: np.ndarray) -> np.ndarray:
        sums, k = super()._sums(present, questions), self._mechanism.neighbors
        found = np.bincount(self._labels[present], minlength=len(questions)).clip(1, k)
        return np.trunc(sums * (k / found)[:, None]) if self._noise.units else (
            sums * (k / found)[:, None]
        )  # fmt: skip


class Unbounded(PrivateIndex):
    """Embeddings are what the network says, of whatever length."""

    def __init__(self, images: Any, embeddings: np.ndarray, *args: Any, **named: Any) -> None:
        super().__init__(images, embeddings, *args, **named)
        self._embeddings = embeddings.astype(np.float64)


class Centred(PrivateIndex):
    """Embeddings are moved by the mean of all, as a whitened index has them."""

    def __init__(self, images: Any, embeddings: np.ndarray, *args: Any, **named: Any) -> None:
        mean = embeddings[np.isfinite(embeddings).all(axis=1)].mean(axis=0)
        super().__init__(images, embeddings - mean, *args, **named)


class WholePatients(PrivateIndex):
    """Every image of a patient that was drawn is in the index."""

    def _images_of(self, units: np.ndarray, step: int) -> np.ndarray:
        return np.flatnonzero(np.isin(self._groups, units))


class _OwnSampler(PrivateIndex):
    """An index with a sampler of another kind, where it is not given one."""

    def __init__(self, *args: Any, sampler: PoissonSampler | None = None, **named: Any) -> None:
        super().__init__(*args, sampler=sampler, **named)
        if sampler is None:
            self._sampler = self.replaced(named["key"], named["attempt"])

    def replaced(self, key: SecretKey, attempt: int) -> PoissonSampler:
        raise NotImplementedError

    def usual(self, key: SecretKey, attempt: int, rate: float | None = None) -> PoissonSampler:
        mechanism = self._mechanism
        rate = mechanism.sample_rate if rate is None else rate
        return sampler_for(mechanism.noise)(key, mechanism.num_records, rate, attempt)


class NotSubsampled(_OwnSampler):
    """All records are in every round."""

    def replaced(self, key: SecretKey, attempt: int) -> PoissonSampler:
        return self.usual(key, attempt, rate=1.0)


class _Kept(PoissonSampler):
    """The first draw, for ever."""

    def __init__(self, inner: PoissonSampler) -> None:
        self._inner = inner

    def batch(self, step: int) -> np.ndarray:
        return self._inner.batch(0)


class OneSample(_OwnSampler):
    """The sample is drawn when the index is built, and all questions are put to it."""

    def replaced(self, key: SecretKey, attempt: int) -> PoissonSampler:
        return _Kept(self.usual(key, attempt))


class _SeededSampler(PoissonSampler):
    """The usual draw under a key that everybody knows."""

    def __init__(self, num_records: int, rate: float, attempt: int) -> None:
        super().__init__(SecretKey(bytes(KEY_BYTES)), num_records, rate, attempt)


class SeededSample(_OwnSampler):
    """The sample follows from the seed of the recipe."""

    def replaced(self, key: SecretKey, attempt: int) -> PoissonSampler:
        return _SeededSampler(self._mechanism.num_records, self._mechanism.sample_rate, attempt)


class _FixedSize(PoissonSampler):
    def batch(self, step: int) -> np.ndarray:
        size = round(self._num_records * self._sample_rate)
        rng = self._key.generator("fixed", step, self._attempt)
        return np.sort(rng.choice(self._num_records, size, replace=False))


class FixedSize(_OwnSampler):
    """A subset of one size, accounted as Poisson."""

    def replaced(self, key: SecretKey, attempt: int) -> PoissonSampler:
        return _FixedSize(key, self._mechanism.num_records, self._mechanism.sample_rate, attempt)


class _NeverEmpty(PoissonSampler):
    def batch(self, step: int) -> np.ndarray:
        drawn = super().batch(step)
        return drawn if len(drawn) else np.zeros(1, np.int64)


class NeverEmpty(_OwnSampler):
    """An empty sample gets a record, so that there is somebody to ask."""

    def replaced(self, key: SecretKey, attempt: int) -> PoissonSampler:
        return _NeverEmpty(key, self._mechanism.num_records, self._mechanism.sample_rate, attempt)


class EmptyIsZero(PrivateIndex):
    """Nobody was drawn, so there is nothing to hide."""

    def _noised(self, sums: np.ndarray, step: int) -> np.ndarray:
        return super()._noised(sums, step) if sums.any() else sums.astype(np.float32)


class _OwnNoise(PrivateIndex):
    """An index with noise of another kind."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._noise = self.replaced(named["key"], named["attempt"])

    def replaced(self, key: SecretKey, attempt: int) -> Noise:
        raise NotImplementedError

    def usual(self, key: SecretKey, attempt: int, share: float = 1.0) -> Noise:
        mechanism = self._mechanism
        scale = share * mechanism.noise_multiplier
        return new_noise(mechanism.noise, 2.0, scale, key, attempt, purpose="retrieval")


class WeakNoise(_OwnNoise):
    """The multiplier is 5% below what was accounted."""

    def replaced(self, key: SecretKey, attempt: int) -> Noise:
        return self.usual(key, attempt, 0.95)


class SensitivityOfOne(_OwnNoise):
    """One record leaves the sum; that the next one enters was not thought of."""

    def replaced(self, key: SecretKey, attempt: int) -> Noise:
        return self.usual(key, attempt, 0.5)


class NoiseOfTheSeed(_OwnNoise):
    """The noise follows from the seed of the recipe."""

    def replaced(self, key: SecretKey, attempt: int) -> Noise:
        return self.usual(SecretKey(bytes(KEY_BYTES)), attempt)


class AskedAgainAlike(_OwnNoise):
    """The stream forgets the attempt: an answer that was lost comes back with the same noise."""

    def replaced(self, key: SecretKey, attempt: int) -> Noise:
        return self.usual(key, 1)


class OneNoiseForAllRounds(PrivateIndex):
    """The noise is drawn once."""

    def _noised(self, sums: np.ndarray, step: int) -> np.ndarray:
        return super()._noised(sums, 0)


class OneNoiseForAllClasses(PrivateIndex):
    """Noise in the shape of one answer, added to all of a round."""

    def _noised(self, sums: np.ndarray, step: int) -> np.ndarray:
        alone = super()._noised(np.zeros_like(sums), step)[:1]
        return (sums / self._mechanism.neighbors + alone).astype(np.float32)


def with_index(kind: type[PrivateIndex]) -> Callable[[IndexSubject], IndexSubject]:
    return lambda subject: replace(subject, index_type=kind)


def _patients(subject: IndexSubject) -> IndexSubject:
    grouped = private_images(12, np.arange(12, dtype=np.int64) // 3)
    return replace(subject, index_type=WholePatients).on(grouped)


FAULTS = [
    IndexFault(
        name="A mean of neighbours is divided by the number found",
        what_happened="A mean as in every search library; exact where a class is large enough",
        build=with_index(MeanOfFound),
        caught_by=("contribution", "sampling"),
    ),
    IndexFault(
        name="Embeddings in the index are not normalised",
        what_happened="Released code of DP-RDM warns of a violated norm and goes on",
        build=with_index(Unbounded),
        caught_by=("contribution",),
    ),
    IndexFault(
        name="Embeddings are centred by their private mean",
        what_happened="Whitening of an index, as for better neighbours; every record moves all",
        build=with_index(Centred),
        caught_by=("contribution",),
    ),
    IndexFault(
        name="A patient is in the index with all images",
        what_happened="A unit of many images, and an index that knows only images",
        build=_patients,
        caught_by=("contribution",),
    ),
    IndexFault(
        name="The index is not subsampled",
        what_happened="The rate in the accountant alone",
        build=with_index(NotSubsampled),
        caught_by=("sampling",),
    ),
    IndexFault(
        name="One sample of the index for all rounds",
        what_happened="The sample is drawn when the index is built, and the index is kept",
        build=with_index(OneSample),
        caught_by=("sampling",),
    ),
    IndexFault(
        name="The sample of the index from the recipe's seed",
        what_happened="random.sample after a seed for reproducible figures",
        build=with_index(SeededSample),
        caught_by=("sampling",),
    ),
    IndexFault(
        name="A sample of the index of one size, accounted as Poisson",
        what_happened="A random subset by choice(), without replacement",
        build=with_index(FixedSize),
        caught_by=("sampling",),
    ),
    IndexFault(
        name="An empty sample of the index gets a record",
        what_happened="A search library that refuses an empty index",
        build=with_index(NeverEmpty),
        caught_by=("sampling",),
    ),
    IndexFault(
        name="An empty sample of the index is answered without noise",
        what_happened="if not found: return zeros, before the noise is added",
        build=with_index(EmptyIsZero),
        caught_by=("noise", "sampling"),
    ),
    IndexFault(
        name="Noise of an answer 5% too small",
        what_happened="A multiplier that was priced for another k or rate",
        build=with_index(WeakNoise),
        caught_by=("noise",),
    ),
    IndexFault(
        name="Answers priced as if a record only left",
        what_happened="Sensitivity 1 / k where the next neighbour enters: half of the noise",
        build=with_index(SensitivityOfOne),
        caught_by=("noise", "empirical epsilon"),
    ),
    IndexFault(
        name="Noise of answers from the recipe's seed",
        what_happened="torch.manual_seed before sampling, as every sampler script has it",
        build=with_index(NoiseOfTheSeed),
        caught_by=("noise",),
    ),
    IndexFault(
        name="A lost answer comes back with the same noise",
        what_happened="A stream that is keyed by the round and forgets the attempt",
        build=with_index(AskedAgainAlike),
        caught_by=("noise",),
    ),
    IndexFault(
        name="One noise for all rounds",
        what_happened="Noise drawn beside the index; differences of answers have none",
        build=with_index(OneNoiseForAllRounds),
        caught_by=("noise",),
    ),
    IndexFault(
        name="One noise for the answers of all classes",
        what_happened="Noise drawn in the shape of an embedding and broadcast",
        build=with_index(OneNoiseForAllClasses),
        caught_by=("noise",),
    ),
]
