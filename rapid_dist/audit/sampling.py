"""Check 3: every unit is in every batch on a coin of its own, and an empty batch is a step.

Who takes part is seen where the sum is made, over two workers. Every audit draws fresh keys, so the
false-alarm chance that a row states is what it says it is (of the two chi-squares, nearly).

N units, T steps, q = sample_rate, W workers.
"""

import tempfile
from dataclasses import replace

import numpy as np

from rapid_dist.audit.attendance import PARAMETERS, SHARE, Attendance, attend
from rapid_dist.audit.draws import CHECK, NUM_UNITS, ONE_EXPECTED, RATE, Draws, rows_of_draws
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.subject import Subject
from rapid_dist.collective import SingleProcess
from rapid_dist.privacy.keeper import Attempt
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.storage import open_storage

WORLD_SIZE = 2
_STEPS: dict[Profile, int] = {"quick": 600, "full": 6_000}
_OWN_STEPS: dict[Profile, int] = {"quick": 100, "full": 1_000}  # At the recipe's own N and q.
_LOOP_STEPS = 8


def check_sampling(subject: Subject, profile: Profile) -> list[CheckResult]:
    """Looks at who is drawn, with whom, how many, how often nobody, and what is divided by."""
    steps, own_steps = _STEPS[profile], _OWN_STEPS[profile]
    small = _drawing(subject, NUM_UNITS, RATE * NUM_UNITS)
    sparse = _drawing(subject, NUM_UNITS, ONE_EXPECTED * NUM_UNITS)
    key = subject.new_key()
    drawn = attend(small, key, steps, world_size=WORLD_SIZE)
    again = attend(small, key, steps // 3, world_size=WORLD_SIZE, attempt=2)
    other = attend(small, subject.new_key(), steps // 3, world_size=WORLD_SIZE)
    few = attend(sparse, subject.new_key(), steps, world_size=WORLD_SIZE)
    draws = Draws(
        drawn=drawn.times > 0,
        again=again.times > 0,
        other=other.times > 0,
        few=few.times > 0,
        own=_batches(subject, own_steps),
        own_rate=subject.mechanism.sample_rate,
    )
    return [
        *rows_of_draws(
            draws,
            batches="steps",
            where=f" on {WORLD_SIZE} workers",
            pairs=", within one worker and across",
        ),
        _once_row(small, drawn),
        _empty_row(sparse, few, steps),
        _division_row(small),
    ]


def _drawing(subject: Subject, units: int, expected_batch: float) -> Subject:
    return replace(
        subject,
        mechanism=replace(subject.mechanism, num_records=units, expected_batch=expected_batch),
    )


def _batches(subject: Subject, steps: int) -> np.ndarray:
    """bool [T, N]: who is in which batch of the recipe's own sampler."""
    drawn = np.zeros((steps, subject.mechanism.num_records), bool)
    sampler = subject.sampler(subject.new_key())
    for step in range(steps):
        drawn[step, sampler.batch(step)] = True
    return drawn


def _once_row(small: Subject, drawn: Attendance) -> CheckResult:
    key, steps = small.new_key(), 20
    alone, *groups = (attend(small, key, steps, world_size=size).times for size in (1, 2, 4))
    differing = sum(not np.array_equal(alone, times) for times in groups)
    most = int(drawn.times.max())
    return CheckResult(
        check=CHECK,
        question="Is nobody in a step twice, and is the batch the same at any number of workers?",
        statistic=f"at most {most} times; {differing} of W = 2, 4 draw another batch than W = 1",
        bound="at most once; none",
        false_alarm=0.0,
        passed=most <= 1 and differing == 0,
    )


def _empty_row(sparse: Subject, few: Attendance, steps: int) -> CheckResult:
    """Steps on empty batches, of the step and of the loop around it."""
    loop_steps, charged = _loop_on_nobody(sparse)
    noised = int(few.released.any(axis=1).sum())
    return CheckResult(
        check=CHECK,
        question="Is every step charged once and noised, whether or not anybody was drawn?",
        statistic=(
            f"{len(few.charged)} charged and {noised} noised of {steps}; of {_LOOP_STEPS} in a "
            f"loop on nobody {charged} charged, {loop_steps} made"
        ),
        bound="all",
        false_alarm=0.0,
        passed=few.charged == list(range(steps))
        and noised == steps
        and charged == loop_steps == _LOOP_STEPS,
    )


class _Counting:
    """A keeper to whom every step is affordable: what is trained on is public."""

    def __init__(self) -> None:
        self.charged = 0

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Attempt:
        return Attempt(number=1, affordable_steps=_LOOP_STEPS)

    def charge(self, step: int, attempt: int | None = None) -> None:
        self.charged += 1

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        raise AssertionError("Every step is affordable.")


def _loop_on_nobody(subject: Subject) -> tuple[int, int]:
    """Steps that the loop made, and that it charged, when nobody is ever drawn."""
    never = subject.on(subject.images)
    mechanism = replace(never.mechanism, expected_batch=1e-9, steps=_LOOP_STEPS)
    made: list[float] = []
    keeper = _Counting()
    with tempfile.TemporaryDirectory() as folder:
        replace(never, mechanism=mechanism).run(
            SingleProcess(),
            keeper,
            open_storage(folder),
            on_step=lambda figures: made.append(figures["step"]),
        )
    return len(made), keeper.charged


class _Exactly(PoissonSampler):
    """Draws the first ``size`` units."""

    def __init__(self, size: int) -> None:
        self._size = size

    def batch(self, step: int) -> np.ndarray:
        return np.arange(self._size)


def _division_row(small: Subject) -> CheckResult:
    """The noise of two steps under one key cancels, so what is left is units / divisor."""
    key, mechanism = small.new_key(), small.mechanism
    sizes = (NUM_UNITS, NUM_UNITS // 3)
    most, fewer = (
        attend(small, key, 1, world_size=WORLD_SIZE, sampler=_Exactly(size)).released[0]
        for size in sizes
    )
    unit = SHARE * mechanism.max_grad_norm / PARAMETERS**0.5
    moved = float((most.astype(np.float64) - fewer).mean()) / unit
    divisor = (sizes[0] - sizes[1]) / moved if moved else float("inf")
    return CheckResult(
        check=CHECK,
        question="Is the sum divided by the declared expected batch, whoever was drawn?",
        statistic=f"divided by {divisor:.4f}",
        bound=f"{mechanism.expected_batch:.4f}, to 0.1%",
        false_alarm=0.0,
        passed=abs(divisor / mechanism.expected_batch - 1) <= 1e-3,
        detail=f"Batches of {sizes[0]} and {sizes[1]} units under one key.",
    )
