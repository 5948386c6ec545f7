"""Epsilon by every accountant, and the plan that meets a budget.

The number of record is the PLD's (pld.py). Opacus' PRV checks it: the larger of the two is
reported, and a disagreement stops everything. RDP is shown beside them. The Gaussian-DP central
limit is never used: it can lie below the truth.

Opacus' PRV is meant for sample rates below 1. At rate 1 its formulas hold in the limit, and give
the analytic Gaussian epsilon to within its stated error (a test checks this), so full-batch
queries such as the prior go through the same function.

Discrete events are accounted as Gaussian ones at a delta a little smaller, plus what
``discreteness`` says their difference costs; all three accountants alike.
"""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant

from rapid_dist.errors import BudgetError, ConfigError
from rapid_dist.privacy.discreteness import discreteness
from rapid_dist.privacy.mechanism import (
    DpSgdConfig,
    DpSgdEvent,
    Event,
    GaussianEvent,
    RetrievalConfig,
    gaussian_event,
)
from rapid_dist.privacy.pld import pld_epsilon, pooled
from rapid_dist.privacy.settings import Budget, PrivacyConfig
from rapid_dist.privacy.solving import (
    largest_that,
    solve_noise_multiplier,
    solve_sample_rate,
    solve_steps,
)

MOST_DISAGREEMENT = 0.05  # Between PLD and PRV, in epsilon.
LEAST_EPSILON = 0.01  # That can be planned for: below it the PLD's grid is too coarse to search on.
_MOST_GRID_POINTS = 4e6  # Of the PRV's mesh: bounds its time and memory.


@dataclass(frozen=True, kw_only=True, slots=True)
class Epsilons:
    """One set of releases, at one delta, by every accountant."""

    delta: float
    pld: float
    prv: float
    rdp: float

    def __post_init__(self) -> None:
        # Written so that a nan is a disagreement.
        if not abs(self.pld - self.prv) <= MOST_DISAGREEMENT:
            raise BudgetError(
                f"The accountants disagree at delta={self.delta}: PLD {self.pld:.4f}, PRV "
                f"{self.prv:.4f}. No epsilon can be claimed; change the noise or the steps."
            )

    @property
    def reported(self) -> float:
        """The epsilon that is claimed."""
        return max(self.pld, self.prv)


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """All that one run may release. Everything in it is public."""

    budget: Budget
    prior: GaussianEvent | None
    dp_sgd: DpSgdConfig | None  # None: the prior takes the whole budget.
    reserve_steps: int
    epsilons: Epsilons  # With every reserve step spent.
    contamination: GaussianEvent | None = None  # Counts of near-duplicates by public source.
    candidates: GaussianEvent | None = None  # Votes among images made from the noised prior.
    retrieval: RetrievalConfig | None = None  # In place of DP-SGD: nothing is trained.

    @property
    def queries(self) -> tuple[GaussianEvent, ...]:
        asked = (self.contamination, self.prior, self.candidates)
        return tuple(query for query in asked if query is not None)

    @property
    def stepped(self) -> DpSgdConfig | RetrievalConfig | None:
        """What is charged a step at a time: the steps of DP-SGD, or rounds of retrieval."""
        return self.dp_sgd or self.retrieval

    @property
    def events(self) -> tuple[Event, ...]:
        if self.stepped is None:
            return self.queries
        return (*self.queries, self.stepped.event(self.stepped.steps + self.reserve_steps))


def epsilons(events: Sequence[Event], delta: float) -> Epsilons:
    """Returns what ``events`` cost together; raises BudgetError if the accountants disagree."""
    parts = pooled(events)
    if not parts:
        return Epsilons(delta=delta, pld=0.0, prv=0.0, rdp=0.0)
    discrete = discreteness(events, delta)
    pld, prv, rdp = (discrete.total(of(parts, discrete.delta)) for of in (pld_epsilon, _prv, _rdp))
    return Epsilons(delta=delta, pld=pld, prv=prv, rdp=rdp)


def upper_bound(events: Sequence[Event], delta: float) -> float:
    """Returns an epsilon that ``events`` certainly do not pass: by Rényi divergences alone.

    For totals so large that PLD and PRV, with their grids of bounded size, come apart. It is looser
    than either and no figure to claim for a model.
    """
    parts = pooled(events)
    if not parts:
        return 0.0
    discrete = discreteness(events, delta)
    return discrete.total(_rdp(parts, discrete.delta))


@lru_cache(maxsize=16)
def plan(config: PrivacyConfig, num_records: int) -> PrivacyPlan:
    """Solves the one unknown of ``config``.

    Guarantees: the reported epsilon of prior, training and reserve steps, composed, is at most
    the budget's, and just below it unless the unknown is a whole number of steps or at its limit.
    """
    _require_sensible(config, num_records)
    if config.expected_batch is not None and config.expected_batch > num_records:
        raise ConfigError(
            f"expected_batch={config.expected_batch} is more than num_records={num_records}. "
            "Lower expected_batch."
        )
    return _fitted(config, lambda target: _solve(config, num_records, target))


@lru_cache(maxsize=16)
def plan_retrieval(
    config: PrivacyConfig, num_records: int, *, sample_rate: float, rounds: int, neighbors: int
) -> PrivacyPlan:
    """Solves the noise of so many rounds; what ``config`` says of steps and batch is not read.

    Guarantees: the reported epsilon of all rounds, reserve rounds and the counts of
    near-duplicates, composed, is at most the budget's.
    """
    _require_sensible(config, num_records)
    others = tuple(one for one in (_contamination(config),) if one is not None)

    def solve(target: float) -> PrivacyPlan:
        noise = solve_noise_multiplier(
            sample_rate=sample_rate,
            steps=rounds + config.reserve_steps,
            budget=Budget(epsilon=target, delta=config.delta),
            others=others,
        )
        retrieval = RetrievalConfig(
            num_records=num_records,
            sample_rate=sample_rate,
            steps=rounds,
            neighbors=neighbors,
            noise_multiplier=noise,
            noise=config.noise,
        )
        unpriced = PrivacyPlan(
            budget=config.budget,
            contamination=_contamination(config),
            prior=None,
            dp_sgd=None,
            retrieval=retrieval,
            reserve_steps=config.reserve_steps,
            epsilons=epsilons((), config.delta),
        )
        return replace(unpriced, epsilons=epsilons(unpriced.events, config.delta))

    return _fitted(config, solve)


def _require_sensible(config: PrivacyConfig, num_records: int) -> None:
    if config.delta * num_records >= 1:
        raise ConfigError(
            f"delta={config.delta} is not below 1 / num_records = {1 / num_records:.3g}: it would "
            "allow publishing a whole record. Lower delta."
        )
    if config.epsilon < LEAST_EPSILON:
        raise ConfigError(
            f"epsilon={config.epsilon} is below {LEAST_EPSILON}, where the accountants' own errors "
            "are as large as the budget. Raise epsilon."
        )


def _fitted(config: PrivacyConfig, solve: Callable[[float], PrivacyPlan]) -> PrivacyPlan:
    """Returns what ``solve`` finds at an epsilon by PLD whose report is within the budget."""
    # The PRV lies above the PLD by its error and a little more: leave room for that.
    target = config.epsilon - 1.4 * _prv_error(config.epsilon)
    for _ in range(8):
        solved = solve(target)
        excess = solved.epsilons.reported - config.epsilon
        if excess <= 0:
            return solved
        target -= 1.1 * excess
    raise BudgetError(
        f"No plan's reported epsilon came under {config.epsilon} (last {excess:.2g} above). "
        "Give steps and noise_multiplier other values."
    )


def affordable_steps(spent: Sequence[Event], budget: Budget, step: DpSgdEvent, at_most: int) -> int:
    """Returns how many more steps like ``step`` keep the reported epsilon within the budget.

    Args:
      spent: everything already released under this budget.
      at_most: as many as anybody will ask for; bounds the search.
    """

    def within(steps: int) -> bool:
        events = [*spent, replace(step, steps=steps)]
        return epsilons(events, budget.delta).reported <= budget.epsilon

    constants = {"sample_rate": step.sample_rate, "noise_multiplier": step.noise_multiplier}
    most = solve_steps(**constants, budget=budget, others=spent, at_most=at_most)
    if most == 0 or within(most):
        return most
    discrete = discreteness([*spent, replace(step, steps=most)], budget.delta)
    lower = budget.epsilon - _prv_error(budget.epsilon) - discrete.epsilon
    tighter = replace(budget, epsilon=lower)
    steps = solve_steps(**constants, budget=tighter, others=spent, at_most=most)
    while steps and not within(steps):
        steps -= 1
    return largest_that(within, steps, most)


def _solve(config: PrivacyConfig, num_records: int, target: float) -> PrivacyPlan:
    """Solves for the PLD alone, at epsilon ``target``."""
    budget = Budget(epsilon=target, delta=config.delta)
    contamination = _contamination(config)
    first = () if contamination is None else (contamination,)
    candidates = _candidates(config, target)
    prior = _prior(config, target, first, candidates)
    dp_sgd = None
    if config.has_training:
        others = tuple(one for one in (*first, prior, candidates) if one is not None)
        dp_sgd = _solve_training(config, num_records, budget, others)
    unpriced = PrivacyPlan(
        budget=config.budget,
        contamination=contamination,
        prior=prior,
        candidates=candidates,
        dp_sgd=dp_sgd,
        reserve_steps=0 if dp_sgd is None else config.reserve_steps,
        epsilons=epsilons((), config.delta),
    )
    return replace(unpriced, epsilons=epsilons(unpriced.events, config.delta))


def _contamination(config: PrivacyConfig) -> GaussianEvent | None:
    if config.contamination_noise is None:
        return None
    return gaussian_event(config.contamination_noise, config.noise)


def _candidates(config: PrivacyConfig, target: float) -> GaussianEvent | None:
    """Solves the second round of votes by itself, at its share of the prior's epsilon."""
    if config.candidate_share == 0:
        return None
    whole = config.epsilon * config.prior_share if config.has_training else target
    alone = Budget(epsilon=whole * config.candidate_share, delta=config.delta)
    noise = solve_noise_multiplier(sample_rate=1.0, steps=1, budget=alone)
    return gaussian_event(noise, config.noise)


def _prior(
    config: PrivacyConfig,
    target: float,
    first: Sequence[GaussianEvent],
    candidates: GaussianEvent | None,
) -> GaussianEvent | None:
    """Solves the prior, beside the second round of votes if there is one.

    Args:
      first: what it shares the budget with where there is no training.
    """
    if config.prior_noise is not None:
        return gaussian_event(config.prior_noise, config.noise)
    if config.prior_share == 0:
        return None
    epsilon = config.epsilon * config.prior_share if config.has_training else target
    alone = Budget(epsilon=epsilon, delta=config.delta)
    second = () if candidates is None else (candidates,)
    others = second if config.has_training else (*first, *second)
    noise = solve_noise_multiplier(sample_rate=1.0, steps=1, budget=alone, others=others)
    return gaussian_event(noise, config.noise)


def _solve_training(
    config: PrivacyConfig, num_records: int, budget: Budget, others: Sequence[Event]
) -> DpSgdConfig:
    batch, steps, noise = config.expected_batch, config.steps, config.noise_multiplier
    if noise is None:
        assert batch is not None
        assert steps is not None
        noise = solve_noise_multiplier(
            sample_rate=batch / num_records,
            steps=steps + config.reserve_steps,
            budget=budget,
            others=others,
        )
    elif batch is None:
        assert steps is not None
        rate = solve_sample_rate(
            noise_multiplier=noise,
            steps=steps + config.reserve_steps,
            budget=budget,
            others=others,
        )
        batch = rate * num_records
    elif steps is None:
        total = solve_steps(
            sample_rate=batch / num_records, noise_multiplier=noise, budget=budget, others=others
        )
        steps = total - config.reserve_steps
        if steps < 1:
            raise BudgetError(
                f"epsilon={config.epsilon} pays for {total} steps of noise_multiplier={noise} "
                f"beside the prior, of which reserve_steps={config.reserve_steps} leaves none. "
                "Raise epsilon or noise_multiplier, or lower prior_share."
            )
    assert batch is not None
    assert steps is not None
    return DpSgdConfig(
        num_records=num_records,
        expected_batch=batch,
        steps=steps,
        max_grad_norm=config.max_grad_norm,
        noise_multiplier=noise,
        noise=config.noise,
    )


def _prv_error(pld: float, steps: int = 1, delta: float = 1e-5) -> float:
    """Returns the error bound to ask of the PRV, which adds it to what it reports."""
    wanted = min(max(0.005 * pld, 1e-4), 2e-3)
    half_width = 1.5 * pld + 4
    affordable = 2 * half_width * math.sqrt(steps * math.log(12_000 / delta) / 2)
    return max(wanted, affordable / _MOST_GRID_POINTS)


@lru_cache(maxsize=256)
def _prv(events: tuple[DpSgdEvent, ...], delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in events]
    error = _prv_error(pld_epsilon(events, delta), sum(e.steps for e in events), delta)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # Its RDP bound on the mesh's width says so when it is loose, which does no harm here.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return float(accountant.get_epsilon(delta, eps_error=error))


@lru_cache(maxsize=256)
def _rdp(events: tuple[DpSgdEvent, ...], delta: float) -> float:
    # Few broken orders: dp_accounting's series for them are slow, the lowest do not converge.
    orders = (1.75, 2.25, 2.5, 2.75, 3.5, *range(2, 64), 80, 96, 128, 192, 256, 512, 1024)
    accountant = RdpAccountant(orders, NeighboringRelation.REPLACE_SPECIAL)
    # An order whose series does not converge is left out, which can only raise the minimum. The
    # library says so on the terminal each time; to a user it would look like a fault.
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        for event in events:
            gaussian = GaussianDpEvent(event.noise_multiplier)
            accountant.compose(PoissonSampledDpEvent(event.sample_rate, gaussian), event.steps)
        return float(accountant.get_epsilon(delta))
    finally:
        absl.setLevel(level)
