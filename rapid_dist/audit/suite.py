"""All checks, one after the other, and what came of them as plain values.

    results = run_suite(subject, pipeline, "quick")

A check that ends by an error has failed: the error's type is its statistic. Its message is not
shown, for it might be anybody's.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rapid_dist.audit.accounting import check_accounting
from rapid_dist.audit.contribution import check_contribution
from rapid_dist.audit.control_flow import check_control_flow
from rapid_dist.audit.empirical import check_empirical, check_power
from rapid_dist.audit.index_books import check_index_accounting, check_index_control_flow
from rapid_dist.audit.index_contribution import check_index_contribution
from rapid_dist.audit.index_empirical import check_index_empirical
from rapid_dist.audit.index_noise import check_index_noise
from rapid_dist.audit.index_sampling import check_index_sampling
from rapid_dist.audit.index_silence import check_index_silence
from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.audit.noise import check_noise
from rapid_dist.audit.reduction import check_reduction
from rapid_dist.audit.result import CheckResult, Profile, failed
from rapid_dist.audit.sampling import check_sampling
from rapid_dist.audit.silence import Pipeline, check_pipeline_silence, check_silence
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.vote_books import check_vote_books
from rapid_dist.audit.votes import check_vote_contribution, check_vote_noise
from rapid_dist.private.per_example import clipped_sum

Check = Callable[[], list[CheckResult]]
OnCheck = Callable[[str, Sequence[CheckResult], float], None]  # (check, its lines, seconds)


class Checks(Protocol):
    """The checks of one mechanism by name, in order."""

    def checks(self) -> Mapping[str, Check]: ...


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The checks of private training, and of the votes before it."""

    subject: Subject
    pipeline: Pipeline | None  # None leaves out the whole run that silence makes.
    profile: Profile

    def checks(self) -> Mapping[str, Check]:
        subject, profile, pipeline = self.subject, self.profile, self.pipeline

        def silence() -> list[CheckResult]:
            own = check_silence(subject, profile)
            return own + (check_pipeline_silence(pipeline, subject.engine) if pipeline else [])

        return {
            "contribution": lambda: (
                check_contribution(subject, profile)
                + check_reduction(subject, profile)
                + check_vote_contribution(subject, profile)
            ),
            "noise": lambda: check_noise(subject, profile) + check_vote_noise(subject),
            "sampling": lambda: check_sampling(subject, profile),
            "accounting": lambda: check_accounting(subject, profile) + check_vote_books(subject),
            "control flow": lambda: check_control_flow(subject, profile),
            "silence": silence,
            "empirical epsilon": lambda: [
                check_empirical(subject, profile),
                check_power(subject, profile),
            ],
        }


@dataclass(frozen=True, kw_only=True)
class IndexSuite:
    """The checks of a private index that is asked in rounds (method dp_rdm)."""

    subject: IndexSubject
    pipeline: Pipeline | None  # None leaves out the whole run that silence makes.
    profile: Profile

    def checks(self) -> Mapping[str, Check]:
        subject, profile, pipeline = self.subject, self.profile, self.pipeline

        def silence() -> list[CheckResult]:
            own = check_index_silence(subject, profile)
            return own + (check_pipeline_silence(pipeline, clipped_sum) if pipeline else [])

        return {
            "contribution": lambda: check_index_contribution(subject, profile),
            "noise": lambda: check_index_noise(subject, profile),
            "sampling": lambda: check_index_sampling(subject, profile),
            "accounting": lambda: check_index_accounting(subject, profile),
            "control flow": lambda: check_index_control_flow(subject, profile),
            "silence": silence,
            "empirical epsilon": lambda: check_index_empirical(subject, profile),
        }


def run_suite(suite: Checks, on_check: OnCheck = lambda *_: None) -> list[CheckResult]:
    """Runs every check and returns all lines; ``on_check`` hears of each as it is done."""
    results: list[CheckResult] = []
    for name, check in suite.checks().items():
        start = time.monotonic()
        lines = _run_one(name, check)
        on_check(name, lines, time.monotonic() - start)
        results += lines
    return results


def to_json(results: Sequence[CheckResult]) -> dict[str, Any]:
    """Returns the verdict and every line as plain values."""
    return {
        "passed": not failed(results),
        "failed": failed(results),
        "false_alarm": min(1.0, sum(result.false_alarm for result in results)),
        "results": [asdict(result) for result in results],
    }


def _run_one(name: str, check: Check) -> list[CheckResult]:
    try:
        return check()
    except Exception as error:
        return [
            CheckResult(
                check=name,
                question="Does the check come to its end?",
                statistic=f"it ended by {type(error).__name__}",
                bound="an answer",
                false_alarm=0.0,
                passed=False,
            )
        ]
