"""What all runs on one data set have cost together, whatever they were part of.

Runs compose. A sweep that lets one of a secret number of runs leave (``repeat_and_select``) is one
mechanism instead, of the price that its declaration on the ledger fixes: composed run by run, the
total would tell how many runs there were, on which that price rests.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rapid_dist.errors import LedgerError
from rapid_dist.privacy.accounting import Epsilons, epsilons
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent, Event, GaussianEvent
from rapid_dist.privacy.selection import Candidate, RunsConfig, beside_selections

_KEY = "secret_sweep"


@dataclass(frozen=True, kw_only=True)
class SecretSweep:
    """A sweep whose number of runs nobody may be told; its runs are named after it."""

    name: str
    runs: RunsConfig
    possible: tuple[Candidate, ...]  # Everything that one run can be.

    def has(self, run: str) -> bool:
        return run.startswith(f"{self.name}-")


def declare_secret(
    ledger: Ledger, name: str, runs: RunsConfig, possible: Sequence[Candidate]
) -> None:
    """Writes the sweep's constants to the ledger; durable on return, and before any run of it."""
    content = {
        _KEY: name,
        "runs": asdict(runs),
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


def secret_sweeps(ledger: Ledger) -> list[SecretSweep]:
    """Returns the sweeps on the ledger that make its number of entries a secret.

    Raises:
      LedgerError: a declaration cannot be read, so no total can be claimed.
    """
    found = []
    for entry in ledger.entries():
        if entry.kind == "note" and entry.note.startswith(f'{{"{_KEY}"'):
            try:
                content = json.loads(entry.note)
                found.append(
                    SecretSweep(
                        name=entry.run,
                        runs=RunsConfig(**content["runs"]),
                        possible=tuple(_candidate(one) for one in content["possible"]),
                    )
                )
            except (ValueError, TypeError, KeyError) as error:
                raise LedgerError(
                    f"Entry {entry.index} of the ledger of {ledger.dataset!r} declares a sweep "
                    f"that this version cannot read ({error}). Use the version {entry.code}."
                ) from error
    return found


def has_secret(ledger: Ledger) -> bool:
    """Whether the number and the places of the ledger's entries may not be told."""
    return bool(secret_sweeps(ledger))


def dataset_epsilons(ledger: Ledger, delta: float) -> Epsilons:
    """Returns what everything ever released from the data set costs together.

    Where a sweep of a secret number of runs is among it, by Rényi divergences alone, for which the
    theorem is stated; all accountants then show that one figure.
    """
    secret = secret_sweeps(ledger)
    if not secret:
        return epsilons(ledger.events(), delta)
    others = [
        entry.event
        for entry in ledger.entries()
        if entry.event is not None and not any(sweep.has(entry.run) for sweep in secret)
    ]
    total = beside_selections([(one.possible, one.runs) for one in secret], others, delta)
    return Epsilons(delta=delta, pld=total, prv=total, rdp=total)


def _candidate(content: dict[str, Any]) -> Candidate:
    return Candidate(
        training=tuple(_event(one) for one in content["training"]),
        score=tuple(_event(one) for one in content["score"]),
    )


def _event(content: dict[str, Any]) -> Event:
    return (DpSgdEvent if "sample_rate" in content else GaussianEvent)(**content)
