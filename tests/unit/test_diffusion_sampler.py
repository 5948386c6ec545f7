"""Samplers solve the equation they name, at the cost they name, and as diffusers does."""

from typing import Any

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.sampler import ChurnConfig, SamplingConfig, Solver, sample
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import ConfigError
from tests.models import CLASSES, tiny_denoiser

SPREAD = 0.7


class GaussianDenoiser:
    """The exact denoiser of N(0, SPREAD^2) data, in float64: the flow has a known solution."""

    no_label = 1

    def __call__(
        self, noised: torch.Tensor, level: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        level = level.double().view(-1, 1, 1, 1)
        return noised * SPREAD**2 / (SPREAD**2 + level**2)


def _state(count: int = 3, level: float = 1.0, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return level * torch.randn(count, channels, 8, 8, generator=generator)


def _error(solver: Solver, intervals: int) -> float:
    levels = torch.linspace(5.0, 0.3, intervals + 1).tolist()
    state = _state(level=5.0).double()
    found = sample(
        GaussianDenoiser(), state, torch.zeros(3, dtype=torch.int64), levels, solver=solver
    )
    exact = state * ((SPREAD**2 + levels[-1] ** 2) / (SPREAD**2 + levels[0] ** 2)) ** 0.5
    return float((found - exact).abs().max())


def _order(solver: Solver) -> float:
    """log2 of how the error falls when there are twice as many intervals."""
    errors = torch.tensor([_error(solver, intervals) for intervals in (64, 128, 256)])
    return float((errors[:-1] / errors[1:]).log2().min())


@pytest.mark.parametrize("solver", ["heun", "dpmpp"])
def test_a_solver_of_second_order_has_an_error_that_falls_with_the_square(solver: Solver) -> None:
    assert _order(solver) > 1.8


def test_the_order_test_would_notice_a_solver_of_first_order() -> None:
    assert 0.8 < _order("ddim") < 1.2


def _evaluations(solver: Solver, levels: list[float], guidance: float = 1.0) -> float:
    denoiser = tiny_denoiser()
    labels = torch.tensor([0, 1, 2])
    sample(denoiser, _state(), labels, levels, solver=solver, guidance=guidance)
    return denoiser.evaluations / 3


@pytest.mark.parametrize(
    ("solver", "levels", "evaluations"),
    [
        ("ddim", [3.0, 2.0, 1.0, 0.0], 3),
        ("dpmpp", [3.0, 2.0, 1.0, 0.0], 3),
        ("heun", [3.0, 2.0, 1.0, 0.0], 5),
        ("heun", [3.0, 2.0, 1.0], 4),
        ("dpmpp", [3.0, 0.0], 1),
    ],
)
def test_evaluations_are_counted_by_the_network(
    solver: Solver, levels: list[float], evaluations: int
) -> None:
    assert _evaluations(solver, levels) == evaluations
    assert _evaluations(solver, levels, guidance=2.0) == 2 * evaluations


def _by_diffusers(scheduler: Any, denoiser: Denoiser, state: torch.Tensor) -> torch.Tensor:
    labels = torch.zeros(len(state), dtype=torch.int64)
    for time, level in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        total = (level**2 + 0.25).sqrt()
        estimate = denoiser(state, level.expand(len(state)), labels)
        raw = (estimate - 0.25 / total**2 * state) / (level * 0.5 / total)
        scheduler.scale_model_input(state, time)  # The scheduler insists on being asked.
        state = scheduler.step(raw, time, state).prev_sample
    return state


SCHEDULERS: dict[Solver, Any] = {
    "ddim": EDMEulerScheduler,
    "dpmpp": EDMDPMSolverMultistepScheduler,
}


@torch.no_grad()
def _against_diffusers(solver: Solver, scheduler_of: Solver) -> float:
    denoiser = tiny_denoiser()
    scheduler = SCHEDULERS[scheduler_of](sigma_min=0.05, sigma_max=10.0, sigma_data=0.5)
    scheduler.set_timesteps(8)
    levels = scheduler.sigmas.tolist()
    assert levels[-1] == 0.0
    state = _state(level=10.0)
    ours = sample(denoiser, state, torch.zeros(3, dtype=torch.int64), levels, solver=solver)
    theirs = _by_diffusers(scheduler, denoiser, state)
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_a_solver_gives_what_diffusers_gives_on_the_same_levels(solver: Solver) -> None:
    assert _against_diffusers(solver, solver) < 1e-4


def test_the_comparison_with_diffusers_would_notice_another_solver() -> None:
    assert _against_diffusers("ddim", "dpmpp") > 1e-2
    assert _against_diffusers("dpmpp", "ddim") > 1e-2


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp"])
def test_a_samples_result_does_not_depend_on_its_batch(solver: Solver) -> None:
    denoiser, levels = tiny_denoiser(), ScheduleConfig().path(450, 0, 4)
    state, labels = _state(4), torch.tensor([0, 1, 2, CLASSES])
    together = sample(denoiser, state, labels, levels, solver=solver)
    for row in range(4):
        one = slice(row, row + 1)
        alone = sample(denoiser, state[one], labels[one], levels, solver=solver)
        torch.testing.assert_close(alone, together[one], rtol=1e-4, atol=1e-5)


def test_guidance_goes_from_the_estimate_without_a_label_through_that_with_it() -> None:
    denoiser, state = tiny_denoiser(), _state()
    labels, none = torch.tensor([0, 1, 2]), torch.full((3,), CLASSES)
    with_label = sample(denoiser, state, labels, [1.0, 0.0], solver="ddim")
    without = sample(denoiser, state, none, [1.0, 0.0], solver="ddim")
    for guidance in (0.0, 0.5, 3.0):
        found = sample(denoiser, state, labels, [1.0, 0.0], solver="ddim", guidance=guidance)
        torch.testing.assert_close(found, without + guidance * (with_label - without))
    assert not torch.allclose(with_label, without)


def test_sampling_takes_no_gradient() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    assert not sample(tiny_denoiser(), _state(), labels, [1.0, 0.0]).requires_grad


@pytest.mark.parametrize(
    "setting",
    [
        {"count": 0},
        {"batch_size": 0},
        {"late_intervals": 0},
        {"early_intervals": 0},
        {"guidance": -1.0},
    ],
)
def test_a_sampling_setting_is_refused_by_its_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"sampling.*{next(iter(setting))}"):
        SamplingConfig(**setting)


NO_CHURN, CHURNED = ChurnConfig(), ChurnConfig(amount=20.0)
PATH = [5.0 * 0.06 ** (i / 128) for i in range(129)]  # From 5 down to 0.3.


def _variance(churn: ChurnConfig, solver: Solver = "heun") -> float:
    """Of 12,800 churned values at the end, against what the exact flow leads to."""
    generator = torch.Generator().manual_seed(5)
    shape = (200, 1, 8, 8)
    state = (SPREAD**2 + PATH[0] ** 2) ** 0.5 * torch.randn(shape, generator=generator)
    found = sample(
        GaussianDenoiser(),
        state,
        torch.zeros(200, dtype=torch.int64),
        PATH,
        solver=solver,
        churn=churn,
        fresh=lambda interval: torch.randn(shape, generator=generator),
    )
    return float(found.var()) / (SPREAD**2 + PATH[-1] ** 2)


# A variance over 12,800 normals is within 4.9 sqrt(2 / 12,800) of its own, false alarm 1e-6; the
# path's own error is below a hundredth of it.
VARIANCE = 4.9 * (2 / 12_800) ** 0.5 + 0.01


@pytest.mark.parametrize("churn", [NO_CHURN, CHURNED, ChurnConfig(amount=20, least_level=1.0)])
def test_churn_keeps_the_distribution_that_the_flow_leads_to(churn: ChurnConfig) -> None:
    assert abs(_variance(churn) - 1) < VARIANCE


def test_the_distribution_test_would_notice_noise_of_another_size() -> None:
    assert _variance(ChurnConfig(amount=20, noise=1.2)) - 1 > VARIANCE
    assert 1 - _variance(ChurnConfig(amount=20, noise=0.8)) > VARIANCE


def _churned(solver: Solver, levels: list[float], churn: ChurnConfig) -> tuple[list[int], float]:
    """The intervals that fresh noise was asked for, and the evaluations an image."""
    denoiser, asked = tiny_denoiser(), []

    def fresh(interval: int) -> torch.Tensor:
        asked.append(interval)
        return torch.zeros(3, 1, 8, 8)

    labels = torch.zeros(3, dtype=torch.int64)
    sample(denoiser, _state(), labels, levels, solver=solver, churn=churn, fresh=fresh)
    return asked, denoiser.evaluations / 3


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [("ddim", 4), ("heun", 7)],  # Heun's last interval ends at 0.
)
def test_churn_costs_no_evaluation(solver: Solver, evaluations: int) -> None:
    levels = [4.0, 3.0, 2.0, 1.0, 0.0]
    for churn, asked in ((NO_CHURN, []), (CHURNED, [0, 1, 2, 3])):
        assert _churned(solver, levels, churn) == (asked, evaluations)


def test_churn_stays_within_its_levels() -> None:
    churn = ChurnConfig(amount=1.0, least_level=1.5, most_level=3.5)
    assert _churned("heun", [4.0, 3.0, 2.0, 1.0, 0.0], churn)[0] == [1, 2]
    assert churn.raised(3.0, 4) == pytest.approx(3.0 * 1.25)  # gamma = S_churn / N,
    assert churn.raised(3.0, 1) == pytest.approx(3.0 * 2**0.5)  # and at most sqrt(2) - 1.
    assert churn.raised(4.0, 4) == 4.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"amount": -1.0}, "sampling.churn.amount"),
        ({"amount": 1.0, "noise": 0.0}, "sampling.churn.noise"),
        ({"least_level": 2.0, "most_level": 1.0}, "sampling.churn.least_level"),
    ],
)
def test_a_churn_setting_is_refused_by_its_name(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ChurnConfig(**settings)


def test_a_solver_that_looks_back_is_not_churned() -> None:
    with pytest.raises(ConfigError, match="'dpmpp' looks back"):
        SamplingConfig(churn=CHURNED)
    with pytest.raises(ConfigError, match="'dpmpp' looks back"):
        _churned("dpmpp", [2.0, 1.0], CHURNED)
    assert SamplingConfig(churn=CHURNED, solver="heun").churn == CHURNED
