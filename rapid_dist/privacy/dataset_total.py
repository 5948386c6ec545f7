"""What all runs on one data set have cost together, whatever they were part of.

Runs compose, where their constants were fixed beforehand. Two kinds of sweeps are one mechanism
each instead, of a price that their declaration on the ledger fixes before the first run:

- one that lets the best of a secret number of runs leave (``repeat_and_select``). Composed run by
  run, the total would tell how many there were, on which its price rests;
- one that chose constants by earlier scores. Each of its runs counts as the worst it could have
  been, for no composition of what was realised holds for a choice made on the way.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rapid_dist.errors import LedgerError
from rapid_dist.privacy.accounting import Epsilons, epsilons
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent, Event, GaussianEvent
from rapid_dist.privacy.selection import Candidate, RunsConfig, beside_sweeps

SCORE = "-score"  # Ends the name under which the ledger has the scores of a sweep's trial.
_KEY, _PLAIN = "sweep", "sweep promise="


@dataclass(frozen=True, kw_only=True)
class DeclaredSweep:
    """A sweep that is one mechanism in the total; its runs are named after it."""

    name: str
    runs: RunsConfig | None  # How their secret number is drawn; None where it is no secret.
    possible: tuple[Candidate, ...]  # Everything that one run can be.

    def has(self, run: str) -> bool:
        return run.startswith(f"{self.name}-")


def declare(
    ledger: Ledger, name: str, runs: RunsConfig | None, possible: Sequence[Candidate]
) -> None:
    """Writes such a sweep's constants to the ledger; durable on return, and before any run of it.

    Args:
      runs: how a secret number of runs is drawn; None for a search that goes by earlier scores.
    """
    content = {
        _KEY: name,
        "runs": None if runs is None else asdict(runs),
        "possible": [
            {
                part: [asdict(event) for event in getattr(one, part)]
                for part in ("training", "score")
            }
            for one in possible
        ],
    }
    note = json.dumps(content, separators=(",", ":"), allow_nan=False)
    ledger.append("note", name, attempt=0, note=note)


def declare_fixed(ledger: Ledger, name: str, promise: str) -> None:
    """Writes that a sweep's runs follow whose constants are fixed: they compose as they are."""
    ledger.append("note", name, attempt=0, note=f"{_PLAIN}{promise}")


def declared_sweeps(ledger: Ledger) -> list[DeclaredSweep]:
    """Returns the sweeps on the ledger that are one mechanism each.

    Raises:
      LedgerError: a declaration cannot be read, so no total can be claimed.
    """
    found = []
    for entry in ledger.entries():
        if entry.kind == "note" and entry.note.startswith(f'{{"{_KEY}"'):
            try:
                content = json.loads(entry.note)
                runs = content["runs"]
                found.append(
                    DeclaredSweep(
                        name=entry.run,
                        runs=None if runs is None else RunsConfig(**runs),
                        possible=tuple(_candidate(one) for one in content["possible"]),
                    )
                )
            except (ValueError, TypeError, KeyError) as error:
                raise LedgerError(
                    f"Entry {entry.index} of the ledger of {ledger.dataset!r} declares a sweep "
                    f"that this version cannot read ({error}). Use the version {entry.code}."
                ) from error
    return found


def sweep_of(ledger: Ledger, run: str) -> str:
    """Returns the name of the sweep on private data whose trial a run is, or nothing.

    The ledger knows trials by their names, which begin with their sweep's, and by their scores.
    """
    for entry in ledger.entries():
        declares = entry.kind == "note" and entry.note.startswith((_PLAIN, f'{{"{_KEY}"'))
        if declares and run.startswith(f"{entry.run}-"):
            return entry.run
    return "a sweep" if f"{run}{SCORE}" in ledger.runs() else ""


def has_secret(ledger: Ledger) -> bool:
    """Whether the number and the places of the ledger's entries may not be told."""
    return any(one.runs is not None for one in declared_sweeps(ledger))


def dataset_epsilons(ledger: Ledger, delta: float) -> Epsilons:
    """Returns what everything ever released from the data set costs together.

    Where a declared sweep is among it, by Rényi divergences alone, in which those sweeps are
    priced; all accountants then show that one figure.
    """
    declared = declared_sweeps(ledger)
    if not declared:
        return epsilons(ledger.events(), delta)
    others = [
        entry.event
        for entry in ledger.entries()
        if entry.event is not None and not any(sweep.has(entry.run) for sweep in declared)
    ]
    total = beside_sweeps(
        [(one.possible, one.runs or _number(ledger, one)) for one in declared], others, delta
    )
    return Epsilons(delta=delta, pld=total, prv=total, rdp=total)


def _number(ledger: Ledger, sweep: DeclaredSweep) -> int:
    return sum(sweep.has(run) and not run.endswith(SCORE) for run in ledger.runs())


def _candidate(content: dict[str, Any]) -> Candidate:
    return Candidate(
        training=tuple(_event(one) for one in content["training"]),
        score=tuple(_event(one) for one in content["score"]),
    )


def _event(content: dict[str, Any]) -> Event:
    return (DpSgdEvent if "sample_rate" in content else GaussianEvent)(**content)
