"""Epsilon after every release: what one would be told who asked then, and never less than true."""

import numpy as np
import pytest

from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.mechanism import (
    DpSgdConfig,
    DpSgdEvent,
    Event,
    GaussianEvent,
    gaussian_event,
)
from rapid_dist.privacy.pld import pld_epsilon, pld_epsilons
from rapid_dist.privacy.spend import CHECKED, Spend, spend

DELTA = 1e-4
STEP = DpSgdEvent(sample_rate=0.2, noise_multiplier=2.0, steps=1)
RUN: list[Event] = [GaussianEvent(noise_multiplier=3.0), *[STEP] * 24]


@pytest.fixture(scope="module")
def spent() -> Spend:
    return spend(RUN, DELTA)


@pytest.fixture(scope="module")
def asked() -> list[float]:
    """What the accountants say, asked anew after every release."""
    return [epsilons(RUN[:count], DELTA).reported for count in range(1, len(RUN) + 1)]


def test_every_release_has_an_epsilon_and_the_last_is_the_claims(spent: Spend) -> None:
    assert len(spent.reported) == len(RUN) > CHECKED
    assert spent.reported[-1] == epsilons(RUN, DELTA).reported
    assert list(spent.reported) == sorted(spent.reported)


def test_the_curve_is_what_the_accountants_would_have_said(
    spent: Spend, asked: list[float]
) -> None:
    np.testing.assert_allclose(spent.reported, asked, atol=1e-3)
    for count, found in spent.checked.items():
        assert found.reported == asked[count - 1] == pytest.approx(spent.reported[count - 1])


def test_the_comparison_would_notice_a_curve_of_other_noise(asked: list[float]) -> None:
    louder = DpSgdEvent(sample_rate=0.2, noise_multiplier=2.01, steps=1)
    other = spend([RUN[0], *[louder] * 24], DELTA)
    assert np.abs(np.array(other.reported) - asked).max() > 5e-3


def test_no_point_lies_below_what_was_proven_until_then(spent: Spend) -> None:
    for count in range(1, len(RUN) + 1):
        assert spent.reported[count - 1] >= pld_epsilon(RUN[:count], DELTA) - 1e-9


@pytest.mark.parametrize("most_composed", [1, 4, 7, 24])
def test_a_curve_of_fewer_compositions_is_nowhere_lower(most_composed: int) -> None:
    whole = np.array(pld_epsilons(RUN, DELTA, len(RUN)))
    fewer = np.array(pld_epsilons(RUN, DELTA, most_composed))
    assert len(np.unique(fewer)) <= most_composed
    assert (fewer >= whole - 1e-9).all()
    assert fewer[-1] == pytest.approx(whole[-1], abs=1e-9)
    assert (fewer > whole + 1e-3).any()  # So many steps were indeed left out.


def test_discrete_noise_is_paid_for_at_every_release() -> None:
    config = DpSgdConfig(
        num_records=100,
        expected_batch=20,
        steps=24,
        max_grad_norm=1.0,
        noise_multiplier=2.0,
        noise="secure",
    )
    run = [gaussian_event(3.0, "secure"), *[config.event()] * 24]
    secure = spend(run, DELTA)
    assert secure.reported[-1] == epsilons(run, DELTA).reported
    for count in (1, 5, 25):
        assert secure.reported[count - 1] >= epsilons(run[:count], DELTA).pld


def test_one_release_is_a_curve_of_one_point() -> None:
    one = spend(RUN[:1], DELTA)
    assert list(one.reported) == [epsilons(RUN[:1], DELTA).reported]
    assert one.checked.keys() == {1}
