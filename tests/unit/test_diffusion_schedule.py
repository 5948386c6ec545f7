"""The grid of noise levels, the loss on it, and the randomness that belongs to a sample."""

from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch

from rapid_dist.diffusion.denoiser import weights_of
from rapid_dist.diffusion.ema import Ema
from rapid_dist.diffusion.loss import row_losses
from rapid_dist.diffusion.schedule import LevelLaw, ScheduleConfig
from rapid_dist.diffusion.seeds import generator_for, normal_for
from rapid_dist.errors import ConfigError
from tests.models import random_rows, tiny_denoiser


def test_levels_rise_from_a_clean_image_to_pure_noise() -> None:
    schedule = ScheduleConfig(num_steps=50, noise_min=0.02, noise_max=30.0)
    levels = schedule.levels()
    assert levels.shape == (51,)
    assert levels[0] == 0.0
    assert levels[1] == pytest.approx(0.02)
    assert levels[50] == pytest.approx(30.0)
    assert (np.diff(levels) > 0).all()
    assert schedule.level(17) == levels[17]


def test_levels_are_those_of_karras_equation_5() -> None:
    schedule = ScheduleConfig(num_steps=20, noise_min=0.002, noise_max=80.0, rho=7.0)
    i = np.arange(20)
    downward = (80 ** (1 / 7) + i / 19 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedule.levels()[1:], downward[::-1], rtol=1e-9)


def test_a_path_goes_down_from_step_to_step_through_levels_of_the_grid() -> None:
    schedule = ScheduleConfig()
    path = schedule.path(450, 0, 16)
    assert len(path) == 17
    assert path[0] == schedule.level(450)
    assert path[-1] == 0.0
    assert all(above > below for above, below in pairwise(path))
    assert set(path) <= set(schedule.levels().tolist())


def test_two_paths_that_meet_are_the_whole_path() -> None:
    schedule = ScheduleConfig()
    assert schedule.path(1000, 500, 5) + schedule.path(500, 0, 5)[1:] == schedule.path(1000, 0, 10)


def test_a_path_with_more_intervals_than_steps_visits_every_step_once() -> None:
    schedule = ScheduleConfig(num_steps=10)
    assert schedule.path(3, 0, 50) == schedule.levels()[3::-1].tolist()


@pytest.mark.parametrize("ends", [(5, 5), (3, 4), (1001, 0), (4, -1)])
def test_a_path_that_does_not_go_down_on_the_grid_is_refused(ends: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="must go down"):
        ScheduleConfig().path(*ends, 3)


def test_a_path_without_intervals_and_a_step_off_the_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one interval"):
        ScheduleConfig().path(5, 0, 0)
    for step in (-1, 1001):
        with pytest.raises(ConfigError, match=r"0\.\.1000"):
            ScheduleConfig().level(step)


@pytest.mark.parametrize(
    "setting",
    [{"num_steps": 1}, {"noise_min": 0.0}, {"noise_min": 50.0}, {"rho": 0.0}, {"data_std": -1.0}],
)
def test_a_schedule_setting_is_refused_by_its_name(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"schedule.*{next(iter(setting))}"):
        ScheduleConfig(**setting)


def test_the_loss_of_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    denoiser, rows = tiny_denoiser(), random_rows(5)
    together = row_losses(denoiser, rows)
    for row in range(5):
        alone = row_losses(denoiser, rows[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_weighted_mean_squared_error_of_the_estimate() -> None:
    denoiser, rows = tiny_denoiser(), random_rows(3)
    estimate = denoiser(rows.noised, rows.noise_level, rows.labels)
    level = rows.noise_level
    weight = (level**2 + 0.25) / (level * 0.5) ** 2
    expected = weight * (estimate - rows.clean).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(row_losses(denoiser, rows), expected)
    torch.testing.assert_close(weights_of(level, 0.5), weight)


def test_a_samples_noise_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    ids = np.array([7, 3, 7, 12])
    batch = normal_for(1, ids, (2, 3))
    for row, sample in enumerate(ids):
        assert torch.equal(batch[row], normal_for(1, np.array([sample]), (2, 3))[0])
    assert torch.equal(batch[0], batch[2])


def test_seeds_purposes_and_samples_have_noise_of_their_own() -> None:
    ids = np.arange(50)
    draws = [
        normal_for(1, ids, (40,)),
        normal_for(2, ids, (40,)),
        normal_for(1, ids, (40,), "start"),
    ]
    rows = torch.cat(draws)
    assert len({row.numpy().tobytes() for row in rows}) == 150
    # 2,000 pairs: a correlation has stddev 0.022; false alarm 1e-6.
    for one, other in ((0, 1), (0, 2), (1, 2)):
        pair = torch.stack([draws[one].flatten(), draws[other].flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 4.9 / 2_000**0.5
    assert abs(float(rows.std()) - 1) < 4.9 / (2 * 6_000) ** 0.5


def test_a_generator_is_a_function_of_seed_purpose_and_sample() -> None:
    assert generator_for(1, "a", 2).random() == generator_for(1, "a", 2).random()
    assert generator_for(1, "a", 2).random() != generator_for(1, "a2", 2).random()


def test_the_average_forgets_its_start_faster_in_the_beginning() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    ema = Ema([parameter], decay=0.9)
    expected = 0.0
    for update in range(30):
        with torch.no_grad():
            parameter.fill_(float(update))
        ema.update()
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    assert ema.average[0].tolist() == pytest.approx([expected] * 3, rel=1e-5)
    assert parameter.tolist() == [29.0] * 3  # The live weights are not touched.
    ema.copy_to([parameter])
    assert parameter.tolist() == pytest.approx([expected] * 3, rel=1e-5)


def test_frozen_parameters_have_no_average() -> None:
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    live = torch.nn.Parameter(torch.zeros(2))
    ema = Ema([frozen, live], decay=0.5)
    assert len(ema.average) == 1
    ema.copy_to([frozen, live])
    assert frozen.tolist() == [1.0, 1.0]


def test_without_a_mean_every_step_is_as_likely() -> None:
    law = ScheduleConfig().step_law(450, None, 1.0)
    np.testing.assert_allclose(np.diff(law, prepend=0.0), 1 / 450)


@pytest.mark.parametrize(("mean", "std"), [(-0.3, 1.0), (-1.2, 1.2)])
def test_the_law_of_steps_is_lognormal_in_the_level_and_ends_at_the_top(
    mean: float, std: float
) -> None:
    schedule = ScheduleConfig()
    law = schedule.step_law(600, mean, std)
    normal = NormalDist(mean, std)
    log_levels = np.log(schedule.levels()[1:601])
    expected = np.array([normal.cdf(level) for level in log_levels])
    lowest, highest = normal.cdf(log_levels[0]), expected[-1]
    np.testing.assert_allclose(law, (expected - lowest) / (highest - lowest), atol=0.005)
    assert law[-1] == 1.0


@pytest.mark.parametrize(("mean", "std"), [(200.0, 1.0), (-60.0, 0.5), (3.5, 0.05)])
def test_a_law_without_weight_on_any_step_is_refused(mean: float, std: float) -> None:
    with pytest.raises(ConfigError, match=r"leave none of steps 1\.\.450 to train on"):
        ScheduleConfig().step_law(450, mean, std)


def _time_of(law: str, level: np.ndarray) -> np.ndarray:
    """What a law is even over, by quadrature of its own differential equation or by its name."""
    if law == "ve":
        return np.log(level)
    if law == "cosine":  # level = tan(angle): the chance below 1 is half of that of everything.
        return np.arctan2(level, 1.0)
    times = np.linspace(0, 1.2, 400_001)  # beta(t) = 0.1 + 19.9 t, integrated step by step.
    beta = 0.1 + 19.9 * times
    integral = np.concatenate([[0.0], np.cumsum((beta[1:] + beta[:-1]) / 2 * np.diff(times))])
    return np.interp(np.log1p(level**2), integral, times)


@pytest.mark.parametrize("law", ["vp", "ve", "cosine"])
@pytest.mark.parametrize("top", [450, 1000])
def test_a_law_is_even_over_the_time_of_its_parameterisation(law: LevelLaw, top: int) -> None:
    schedule = ScheduleConfig()
    found = schedule.step_law(top, None, 1.0, law)
    assert (np.diff(found) > 0).all()
    assert found[-1] == 1.0
    time = _time_of(law, schedule.levels()[1 : top + 1])
    np.testing.assert_allclose(found, (time - time[0]) / (time[-1] - time[0]), atol=0.01)


def test_the_law_test_would_notice_another_parameterisation() -> None:
    schedule = ScheduleConfig()
    laws = {law: schedule.step_law(1000, None, 1.0, law) for law in ("steps", "vp", "ve", "cosine")}
    for one, found in laws.items():
        for other, law in laws.items():
            assert one == other or np.abs(found - law).max() > 0.05


def test_the_laws_put_their_weight_where_their_papers_say() -> None:
    """Shares below noise level 1, that of a signal as strong as the noise, by hand."""
    schedule = ScheduleConfig(noise_min=0.002, noise_max=80.0)
    below = int(np.searchsorted(schedule.levels(), 1.0))

    def share(law: LevelLaw) -> float:
        return float(schedule.step_law(1000, None, 1.0, law)[below - 1])

    assert share("cosine") == pytest.approx(0.5, abs=0.01)  # Of an angle up to a quarter turn.
    assert share("ve") == pytest.approx(np.log(500) / np.log(40_000), abs=0.01)
    # (sqrt(0.01 + 39.8 ln 2) - 0.1) / 19.9 of (sqrt(0.01 + 39.8 ln 6401) - 0.1) / 19.9.
    assert share("vp") == pytest.approx(0.2589 / 0.9335, abs=0.01)


def test_auto_is_what_a_mean_says() -> None:
    schedule = ScheduleConfig()
    even, normal = schedule.step_law(300, None, 1.0), schedule.step_law(300, -1.2, 1.2)
    assert (schedule.step_law(300, None, 1.0, "steps") == even).all()
    assert (schedule.step_law(300, -1.2, 1.2, "lognormal") == normal).all()
    assert np.abs(even - normal).max() > 0.1
