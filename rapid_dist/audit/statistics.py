"""Two-sided p-values for the statistical checks.

All of them are for a *known* law, nothing is fitted, so that a p-value is the chance that a right
mechanism does as badly. A row that makes several tests divides its false-alarm chance by their
number (Bonferroni).

Draws are bool [T, N]: which of N units was in which of T batches. q = rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats

from rapid_dist.audit.result import CheckResult

FALSE_ALARM = 1e-6  # Of one whole check; its rows share it.
_BLOCKS = 64  # Of units, where each alone is drawn too seldom.


def variance_p_value(values: np.ndarray, stddev: float) -> float:
    """Sum of squares / stddev^2 is chi-square with n degrees of freedom."""
    statistic = float(np.square(values, dtype=np.float64).sum()) / stddev**2
    return two_sided(scipy.stats.chi2(values.size), statistic)


def shape_p_value(values: np.ndarray, stddev: float) -> float:
    """Kolmogorov and Smirnov's distance from N(0, stddev^2)."""
    return float(scipy.stats.kstest(values, scipy.stats.norm(0, stddev).cdf).pvalue)


def tail_p_value(values: np.ndarray, stddev: float) -> float:
    """How many of n values lie beyond 4 stddev, where most distances see nothing."""
    beyond = int((np.abs(values) > 4 * stddev).sum())
    return binomial_p_value(beyond, values.size, 2 * float(scipy.stats.norm.sf(4)))


def correlation_p_value(one: np.ndarray, other: np.ndarray, stddev: float) -> float:
    """Given the other, the inner product with N(0, stddev^2) values is exactly normal."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    length = float(np.linalg.norm(other))
    if length == 0:
        return 1.0
    return 2 * float(scipy.stats.norm.sf(abs(float(one @ other)) / (stddev * length)))


def binomial_p_value(count: int, trials: int, chance: float) -> float:
    return float(scipy.stats.binomtest(count, trials, chance).pvalue)


def evenness_p_value(drawn: np.ndarray, rate: float) -> float:
    """Chi-square over units, or over blocks of them where there are many."""
    blocks = np.array_split(drawn.sum(0), min(drawn.shape[1], _BLOCKS))
    expected = np.array([len(block) * len(drawn) * rate for block in blocks])
    counts = np.array([block.sum() for block in blocks])
    if rate == 1:
        return float((counts == expected).all())
    statistic = float((np.square(counts - expected) / (expected * (1 - rate))).sum())
    return two_sided(scipy.stats.chi2(len(blocks)), statistic)


def size_p_value(drawn: np.ndarray, rate: float) -> float:
    """Sizes are Binomial(N, q); their squared distances from Nq add up to nearly chi-square."""
    units = drawn.shape[1]
    if rate == 1:
        return float((drawn.sum(1) == units).all())
    statistic = np.square(drawn.sum(1) - units * rate).sum() / (units * rate * (1 - rate))
    return two_sided(scipy.stats.chi2(len(drawn)), float(statistic))


def least_pair_p_value(drawn: np.ndarray, rate: float) -> float:
    """The most suspicious of all pairs, times their number."""
    units = drawn.shape[1]
    together = (drawn.T.astype(np.int64) @ drawn)[np.triu_indices(units, 1)]
    law = scipy.stats.binom(len(drawn), rate**2)
    tails = 2 * np.minimum(law.cdf(together), law.sf(together - 1))
    return float(min(1.0, tails.min() * len(tails)))


def overlap_p_value(one: np.ndarray, other: np.ndarray, rate: float) -> float:
    """Two independent draws share Binomial(n, q^2) inclusions."""
    one = one[: len(other)]
    return binomial_p_value(int((one & other).sum()), one.size, rate**2)


def two_sided(law: object, statistic: float) -> float:
    """Twice the smaller tail, at most 1; 0 for what is not a number."""
    if not np.isfinite(statistic):
        return 0.0
    tails = law.cdf(statistic), law.sf(statistic)  # type: ignore[attr-defined]
    return float(min(1.0, 2 * min(tails)))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a check, and its share of the check's false alarms."""

    check: str
    share: float

    def verdict(
        self, question: str, p_values: Mapping[str, float], detail: str = ""
    ) -> CheckResult:
        """The row's answer from the least likely of its tests, each named."""
        worst = min(p_values, key=lambda name: p_values[name])
        threshold = FALSE_ALARM * self.share / len(p_values)
        return CheckResult(
            check=self.check,
            question=question,
            statistic=f"p = {p_values[worst]:.3g} ({worst}), the least of {len(p_values)}",
            bound=f"p above {threshold:.2g}",
            false_alarm=FALSE_ALARM * self.share,
            passed=p_values[worst] > threshold,
            detail=detail,
        )
