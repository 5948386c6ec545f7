"""Accounting, control flow and silence: the product passes, and each finds what it is there for."""

import itertools
from collections.abc import Callable

import pytest

from rapid_dist.audit.accounting import check_accounting
from rapid_dist.audit.control_flow import check_control_flow
from rapid_dist.audit.result import CheckResult, Profile, failed
from rapid_dist.audit.silence import check_silence
from rapid_dist.audit.subject import Subject
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from tests.faults.catalogue import Fault
from tests.faults.records import FAULTS
from tests.faults.subjects import small_subject

CHECKS: dict[str, Callable[[Subject, Profile], list[CheckResult]]] = {
    "accounting": check_accounting,
    "control flow": check_control_flow,
    "silence": check_silence,
}


def _subject() -> Subject:
    """With fixed keys, so that a fault that depends on losses is caught every time or never."""
    keys = itertools.count()
    return small_subject(new_key=lambda: SecretKey(bytes([next(keys)]) * KEY_BYTES))


@pytest.mark.parametrize("check", list(CHECKS))
def test_the_product_passes(check: str) -> None:
    results = CHECKS[check](_subject(), "quick")
    assert failed(results) == [], [result for result in results if not result.passed]
    assert all(result.question.endswith("?") for result in results)


@pytest.mark.parametrize(
    ("fault", "check"),
    [pytest.param(fault, check, id=f"{fault.name}-{check}")
     for fault in FAULTS for check in fault.caught_by],
)  # fmt: skip
def test_a_planted_fault_is_caught(fault: Fault, check: str) -> None:
    results = CHECKS[check](fault.build(_subject()), "quick")
    assert failed(results) == [check], [result.statistic for result in results]
