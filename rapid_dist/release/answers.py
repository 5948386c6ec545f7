"""The answers of a private index, as a bundle carries them (source "answers", method dp_rdm).

    answers.npz    noised mean embeddings and the class that each is of

An answer was noised and charged when it was given; any number of images from it costs nothing. The
bundle's network has a row of its class table for each answer, in this order.

Letters: A answers, D dimensions, n samples.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from rapid_dist.data.images import Int64Array
from rapid_dist.diffusion.seeds import generator_for
from rapid_dist.errors import ConfigError
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays

FILE = "answers.npz"


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Noised mean embeddings of private neighbours; public, because each was charged."""

    embeddings: np.ndarray  # float32 [A, D]
    labels: Int64Array  # [A], the class whose records answered.

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.embeddings) != len(self.labels):
            raise ConfigError(
                f"Answers need one class each, got {self.embeddings.shape} embeddings and "
                f"{len(self.labels)} classes."
            )
        classes = int(self.labels.max()) + 1 if len(self.labels) else 0
        if len(np.unique(self.labels)) != max(1, classes):
            raise ConfigError(
                f"Every class needs an answer, got {len(np.unique(self.labels))} of {classes}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    def draw(self, labels: Int64Array, seed: int, ids: Int64Array) -> Int64Array:
        """Returns the answer that each sample is made from, int64 [n]: one of its class, evenly.

        A pure function of (labels[i], seed, ids[i]): no batch matters.
        """
        rows = np.empty(len(labels), np.int64)
        for place, (label, sample) in enumerate(zip(labels.tolist(), ids.tolist(), strict=True)):
            own = np.flatnonzero(self.labels == label)
            rows[place] = own[generator_for(seed, "answer", sample).integers(len(own))]
        return rows

    def to_bytes(self) -> bytes:
        """Returns an npz without pickle, the same bytes for the same answers."""
        return pack_arrays({"embeddings": self.embeddings, "labels": self.labels})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads ``to_bytes``."""
        return cls(**unpack_arrays(data, FILE))
