"""What a check says: its question, what was measured, the bound, and the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Profile = Literal["quick", "full"]
EMPIRICAL = "empirical epsilon"  # The check whose value is a lower bound of epsilon.


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One line of an audit. Nothing in it comes from a private image."""

    check: str  # Short name of the check; several lines may share it.
    question: str  # One sentence that can be answered by yes.
    statistic: str  # What was measured, with its unit.
    bound: str  # What it was held against.
    false_alarm: float  # Chance that a right mechanism fails here; 0 for an exact check.
    passed: bool
    detail: str = ""
    value: float | None = None  # The statistic as a number, where somebody else is to read it.


def failed(results: Sequence[CheckResult]) -> list[str]:
    """Returns the names of the checks of which at least one line failed, each once, in order."""
    return list(dict.fromkeys(result.check for result in results if not result.passed))
