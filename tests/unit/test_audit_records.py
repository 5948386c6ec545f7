"""Accounting, control flow and silence: the product passes, and each finds what it is there for."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from rapid_dist.audit.accountants import discreteness, pld_epsilon, trade_off
from rapid_dist.audit.accounting import check_accounting
from rapid_dist.audit.control_flow import check_control_flow
from rapid_dist.audit.result import CheckResult, Profile, failed
from rapid_dist.audit.silence import check_silence
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.vote_books import check_vote_books
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.discreteness import discreteness as products_discreteness
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.mechanism import (
    DiscreteDpSgdEvent,
    DiscreteGaussianEvent,
    DpSgdEvent,
    Event,
    GaussianEvent,
    gaussian_event,
)
from tests.faults.catalogue import Fault
from tests.faults.records import FAULTS
from tests.faults.subjects import small_subject
from tests.faults.votes import FAULTS as VOTE_FAULTS

CHECKS: dict[str, Callable[[Subject, Profile], list[CheckResult]]] = {
    "accounting": lambda s, p: check_accounting(s, p) + check_vote_books(s),
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


def test_the_books_of_a_run_with_secure_noise_pass() -> None:
    subject = _subject()
    subject = replace(subject, mechanism=replace(subject.mechanism, noise="secure"))
    results = check_accounting(subject, "quick")
    assert failed(results) == [], [result for result in results if not result.passed]


# Discrete noise on a grid so coarse that its price is seen, and on the product's own.
DISCRETE = [
    [
        DiscreteDpSgdEvent(
            sample_rate=0.03, noise_multiplier=3.0, steps=500, units=2**12, values=1_000
        ),
        DiscreteGaussianEvent(noise_multiplier=20.0, units=2**12, values=1_000),
    ],
    [gaussian_event(2.0, "secure")],
]
GAUSSIAN = [
    DpSgdEvent(sample_rate=0.03, noise_multiplier=3.0, steps=500),
    GaussianEvent(noise_multiplier=20.0),
]


@pytest.mark.parametrize("events", DISCRETE)
def test_the_audits_price_of_discrete_noise_is_below_the_products_and_near_it(
    events: list[Event],
) -> None:
    own, products = discreteness(events), products_discreteness(events, 1e-5).epsilon
    assert products / 3 < own < products
    found = epsilons(events, 1e-5)
    assert pld_epsilon(events, 1e-5) < found.pld < pld_epsilon(events, 1e-5) + products


@pytest.mark.parametrize("scale", [16, 40])
def test_the_audits_price_bounds_the_ratio_of_the_two_laws(scale: int) -> None:
    # Of one value, by summing both laws: wherever the ratios leave the bounds is unlikely.
    event = DiscreteGaussianEvent(noise_multiplier=1.0, units=scale, values=1)
    places = np.arange(-12 * scale, 12 * scale + 1)
    rounded = norm.cdf((places + 0.5) / scale) - norm.cdf((places - 0.5) / scale)
    weights = np.exp(-(places**2.0) / (2 * scale**2))
    discrete = weights / weights.sum()
    most = np.abs(np.log(rounded[places <= 0] / discrete[places <= 0])).max()  # No cancellation.
    assert most < discreteness([event])


def test_gaussian_noise_has_no_such_price() -> None:
    assert discreteness([gaussian_event(2.0, "fast")]) == 0.0


def test_the_audits_trade_off_curve_pays_for_discrete_noise() -> None:
    discrete, gaussian = trade_off(DISCRETE[0]), trade_off(GAUSSIAN)
    assert (discrete.epsilons > gaussian.epsilons).all()
    assert (discrete.deltas > gaussian.deltas).all()


@pytest.mark.parametrize(
    ("fault", "check"),
    [pytest.param(fault, check, id=f"{fault.name}-{check}")
     for fault in (*FAULTS, *VOTE_FAULTS) for check in fault.caught_by if check in CHECKS],
)  # fmt: skip
def test_a_planted_fault_is_caught(fault: Fault, check: str) -> None:
    results = CHECKS[check](fault.build(_subject()), "quick")
    assert failed(results) == [check], [result.statistic for result in results]


def _of_few() -> Subject:
    """Of a data set so large that a batch of forty is mostly nobody."""
    subject = _subject()
    return replace(subject, mechanism=replace(subject.mechanism, expected_batch=0.01))


def test_every_step_is_listened_to_however_small_a_share_a_batch_is() -> None:
    for _ in range(10):  # Sizes of 1, 1 and 1 would be in some text by chance.
        (result,) = check_silence(_of_few(), "quick")
        assert result.passed, result.detail
        assert "sizes of 5 batches" in result.detail


def test_a_size_that_is_told_is_caught_however_small_a_share_a_batch_is() -> None:
    telling = [fault for fault in FAULTS if "silence" in fault.caught_by]
    assert telling
    for fault in telling:
        (result,) = check_silence(fault.build(_of_few()), "quick")
        assert not result.passed, fault.name
