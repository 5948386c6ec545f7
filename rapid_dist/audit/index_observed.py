"""A run of the loop over a private index's rounds, with everything that can be seen of it.

The parts under test are the subject's; around them stand watchers that change nothing: of the
index, of the keeper, of the ledger's files and of what is written and printed.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rapid_dist.audit.contained import contained
from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.audit.observed import Crash, DurableFolder, Observed, WatchedKeeper
from rapid_dist.errors import RapidError
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.index import PrivateIndex
from rapid_dist.storage import LocalStorage


def observe_index(
    subject: IndexSubject,
    folder: Path,
    budget: Budget,
    *,
    lose: int | None = None,
    canned: Callable[[int], np.ndarray] | None = None,
) -> Observed:
    """Asks all rounds once in ``folder``; asked again there, the loop goes on.

    Args:
      lose: the answer, counted from 1, at which the run ends before it is stored.
      canned: round -> what is answered instead; the mechanism runs all the same.
    """
    seen, ledger = Observed(messages=[[]]), folder_of(subject, folder)
    before = ledger.durable_steps()
    keeper = subject.make_keeper(
        ledger.storage, subject.images.spec.name, subject.mechanism, budget
    )

    def paid() -> None:
        seen.looks += 1
        seen.late += ledger.durable_steps() < before + len(seen.released) + 1

    with contained(folder) as said:
        try:
            subject.ask(
                subject.images,
                subject.embed(subject.images.images),
                questions_of(subject),
                subject.mechanism,
                num_classes=subject.num_classes,
                keeper=WatchedKeeper(keeper, seen),
                storage=_Losing(folder / "answers", lose),
                on_round=lambda figures: seen.figures.append(dict(figures)),
                index_type=_watched(subject.index_type, seen, paid, canned),
                new_key=subject.new_key,
            )
        except Crash:
            pass
        except RapidError as error:
            seen.refusal = str(error)
    seen.said = said
    return seen


def questions_of(subject: IndexSubject) -> np.ndarray:
    """The audit's own questions, float32 [T, Y, D]: embeddings of stand-ins, in turn."""
    rounds, classes = subject.mechanism.steps, subject.num_classes
    found = subject.embed(subject.images.images)
    return found[np.arange(rounds * classes) % len(found)].reshape(rounds, classes, -1)


def _watched(
    index_type: type[PrivateIndex],
    seen: Observed,
    paid: Callable[[], None],
    canned: Callable[[int], np.ndarray] | None,
) -> type[PrivateIndex]:
    class Watched(index_type):  # type: ignore[misc, valid-type]
        def _sums(self, present: np.ndarray, questions: np.ndarray) -> np.ndarray:
            paid()
            sums: np.ndarray = super()._sums(present, questions)
            return sums

        def answer(self, step: int, questions: np.ndarray) -> np.ndarray:
            answered: np.ndarray = super().answer(step, questions)
            paid()
            seen.released.append((self._attempt, step))
            return answered if canned is None else canned(step)

    return Watched


class _Losing(LocalStorage):
    """A folder whose owner dies when it is given a certain file."""

    def __init__(self, root: Path, lose: int | None) -> None:
        super().__init__(root, sync=lambda descriptor: None)
        self._left = lose

    def write(self, name: str, data: bytes) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise Crash
        super().write(name, data)


def folder_of(subject: IndexSubject, folder: Path) -> DurableFolder:
    """Returns the folder of the ledger that runs observed in ``folder`` are charged to."""
    return DurableFolder(folder / "ledger", subject.images.spec.name)


def keeper_of(subject: IndexSubject, folder: Path, budget: Budget) -> LedgerKeeper:
    """Returns a new keeper of that ledger."""
    storage = folder_of(subject, folder).storage
    return subject.make_keeper(storage, subject.images.spec.name, subject.mechanism, budget)
