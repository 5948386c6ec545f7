"""Check 7: a run with canaries, and how much privacy their guesser leaves it.

The data set of this run is m canaries and nothing else. Each is in it by a fair coin. One that is
in contributes C times a unit vector of its own, the most that one record may, whenever the sampler
draws it; one that is not contributes nothing. Sampler, noise, reduction and division are those
under test, with the sample rate, the noise multiplier and the number of steps of the recipe, so the
run has the epsilon of the recipe's steps whatever m is. The guesser sees every released vector.

Its power, with the 50,000 canaries of the quick profile: it refutes noise half as strong as
claimed, or a record that counts twice, at the constants of `digits`, `pneumonia` and `mnist`
(epsilon near 10); it does not see an error of 20%, which the noise and contribution checks do. Of a
right mechanism it reports a third to a half of its epsilon. A bound far below the claim is
therefore no proof of anything; one above it is a proof that the claim is wrong.

The more epsilon, delta and steps, the fewer canaries can refute nothing at all, were every guess
right. Whether they could is a question of its own, with an answer of its own (``check_power``).
"""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rapid_dist.audit.accountants import pld_epsilon, steps_of, trade_off
from rapid_dist.audit.one_run import Curve, Guesses, epsilon_lower_bound, refutes
from rapid_dist.audit.result import EMPIRICAL, CheckResult, Profile
from rapid_dist.audit.subject import Subject, not_charged
from rapid_dist.collective import SingleProcess
from rapid_dist.diffusion.loss import Rows
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import DpSgdConfig
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.step import ClippedSum

CANARIES: dict[Profile, int] = {"quick": 50_000, "full": 150_000}
FALSE_ALARM = 0.05  # Half of it for either bound.
# Chosen by simulation for what a fault does to the scores, and fixed before any score is seen.
GUESSED = 0.2  # Of the canaries; of the others the guesser says nothing.
SUPPOSED = 0.5  # The guesser supposes so much of the claimed noise: it looks for faults.

_MICRO_BATCH = 4096
_LEAST, _MOST, _HALVINGS = 1 / 8, 16.0, 8  # Noise factors that the bound is looked for between.


def check_empirical(subject: Subject, profile: Profile) -> CheckResult:
    """Asks how many canaries can be told from the released vectors of a whole run."""
    mechanism, delta = subject.mechanism, subject.budget.delta
    guesses = guess(subject, CANARIES[profile])
    events = [steps_of(mechanism, mechanism.steps)]
    claimed = pld_epsilon(events, delta, 1e-3)
    confidence = 1 - FALSE_ALARM / 2
    refuted = refutes(guesses, trade_off(events), confidence)
    by_point = epsilon_lower_bound(guesses, delta, confidence)
    by_curve = curve_lower_bound(guesses, mechanism, delta, confidence)
    shown = math.floor(100 * max(by_curve, by_point)) / 100  # Down: it is a lower bound.
    return CheckResult(
        check=EMPIRICAL,
        question="Does a run with canaries leak no more than its epsilon allows?",
        statistic=(
            f"epsilon > {shown:.2f}: {guesses.correct} of {guesses.made} guesses right, "
            f"{guesses.canaries} canaries"
        ),
        value=shown,
        bound=f"epsilon {claimed:.2f} of the {mechanism.steps} steps, at delta {delta:g}",
        false_alarm=FALSE_ALARM,
        passed=not refuted and by_point <= claimed,
        detail=(
            f"By the whole trade-off curve epsilon > {by_curve:.2f}, by epsilon and delta alone "
            f"> {by_point:.2f}. Finds gross faults only: a right mechanism shows a third to a half "
            "of its epsilon."
        ),
    )


def check_power(subject: Subject, profile: Profile) -> CheckResult:
    """Asks whether the guesses of ``check_empirical`` could have refuted anything at all."""
    mechanism, canaries = subject.mechanism, CANARIES[profile]
    made = int(GUESSED * canaries)
    needed = least_refuting(canaries, made, trade_off([steps_of(mechanism, mechanism.steps)]))
    return CheckResult(
        check=EMPIRICAL,
        question="Could the guesses have refuted the claim, so that it was tried at all?",
        statistic=(
            f"{needed} right guesses refute it" if needed else "not even right guesses refute it"
        ),
        bound=f"at most the {made} that are made",
        false_alarm=0.0,
        passed=needed is not None,
        detail="" if needed else "Take the full profile, or a claim of less epsilon or delta.",
    )


def least_refuting(canaries: int, made: int, curve: Curve) -> int | None:
    """Returns the least number of right guesses that refutes the curve; None if none does."""

    def is_refuted(correct: int) -> bool:
        guesses = Guesses(canaries=canaries, made=made, correct=correct)
        return refutes(guesses, curve, 1 - FALSE_ALARM / 2)

    if not is_refuted(made):
        return None
    few, enough = 0, made
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if is_refuted(middle) else (middle, enough)
    return enough


def guess(subject: Subject, canaries: int) -> Guesses:
    """Runs the mechanism on canaries and guesses which were in the data."""
    size = replace(
        subject.mechanism,
        num_records=canaries,
        expected_batch=subject.mechanism.sample_rate * canaries,
    )
    coins = subject.new_key().generator("canaries").random(canaries) < 0.5
    scores = _scores(subject, size, torch.from_numpy(coins))
    chosen = np.argsort(-np.abs(scores), kind="stable")[: int(GUESSED * canaries)]
    correct = int(((scores > 0) == coins)[chosen].sum())
    return Guesses(canaries=canaries, made=len(chosen), correct=correct)


def curve_lower_bound(
    guesses: Guesses, mechanism: DpSgdConfig, delta: float, confidence: float
) -> float:
    """Returns the epsilon of the noisiest mechanism of this kind that the guesses refute.

    Of this kind: with the same rate and steps, and some other noise. 0 if none is refuted.
    """

    def events(factor: float) -> list[Any]:
        noise = factor * mechanism.noise_multiplier
        return [steps_of(replace(mechanism, noise_multiplier=noise), mechanism.steps)]

    def is_refuted(factor: float) -> bool:
        return refutes(guesses, trade_off(events(factor)), confidence)

    low, high = _LEAST, _MOST  # Less noise promises less.
    if not is_refuted(high):
        return 0.0
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if is_refuted(middle) else (middle, high)
    return pld_epsilon(events(high), delta, 1e-3)


class _CanaryDraws(DrawMaker):
    """Rows that say whose they are, and nothing else."""

    def rows(self, records: np.ndarray, key: SecretKey, step: int, attempt: int) -> Rows:
        nothing = torch.zeros(len(records), 1, 1, 1)
        labels = torch.from_numpy(records)
        return Rows(noised=nothing, noise_level=nothing[:, 0, 0, 0], labels=labels, clean=nothing)


class _Vector(nn.Module):
    """As many parameters as there are canaries."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size))


def _canary_sum(coins: torch.Tensor) -> ClippedSum:
    """The engine of this run: canary i is C times the i-th unit vector, if its coin says so."""

    def total(
        network: nn.Module,
        rows: Rows,
        draws: int,
        max_grad_norm: float,
        mask: torch.Tensor,
        units: int | None = None,
    ) -> torch.Tensor:
        present = rows.labels[mask & coins[rows.labels]]
        given = torch.tensor(units or max_grad_norm).expand(len(present))
        return given.new_zeros(len(coins)).index_add_(0, present, given)

    return total


def _scores(subject: Subject, mechanism: DpSgdConfig, coins: torch.Tensor) -> np.ndarray:
    """For every canary the log-likelihood ratio of in to out, summed over the steps.

    A function of the inner products of the released vectors with its direction, in units of C. As
    in Neyman and Pearson, but for the noise that the guesser supposes.
    """
    key, rate = subject.new_key(), mechanism.sample_rate
    drawn = subject.make_draws(subject.images, replace(subject.config, micro_batch=_MICRO_BATCH))
    step = subject.step_type(
        mechanism=mechanism,
        draws=_CanaryDraws(**{field.name: getattr(drawn, field.name) for field in fields(drawn)}),
        sampler=replace(subject, mechanism=mechanism).sampler(key),
        key=key,
        attempt=1,
        collective=SingleProcess(),
        charge=not_charged,
        engine=_canary_sum(coins),
    )
    network: Any = _Vector(len(coins))
    variance = (SUPPOSED * mechanism.noise_multiplier) ** 2
    out, within = torch.tensor([1 - rate, rate], dtype=torch.float64).log()
    scores = torch.zeros(len(coins), dtype=torch.float64)
    for number in range(mechanism.steps):
        released = step.noised_gradient(network, number)
        seen = released.double() * mechanism.expected_batch / mechanism.max_grad_norm
        scores += torch.logaddexp(out, within + (2 * seen - 1) / (2 * variance))
    found: np.ndarray = scores.numpy()
    return found
