"""Each check catches the faults it is there for, and passes the product.

Here are the three checks of the mechanisms; those of the books, the loop and its words are in
tests/unit/test_audit_records.py, and all of a private index in tests/faults/test_index_faults.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from rapid_dist.audit.contribution import check_contribution
from rapid_dist.audit.noise import check_noise
from rapid_dist.audit.result import CheckResult, Profile, failed
from rapid_dist.audit.sampling import check_sampling
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.votes import check_vote_contribution, check_vote_noise
from tests.faults.catalogue import BEGIN, END, Fault, faults, table
from tests.faults.subjects import small_subject

CHECKS: dict[str, Callable[[Subject, Profile], list[CheckResult]]] = {
    "contribution": lambda s, p: check_contribution(s, p) + check_vote_contribution(s, p),
    "noise": lambda s, p: check_noise(s, p) + check_vote_noise(s),
    "sampling": check_sampling,
}
CASES = [
    pytest.param(fault, check, id=f"{fault.name}-{check}")
    for fault in faults()
    if isinstance(fault, Fault)
    for check in fault.caught_by
    if check in CHECKS
]


@pytest.mark.parametrize(("fault", "check"), CASES)
def test_a_planted_fault_is_caught_by(fault: Fault, check: str) -> None:
    assert failed(CHECKS[check](fault.build(small_subject()), "quick")) == [check]


@pytest.mark.parametrize("check", list(CHECKS))
def test_the_product_passes(check: str) -> None:
    results = CHECKS[check](small_subject(), "quick")
    assert failed(results) == [], [result for result in results if not result.passed]
    assert 0 <= sum(result.false_alarm for result in results) <= 1.01e-6


def test_the_privacy_document_shows_the_faults() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "privacy.md").read_text(encoding="utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == table(), f"docs/privacy.md should hold, between its two marks:\n{table()}"
