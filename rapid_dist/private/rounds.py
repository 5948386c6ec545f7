"""All rounds of a private index: each is charged, answered and stored once (method dp_rdm).

An answer that is stored is never asked for again. One that a crash has lost after its charge is
asked for, and charged, again: out of the plan's reserve. Where the budget then does not pay for all
that are left, those that it pays for are all, and the ledger says so.
"""

import re
from collections.abc import Callable

import numpy as np

from rapid_dist.data.images import PrivateImages
from rapid_dist.errors import BudgetError
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import RetrievalConfig
from rapid_dist.private.index import PrivateIndex
from rapid_dist.private.loop import Keeper
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays
from rapid_dist.storage import Storage

_FILE = re.compile(r"round-(\d+)\.npz")
OnRound = Callable[[dict[str, float]], object]


def waiting_rounds(storage: Storage, rounds: int) -> list[int]:
    """Returns the rounds that have no stored answer, ascending."""
    return [step for step in range(rounds) if not storage.exists(_file(step))]


def answered_rounds(storage: Storage) -> list[int]:
    """Returns the rounds that have a stored answer, ascending."""
    return [int(found[1]) for name in storage.list("round-") if (found := _FILE.fullmatch(name))]


def stored_answers(storage: Storage, rounds: int) -> np.ndarray:
    """Returns the answers of all rounds, float32 [T, Y, D]; fewer of a run that stopped short."""
    given = [step for step in range(rounds) if storage.exists(_file(step))]
    return np.stack([_answers(storage, step) for step in given])


def ask_rounds(
    images: PrivateImages,
    embeddings: np.ndarray,
    questions: np.ndarray,
    mechanism: RetrievalConfig,
    *,
    num_classes: int,
    keeper: Keeper,
    storage: Storage,
    on_round: OnRound,
    index_type: type[PrivateIndex] = PrivateIndex,
    new_key: Callable[[], SecretKey] = SecretKey.generate,
) -> None:
    """Puts every round of questions that has no answer yet, in one attempt.

    Args:
      embeddings: float32 [N, D], each of its image alone.
      questions: float32 [T, Y, D], public and fixed before the first answer.
      storage: for the answers, which are noised and so public.
      index_type, new_key: the audit's and the tests'; nobody else gives them.

    Raises:
      BudgetError: the budget does not pay for a single round.
    """
    waiting = waiting_rounds(storage, mechanism.steps)
    if not waiting:
        return
    attempt = keeper.begin_attempt()
    paid = waiting[: attempt.affordable_steps]
    if not paid and len(waiting) == mechanism.steps:
        raise BudgetError(
            f"The budget pays for none of the run's {mechanism.steps} rounds any more. Use another "
            "--out, and plan with privacy.reserve_steps to pay for repeats."
        )
    index = index_type(
        images,
        embeddings,
        mechanism,
        num_classes=num_classes,
        key=new_key(),
        attempt=attempt.number,
        charge=lambda step: keeper.charge(step, attempt.number),
    )
    for step in paid:
        found = index.answer(step, questions[step])
        storage.write(_file(step), pack_arrays({"answers": found}))
        on_round({"step": step + 1, "steps": mechanism.steps})
    if len(paid) < len(waiting):
        keeper.stop_short(waiting[len(paid)], attempt.number)


def _file(step: int) -> str:
    return f"round-{step:06d}.npz"


def _answers(storage: Storage, step: int) -> np.ndarray:
    return unpack_arrays(storage.read(_file(step)), _file(step))["answers"]
