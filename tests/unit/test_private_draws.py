"""The K draws of a record: what they are in each mode, and that they are its own alone."""

from typing import Any, get_args

import numpy as np
import pytest
import torch

from rapid_dist.data.images import to_unit
from rapid_dist.diffusion.loss import Rows
from rapid_dist.diffusion.schedule import LevelLaw, ScheduleConfig
from rapid_dist.private.draws import DrawMaker, FindReferences
from tests.models import KEY, SCHEDULE, draw_maker, private_images

SPLIT = 450
SPLIT_LEVEL = SCHEDULE.level(SPLIT)


def _rows(maker: DrawMaker, records: list[int], step: int = 0, attempt: int = 1) -> Rows:
    return maker.rows(np.array(records, np.int64), KEY, step, attempt)


def _parts(rows: Rows) -> list[torch.Tensor]:
    return [rows.noised, rows.noise_level, rows.labels, rows.clean]


def _equal(one: Rows, other: Rows) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_parts(one), _parts(other), strict=True))


def _noise(rows: Rows) -> torch.Tensor:
    return (rows.noised - rows.clean) / rows.noise_level.view(-1, 1, 1, 1)


MODES = ["full", "late", "surrogate"]


@pytest.mark.parametrize("mode", MODES)
def test_a_records_rows_depend_on_that_record_alone(mode: str) -> None:
    maker = draw_maker(mode=mode, multiplicity=3, shift=1, flip=True)
    alone = _rows(maker, [4])
    for batch in ([4, 5, 6], [0, 4], [11, 3, 4, 4]):
        place = batch.index(4)
        assert _equal(_rows(maker, batch)[3 * place : 3 * place + 3], alone)


def _mean_of_the_batch(
    records: np.ndarray, clean: torch.Tensor, streams: list[np.random.Generator]
) -> torch.Tensor:
    """The fault of a retrieval in which one record's query moves another's answer (P14)."""
    return clean.mean(0, keepdim=True).expand_as(clean)


def test_the_independence_test_would_notice_a_retrieval_over_the_batch() -> None:
    maker = draw_maker(mode="surrogate", multiplicity=3, find_references=_mean_of_the_batch)
    assert not _equal(_rows(maker, [4, 5, 6])[0:3], _rows(maker, [4]))


@pytest.mark.parametrize("mode", MODES)
def test_every_step_and_attempt_draws_anew(mode: str) -> None:
    maker = draw_maker(mode=mode)
    first = _noise(_rows(maker, [4]))
    assert torch.equal(first, _noise(_rows(maker, [4])))
    for other in (_rows(maker, [4], step=1), _rows(maker, [4], attempt=2), _rows(maker, [5])):
        assert float((first - _noise(other)).abs().max()) > 0.1


@pytest.mark.parametrize(("mode", "top"), [("full", 1000), ("late", SPLIT), ("surrogate", SPLIT)])
@pytest.mark.parametrize("mean", [None, -1.0])
def test_steps_follow_the_law_up_to_the_top_of_the_mode(
    mode: str, top: int, mean: float | None
) -> None:
    law = SCHEDULE.step_law(top, mean, 1.0)
    steps = _steps(draw_maker(mode=mode, multiplicity=1, log_level_mean=mean), 2_000)
    assert steps.min() >= 1
    assert steps.max() <= top
    # Kolmogorov-Smirnov over 2,000 draws, K = 1; false alarm 1e-6 (the bound is 2.70 / sqrt(n)).
    assert _distance(steps, law) < 2.70 / 2_000**0.5


def test_the_law_test_would_notice_another_law() -> None:
    steps = _steps(draw_maker(mode="late", multiplicity=1), 2_000)
    assert _distance(steps, SCHEDULE.step_law(SPLIT, -1.0, 1.0)) > 2.70 / 2_000**0.5


@pytest.mark.parametrize("law", get_args(LevelLaw))
def test_every_law_of_the_settings_is_the_one_that_draws(law: LevelLaw) -> None:
    mean = -1.2 if law == "lognormal" else None
    expected = SCHEDULE.step_law(1000, mean, 1.0, law)
    maker = draw_maker(mode="full", multiplicity=1, level_law=law, log_level_mean=mean)
    assert _distance(_steps(maker, 2_000), expected) < 2.70 / 2_000**0.5


@pytest.mark.parametrize("mean", [None, 0.0])
def test_the_draws_of_an_image_share_the_law_among_them(mean: float | None) -> None:
    maker = draw_maker(mode="late", multiplicity=5, log_level_mean=mean)
    quantiles = np.concatenate([[0.0], SCHEDULE.step_law(SPLIT, mean, 1.0)])
    steps = _steps(maker, 10).reshape(-1, 5)
    share = np.arange(5)
    assert (quantiles[steps - 1] < (share + 1) / 5).all()
    assert (quantiles[steps] >= share / 5).all()


def _steps(maker: DrawMaker, records: int) -> np.ndarray:
    """The steps of the rows of so many (record, step) pairs; records come again in other steps."""
    found = []
    for step in range(-(-records // 10)):
        level = _rows(maker, list(range(10)), step=step).noise_level.double().numpy()
        found.append(np.searchsorted(SCHEDULE.levels(), level * (1 - 1e-5)))
    return np.concatenate(found)


def _distance(steps: np.ndarray, law: np.ndarray) -> float:
    found = np.bincount(steps, minlength=len(law) + 1)[1:].cumsum() / len(steps)
    return float(np.abs(found - law).max())


def test_the_range_test_would_notice_a_late_mode_that_draws_from_the_whole_schedule() -> None:
    level = _rows(draw_maker(mode="full", multiplicity=200), [4]).noise_level
    assert level.max() > SPLIT_LEVEL


@pytest.mark.parametrize("mode", ["full", "late"])
def test_own_states_are_the_image_plus_normal_noise(mode: str) -> None:
    maker = draw_maker(mode=mode, multiplicity=300, label_drop=0.0)
    rows = _rows(maker, [3, 4])
    noise = _noise(rows[300:600])
    assert torch.equal(rows.clean[300], to_unit(private_images().images[4:5])[0])
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.05)


def _constant_reference(value: float, seen: list[np.ndarray] | None = None) -> FindReferences:
    def find(
        records: np.ndarray, clean: torch.Tensor, streams: list[np.random.Generator]
    ) -> torch.Tensor:
        if seen is not None:
            seen.append(clean.numpy())
        return torch.full_like(clean, value)

    return find


def _at_the_split(**changes: Any) -> tuple[Rows, Rows]:
    """The rows of mode surrogate and of mode late, both with every step being v."""
    # With a split step of 1 there is nothing else to draw.
    schedule = ScheduleConfig(noise_min=SPLIT_LEVEL)
    common = {"schedule": schedule, "split_step": 1, "label_drop": 0.0, "multiplicity": 4}
    find = _constant_reference(-0.25)
    return (
        _rows(draw_maker(mode="surrogate", find_references=find, **common, **changes), [3, 4]),
        _rows(draw_maker(mode="late", **common, **changes), [3, 4]),
    )


def test_at_the_split_step_a_surrogate_row_is_the_reference_plus_noise() -> None:
    surrogate, late = _at_the_split()
    state = -0.25 + SPLIT_LEVEL * _noise(late)  # r_0 + s_v n: what sampling will feed the network.
    torch.testing.assert_close(surrogate.noised, state, rtol=1e-5, atol=1e-5)
    assert torch.equal(surrogate.clean, late.clean)  # The target stays the record.


def test_the_surrogate_test_would_notice_the_records_own_state() -> None:
    surrogate, late = _at_the_split()
    assert not torch.allclose(surrogate.noised, late.noised, atol=0.1)


def test_below_the_split_step_a_surrogate_row_lies_on_the_line_to_the_record() -> None:
    find = _constant_reference(-0.25)
    rows = _rows(draw_maker(mode="surrogate", find_references=find, multiplicity=50), [4])
    late = _rows(draw_maker(mode="late", multiplicity=50), [4])
    state = -0.25 + SPLIT_LEVEL * _noise(late)
    share = (rows.noise_level / SPLIT_LEVEL).view(-1, 1, 1, 1)
    line = (1 - share) * rows.clean + share * state
    torch.testing.assert_close(rows.noised, line, rtol=1e-4, atol=1e-4)


def test_a_surrogate_is_asked_for_once_a_record_with_its_first_draw() -> None:
    seen: list[np.ndarray] = []
    find = _constant_reference(0.0, seen)
    rows = _rows(
        draw_maker(mode="surrogate", multiplicity=3, shift=1, find_references=find), [3, 4]
    )
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], rows.clean[::3].numpy())


def test_labels_are_the_records_own_but_for_the_dropped_share() -> None:
    maker = draw_maker(multiplicity=2_000, label_drop=0.3)
    labels = _rows(maker, [4]).labels
    assert set(labels.tolist()) == {4 % 3, maker.no_label}
    # Binomial(2000, 0.3): stddev 20.5; false alarm 1e-6.
    assert abs(int((labels == maker.no_label).sum()) - 600) < 4.9 * 20.5
    kept = _rows(draw_maker(multiplicity=500, label_drop=0.0), [4]).labels
    assert set(kept.tolist()) == {4 % 3}


def _shifts(shift: int, flip: bool = False) -> set[bytes]:
    maker = draw_maker(multiplicity=400, shift=shift, flip=flip)
    return {image.tobytes() for image in _rows(maker, [5]).clean.numpy()}


def test_shifts_are_all_moves_of_up_to_that_many_pixels_with_the_border_repeated() -> None:
    image = to_unit(private_images().images[5:6])[0, 0].numpy()
    grid = np.arange(8)
    expected = {
        image[np.clip(grid - down, 0, 7)][:, np.clip(grid - right, 0, 7)].tobytes()
        for down in (-2, -1, 0, 1, 2)
        for right in (-2, -1, 0, 1, 2)
    }
    assert len(expected) == 25
    assert _shifts(2) == expected


def test_a_flip_is_the_mirror_image_about_every_other_time() -> None:
    image = to_unit(private_images().images[5:6])[0, 0].numpy()
    assert _shifts(0, flip=True) == {image.tobytes(), image[:, ::-1].copy().tobytes()}
    assert _shifts(0) == {image.tobytes()}


def test_the_private_images_are_not_changed_by_drawing() -> None:
    maker = draw_maker(multiplicity=5, shift=2, flip=True)
    _rows(maker, [0, 1, 2, 3])
    np.testing.assert_array_equal(maker.images.images, private_images().images)
