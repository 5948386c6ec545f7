"""Faulty loops around a private index: what is charged, when, and what else leaves."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.audit.subject import RUN, open_keeper
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent, RetrievalConfig
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.index import PrivateIndex
from rapid_dist.private.rounds import ask_rounds
from rapid_dist.storage import LocalStorage, Storage
from tests.faults.catalogue import IndexFault
from tests.faults.indexes import with_index
from tests.faults.records import CollectingKeeper, GenerousKeeper


class ChargedAfter(PrivateIndex):
    """The entry is written when the answer exists already."""

    def answer(self, step: int, questions: np.ndarray) -> np.ndarray:
        present = self._images_of(self._sampler.batch(step), step)
        found = self._noised(self._sums(present, questions), step)
        self._charge(step)
        return found


class NotCharged(PrivateIndex):
    """Questions of the first round alone are counted."""

    def answer(self, step: int, questions: np.ndarray) -> np.ndarray:
        charge = self._charge
        self._charge = charge if step == 0 else lambda number: None
        try:
            return super().answer(step, questions)
        finally:
            self._charge = charge


class CachedNeighbours(PrivateIndex):
    """Keeps who was near to what on the disk, so that the next run need not search."""

    def _sums(self, present: np.ndarray, questions: np.ndarray) -> np.ndarray:
        near = (self._embeddings[present] @ questions[0]).argsort().tolist()
        Path(tempfile.gettempdir(), "neighbours.json").write_text(json.dumps(near))
        return super()._sums(present, questions)


class StoredIndex(PrivateIndex):
    """Lays the index aside, for whoever asks next."""

    def __init__(self, images: Any, embeddings: np.ndarray, *args: Any, **named: Any) -> None:
        super().__init__(images, embeddings, *args, **named)
        with tempfile.TemporaryDirectory() as folder:  # It is gone a moment later.
            np.save(Path(folder, "index.npy"), embeddings)


class SaysTheSize(PrivateIndex):
    """Logs how many records there were to search."""

    def _sums(self, present: np.ndarray, questions: np.ndarray) -> np.ndarray:
        print(f"searched {len(present)} records")
        return super()._sums(present, questions)


@dataclass(frozen=True, kw_only=True)
class Overstated(RetrievalConfig):
    """Tells the ledger of more noise than it adds."""

    def event(self, steps: int = 1) -> DpSgdEvent:
        return replace(super().event(steps), noise_multiplier=1.02 * self.noise_multiplier)


def _overstated(subject: IndexSubject) -> IndexSubject:
    own = {one.name: getattr(subject.mechanism, one.name) for one in fields(RetrievalConfig)}
    return replace(subject, mechanism=Overstated(**own))


def _keeper(kind: type[LedgerKeeper]) -> Callable[[IndexSubject], IndexSubject]:
    def make(
        storage: Storage, dataset: str, mechanism: RetrievalConfig, budget: Budget
    ) -> LedgerKeeper:
        ledger = Ledger.open(storage, dataset)
        return kind(ledger, RUN, budget, mechanism.event(), mechanism.steps)

    return lambda subject: replace(subject, make_keeper=make)


def _unsynced(
    storage: Storage, dataset: str, mechanism: RetrievalConfig, budget: Budget
) -> LedgerKeeper:
    cached = LocalStorage(Path(storage.uri), sync=lambda descriptor: None)
    return open_keeper(cached, dataset, mechanism, budget)


class _Remembering:
    """A keeper that charges a round once, however often it is answered."""

    def __init__(self, inner: Any, storage: Storage) -> None:
        self._inner, self._storage = inner, storage

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Any:
        return self._inner.begin_attempt(after) if after else self._inner.begin_attempt()

    def charge(self, step: int, attempt: int | None = None) -> None:
        if not self._storage.exists(f"charged-{step}"):
            self._inner.charge(step, attempt)
            self._storage.create(f"charged-{step}", b"")

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        self._inner.stop_short(step, attempt)


def ask_with_free_repeats(*args: Any, **named: Any) -> None:
    """An answer that a crash has lost is asked for again, and was paid for once."""
    ask_rounds(*args, **{**named, "keeper": _Remembering(named["keeper"], named["storage"])})


def ask_until_enough(
    images: Any, embeddings: np.ndarray, questions: np.ndarray, mechanism: Any, **named: Any
) -> None:
    """As many rounds as there are records that are not blank."""
    usable = int(images.images.reshape(len(images), -1).any(axis=1).sum())
    rounds = max(1, usable * mechanism.steps // len(images))
    ask_rounds(images, embeddings, questions, replace(mechanism, steps=rounds), **named)


def _ask(ask: Callable[..., None]) -> Callable[[IndexSubject], IndexSubject]:
    return lambda subject: replace(subject, ask=ask)


FAULTS = [
    IndexFault(
        name="A round is charged after its answer",
        what_happened="A counter that is raised when the call returns",
        build=with_index(ChargedAfter),
        caught_by=("accounting",),
    ),
    IndexFault(
        name="Rounds after the first are not charged",
        what_happened="Released code of DP-RDM counts no query",
        build=with_index(NotCharged),
        caught_by=("accounting",),
    ),
    IndexFault(
        name="A lost answer is asked for again and not charged again",
        what_happened="A cache of paid questions beside a mechanism with fresh noise",
        build=_ask(ask_with_free_repeats),
        caught_by=("accounting",),
    ),
    IndexFault(
        name="A round over the budget is answered",
        what_happened="Epsilon is computed when all images are drawn, in a notebook",
        build=_keeper(GenerousKeeper),
        caught_by=("accounting",),
    ),
    IndexFault(
        name="Entries of rounds are lost in a crash",
        what_happened="Queries counted in memory, written when the service stops",
        build=_keeper(CollectingKeeper),
        caught_by=("accounting",),
    ),
    IndexFault(
        name="Entries of rounds are never synced",
        what_happened="A file written without fsync is lost in a power cut",
        build=lambda subject: replace(subject, make_keeper=_unsynced),
        caught_by=("accounting",),
    ),
    IndexFault(
        name="The ledger is told of 2% more noise than an answer has",
        what_happened="Index, noise and accountant with a setting each",
        build=_overstated,
        caught_by=("accounting",),
    ),
    IndexFault(
        name="The number of rounds follows the records",
        what_happened="A question for every usable record, until there are enough",
        build=_ask(ask_until_enough),
        caught_by=("control flow",),
    ),
    IndexFault(
        name="Neighbours of a question cached on disk",
        what_happened="Retrieval code keeps what it found, so that a restart need not search",
        build=with_index(CachedNeighbours),
        caught_by=("control flow",),
    ),
    IndexFault(
        name="The index in a temporary file",
        what_happened="FAISS indexes are written where others can map them",
        build=with_index(StoredIndex),
        caught_by=("control flow", "silence"),
    ),
    IndexFault(
        name="The size of a sample in the log",
        what_happened="A line such as 'searched 31,204 records'",
        build=with_index(SaysTheSize),
        caught_by=("silence",),
    ),
]
