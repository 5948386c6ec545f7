"""The claim, in words a data-protection officer can check, from the ledger alone."""

import math
from dataclasses import dataclass

from rapid_dist.errors import LedgerError
from rapid_dist.privacy.accounting import Epsilons, PrivacyPlan, epsilons
from rapid_dist.privacy.dataset_total import dataset_epsilons
from rapid_dist.privacy.keeper import stopped_short
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import (
    DiscreteDpSgdEvent,
    DiscreteGaussianEvent,
    DiscreteRetrievalEvent,
    GaussianEvent,
    RetrievalEvent,
)
from rapid_dist.privacy.settings import Budget, PrivacyConfig

_FAST = (
    "The accounting is for ideal Gaussian noise; the noise added is float32, from a Philox "
    "generator keyed by the operating system."
)
_SECURE = (
    "The noise added to whole numbers is discrete Gaussian, drawn exactly and accounted as such. "
    "It, and who takes part in a step, come from ChaCha20 streams keyed by the operating system."
)
_RELATIONS = {"zero_out": "replacing any one {unit} by nothing (zero-out; their number is public)"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What may be said of one run's model, and of its data set. All of it is public."""

    dataset: str
    run: str
    num_units: int  # Records, or groups where the unit is a group.
    relation: str
    unit: str
    unit_name: str  # What one unit is: "record", "patient".
    unit_note: str  # What has to be said of the unit beside the claim, or nothing.
    budget: Budget
    spent: Epsilons  # By the run, all attempts and queries together.
    dataset_spent: Epsilons  # By all runs that the ledger holds.
    num_steps: int  # Of DP-SGD, or rounds of retrieval.
    num_rounds: int = 0  # Of retrieval among the steps.
    num_queries: int
    num_discrete: int  # Entries of the ledger among those with secure noise.
    num_entries: int
    ledger_head: str
    stopped: str = ""  # How the run stopped short of its plan, if it did.

    @property
    def within_budget(self) -> bool:
        return self.spent.reported <= self.budget.epsilon

    @property
    def sentence(self) -> str:
        """The claim in one sentence."""
        units, unit = "records", self.unit_name
        if self.unit == "group":
            # No plural of a name that somebody else chose.
            units = "groups of images" + ("" if unit == "group" else f" (each one {unit})")
            unit = f"{unit} with all its images"
        relation = _RELATIONS[self.relation].format(unit=unit)
        return (
            f"Everything that run {self.run!r} releases of the {self.num_units:,} private "
            f"{units} of {self.dataset!r} is ({rounded_up(self.spent.reported)}, "
            f"{self.budget.delta:g})-differentially private under {relation}."
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """The claim, what it rests on, and what it does not cover."""
        spent, whole = self.spent, self.dataset_spent
        side = "within" if self.within_budget else "ABOVE"
        return (
            self.sentence,
            *([self.unit_note] if self.unit_note else []),
            f"That is {side} the run's budget of epsilon {self.budget.epsilon:g}. The ledger holds "
            f"{self._steps} and "
            f"{_counted(self.num_queries, 'Gaussian query', 'Gaussian queries')} of this run, "
            f"composed at delta {self.budget.delta:g}: PLD {rounded_up(spent.pld)}, "
            f"PRV {rounded_up(spent.prv)} (the larger is claimed), "
            f"RDP {rounded_up(spent.rdp)} for comparison.",
            *([f"The run {self.stopped}."] if self.stopped else []),
            f"All runs ever charged to {self.dataset!r} together: epsilon "
            f"{rounded_up(whole.reported)} for one {self.unit_name} at the same delta. "
            f"Ledger head {self.ledger_head}.",
            f"{self._noise} The claim covers the released model and what is computed from it, not "
            "internal evaluation against private records.",
        )

    @property
    def _steps(self) -> str:
        index = "of answers from a Poisson-sampled index"
        rounds = _counted(self.num_rounds, f"round {index}", f"rounds {index}")
        steps = _counted(self.num_steps - self.num_rounds, "Poisson-sampled Gaussian step")
        if self.num_rounds == 0:
            return steps
        return rounds if self.num_rounds == self.num_steps else f"{steps}, {rounds}"

    @property
    def _noise(self) -> str:
        if self.num_discrete == 0:
            return _FAST
        if self.num_discrete == self.num_entries:
            return _SECURE
        return f"{self.num_discrete} of {self.num_entries} releases: {_SECURE} The others: {_FAST}"


def claim(
    config: PrivacyConfig,
    num_units: int,
    ledger: Ledger,
    run: str,
    *,
    unit_name: str = "",
    unit_note: str = "",
) -> Claim:
    """Returns what the ledger lets one say of a run; epsilon is never taken from its plan.

    Args:
      num_units: the declared N: records, or groups where the unit is a group.
      unit_name: what one unit is; by default the name of its kind.
      unit_note: what has to be said of the unit beside the claim.
    """
    ledger.refresh()
    events = ledger.events(run)
    if not events:
        raise LedgerError(
            f"The ledger of {ledger.dataset!r} holds no release of run {run!r}, so nothing can be "
            "claimed of it. Check the run's name and the ledger's place."
        )
    queries = sum(isinstance(event, GaussianEvent) for event in events)
    return Claim(
        dataset=ledger.dataset,
        run=run,
        num_units=num_units,
        relation=config.relation,
        unit=config.unit,
        unit_name=unit_name or config.unit,
        unit_note=unit_note,
        budget=config.budget,
        spent=epsilons(events, config.delta),
        dataset_spent=dataset_epsilons(ledger, config.delta),
        num_steps=sum(event.steps for event in events if not isinstance(event, GaussianEvent)),
        num_rounds=sum(
            event.steps
            for event in events
            if isinstance(event, RetrievalEvent | DiscreteRetrievalEvent)
        ),
        num_queries=queries,
        num_discrete=sum(
            isinstance(event, DiscreteGaussianEvent | DiscreteDpSgdEvent) for event in events
        ),
        num_entries=len(events),
        ledger_head=ledger.head,
        stopped=stopped_short(ledger, run)[1],
    )


def require_charged(plan: PrivacyPlan, ledger: Ledger, run: str) -> None:
    """Refuses a ledger that cannot be the one a finished run was charged to.

    A ledger that was moved, restored from an old copy or cut at its end still has a whole chain,
    but it lacks what the run has released. Steps that a run had to leave out, because crashes had
    taken what would have paid for them, are not missing: the ledger itself says so.

    Raises:
      LedgerError: a planned query or a planned step of the run is not in the ledger.
    """
    ledger.refresh()
    entries = [entry for entry in ledger.entries() if entry.run == run]
    stopped_at, _ = stopped_short(ledger, run)
    steps = plan.stepped.steps if plan.stepped else 0
    planned = set(range(steps if stopped_at is None else min(steps, stopped_at)))
    missing = planned - {entry.step for entry in entries if entry.kind == "step"}
    # By their purposes: one that a crash made to be asked twice stands for no other.
    queries = {entry.note for entry in entries if entry.kind == "query"}
    if missing or len(queries) < len(plan.queries):
        what = "the prior's query" if plan.contamination is None else "a planned query"
        lacking = f"{len(missing)} of {len(planned)} steps" if missing else what
        raise LedgerError(
            f"Run {run!r} is finished, but the ledger of {ledger.dataset!r} lacks {lacking} of it, "
            "so nothing can be claimed. Bring back the ledger that the run was charged to."
        )


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def rounded_up(epsilon: float) -> str:
    """Returns epsilon with four decimals, never rounded towards a stronger claim."""
    return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}"
