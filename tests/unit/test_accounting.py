"""Accounting: epsilon against values known from elsewhere, and plans that meet their budget."""

import math
import warnings
from dataclasses import replace

import dp_accounting
import pytest
import scipy.optimize
import scipy.stats
from dp_accounting.pld import PLDAccountant
from opacus.accountants import GaussianAccountant

from rapid_dist.errors import BudgetError, ConfigError
from rapid_dist.privacy.accounting import (
    LEAST_EPSILON,
    Epsilons,
    PrivacyPlan,
    affordable_steps,
    epsilons,
    plan,
)
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import (
    DiscreteDpSgdEvent,
    DpSgdConfig,
    DpSgdEvent,
    GaussianEvent,
)
from rapid_dist.privacy.noise import SecureNoise
from rapid_dist.privacy.pld import pld_epsilon
from rapid_dist.privacy.settings import Budget, PrivacyConfig
from rapid_dist.privacy.solving import solve_noise_multiplier, solve_sample_rate, solve_steps

DELTA = 1e-5
MNIST = 60_000
STEPS = DpSgdEvent(sample_rate=0.03, noise_multiplier=3.0, steps=500)
PRIOR = GaussianEvent(noise_multiplier=20.0)


def test_what_is_accounted_is_what_is_sampled_and_added() -> None:
    config = DpSgdConfig(
        num_records=1_000, expected_batch=30, steps=7, max_grad_norm=0.5, noise_multiplier=1.3
    )
    event = config.event(7)
    assert (event.sample_rate, event.noise_multiplier, event.steps) == (0.03, 1.3, 7)
    assert config.sample_rate == 0.03
    assert config.noise_stddev == pytest.approx(1.3 * 0.5)
    discrete = replace(config, noise="secure").event(7)
    assert isinstance(discrete, DiscreteDpSgdEvent)
    assert (discrete.sample_rate, discrete.noise_multiplier, discrete.steps) == (0.03, 1.3, 7)
    assert discrete.scale == SecureNoise(0.5, 1.3, SecretKey.generate(), attempt=1)._scale
    assert discrete.units == SecureNoise.units


def _analytic_gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Balle & Wang (2018), theorem 8, solved for epsilon."""

    def excess(epsilon: float) -> float:
        half, slope = 0.5 / noise_multiplier, epsilon * noise_multiplier
        above = scipy.stats.norm.cdf(half - slope)
        below = math.exp(epsilon) * scipy.stats.norm.cdf(-half - slope)
        return float(above - below - delta)

    return float(scipy.optimize.brentq(excess, 0.0, 100.0))


def _within(config: PrivacyConfig, num_records: int = MNIST) -> PrivacyPlan:
    solved = plan(config, num_records)
    assert solved.epsilons == epsilons(solved.events, config.delta)
    assert solved.epsilons.reported <= config.epsilon
    return solved


@pytest.mark.parametrize("noise_multiplier", [1.0, 4.0, 20.0, 50.0])
def test_one_gaussian_costs_what_the_analytic_formula_says(noise_multiplier: float) -> None:
    exact = _analytic_gaussian_epsilon(noise_multiplier, DELTA)
    found = epsilons([GaussianEvent(noise_multiplier=noise_multiplier)], DELTA)
    for accountant in (found.pld, found.prv):  # Upper bounds, and close ones: at rate 1 too.
        assert exact <= accountant <= exact + 3e-3
    assert found.rdp >= exact


def test_epsilon_is_that_of_dp_accountings_own_accountant() -> None:
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    step = dp_accounting.PoissonSampledDpEvent(0.03, dp_accounting.GaussianDpEvent(3.0))
    accountant.compose(step, 500)
    accountant.compose(dp_accounting.GaussianDpEvent(20.0))
    assert pld_epsilon([STEPS, PRIOR], DELTA) == pytest.approx(
        accountant.get_epsilon(DELTA), abs=1e-6
    )


@pytest.mark.parametrize(
    ("event", "pld", "prv"),
    [  # Measured with dp_accounting 0.6.0 and Opacus 1.6.0's own calls, to three decimals.
        (DpSgdEvent(sample_rate=4096 / 60_000, noise_multiplier=2.0, steps=2_000), 7.899, 7.909),
        (DpSgdEvent(sample_rate=512 / 60_000, noise_multiplier=1.0, steps=20_000), 7.663, 7.673),
    ],
)
def test_known_mechanisms_cost_what_is_known(event: DpSgdEvent, pld: float, prv: float) -> None:
    found = epsilons([event], DELTA)
    assert found.pld == pytest.approx(pld, abs=1e-3)
    assert found.pld <= found.prv <= prv + 1e-3
    assert found.reported == found.prv
    assert found.rdp > found.pld


def test_gaussian_dp_would_claim_less_than_is_true_and_is_not_used() -> None:
    event = DpSgdEvent(sample_rate=512 / 60_000, noise_multiplier=1.0, steps=20_000)
    with warnings.catch_warnings(action="ignore"):
        central_limit = GaussianAccountant()
        central_limit.history = [(1.0, event.sample_rate, event.steps)]
        too_low = central_limit.get_epsilon(delta=DELTA)
    found = epsilons([event], DELTA)
    assert too_low < found.pld - 0.1
    assert min(found.pld, found.prv, found.rdp) > too_low


def test_steps_charged_one_by_one_cost_what_they_cost_together() -> None:
    one_by_one = [PRIOR, *[replace(STEPS, steps=1)] * 500]
    assert epsilons(one_by_one, DELTA) == epsilons([STEPS, PRIOR], DELTA)


def test_nothing_released_costs_nothing() -> None:
    assert epsilons([], DELTA).reported == 0
    assert epsilons([replace(STEPS, steps=0)], DELTA).reported == 0


@pytest.mark.parametrize("prv", [1.051, 0.949, math.nan])
def test_accountants_that_disagree_stop_everything(prv: float) -> None:
    with pytest.raises(BudgetError, match="accountants disagree"):
        Epsilons(delta=DELTA, pld=1.0, prv=prv, rdp=1.2)
    assert Epsilons(delta=DELTA, pld=1.0, prv=1.049, rdp=1.2).reported == 1.049


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 10.0])
def test_a_plan_for_noise_meets_its_budget_and_hardly_leaves_any(epsilon: float) -> None:
    solved = _within(PrivacyConfig(epsilon=epsilon, delta=DELTA, expected_batch=1_800, steps=200))
    assert solved.epsilons.reported >= 0.98 * epsilon
    assert solved.dp_sgd is not None
    less_noise = replace(solved.dp_sgd, noise_multiplier=0.98 * solved.dp_sgd.noise_multiplier)
    assert solved.prior is not None
    assert epsilons([solved.prior, less_noise.event(200)], DELTA).reported > epsilon


def test_a_plan_for_steps_takes_as_many_as_the_budget_allows() -> None:
    config = PrivacyConfig(
        epsilon=1.0, delta=DELTA, expected_batch=1_800, steps=None, noise_multiplier=3.0
    )
    solved = _within(config)
    assert solved.dp_sgd is not None
    assert solved.prior is not None
    assert solved.dp_sgd.noise_multiplier == 3.0
    more = solved.dp_sgd.event(round(1.02 * solved.dp_sgd.steps))
    assert epsilons([solved.prior, more], DELTA).reported > 1.0


def test_a_plan_for_the_batch_takes_as_large_a_one_as_the_budget_allows() -> None:
    config = PrivacyConfig(
        epsilon=1.0, delta=DELTA, expected_batch=None, steps=300, noise_multiplier=3.0
    )
    solved = _within(config)
    assert solved.epsilons.reported >= 0.98
    assert solved.dp_sgd is not None
    assert 0 < solved.dp_sgd.expected_batch < MNIST


def test_reserve_steps_are_paid_for_in_the_plan() -> None:
    config = PrivacyConfig(epsilon=1.0, delta=DELTA, expected_batch=1_800, steps=100)
    with_reserve = _within(replace(config, reserve_steps=20))
    without = _within(config)
    assert with_reserve.dp_sgd is not None
    assert without.dp_sgd is not None
    assert with_reserve.dp_sgd.steps == without.dp_sgd.steps == 100
    assert with_reserve.dp_sgd.noise_multiplier > without.dp_sgd.noise_multiplier
    assert with_reserve.dp_sgd.event(120) in with_reserve.events
    for_steps = replace(config, steps=None, noise_multiplier=3.0)
    fewer, more = _within(replace(for_steps, reserve_steps=20)), _within(for_steps)
    assert fewer.dp_sgd is not None
    assert more.dp_sgd is not None
    assert fewer.dp_sgd.steps == more.dp_sgd.steps - 20


def test_the_priors_share_is_what_it_would_cost_alone() -> None:
    solved = _within(PrivacyConfig(epsilon=1.0, delta=DELTA, prior_share=0.3, steps=50))
    assert solved.prior is not None
    alone = _analytic_gaussian_epsilon(solved.prior.noise_multiplier, DELTA)
    assert 0.3 - 2e-3 <= alone <= 0.3
    assert solved.dp_sgd is not None
    training = pld_epsilon([solved.dp_sgd.event(50)], DELTA)
    assert training > 0.7  # Composition leaves more than what is left of the sum.


def test_a_prior_of_the_whole_budget_leaves_no_training() -> None:
    solved = _within(PrivacyConfig(epsilon=1.0, delta=DELTA, prior_share=1.0))
    assert solved.dp_sgd is None
    assert solved.events == (solved.prior,)
    assert solved.epsilons.reported >= 0.98


def test_no_share_means_no_prior() -> None:
    solved = _within(PrivacyConfig(epsilon=1.0, delta=DELTA, prior_share=0.0, steps=50))
    assert solved.prior is None
    assert solved.epsilons.reported >= 0.98


def test_the_priors_noise_can_be_set_directly() -> None:
    solved = _within(PrivacyConfig(epsilon=1.0, delta=DELTA, prior_noise=17.0, steps=50))
    assert solved.prior == GaussianEvent(noise_multiplier=17.0)


def test_a_prior_that_leaves_nothing_for_training_is_refused() -> None:
    with pytest.raises(BudgetError, match="other releases already cost"):
        plan(PrivacyConfig(epsilon=1.0, delta=DELTA, prior_noise=2.0), MNIST)


def test_what_a_plan_left_over_is_affordable_and_nothing_more() -> None:
    solved = _within(PrivacyConfig(epsilon=1.0, delta=DELTA, expected_batch=1_800, steps=120))
    assert solved.prior is not None
    assert solved.dp_sgd is not None
    step = solved.dp_sgd.event()
    left = affordable_steps([solved.prior, replace(step, steps=70)], solved.budget, step, 500)
    assert 50 <= left <= 51
    spent = [solved.prior, replace(step, steps=70 + left + 1)]
    assert epsilons(spent, DELTA).reported > 1.0
    assert affordable_steps([solved.prior], solved.budget, step, 30) == 30
    assert affordable_steps(spent, solved.budget, step, 500) == 0


def test_solvers_agree_with_each_other() -> None:
    budget = Budget(epsilon=1.0, delta=DELTA)
    noise = solve_noise_multiplier(sample_rate=0.03, steps=300, budget=budget, others=[PRIOR])
    steps = solve_steps(sample_rate=0.03, noise_multiplier=noise, budget=budget, others=[PRIOR])
    rate = solve_sample_rate(noise_multiplier=noise, steps=300, budget=budget, others=[PRIOR])
    assert steps == 300
    assert rate == pytest.approx(0.03, rel=1e-3)


def test_a_full_batch_is_the_answer_when_the_noise_pays_for_it() -> None:
    budget = Budget(epsilon=1.0, delta=DELTA)
    assert solve_sample_rate(noise_multiplier=100.0, steps=3, budget=budget) == 1.0


def test_a_budget_met_without_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="hardly noise"):
        solve_noise_multiplier(sample_rate=1e-6, steps=1, budget=Budget(epsilon=10.0, delta=DELTA))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": 1.0}, "leave nothing to solve"),
        ({"steps": None}, "noise_multiplier and steps are null"),
        ({"steps": None, "expected_batch": None}, "can solve only one"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be positive"),
        ({"delta": 1.0}, "delta must be in"),
        ({"relation": "replace_one"}, "relation must be 'zero_out'"),
        ({"unit": "pixel"}, "unit must be"),
        ({"noise": "none"}, "noise must be"),
        ({"prior_share": 1.1}, "prior_share must be in"),
        ({"prior_noise": 0.0}, "prior_noise must be positive"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
        ({"steps": -1}, "steps must be positive"),
        ({"reserve_steps": -1}, "reserve_steps must not be negative"),
    ],
)
def test_a_wrong_promise_is_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PrivacyConfig(**({"epsilon": 1.0, "delta": DELTA} | changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_delta_that_allows_publishing_a_record_is_refused() -> None:
    with pytest.raises(ConfigError, match="not below 1 / num_records"):
        plan(PrivacyConfig(epsilon=1.0, delta=1e-3, steps=5), 1_000)


def test_a_budget_below_the_accountants_errors_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"epsilon=1e-05 is below 0\.01") as caught:
        plan(PrivacyConfig(epsilon=1e-5, delta=DELTA, steps=5), 1_000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prior_share", [0.0, 0.02, 1.0])
def test_the_least_budget_is_met_whatever_share_of_it_the_prior_has(prior_share: float) -> None:
    config = PrivacyConfig(
        epsilon=LEAST_EPSILON, delta=1e-4, expected_batch=256, steps=20, prior_share=prior_share
    )
    found = plan(config, 1_432)
    assert 0.9 * LEAST_EPSILON < found.epsilons.reported <= LEAST_EPSILON


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected_batch=256 is more than num_records=100"):
        plan(PrivacyConfig(epsilon=1.0, delta=DELTA, steps=5), 100)


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, math.inf, math.nan])
def test_there_is_no_mechanism_without_noise(noise_multiplier: float) -> None:
    with pytest.raises(ConfigError, match="no release without noise"):
        GaussianEvent(noise_multiplier=noise_multiplier)
    with pytest.raises(ConfigError, match="no release without noise"):
        DpSgdConfig(
            num_records=10,
            expected_batch=1,
            steps=1,
            max_grad_norm=1.0,
            noise_multiplier=noise_multiplier,
        )
