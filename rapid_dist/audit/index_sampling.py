"""Check 3 for a private index: every unit is in every round's sample on a coin of its own.

Who was in a round is read off its answer: all units are of one class, each has an axis of its own
for an embedding, k is larger than their number, and the noise so small that it hides nobody. The
sampler is the one that the index makes for itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rapid_dist.audit.draws import CHECK, NUM_UNITS, ONE_EXPECTED, RATE, Draws, rows_of_draws
from rapid_dist.audit.index_subject import Exactly, IndexSubject
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.keys import SecretKey

_ROUNDS: dict[Profile, int] = {"quick": 600, "full": 6_000}
_OWN_ROUNDS: dict[Profile, int] = {"quick": 100, "full": 1_000}  # At the recipe's own rate.
_FAINT = 2.0**-10  # Noise multiplier under which everybody can be told.


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What came of a few rounds."""

    times: np.ndarray  # float64 [T, N]: how much of each unit's embedding was in each sum.
    charged: list[int]
    noised: int  # Rounds whose answer is not zero everywhere.

    @property
    def present(self) -> np.ndarray:
        found: np.ndarray = self.times > 0.5
        return found


def check_index_sampling(subject: IndexSubject, profile: Profile) -> list[CheckResult]:
    """Looks at who is drawn, with whom, how many, how often nobody, and what is divided by."""
    rounds, own_rounds = _ROUNDS[profile], _OWN_ROUNDS[profile]
    small, sparse = _told_apart(subject, RATE), _told_apart(subject, ONE_EXPECTED)
    rate, key = subject.mechanism.sample_rate, subject.new_key()
    few = _seen(sparse, subject.new_key(), rounds)
    draws = Draws(
        drawn=_seen(small, key, rounds).present,
        again=_seen(small, key, rounds // 3, attempt=2).present,
        other=_seen(small, subject.new_key(), rounds // 3).present,
        few=few.present,
        own=_seen(_told_apart(subject, rate), subject.new_key(), own_rounds).present,
        own_rate=rate,
    )
    return [
        *rows_of_draws(draws, batches="rounds", where=""),
        CheckResult(
            check=CHECK,
            question="Is every round charged once and noised, whether or not anybody was drawn?",
            statistic=f"{len(few.charged)} charged and {few.noised} noised of {rounds}",
            bound="all",
            false_alarm=0.0,
            passed=few.charged == list(range(rounds)) and few.noised == rounds,
        ),
        _division_row(small),
    ]


def _told_apart(subject: IndexSubject, rate: float) -> IndexSubject:
    """Units of one class, each its own image, so few that k neighbours are never found."""
    spec = replace(subject.images.spec, num_records=NUM_UNITS, num_classes=0, num_groups=None)
    pixels = subject.images.images[np.arange(NUM_UNITS) % len(subject.images)]
    labels = np.zeros(NUM_UNITS, np.int64)
    images = PrivateImages(images=pixels, labels=labels, spec=spec)
    mechanism = replace(
        subject.mechanism, sample_rate=rate, neighbors=2 * NUM_UNITS, noise_multiplier=_FAINT
    )
    return replace(subject, mechanism=mechanism).on(images)


def _answers(
    subject: IndexSubject, key: SecretKey, rounds: int, attempt: int, **named: object
) -> np.ndarray:
    """Answers of so many rounds, float64 [T, N], before the division by the declared k."""
    axes = np.eye(NUM_UNITS, dtype=np.float32)
    index = subject.index(axes, key, attempt=attempt, **named)  # type: ignore[arg-type]
    question = np.zeros((1, NUM_UNITS), np.float32)
    found = np.stack([index.answer(step, question)[0] for step in range(rounds)])
    return found.astype(np.float64) * subject.mechanism.neighbors


def _seen(subject: IndexSubject, key: SecretKey, rounds: int, attempt: int = 1) -> _Seen:
    charged: list[int] = []
    charge: Callable[[int], None] = charged.append
    times = _answers(subject, key, rounds, attempt, charge=charge)
    return _Seen(times=times, charged=charged, noised=int((times != 0).any(axis=1).sum()))


def _division_row(subject: IndexSubject) -> CheckResult:
    """A sum of few embeddings and one of many, each of known length."""
    key, sizes = subject.new_key(), (NUM_UNITS, 3)
    divisors = []
    for size in sizes:
        sums = _answers(subject, key, 1, 1, sampler=Exactly(list(range(size))))
        mean = float(sums[0, :size].mean()) / subject.mechanism.neighbors
        divisors.append(1 / mean if mean else float("inf"))
    wanted = subject.mechanism.neighbors
    return CheckResult(
        check=CHECK,
        question="Is the sum divided by the declared k, however many neighbours were found?",
        statistic=" and ".join(f"divided by {one:.3f}" for one in divisors),
        bound=f"{wanted}, to 1%",
        false_alarm=0.0,
        passed=all(abs(one / wanted - 1) <= 0.01 for one in divisors),
        detail=f"Of {sizes[0]} and of {sizes[1]} neighbours found.",
    )
