"""Check 1 for a private index: one unit moves the sums of a round by at most 2, whatever it holds.

For every unit of a sample in turn, the sums with it and without it are compared on the real index,
the noise frozen by the key so that it cancels. Embeddings are made up to be the worst there are:
opposite ones beside each other, far too long ones, ones that are not finite; with k so small that
another record enters where one leaves, and so large that fewer than k are found. A unit that is not
in the sample may change nothing, to the bit.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rapid_dist.audit.contribution import CHECK, MARGIN, UNITS
from rapid_dist.audit.index_subject import SENSITIVITY, Exactly, IndexSubject, unit_rows
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.votes import units_that_vote
from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.keys import SecretKey

DIM = 8
_NEIGHBORS = (1, 2)  # Beside the recipe's own k.
_SAMPLES: dict[Profile, int] = {"quick": 3, "full": 20}  # Random ones, beside everybody.
_SAMPLED = ("opposite", "in all directions")  # Embeddings that random samples are drawn from.
_NOT_FINITE = (math.nan, math.inf, -math.inf)


def check_index_contribution(subject: IndexSubject, profile: Profile) -> list[CheckResult]:
    """Leaves every unit out of many rounds in turn, and changes units that are not in them."""
    own = _on_few(subject, UNITS[profile])
    rng = np.random.default_rng(0)
    kinds = _embeddings(own.images, rng)
    samples = _samples(own, _SAMPLES[profile], rng)
    # More than there are records, so that every answer finds fewer neighbours than k.
    many = max(own.mechanism.neighbors, len(own.images) + 1)
    found = {
        (kind, neighbors): max(
            _longest(_asking(own, neighbors), embeddings, sample)
            for sample in (samples if kind in _SAMPLED else samples[:1])
        )
        for kind, embeddings in kinds.items()
        for neighbors in sorted({*_NEIGHBORS, own.mechanism.neighbors})
    }
    few = {
        (kind, many): _longest(_asking(own, many), embeddings, samples[-1])
        for kind, embeddings in kinds.items()
    }
    poisoned = {value: _poisoned(own, kinds["opposite"], value) for value in _NOT_FINITE}
    longest = max(found.values())
    return [
        _row(
            "Does no unit move the sums of a round by more than 2?",
            longest,
            f"{own.mechanism.num_records} units left out of {len(samples)} samples in turn. "
            + _listing(found),
        ),
        _row(
            "Is it so where fewer neighbours are found than the sum is divided by?",
            max(few.values()),
            _listing(few),
        ),
        _row(
            "Does a unit without a finite embedding neither pass 2 nor spoil the sums?",
            max(poisoned.values()),
            " ".join(f"{value:g}: {ratio:.6f}." for value, ratio in poisoned.items()),
        ),
        CheckResult(
            check=CHECK,
            question="Did a unit let its opposite in, so that the bound was tried at all?",
            statistic=f"longest contribution {SENSITIVITY * longest:.6f}",
            bound="at least 1.98",
            false_alarm=0.0,
            passed=longest >= 0.99,
        ),
        _absent_row(own, kinds),
        _embedding_row(subject),
    ]


def _on_few(subject: IndexSubject, units: int) -> IndexSubject:
    """The subject on a few units, half of them of the first class, so that k of it are found."""
    images = units_that_vote(subject.images, min(units, subject.images.spec.num_units))
    labels = images.labels.copy()
    labels[_owner(images) % 2 == 0] = 0
    return subject.on(replace(images, labels=labels))


def _asking(subject: IndexSubject, neighbors: int) -> IndexSubject:
    return replace(subject, mechanism=replace(subject.mechanism, neighbors=neighbors))


def _questions(num_classes: int) -> np.ndarray:
    """float32 [Y, D]: the last axis, for all classes."""
    questions = np.zeros((num_classes, DIM), np.float32)
    questions[:, -1] = 1.0
    return questions


def _embeddings(images: PrivateImages, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Embeddings of all images by name, float32 [N, D] each."""
    count = len(images)
    opposite = np.zeros((count, DIM), np.float32)
    opposite[:, 0] = np.where(_owner(images) // 2 % 2, -1.0, 1.0)  # All at one distance.
    random = unit_rows(rng.standard_normal((count, DIM)))
    return {
        "opposite": opposite,
        "in all directions": random,
        "of all lengths": random * np.geomspace(1e-30, 1e30, count)[:, None].astype(np.float32),
        "opposite and long": 50 * opposite,
        "one for all": np.repeat(random[:1], count, axis=0),
    }


def _samples(subject: IndexSubject, count: int, rng: np.random.Generator) -> list[list[int]]:
    units = subject.mechanism.num_records
    drawn = [np.flatnonzero(rng.random(units) < 0.6).tolist() for _ in range(count)]
    return [list(range(units)), *drawn]


def _sums(
    subject: IndexSubject, embeddings: np.ndarray, units: Sequence[int], key: SecretKey
) -> np.ndarray:
    """The sums of a round on these units, and its noise, float64 [Y, D]."""
    index = subject.index(embeddings, key, sampler=Exactly(list(units)))
    answer = index.answer(0, _questions(subject.num_classes))
    return answer.astype(np.float64) * subject.mechanism.neighbors


def _longest(subject: IndexSubject, embeddings: np.ndarray, units: list[int]) -> float:
    """The most that leaving one of the units out moves the sums by, in units of 2."""
    key = subject.new_key()
    whole = _sums(subject, embeddings, units, key)
    moves = [
        np.linalg.norm(
            whole - _sums(subject, embeddings, [other for other in units if other != gone], key)
        )
        for gone in units
    ]
    worst = max((math.inf if math.isnan(move) else float(move) for move in moves), default=0.0)
    # Each coordinate was rounded to float32: after the noise, and after the division.
    rounding = 2 * math.sqrt(2) * float(np.finfo(np.float32).eps * np.linalg.norm(whole))
    return max(0.0, worst - rounding) / SENSITIVITY


def _poisoned(subject: IndexSubject, embeddings: np.ndarray, value: float) -> float:
    """The same where unit 0 has no finite embedding: it may move nothing, and spoil nothing."""
    poisoned = embeddings.copy()
    owner = _owner(subject.images)
    poisoned[owner == 0, -1] = value
    with np.errstate(invalid="ignore"):
        return _longest(_asking(subject, 1), poisoned, list(range(subject.mechanism.num_records)))


def _owner(images: PrivateImages) -> np.ndarray:
    return np.arange(len(images)) if images.groups is None else images.groups


def _absent_row(subject: IndexSubject, kinds: dict[str, np.ndarray]) -> CheckResult:
    """Changes the images, labels and embeddings of a unit that the sample does not hold."""
    owner, units = _owner(subject.images), subject.mechanism.num_records
    key, changed = subject.new_key(), []
    for kind in ("opposite", "in all directions"):
        for absent in range(0, units, 2):
            others = [unit for unit in range(units) if unit != absent]
            own = owner == absent
            embeddings = kinds[kind].copy()
            embeddings[own] = -3 * np.roll(embeddings[own], 1, axis=1)
            images, labels = subject.images.images.copy(), subject.images.labels.copy()
            images[own] = 255 - images[own]
            labels[own] = (labels[own] + 1) % subject.num_classes
            other = replace(subject, images=replace(subject.images, images=images, labels=labels))
            changed.append(
                not np.array_equal(
                    _sums(subject, kinds[kind], others, key), _sums(other, embeddings, others, key)
                )
            )
    return CheckResult(
        check=CHECK,
        question="Does a unit that is not in the sample change no bit of the answers?",
        statistic=f"{sum(changed)} of {len(changed)} changes were seen",
        bound="none",
        false_alarm=0.0,
        passed=not any(changed),
        detail="Another image, another class, another embedding; one unit at a time.",
    )


def _embedding_row(subject: IndexSubject) -> CheckResult:
    """Replaces images one at a time, and looks at the embeddings of all others."""
    images = subject.images.images
    whole, touched, count = subject.embed(images), 0, min(8, len(images))
    for place in range(count):
        changed = images.copy()
        changed[place] = 255 - changed[place]
        others = np.arange(len(images)) != place
        touched += int((subject.embed(changed)[others] != whole[others]).any())
    return CheckResult(
        check=CHECK,
        question="Is a record's embedding a function of that record alone?",
        statistic=f"{touched} of {count} replaced images changed another's embedding",
        bound="none",
        false_alarm=0.0,
        passed=touched == 0,
    )


def _row(question: str, ratio: float, detail: str) -> CheckResult:
    return CheckResult(
        check=CHECK,
        question=question,
        statistic=f"longest contribution {SENSITIVITY * ratio:.6f}",
        bound=f"at most {SENSITIVITY * (1 + MARGIN):.6f}",
        false_alarm=0.0,
        passed=ratio <= 1 + MARGIN,
        detail=detail,
    )


def _listing(found: dict[tuple[str, int], float]) -> str:
    return " ".join(
        f"{kind.capitalize()}, k={neighbors}: {SENSITIVITY * ratio:.6f}."
        for (kind, neighbors), ratio in found.items()
    )
