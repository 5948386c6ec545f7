"""The one who pays: charges a run's releases to the ledger, within the run's budget.

The only writer of a run. It charges *before* a release: ``charge`` returns when the entry is
durable, and only then may noise be drawn. A plain class; the cluster runs it as an actor, as is.
"""

import re
from dataclasses import dataclass, replace

from rapid_dist.errors import BudgetError, LedgerError
from rapid_dist.privacy.accounting import Epsilons, affordable_steps, epsilons
from rapid_dist.privacy.dataset_total import dataset_epsilons
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent, GaussianEvent
from rapid_dist.privacy.settings import Budget

_SHORT = "stopped after step"  # How the note of a run begins that its budget has ended.
_UNIT = re.compile(r"unit=(\S+) ")  # In the note of an attempt.


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One try at a run, from a start or a restart to its end."""

    number: int  # From 1; part of the key of everything random in the attempt.
    affordable_steps: int  # Steps that the rest of the budget pays for, at most what is planned.


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerTotals:
    """What was spent on one private data set, by all runs together and by each."""

    unit: str | None  # Whose epsilons these are; None while nothing was released.
    dataset: Epsilons
    runs: dict[str, Epsilons]


class LedgerKeeper:
    """Charges one run's steps and queries; refuses what would pass the budget."""

    def __init__(
        self,
        ledger: Ledger,
        run: str,
        budget: Budget,
        event: DpSgdEvent,
        planned_steps: int,
        reserve_steps: int = 0,
        unit: str = "record",
    ) -> None:
        """Takes the run's plan.

        Args:
          event: the constants of one step.
          planned_steps: steps of a run without mishap; steps are numbered below it.
          reserve_steps: steps the plan paid for on top, for a crash to repeat.
          unit: what one unit of sensitivity is, "record" or "group:" and the column that makes
            the groups; runs on one ledger must agree in it.
        """
        self._ledger = ledger
        self._run = run
        self._budget = budget
        self._event = replace(event, steps=1)
        self._planned_steps = planned_steps
        self._most_steps = planned_steps + reserve_steps
        self._unit = unit
        self._attempt = 0
        self._affordable = 0

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Attempt:
        """Fences all older attempts, and counts the steps that are left to this one.

        Counting asks the accountants once, so that a charge is then one write to the ledger.

        Args:
          after: of the checkpoint that the attempt goes on from: the attempt that wrote it, and its
            number of finished steps.

        Raises LedgerError, and charges nothing, if the ledger holds runs of another privacy unit,
        or lacks what has paid for the checkpoint.
        """
        note = (
            f"unit={self._unit} epsilon={self._budget.epsilon} delta={self._budget.delta} "
            f"planned_steps={self._planned_steps} most_steps={self._most_steps}"
        )
        self._refuse_other_units()
        if after is not None:
            self._refuse_unpaid(*after)
        self._attempt = self._ledger.begin_attempt(self._run, note)
        self._count_affordable()
        return Attempt(number=self._attempt, affordable_steps=self._affordable)

    def charge(self, step: int, attempt: int | None = None) -> None:
        """Charges one step; it is durable on return, and only then may be taken.

        Args:
          attempt: the number of the attempt that asks. One keeper serves all attempts of a group
            of workers, and a worker thought dead may still ask it.

        Raises BudgetError, leaving no entry, if the step would pass the run's budget, and
        LedgerError if a newer attempt has begun.
        """
        self._require_attempt(attempt)
        if not 0 <= step < self._planned_steps:
            raise BudgetError(
                f"Step {step} of run {self._run!r} is not among the {self._planned_steps} planned "
                "ones. Plan more steps."
            )
        if self._affordable < 1:
            raise BudgetError(
                f"Step {step} of run {self._run!r} would pass epsilon={self._budget.epsilon} at "
                f"delta={self._budget.delta}: {len(self._ledger.events(self._run))} releases are "
                "charged already. Raise privacy.reserve_steps in the next run's plan."
            )
        self._affordable -= 1  # First: a step whose entry may or may not exist is spent.
        self._ledger.append("step", self._run, attempt=self._attempt, step=step, event=self._event)

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        """Notes that the run ends before ``step``, and why; durable on return. Charges nothing.

        From then on nobody misses that step, or a later one, in the ledger.
        """
        self._require_attempt(attempt)
        note = f"{_SHORT} {step} of {self._planned_steps}, for the budget pays for no more"
        self._ledger.append("note", self._run, attempt=self._attempt, step=step, note=note)

    def stopped(self) -> str:
        """Returns how the run stopped short of its plan, or nothing if it did not."""
        self._ledger.refresh()
        return stopped_short(self._ledger, self._run)[1]

    def charge_query(self, event: GaussianEvent, purpose: str) -> None:
        """Charges one release of a Gaussian query, such as the prior's histogram.

        Durable on return, and refused as in ``charge``. The steps left are counted anew.
        """
        self._require_attempt()
        total = epsilons([*self._ledger.events(self._run), event], self._budget.delta)
        if total.reported > self._budget.epsilon:
            raise BudgetError(
                f"Query {purpose!r} of run {self._run!r} would bring epsilon to "
                f"{total.reported:.4f}; the budget is {self._budget.epsilon} at "
                f"delta={self._budget.delta}. Give the query more noise."
            )
        self._ledger.append("query", self._run, attempt=self._attempt, event=event, note=purpose)
        self._count_affordable()

    def affordable_steps(self) -> int:
        """Returns how many steps this attempt may still take."""
        return self._affordable

    def spent(self) -> Epsilons:
        """Returns what the run has spent, all attempts and queries together."""
        self._ledger.refresh()
        return epsilons(self._ledger.events(self._run), self._budget.delta)

    def _count_affordable(self) -> None:
        self._affordable = affordable_steps(
            self._ledger.events(self._run), self._budget, self._event, self._most_steps
        )

    def _refuse_other_units(self) -> None:
        """Epsilons of images, of patients and of clinics do not add up to an epsilon of any."""
        self._ledger.refresh()
        for run, unit in _units(self._ledger):
            if unit != self._unit:
                raise LedgerError(
                    f"Run {self._run!r} has the privacy unit {self._unit!r}, but run {run!r} on "
                    f"the ledger of {self._ledger.dataset!r} has {unit!r}: what they cost "
                    f"together cannot be said. Set privacy.unit and group_column to {unit!r}."
                )

    def _refuse_unpaid(self, attempt: int, done: int) -> None:
        """What is cut off a ledger is its end, so the last step's entry stands for all before."""
        if not any(
            (entry.kind, entry.run, entry.attempt, entry.step)
            == ("step", self._run, attempt, done - 1)
            for entry in self._ledger.entries()
        ):
            raise LedgerError(
                f"The ledger of {self._ledger.dataset!r} lacks step {done - 1} of attempt "
                f"{attempt} of run {self._run!r}, by which the checkpoint of {done} steps was "
                "made: it was cut off, or is not the ledger that was charged. Bring that one back."
            )

    def _require_attempt(self, attempt: int | None = None) -> None:
        if self._attempt == 0:
            raise LedgerError(f"Run {self._run!r} charges before its attempt; begin_attempt first.")
        if attempt not in (None, self._attempt):
            raise LedgerError(
                f"Attempt {attempt} of run {self._run!r} is fenced: attempt {self._attempt} has "
                "begun. Stop this process."
            )


def stopped_short(ledger: Ledger, run: str) -> tuple[int | None, str]:
    """Returns the step before which a run ended because of its budget, and that in words.

    (None, "") for a run that was never stopped so.
    """
    for entry in reversed(ledger.entries()):
        if entry.run == run and entry.kind == "note" and entry.note.startswith(_SHORT):
            return entry.step, entry.note
    return None, ""


def totals(ledger: Ledger, delta: float) -> LedgerTotals:
    """Returns the epsilons of a data set at one delta.

    The composition holds for runs whose constants did not depend on earlier runs' releases;
    choosing them by looking is what selection has to price.
    """
    units = _units(ledger)
    return LedgerTotals(
        unit=units[0][1] if units else None,
        dataset=dataset_epsilons(ledger, delta),
        runs={run: epsilons(ledger.events(run), delta) for run in ledger.runs()},
    )


def _units(ledger: Ledger) -> list[tuple[str, str]]:
    """(run, its unit) of every attempt of the runs that released something, in order."""
    released = set(ledger.runs())
    found = [
        (entry.run, _UNIT.match(entry.note))
        for entry in ledger.entries()
        if entry.kind == "attempt" and entry.run in released
    ]
    return [(run, unit[1]) for run, unit in found if unit]
