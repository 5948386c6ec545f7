"""Check 3, what batches and rounds share: who is drawn, with whom, how many, and how often nobody.

Draws are bool [T, N]: which of N units was in which of T batches. q = rate.
"""

from dataclasses import dataclass

import numpy as np

from rapid_dist.audit.result import CheckResult
from rapid_dist.audit.statistics import (
    Row,
    binomial_p_value,
    evenness_p_value,
    least_pair_p_value,
    overlap_p_value,
    size_p_value,
)

CHECK = "sampling"
NUM_UNITS, RATE = 48, 0.25  # Of the small set, where every pair of units can be looked at.
ONE_EXPECTED = 1 / NUM_UNITS  # The rate at which empty batches are counted.


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Who was in which batch, of a mechanism at three rates."""

    drawn: np.ndarray  # At RATE.
    again: np.ndarray  # The same key, a later attempt.
    other: np.ndarray  # Another key.
    few: np.ndarray  # At ONE_EXPECTED.
    own: np.ndarray  # At the recipe's N and rate.
    own_rate: float


def rows_of_draws(draws: Draws, *, batches: str, where: str, pairs: str = "") -> list[CheckResult]:
    """Five rows that share a false-alarm chance: rate, pairs, sizes, independence, empty batches.

    Args:
      batches: what one draw is for: "steps" or "rounds".
      where: what was drawn on, for the row of the rate.
      pairs: of which pairs the least likely one is.
    """
    drawn, own, rate = draws.drawn, draws.own, draws.own_rate
    empty, many = int((draws.few.sum(1) == 0).sum()), len(draws.few)
    return [
        Row(check=CHECK, share=0.2).verdict(
            "Is every unit drawn at the claimed rate, none more often than another?",
            {
                "rate": binomial_p_value(int(drawn.sum()), drawn.size, RATE),
                "evenness": evenness_p_value(drawn, RATE),
                "the recipe's rate": binomial_p_value(int(own.sum()), own.size, rate),
                "the recipe's evenness": evenness_p_value(own, rate),
            },
            f"N={NUM_UNITS}, q={RATE}, {len(drawn)} {batches}{where}; "
            f"the recipe's N={own.shape[1]}, q={rate:.4g}, {len(own)} {batches}.",
        ),
        Row(check=CHECK, share=0.2).verdict(
            "Is every pair of units drawn together at the squared rate?",
            {"the least likely pair": least_pair_p_value(drawn, RATE)},
            f"Of {NUM_UNITS * (NUM_UNITS - 1) // 2} pairs{pairs}.",
        ),
        Row(check=CHECK, share=0.2).verdict(
            "Do sizes vary as Poisson sampling says?",
            {"sizes": size_p_value(drawn, RATE), "the recipe's sizes": size_p_value(own, rate)},
        ),
        Row(check=CHECK, share=0.2).verdict(
            f"Are {batches}, attempts and runs drawn independently?",
            {
                batches: overlap_p_value(drawn[0::2], drawn[1::2], RATE),
                "attempts": overlap_p_value(drawn, draws.again, RATE),
                "runs": overlap_p_value(drawn, draws.other, RATE),
                f"the recipe's {batches}": overlap_p_value(own[0::2], own[1::2], rate),
            },
        ),
        Row(check=CHECK, share=0.2).verdict(
            "Is nobody drawn as often as nobody should be?",
            {f"empty {batches}": binomial_p_value(empty, many, (1 - ONE_EXPECTED) ** NUM_UNITS)},
            f"{empty} of {many} {batches}, one unit expected in each.",
        ),
    ]
