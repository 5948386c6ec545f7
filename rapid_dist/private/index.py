"""A private index that answers public questions under noise (DP-RDM, Lebensold et al. 2024).

A round draws a fresh, secret Poisson sample of all privacy units and puts one public question to
each class: what is the mean embedding of its k nearest records in the sample? The round is charged,
then sampled, summed, noised and divided by k, whatever number was found. An empty sample is a round
of noise, and is charged. Why one round of all classes moves by 2 at most, and costs what a step of
DP-SGD costs, stands at ``RetrievalConfig``.

That proof needs every record's embedding, length and distance to be a function of that record and
the question alone. So distances are summed in float64 row by row, never by one product of matrices,
whose rounding may depend on who else is in it; and ties go to the smaller place among the N.

Letters: N images, U privacy units, Y classes, D dimensions, k neighbors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from rapid_dist.data.images import PrivateImages
from rapid_dist.errors import BudgetError, ConfigError, DataError
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import RetrievalConfig
from rapid_dist.privacy.noise import new_noise
from rapid_dist.privacy.poisson import PoissonSampler, sampler_for

_LONGEST = 1.0 - 2.0**-12  # Of an embedding: room for what float32 sums round.


@dataclass(frozen=True, kw_only=True)
class PrivateIndexConfig:
    """How a private index is asked (method dp_rdm). The noise of its answers is solved.

    privacy.steps, expected_batch, noise_multiplier and max_grad_norm are DP-SGD's, and not read.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    neighbors: int = 32  # k: an answer is a sum of at most so many embeddings, divided by k.
    sample_rate: float = 0.5  # Chance that a unit is in a round's secret sample.
    rounds: int = 16  # Questions that are put to each class: all that will ever be asked.

    def __post_init__(self) -> None:
        for name in ("neighbors", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"private_index.{name} must be at least 1, got {getattr(self, name)}."
                )
        if not 0 < self.sample_rate <= 1:
            raise ConfigError(
                f"private_index.sample_rate must be in (0, 1], got {self.sample_rate}."
            )


class PrivateIndex:
    """Answers the rounds of one attempt. Holds private embeddings: it is not shown or stored."""

    def __init__(
        self,
        images: PrivateImages,
        embeddings: np.ndarray,
        mechanism: RetrievalConfig,
        *,
        num_classes: int,
        key: SecretKey,
        attempt: int,
        charge: Callable[[int], None],
        sampler: PoissonSampler | None = None,
    ) -> None:
        """Takes the embeddings of all images, float32 [N, D], each of that image alone.

        Args:
          charge: is told the number of a round, and returns when the round is in the ledger.
          sampler: the audit's and the tests'; nobody else gives one.

        Raises:
          DataError: the mechanism was planned for another number of units.
        """
        if images.spec.num_units != mechanism.num_records:
            raise DataError(
                f"The plan is for {mechanism.num_records} privacy units, {images.spec.name} "
                f"declares {images.spec.num_units}. Plan again with that number."
            )
        self._labels, self._groups = images.labels, images.groups
        self._embeddings = bounded(embeddings)
        self._mechanism, self._num_classes = mechanism, num_classes
        self._key, self._attempt, self._charge = key, attempt, charge
        self._answered: set[int] = set()
        self._sampler = sampler or sampler_for(mechanism.noise)(
            key, mechanism.num_records, mechanism.sample_rate, attempt
        )
        self._noise = new_noise(
            mechanism.noise,
            mechanism.sensitivity,
            mechanism.noise_multiplier,
            key,
            attempt,
            purpose="retrieval",
        )

    def __repr__(self) -> str:
        return "PrivateIndex(hidden)"

    def answer(self, step: int, questions: np.ndarray) -> np.ndarray:
        """Returns one noised mean a class, float32 [Y, D]. Charged before anything is looked up.

        Args:
          step: the number of the round; an attempt has one answer to it, for its noise and its
            sample are drawn by that number.
          questions: float32 [Y, D], public, one a class.

        Raises:
          BudgetError: the round is not paid for, or was answered in this attempt.
        """
        if step in self._answered:
            raise BudgetError(
                f"Round {step} was answered in this attempt; a second answer would have the same "
                "noise. Begin another attempt, which pays for it."
            )
        if questions.shape != (self._num_classes, self._embeddings.shape[1]):
            raise ConfigError(
                f"A round asks [{self._num_classes}, {self._embeddings.shape[1]}] questions, got "
                f"{list(questions.shape)}. Give one a class, of the embeddings' dimension."
            )
        self._charge(step)  # Durable on return (P6).
        self._answered.add(step)
        present = self._images_of(self._sampler.batch(step), step)
        return self._noised(self._sums(present, questions), step)

    def _sums(self, present: np.ndarray, questions: np.ndarray) -> np.ndarray:
        """Images int64 [B] in the round's sample -> sums over each class's nearest, float64 [Y, D].

        In units of the grid where noise is of whole numbers.
        """
        units, values = self._noise.units, self._embeddings
        if units is not None:  # Rounded towards zero, so each is units / 2 long at most.
            values = np.trunc(values * (units / 2))
        return nearest_sums(
            self._embeddings, values, self._labels, present, questions, self._mechanism.neighbors
        )

    def _noised(self, sums: np.ndarray, step: int) -> np.ndarray:
        """Adds the round's noise, and divides by k, whatever number was found: float32 [Y, D]."""
        kind = torch.float32 if self._noise.units is None else torch.int64
        noised = self._noise.release(torch.from_numpy(sums).to(kind).flatten(), step)
        means: np.ndarray = noised.numpy().reshape(sums.shape) / self._mechanism.neighbors
        return means.astype(np.float32)

    def _images_of(self, units: np.ndarray, step: int) -> np.ndarray:
        """Units int64 [B] -> images int64 [at most B], ascending; a group sends one of its own.

        Which one is drawn from a stream of that group alone, anew in every round. So a unit is one
        record of the round's index, whatever number of images it has.
        """
        if self._groups is None:
            return units
        chosen = []
        order = np.argsort(self._groups, kind="stable")
        ends = np.cumsum(np.bincount(self._groups, minlength=self._mechanism.num_records))
        for unit in units.tolist():
            own = order[ends[unit - 1] if unit else 0 : ends[unit]]
            if len(own):
                stream = self._key.generator("retrieval images", self._attempt, step, unit)
                chosen.append(int(own[stream.integers(len(own))]))
        return np.sort(np.array(chosen, np.int64))


def bounded(embeddings: np.ndarray) -> np.ndarray:
    """Clips every row of float32 [N, D] to length 1, as float64; one that is not finite is NaN.

    A row is a function of that row alone.
    """
    rows = embeddings.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
        rows *= np.minimum(1.0, 1.0 / np.maximum(lengths, 1e-30)) * _LONGEST
    rows[~np.isfinite(rows).all(axis=1)] = np.nan
    return rows


def nearest_sums(
    places: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
    present: np.ndarray,
    questions: np.ndarray,
    neighbors: int,
) -> np.ndarray:
    """Returns, for each class, the sum of its records nearest to its question, float64 [Y, D].

    Leaving one record out of ``present`` moves the result by twice the longest row of ``values`` at
    most, and only in the row of its class.

    Args:
      places: float64 [N, D], by which distances are taken; a row that is not finite is in no index.
      values: float64 [N, D], what is summed.
      labels: int64 [N].
      present: int64 [B], the records in the sample, ascending.
      questions: float32 [Y, D].
    """
    present = present[np.isfinite(places[present]).all(axis=1)]
    sums = np.zeros(questions.shape)
    for label, question in enumerate(questions.astype(np.float64)):
        own = present[labels[present] == label]
        distances = np.square(places[own] - question).sum(axis=1)
        nearest = own[np.argsort(distances, kind="stable")[:neighbors]]
        sums[label] = values[nearest].sum(axis=0)
    return sums
