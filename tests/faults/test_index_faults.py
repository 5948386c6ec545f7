"""The audit of a private index catches the faults it is there for, and passes the product."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from rapid_dist.audit.index_books import check_index_accounting, check_index_control_flow
from rapid_dist.audit.index_contribution import check_index_contribution
from rapid_dist.audit.index_empirical import check_index_empirical
from rapid_dist.audit.index_noise import check_index_noise
from rapid_dist.audit.index_sampling import check_index_sampling
from rapid_dist.audit.index_silence import check_index_silence
from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.audit.result import CheckResult, Profile, failed
from tests.faults.catalogue import IndexFault
from tests.faults.index_subjects import small_index_subject
from tests.faults.indexes import FAULTS as OF_THE_INDEX
from tests.faults.rounds import FAULTS as OF_THE_ROUNDS
from tests.models import private_images

CHECKS: dict[str, Callable[[IndexSubject, Profile], list[CheckResult]]] = {
    "contribution": check_index_contribution,
    "noise": check_index_noise,
    "sampling": check_index_sampling,
    "accounting": check_index_accounting,
    "control flow": check_index_control_flow,
    "silence": check_index_silence,
    "empirical epsilon": check_index_empirical,
}
# Chances that a right index fails: of the statistical checks, of a value met by chance, of the
# guesses' confidence. All others are exact.
FALSE_ALARMS = {"noise": 1.001e-6, "sampling": 1e-6, "silence": 1e-4, "empirical epsilon": 0.05}


def _param(check: str, *values: object, name: str = "") -> object:
    """What the guesses, and other events for the accountants, take is for the slow suite."""
    slow = check == "empirical epsilon" or name.startswith("The ledger is told of 2%")
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(*values, id=f"{name}-{check}".strip("-"), marks=marks)


@pytest.mark.parametrize("check", [_param(check, check) for check in CHECKS])
def test_the_product_passes(check: str) -> None:
    results = CHECKS[check](small_index_subject(), "quick")
    assert failed(results) == [], [result for result in results if not result.passed]
    assert all(result.question.endswith("?") for result in results)
    chance = sum(result.false_alarm for result in results)
    assert chance == pytest.approx(FALSE_ALARMS.get(check, 0.0), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("check", ["contribution", "noise", "sampling", "accounting"])
def test_an_index_with_secure_noise_passes(check: str) -> None:
    subject = small_index_subject()
    subject = replace(subject, mechanism=replace(subject.mechanism, noise="secure"))
    results = CHECKS[check](subject, "quick")
    assert failed(results) == [], [result for result in results if not result.passed]


def test_an_index_of_patients_passes() -> None:
    patients = private_images(12, np.arange(12, dtype=np.int64) // 3)
    results = check_index_contribution(small_index_subject().on(patients), "quick")
    assert failed(results) == [], [result for result in results if not result.passed]


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        _param(check, fault, check, name=fault.name)
        for fault in (*OF_THE_INDEX, *OF_THE_ROUNDS)
        for check in fault.caught_by
    ],
)
def test_a_planted_fault_is_caught_by(fault: IndexFault, check: str) -> None:
    results = CHECKS[check](fault.build(small_index_subject()), "quick")
    assert failed(results) == [check], [result.statistic for result in results]


def test_an_embedding_that_heeds_the_others_is_noticed() -> None:
    right = small_index_subject()

    def standardised(images: np.ndarray) -> np.ndarray:
        rows = right.embed(images)
        return rows / rows.std(axis=0)

    results = check_index_contribution(replace(right, embed=standardised), "quick")
    asked = {one.question: one.passed for one in results}
    assert not asked.pop("Is a record's embedding a function of that record alone?")
    assert all(asked.values())
