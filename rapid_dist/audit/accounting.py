"""Check 4: what the ledger holds is what was released, and epsilon is what that costs.

The product's loop and its keeper run on a ledger in a temporary folder: once undisturbed, and once
with a crash after a step whose checkpoint is not yet written, followed by a resume. Releases are
counted where they leave the mechanism, updates where the optimizer makes them, entries in the
ledger's files, and durable entries by what was synced to the disk. Epsilon is computed anew, from
the releases that were seen, by the libraries' own accountants (accountants.py).
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rapid_dist.audit.accountants import pld_epsilon, prv_epsilon, rdp_epsilon, steps_of
from rapid_dist.audit.contribution import extreme_images
from rapid_dist.audit.observed import Observed, keeper_of, ledger_of, observe
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.subject import Subject
from rapid_dist.errors import RapidError
from rapid_dist.privacy.accounting import Epsilons
from rapid_dist.privacy.ledger import Entry
from rapid_dist.privacy.mechanism import DpSgdEvent, Event, GaussianEvent
from rapid_dist.privacy.settings import Budget

CHECK = "accounting"
MOST_DISAGREEMENT = 0.05  # Between the product's epsilon and the libraries', upwards.
_TOLERANCE = 1e-6  # Two sums of the same floats.

_UNITS = 6
_STEPS: dict[Profile, int] = {"quick": 6, "full": 20}
_EVERY = 2  # Steps between checkpoints.
_CRASH_AFTER = 3  # Not a multiple of it, so that a step is repeated.


class Planned(Protocol):
    """What a subject says of the recipe's plan."""

    @property
    def planned(self) -> tuple[Event, ...]: ...

    @property
    def queries(self) -> tuple[GaussianEvent, ...]: ...

    @property
    def budget(self) -> Budget: ...

    @property
    def epsilons(self) -> Callable[..., Epsilons]: ...


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """An undisturbed run; a crashed one, resumed; and one that its budget does not pay for."""

    subject: Subject
    quiet: Observed
    quiet_entries: list[Entry]  # Of its steps.
    broken: list[Observed]  # Until the crash, and after it.
    broken_entries: list[Entry]
    claimed: Epsilons  # Of the crashed run, by a keeper opened after it.
    beyond: Observed
    paid_steps: int  # That the last one's budget pays for.


def check_accounting(subject: Subject, profile: Profile) -> list[CheckResult]:
    """Trains, crashes and resumes, and compares the books with what was seen."""
    runs = _make_runs(subject, _STEPS[profile])
    return [
        _all_charged(runs),
        _charged_first(runs),
        _epsilon_of_releases(runs),
        plan_is_ledger(
            subject,
            steps_of(runs.subject.mechanism, runs.subject.mechanism.steps),
            runs.quiet_entries,
        ),
        epsilon_of_plan(subject),
        within_budget(subject),
        _refused_beyond(runs),
    ]


def _make_runs(subject: Subject, steps: int) -> _Runs:
    small = subject.on(extreme_images(subject.images, min(_UNITS, subject.images.spec.num_units)))
    small = replace(
        small,
        config=replace(small.config, checkpoint_every=_EVERY),
        mechanism=replace(small.mechanism, steps=steps),
    )
    delta, event = small.budget.delta, small.mechanism.event
    ample = Budget(epsilon=2 * pld_epsilon([event(steps + _EVERY)], delta, 1e-3) + 1, delta=delta)
    paid = steps // 2
    tight = replace(ample, epsilon=1.02 * pld_epsilon([event(paid)], delta))
    with tempfile.TemporaryDirectory() as place:
        quiet, broken, beyond = (Path(place, name) for name in ("quiet", "broken", "beyond"))
        return _Runs(
            subject=small,
            quiet=observe(small, quiet, ample),
            quiet_entries=_step_entries(small, quiet),
            broken=[
                observe(small, broken, ample, crash_after=_CRASH_AFTER),
                observe(small, broken, ample),
            ],
            broken_entries=_step_entries(small, broken),
            claimed=keeper_of(small, broken, ample).spent(),
            beyond=observe(small, beyond, tight),
            paid_steps=paid,
        )


def _step_entries(subject: Subject, folder: Path) -> list[Entry]:
    """Entries of steps as somebody else reads them; none if the ledger does not hold together."""
    try:
        return [e for e in ledger_of(subject, folder).entries() if e.kind == "step"]
    except RapidError:
        return []


def _all_charged(runs: _Runs) -> CheckResult:
    released = [one for part in runs.broken for one in part.released]
    updates = sum(part.updates for part in runs.broken)
    charged = [(entry.attempt, entry.step) for entry in runs.broken_entries]
    whole = len(runs.quiet.released) == runs.quiet.updates == len(runs.quiet_entries)
    repeated = len(released) - len({step for _, step in released})
    return CheckResult(
        check=CHECK,
        question="Does the ledger hold every noised update that left, repeated ones again?",
        statistic=(
            f"{len(charged)} entries, {len(released)} releases, {updates} updates; "
            f"{repeated} step made twice"
        ),
        bound="the same number of each, and the same attempts and steps",
        false_alarm=0.0,
        passed=whole and updates == len(released) and Counter(charged) == Counter(released),
        detail=(
            f"{runs.subject.mechanism.steps} steps with a crash after step {_CRASH_AFTER} and a "
            f"resume from the checkpoint of step {_CRASH_AFTER - 1}; and the same undisturbed: "
            f"{len(runs.quiet_entries)} entries, {runs.quiet.updates} updates."
        ),
    )


def _charged_first(runs: _Runs) -> CheckResult:
    parts = [runs.quiet, *runs.broken]
    late, looks = sum(part.late for part in parts), 2 * sum(len(part.released) for part in parts)
    return CheckResult(
        check=CHECK,
        question="Is an entry synced to the disk before the sum that it pays for is made?",
        statistic=f"{late} of {looks} looks found no synced entry",
        bound="0",
        false_alarm=0.0,
        passed=late == 0 and looks > 0,
        detail="Looked when the workers' parts are added up, and when the noised sum leaves.",
    )


def _epsilon_of_releases(runs: _Runs) -> CheckResult:
    made = sum(len(part.released) for part in runs.broken)
    return compared(
        runs.subject.budget.delta,
        [steps_of(runs.subject.mechanism, made)],
        runs.claimed,
        question="Is the epsilon of a crashed and resumed run the one of all that it released?",
        detail=f"{made} releases were seen; claimed by the keeper, from the ledger.",
    )


def epsilon_of_plan(subject: Planned) -> CheckResult:
    """Holds what the product says that a plan costs against the libraries."""
    events = subject.planned
    claimed = subject.epsilons(events, subject.budget.delta)
    steps = sum(event.steps for event in events if isinstance(event, DpSgdEvent))
    return compared(
        subject.budget.delta,
        events,
        claimed,
        question="Is the epsilon of the recipe's plan the one of the libraries' accountants?",
        detail=f"{len(subject.queries)} queries, {steps} steps of the recipe, reserve included.",
    )


def within_budget(subject: Planned) -> CheckResult:
    """By the library alone: what was planned to be released, all of it."""
    budget = subject.budget
    found = pld_epsilon(subject.planned, budget.delta)
    return CheckResult(
        check=CHECK,
        question="Does the plan, its queries and its reserve included, meet the budget?",
        statistic=f"epsilon {found:.6f} by PLD",
        bound=f"at most {budget.epsilon:g} at delta {budget.delta:g}",
        false_alarm=0.0,
        passed=found <= budget.epsilon,
    )


def plan_is_ledger(subject: Planned, event: Event, entries: Sequence[Entry]) -> CheckResult:
    """Holds what an undisturbed run was charged against ``event``, which was planned."""
    delta = subject.budget.delta
    planned = subject.epsilons([event], delta).reported
    events = [entry.event for entry in entries if entry.event is not None]
    charged = subject.epsilons(events, delta).reported
    return CheckResult(
        check=CHECK,
        question="Does an undisturbed run cost what was planned?",
        statistic=f"epsilon {charged:.6f} by the ledger",
        bound=f"epsilon {planned:.6f} by the plan",
        false_alarm=0.0,
        passed=abs(charged - planned) <= _TOLERANCE,
        detail=f"{len(entries)} entries.",
    )


def compared(
    delta: float, events: Sequence[Event], claimed: Epsilons, *, question: str, detail: str
) -> CheckResult:
    """Holds a claimed epsilon against the libraries' for the events that were seen."""
    pld, prv, rdp = (of(events, delta) for of in (pld_epsilon, prv_epsilon, rdp_epsilon))
    reported = claimed.reported
    # Its PLD is held against the PLD: what discrete noise costs would be lost in the PRV's error.
    never_below = min(claimed.pld, reported) >= pld - _TOLERANCE
    return CheckResult(
        check=CHECK,
        question=question,
        statistic=f"epsilon {reported:.4f}; PLD {pld:.4f}, PRV {prv:.4f}, RDP {rdp:.4f}",
        bound=f"not below PLD, and at most {MOST_DISAGREEMENT} above the larger of PLD and PRV",
        false_alarm=0.0,
        passed=never_below and reported <= max(pld, prv) + MOST_DISAGREEMENT and rdp >= pld,
        detail=detail,
    )


def _refused_beyond(runs: _Runs) -> CheckResult:
    made = len(runs.beyond.released)
    return CheckResult(
        check=CHECK,
        question="Is a run stopped before it passes its budget?",
        statistic=f"{made} releases, then {'a refusal' if runs.beyond.refusal else 'no refusal'}",
        bound=f"at most the {runs.paid_steps} that the budget pays for, and a refusal",
        false_alarm=0.0,
        passed=made <= runs.paid_steps and bool(runs.beyond.refusal),
        detail=f"{runs.subject.mechanism.steps} steps were asked for.",
    )
