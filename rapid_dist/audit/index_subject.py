"""What is audited of a private index: the product's own parts, each a field to be replaced.

The mechanism of method dp_rdm: rounds of public questions to a secret Poisson sample of all units,
each answered by sums over the nearest embeddings, under noise, divided by a declared k. As
everywhere in the audit, images and embeddings are public stand-ins.

Letters: N units, Y classes, D dimensions, k neighbors, T rounds, q = sample_rate,
z = noise_multiplier.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rapid_dist.audit.accountants import rounds_of
from rapid_dist.audit.subject import not_charged, open_keeper
from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.accounting import Epsilons, epsilons
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import Event, GaussianEvent, RetrievalConfig
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.index import PrivateIndex
from rapid_dist.private.rounds import ask_rounds
from rapid_dist.storage import Storage

# What one unit may move the sums of a round by: it leaves, and another of length 1 enters. The
# audit's own figure: the mechanism might say another.
SENSITIVITY = 2.0


@dataclass(frozen=True, kw_only=True)
class IndexSubject:
    """The parts under test, and what they are tried on."""

    images: PrivateImages  # Public images in the form of the private ones.
    embed: Callable[[np.ndarray], np.ndarray]  # uint8 [n, C, H, W] -> float32 [n, D]
    mechanism: RetrievalConfig  # Of the recipe, planned for as many units as ``images`` holds.
    budget: Budget
    queries: tuple[GaussianEvent, ...] = ()  # All that the recipe's plan asks beside the rounds.
    reserve_steps: int = 0

    # The product's own, all of them.
    index_type: type[PrivateIndex] = PrivateIndex
    ask: Callable[..., None] = ask_rounds
    new_key: Callable[[], SecretKey] = SecretKey.generate
    make_keeper: Callable[[Storage, str, RetrievalConfig, Budget], LedgerKeeper] = open_keeper
    epsilons: Callable[..., Epsilons] = epsilons

    @property
    def planned(self) -> tuple[Event, ...]:
        """All that the recipe's plan releases: queries, rounds, and the reserve."""
        return (*self.queries, rounds_of(self.mechanism, self.mechanism.steps + self.reserve_steps))

    @property
    def num_classes(self) -> int:
        return max(1, self.images.spec.num_classes)

    @property
    def answer_stddev(self) -> float:
        """Stddev of the noise on an answer, from the constants that are priced."""
        return SENSITIVITY * self.mechanism.noise_multiplier / self.mechanism.neighbors

    def on(self, images: PrivateImages) -> "IndexSubject":
        """The same parts on other stand-ins."""
        mechanism = replace(self.mechanism, num_records=images.spec.num_units)
        return replace(self, images=images, mechanism=mechanism)

    def index(
        self,
        embeddings: np.ndarray,
        key: SecretKey,
        *,
        attempt: int = 1,
        charge: Callable[[int], None] = not_charged,
        sampler: PoissonSampler | None = None,
    ) -> PrivateIndex:
        """The index of one attempt, as the loop makes it; ``sampler`` decides who is in a round."""
        return self.index_type(
            self.images,
            embeddings,
            self.mechanism,
            num_classes=self.num_classes,
            key=key,
            attempt=attempt,
            charge=charge,
            sampler=sampler,
        )


class Exactly(PoissonSampler):
    """Draws the same units in every round."""

    def __init__(self, units: list[int]) -> None:
        self._units = np.array(sorted(units), np.int64)

    def batch(self, step: int) -> np.ndarray:
        return self._units


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """float [n, D] -> float32 [n, D], every row of length 1."""
    scaled: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled.astype(np.float32)
