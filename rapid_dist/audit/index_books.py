"""Checks 4 and 5 for a private index: rounds charged are rounds asked, and nothing else shows.

The product's loop over all rounds and its keeper run on a ledger in a temporary folder: once
undisturbed, once with a crash between an answer and its file, followed by a resume, and once on a
budget that does not pay. Answers are counted where they leave the index, entries in the ledger's
files, and durable entries by what was synced to the disk.
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rapid_dist.audit.accountants import pld_epsilon, prv_epsilon, rounds_of
from rapid_dist.audit.accounting import (
    CHECK,
    compared,
    epsilon_of_plan,
    plan_is_ledger,
    within_budget,
)
from rapid_dist.audit.contribution import extreme_images
from rapid_dist.audit.control_flow import same_bytes, same_course
from rapid_dist.audit.index_observed import folder_of, keeper_of, observe_index, questions_of
from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.audit.observed import Observed
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.data.images import PrivateImages
from rapid_dist.errors import RapidError
from rapid_dist.privacy.accounting import Epsilons
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.ledger import Entry, Ledger
from rapid_dist.privacy.settings import Budget

_UNITS = 12
_ROUNDS: dict[Profile, int] = {"quick": 5, "full": 20}
_CRASH_AT = 2  # The answer, counted from 1, that is lost before it is stored.


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """An undisturbed run; a crashed one, resumed; one asked once more; one that is not paid for."""

    subject: IndexSubject
    quiet: Observed
    quiet_entries: list[Entry]  # Of its rounds.
    broken: list[Observed]  # Until the crash, and after it.
    broken_entries: list[Entry]
    claimed: Epsilons  # Of the crashed run, by a keeper opened after it.
    again: Observed  # The same loop on a run that has all its answers.
    beyond: Observed
    last: str  # By which the round after the last was refused.


def check_index_accounting(subject: IndexSubject, profile: Profile) -> list[CheckResult]:
    """Asks, crashes and resumes, and compares the books with what was seen."""
    rounds = _ROUNDS[profile]
    runs = _make_runs(subject, rounds)
    return [
        _all_charged(runs),
        _charged_first(runs),
        compared(
            subject.budget.delta,
            [rounds_of(runs.subject.mechanism, sum(len(one.released) for one in runs.broken))],
            runs.claimed,
            question="Is the epsilon of a crashed and resumed run the one of all that it answered?",
            detail="Claimed by the keeper, from the ledger.",
        ),
        plan_is_ledger(subject, rounds_of(runs.subject.mechanism, rounds), runs.quiet_entries),
        epsilon_of_plan(subject),
        within_budget(subject),
        _refused_beyond(runs),
    ]


def check_index_control_flow(subject: IndexSubject, profile: Profile) -> list[CheckResult]:
    """Asks neighbouring data sets under one key, and compares all that shows."""
    secret = subject.new_key().reveal()
    small = replace(_small(subject, _ROUNDS[profile]), new_key=lambda: SecretKey.from_bytes(secret))
    budget = _ample(small)

    def run(images: PrivateImages, folder: Path) -> Observed:
        return observe_index(replace(small, images=images), folder, budget)

    def canned(images: PrivateImages, folder: Path) -> Observed:
        return observe_index(replace(small, images=images), folder, budget, canned=_canned(small))

    return [same_course(small.images, run), same_bytes(small.images, canned)]


def _canned(subject: IndexSubject) -> Callable[[int], np.ndarray]:
    dim = subject.embed(subject.images.images[:1]).shape[1]

    def answers(step: int) -> np.ndarray:
        rng = np.random.default_rng(step)
        found: np.ndarray = rng.standard_normal((subject.num_classes, dim)).astype(np.float32)
        return found

    return answers


def _small(subject: IndexSubject, rounds: int) -> IndexSubject:
    few = min(_UNITS, subject.images.spec.num_units)
    small = subject.on(extreme_images(subject.images, few))
    return replace(small, mechanism=replace(small.mechanism, steps=rounds))


def _ample(subject: IndexSubject) -> Budget:
    """Twice what all rounds cost, and one more."""
    delta, rounds = subject.budget.delta, subject.mechanism.steps
    spent = pld_epsilon([rounds_of(subject.mechanism, rounds + 1)], delta, 1e-3)
    return Budget(epsilon=2 * spent + 1, delta=delta)


def _make_runs(subject: IndexSubject, rounds: int) -> _Runs:
    small = _small(subject, rounds)
    ample = _ample(small)
    few = [rounds_of(small.mechanism, rounds - 1)]
    enough = max(of(few, ample.delta) for of in (pld_epsilon, prv_epsilon))
    tight = replace(ample, epsilon=1.01 * enough)  # For all rounds but one.
    with tempfile.TemporaryDirectory() as place:
        quiet, broken, beyond = (Path(place, name) for name in ("quiet", "broken", "beyond"))
        undisturbed = observe_index(small, quiet, ample)
        quiet_entries = _entries(small, quiet)
        return _Runs(
            subject=small,
            quiet=undisturbed,
            quiet_entries=quiet_entries,
            broken=[
                observe_index(small, broken, ample, lose=_CRASH_AT),
                observe_index(small, broken, ample),
            ],
            broken_entries=_entries(small, broken),
            claimed=keeper_of(small, broken, ample).spent(),
            again=observe_index(small, quiet, ample),
            beyond=observe_index(small, beyond, tight),
            last=_after_the_last(small, quiet, ample),
        )


def _after_the_last(subject: IndexSubject, folder: Path, budget: Budget) -> str:
    """Asks for one more round than were planned, on a budget that would pay; says what it met."""
    keeper = keeper_of(subject, folder, budget)
    embeddings = subject.embed(subject.images.images)
    attempt = keeper.begin_attempt().number
    index = subject.index(
        embeddings,
        subject.new_key(),
        attempt=attempt,
        charge=lambda step: keeper.charge(step, attempt),
    )
    try:
        index.answer(subject.mechanism.steps, questions_of(subject)[0])
    except RapidError as error:
        return str(error)
    return ""


def _entries(subject: IndexSubject, folder: Path) -> list[Entry]:
    """Entries of rounds as somebody else reads them; none if the ledger does not hold together."""
    try:
        ledger: Ledger = folder_of(subject, folder).ledger()
        return [entry for entry in ledger.entries() if entry.kind == "step"]
    except RapidError:
        return []


def _all_charged(runs: _Runs) -> CheckResult:
    answered = [one for part in runs.broken for one in part.released]
    charged = [(entry.attempt, entry.step) for entry in runs.broken_entries]
    rounds = runs.subject.mechanism.steps
    whole = len(runs.quiet.released) == len(runs.quiet_entries) == rounds
    repeated = len(answered) - len({step for _, step in answered})
    return CheckResult(
        check=CHECK,
        question="Does the ledger hold every round that was answered, repeated ones again?",
        statistic=(
            f"{len(charged)} entries, {len(answered)} answers; {repeated} round asked twice; "
            f"{len(runs.again.released)} asked again of a run that has all"
        ),
        bound="the same number, attempts and rounds; none",
        false_alarm=0.0,
        passed=whole and Counter(charged) == Counter(answered) and not runs.again.released,
        detail=(
            f"{rounds} rounds with a crash before answer {_CRASH_AT} was stored, and a resume; and "
            f"the same undisturbed: {len(runs.quiet_entries)} entries."
        ),
    )


def _charged_first(runs: _Runs) -> CheckResult:
    parts = [runs.quiet, *runs.broken]
    late, looks = sum(part.late for part in parts), sum(part.looks for part in parts)
    answers = sum(len(part.released) for part in parts)
    return CheckResult(
        check=CHECK,
        question="Is an entry synced to the disk before the index is looked at?",
        statistic=f"{late} of {looks} looks found no synced entry",
        bound=f"0 of {2 * answers}",
        false_alarm=0.0,
        passed=late == 0 and looks == 2 * answers > 0,
        detail="Looked when neighbours are summed, and when the answer leaves.",
    )


def _refused_beyond(runs: _Runs) -> CheckResult:
    made, refused = len(runs.beyond.released), bool(runs.beyond.refusal)
    return CheckResult(
        check=CHECK,
        question="Is a round refused that the budget does not pay for, or that was not planned?",
        statistic=(
            f"{made} answers on a budget for {runs.subject.mechanism.steps - 1} rounds, then "
            f"{'a refusal' if refused else 'no refusal'}; the round after the last "
            f"{'refused' if runs.last else 'answered'}"
        ),
        bound="at most those that it pays for, and an end there; refused",
        false_alarm=0.0,
        passed=made < runs.subject.mechanism.steps and refused and bool(runs.last),
    )
