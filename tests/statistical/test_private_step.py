"""What a step releases when nothing was learnt: Gaussian noise of the stddev that was priced."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from rapid_dist.collective import Collective
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.noise import add_noise_
from rapid_dist.private.per_example import flat_size
from rapid_dist.private.step import PrivateStep
from tests.fakes import ThreadWorkers
from tests.models import mechanism, private_step, tiny_denoiser

FALSE_ALARM = 1e-6  # Chance that a correct step fails one of these tests under a fresh key.
PLAN = mechanism(max_grad_norm=0.3, noise_multiplier=1.7, expected_batch=5.0)


def _nothing(
    denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
) -> torch.Tensor:
    return torch.zeros(flat_size(denoiser))


def _noise(step_of: Any, world_size: int, number: int = 0) -> np.ndarray:
    def step(collective: Collective) -> torch.Tensor:
        own = step_of(collective)
        return own.noised_gradient(tiny_denoiser(), number)

    return ThreadWorkers(world_size).run(step)[0].double().numpy()


def _step(collective: Collective, **changes: Any) -> PrivateStep:
    return private_step(collective, **{"mechanism": PLAN, "engine": _nothing, **changes})


def _p_values(values: np.ndarray) -> tuple[float, float]:
    """(stddev, shape): chi-square of the sum of squares, two-sided, and Kolmogorov-Smirnov."""
    stddev = PLAN.noise_multiplier * PLAN.max_grad_norm / PLAN.expected_batch
    law = scipy.stats.chi2(len(values))
    statistic = float((values**2).sum()) / stddev**2
    shape = scipy.stats.kstest(values, scipy.stats.norm(0, stddev).cdf).pvalue
    return 2 * min(law.cdf(statistic), law.sf(statistic)), float(shape)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_released_noise_has_the_stddev_that_was_priced(world_size: int) -> None:
    assert min(_p_values(_noise(_step, world_size))) > FALSE_ALARM


def _shared_out(collective: Collective, share: float) -> PrivateStep:
    """The fault of noise that W ranks add with stddev times ``share`` before the reduction."""

    class SharedOut(PrivateStep):
        def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
            total = torch.zeros(flat_size(denoiser))
            key = SecretKey(bytes([self.collective.rank + 1] * 32))
            add_noise_(total, self.mechanism.noise_stddev * share, key, step, self.attempt)
            self.collective.sum_(total)
            return total / self.mechanism.expected_batch

    fields = PrivateStep.__dataclass_fields__
    return SharedOut(**{name: getattr(_step(collective), name) for name in fields})


@pytest.mark.parametrize("share", [1.0, 0.5])  # Right would be 1 / sqrt(2).
def test_the_stddev_test_would_notice_a_wrong_root_of_the_number_of_workers(share: float) -> None:
    assert _p_values(_noise(lambda c: _shared_out(c, share), world_size=2))[0] < FALSE_ALARM


def test_the_stddev_test_would_pass_the_right_root() -> None:
    right = _noise(lambda c: _shared_out(c, 2**-0.5), world_size=2)
    assert min(_p_values(right)) > FALSE_ALARM


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_the_stddev_test_would_notice_another_multiplier(factor: float) -> None:
    assert _p_values(factor * _noise(_step, 1))[0] < FALSE_ALARM


def _correlation_p_value(one: np.ndarray, other: np.ndarray) -> float:
    correlation = np.corrcoef(one, other)[0, 1]
    return 2 * float(scipy.stats.norm.sf(abs(correlation) * len(one) ** 0.5))


def test_steps_and_attempts_release_independent_noise() -> None:
    noises = [
        _noise(_step, 1),
        _noise(_step, 1, number=1),
        _noise(lambda c: _step(c, attempt=2), 1),
    ]
    for one, other in zip(noises, [*noises[1:], noises[0]], strict=True):
        assert _correlation_p_value(one, other) > FALSE_ALARM


def test_the_independence_test_would_notice_a_repeated_step_with_its_old_noise() -> None:
    assert _correlation_p_value(_noise(_step, 1), _noise(_step, 1)) < FALSE_ALARM
