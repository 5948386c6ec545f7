"""Check 7 for a private index: how well one record can be told from all answers of a run.

Two worlds, each run many times under fresh keys: one record is in the index, or replaced by
nothing. Everything else is as bad for it as can be: it is the nearest, k is 1, and who enters in
its place is its opposite, so that a round that draws it moves by all of its 2. The guesser sees the
answers of all rounds and says "in" where their likelihood ratio is above 1. What he is right and
wrong on bounds epsilon from below, at a stated confidence, by the whole trade-off curve that the
rounds are priced at.

Unlike a run with thousands of canaries (empirical.py) this is the worst case of one record, so it
sees much smaller faults: with the 400 runs of the quick profile noise a fifth too small, at 16
rounds of the digits recipe.
"""

import math
from dataclasses import replace

import numpy as np
from scipy.special import logsumexp
from scipy.stats import beta

from rapid_dist.audit.accountants import pld_epsilon, rounds_of, trade_off
from rapid_dist.audit.index_subject import SENSITIVITY, IndexSubject
from rapid_dist.audit.one_run import Curve
from rapid_dist.audit.result import EMPIRICAL, CheckResult, Profile
from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.mechanism import DpSgdEvent

RUNS: dict[Profile, int] = {"quick": 400, "full": 4_000}  # In each world.
FALSE_ALARM = 0.05  # Half of it for either share.
MOST_ROUNDS = 100_000  # In each world: of recipes with many rounds, fewer runs are made.
LEAST_RUNS = 100
_MOST_OPPOSITES = 2_000
_LEAST, _MOST, _HALVINGS = 1 / 8, 16.0, 8  # Noise factors that the bound is looked for between.


def check_index_empirical(subject: IndexSubject, profile: Profile) -> list[CheckResult]:
    """Makes both worlds, guesses, and holds the guesses against what was priced."""
    runs = max(LEAST_RUNS, min(RUNS[profile], MOST_ROUNDS // subject.mechanism.steps))
    hits, alarms = (_said_in(subject, runs, present) for present in (True, False))
    delta, steps = subject.budget.delta, subject.mechanism.steps
    claimed = pld_epsilon([_rounds(subject, 1.0)], delta, 1e-3)
    found = _lower_bound(subject, runs, hits, alarms)
    shown = math.floor(100 * found) / 100  # Down: it is a lower bound.
    right = refuted(trade_off([_rounds(subject, 1.0)]), runs, runs, 0)
    return [
        CheckResult(
            check=EMPIRICAL,
            question="Does a record in the index show no more than its epsilon allows?",
            statistic=(
                f"epsilon > {shown:.2f}: said to be in {hits} times of {runs} where it was, and "
                f"{alarms} of {runs} where it was not"
            ),
            bound=f"epsilon {claimed:.2f} of the {steps} rounds, at delta {delta:g}",
            false_alarm=FALSE_ALARM,
            passed=not refuted(trade_off([_rounds(subject, 1.0)]), runs, hits, alarms),
            value=shown,
            detail="The nearest record of its class, k = 1, among its opposites; all rounds seen.",
        ),
        CheckResult(
            check=EMPIRICAL,
            question="Could the guesses have refuted the claim, so that it was tried at all?",
            statistic="guesses that are all right refute it" if right else "no guesses refute it",
            bound="refuted by right guesses",
            false_alarm=0.0,
            passed=right,
            detail="" if right else "Take the full profile, or a claim of less epsilon.",
        ),
    ]


def refuted(curve: Curve, runs: int, hits: int, alarms: int) -> bool:
    """Whether no mechanism with this curve is guessed so well; wrongly so with chance 0.05 at most.

    By Clopper and Pearson's bounds on the chance of a hit, from below, and of an alarm, from above.
    """
    level = FALSE_ALARM / 2
    least_hits = 0.0 if hits == 0 else float(beta.ppf(level, hits, runs - hits + 1))
    most_alarms = 1.0 if alarms == runs else float(beta.isf(level, alarms + 1, runs - alarms))
    return most_alarms < curve.least_type_one(least_hits)


def _lower_bound(subject: IndexSubject, runs: int, hits: int, alarms: int) -> float:
    """The epsilon of the noisiest rounds that the guesses refute; 0 if none is."""

    def is_refuted(factor: float) -> bool:
        return refuted(trade_off([_rounds(subject, factor)]), runs, hits, alarms)

    low, high = _LEAST, _MOST  # Less noise promises less.
    if not is_refuted(high):
        return 0.0
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_refuted(middle) else (middle, high)
    return pld_epsilon([_rounds(subject, high)], subject.budget.delta, 1e-3)


def _rounds(subject: IndexSubject, factor: float) -> DpSgdEvent:
    mechanism = subject.mechanism
    noise = factor * mechanism.noise_multiplier
    return rounds_of(replace(mechanism, noise_multiplier=noise), mechanism.steps)


def _said_in(subject: IndexSubject, runs: int, present: bool) -> int:
    """In how many runs the guesser says that record 0 was in the index."""
    own = _worst(subject)
    embeddings = np.zeros((len(own.images), 2), np.float32)
    embeddings[0, 0], embeddings[1:, 0] = 1.0, -1.0
    if not present:
        embeddings[0] = np.nan  # Replaced by nothing: it keeps its place, and is in no index.
    question = np.array([[0.0, 1.0]], np.float32)  # All are equally near; the first place wins.
    rate, noise = own.mechanism.sample_rate, own.mechanism.noise_multiplier
    said = 0
    for _ in range(runs):
        index = own.index(embeddings, own.new_key())
        found = [float(index.answer(step, question)[0, 0]) for step in range(own.mechanism.steps)]
        # 0 where its opposite answers and 1 where it does, under noise of stddev z.
        seen = (np.array(found) + 1) / SENSITIVITY
        ratios = (2 * seen - 1) / (2 * noise**2)
        shares = np.stack([np.full(len(seen), np.log1p(-rate) if rate < 1 else -np.inf),
                           np.log(rate) + ratios])  # fmt: skip
        said += float(logsumexp(shares, axis=0).sum()) > 0
    return said


def _worst(subject: IndexSubject) -> IndexSubject:
    """The index of one class and one neighbour, in which record 0 has its opposites beside it."""
    # So many that one of them is in nearly every sample: all but one in a thousand.
    count = 1 + min(_MOST_OPPOSITES, math.ceil(7 / subject.mechanism.sample_rate))
    spec = replace(subject.images.spec, num_records=count, num_classes=0, num_groups=None)
    pixels = subject.images.images[np.arange(count) % len(subject.images)]
    images = PrivateImages(images=pixels, labels=np.zeros(count, np.int64), spec=spec)
    return replace(subject, mechanism=replace(subject.mechanism, neighbors=1)).on(images)
