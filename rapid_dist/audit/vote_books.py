"""Check 4 for rounds of votes: each is charged before a vote is counted, and refused if not paid.

The product's own function charges and counts, with its own keeper, on a ledger in a temporary
folder. The histogram is watched: when it is counted, and by what noise.
"""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rapid_dist.audit.accountants import pld_epsilon
from rapid_dist.audit.accounting import CHECK
from rapid_dist.audit.contribution import extreme_images
from rapid_dist.audit.observed import DurableFolder
from rapid_dist.audit.result import CheckResult
from rapid_dist.audit.subject import Subject, VoteRound
from rapid_dist.errors import RapidError
from rapid_dist.privacy.ledger import Entry
from rapid_dist.privacy.settings import Budget

_UNITS, _CLUSTERS = 4, 3
_TIMES = 2  # A crash after the votes asks for them again.


@dataclass(kw_only=True)
class _Counted:
    """What was seen of a round of votes that was asked a few times."""

    noises: list[float] = field(default_factory=list)  # Of every histogram that was counted.
    late: int = 0  # Histograms that were counted before their entry was durable.
    entries: list[Entry] = field(default_factory=list)
    refusals: int = 0


def check_vote_books(subject: Subject) -> list[CheckResult]:
    """Asks every round of votes of the plan twice, and once where it is not paid for."""
    return [line for asked in subject.votes for line in _books(subject, asked)]


def _books(subject: Subject, asked: VoteRound) -> list[CheckResult]:
    delta = subject.budget.delta
    price = pld_epsilon([asked.query] * _TIMES, delta, 1e-3)
    paid = _asked(subject, asked, Budget(epsilon=2 * price + 1, delta=delta))
    once = pld_epsilon([asked.query], delta, 1e-3)
    poor = _asked(subject, asked, Budget(epsilon=max(1e-3, 0.5 * once), delta=delta))
    charged = [entry.event.noise_multiplier for entry in paid.entries if entry.event is not None]
    return [
        CheckResult(
            check=CHECK,
            question=f"Is {asked.what} charged, at its own noise, before a vote is counted?",
            statistic=(
                f"{len(charged)} entries for {len(paid.noises)} histograms, {paid.late} of them "
                f"counted first; noise {_listed(paid.noises)}, charged {_listed(charged)}"
            ),
            bound=f"{_TIMES} for {_TIMES}, none; noise {asked.query.noise_multiplier:g}, charged "
            "alike",
            false_alarm=0.0,
            passed=paid.noises == charged == [asked.query.noise_multiplier] * _TIMES
            and paid.late == 0,
        ),
        CheckResult(
            check=CHECK,
            question=f"Is {asked.what} refused on a budget that does not pay for it?",
            statistic=f"{poor.refusals} refusals, {len(poor.noises)} histograms",
            bound=f"{_TIMES} refusals, 0 histograms",
            false_alarm=0.0,
            passed=poor.refusals == _TIMES and not poor.noises and not poor.entries,
        ),
    ]


def _asked(subject: Subject, asked: VoteRound, budget: Budget) -> _Counted:
    units = min(_UNITS, subject.images.spec.num_units)
    own, seen = subject.on(extreme_images(subject.images, units)), _Counted()
    own = replace(own, mechanism=replace(own.mechanism, steps=1))
    name, images = own.images.spec.name, own.images

    def counted(*arguments: Any, **named: Any) -> np.ndarray:
        seen.noises.append(float(named["noise_multiplier"]))
        seen.late += folder.durable("query") < len(seen.noises)
        return own.noised_histogram(*arguments, **named)

    with tempfile.TemporaryDirectory() as place:
        folder = DurableFolder(Path(place), name)
        keeper = own.make_keeper(folder.storage, name, own.mechanism, budget)
        for _ in range(_TIMES):
            try:
                own.charged_histogram(
                    images,
                    np.arange(len(images)) % _CLUSTERS,
                    asked.query,
                    num_classes=max(1, images.spec.num_classes),
                    num_clusters=_CLUSTERS,
                    keeper=keeper,
                    note=asked.what,
                    noise=own.mechanism.noise,
                    purpose=asked.purpose,
                    new_key=own.new_key,
                    histogram=counted,
                )
            except RapidError:
                seen.refusals += 1
        seen.entries = [one for one in folder.ledger().entries() if one.kind == "query"]
    return seen


def _listed(noises: list[float]) -> str:
    return ", ".join(f"{noise:g}" for noise in dict.fromkeys(noises)) or "none"
