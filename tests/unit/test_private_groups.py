"""Where a group is the unit: J of its images, K draws each, one vector of norm at most C (P3)."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from rapid_dist.collective import Collective, SingleProcess
from rapid_dist.data.images import PrivateImages, to_unit
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.errors import ConfigError, DataError
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.loop import train_private
from rapid_dist.private.per_example import clipped_sum, flat_size
from rapid_dist.private.reference import reference_clipped_sum
from tests.fakes import MemoryStorage, ThreadWorkers
from tests.models import (
    KEY,
    CountingKeeper,
    FixedBatch,
    draw_maker,
    each_left_out,
    mechanism,
    private_images,
    private_step,
    tiny_denoiser,
)

FALSE_ALARM = 1e-6  # Chance that correct code fails one of the statistical tests on a fresh key.
GROUPS = np.array([4, 0, 1, 1, 2, 2, 3, 3, 1, 1, 1, 1])  # Of 1, 6, 2, 2 and 1 images.
SIZES = np.bincount(GROUPS)
NUM_GROUPS = len(SIZES)
BOUND = 0.5  # C. Below every group's norm, so that the clip is at work.


def _images(groups: np.ndarray = GROUPS) -> PrivateImages:
    return private_images(len(groups), groups)


def _maker(images_per_group: int, multiplicity: int = 1, **changes: Any) -> DrawMaker:
    return draw_maker(
        images=changes.pop("images", _images()),
        images_per_group=images_per_group,
        multiplicity=multiplicity,
        **changes,
    )


def _released(batch: list[int], world_size: int, maker: DrawMaker, **changes: Any) -> torch.Tensor:
    """The released vector of one step on these groups, before the division."""

    def step(collective: Collective) -> torch.Tensor:
        plan = mechanism(max_grad_norm=BOUND, num_records=NUM_GROUPS, expected_batch=2.0)
        own = private_step(
            collective, mechanism=plan, sampler=FixedBatch(*batch), draws=maker, **changes
        )
        return own.noised_gradient(tiny_denoiser(), step=0) * plan.expected_batch

    return ThreadWorkers(world_size).run(step)[0]


def _contributions(world_size: int, maker: DrawMaker, **changes: Any) -> list[float]:
    """||S(D) - S(D without the whole group)|| / C for every group in turn."""
    whole = _released(list(range(NUM_GROUPS)), world_size, maker, **changes)
    return [
        float((whole - _released(rest, world_size, maker, **changes)).double().norm()) / BOUND
        for _, rest in each_left_out(NUM_GROUPS)
    ]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("multiplicity", [1, 4])
@pytest.mark.parametrize("images_per_group", [1, 4])
@pytest.mark.parametrize("mode", ["late", "surrogate"])
def test_no_whole_group_contributes_more_than_the_bound(
    mode: str, images_per_group: int, multiplicity: int, world_size: int
) -> None:
    found = _contributions(world_size, _maker(images_per_group, multiplicity, mode=mode))
    assert max(found) <= 1 + 1e-4
    assert max(found) > 0.99  # The clip was at work, or nothing was tested.


def _clip_each_image(
    denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
) -> torch.Tensor:
    """The fault of a clip an image: J clipped vectors a group."""
    return clipped_sum(denoiser, rows, draws // 4, bound, mask.repeat_interleave(4))


def test_the_contribution_test_would_notice_a_clip_an_image() -> None:
    assert max(_contributions(1, _maker(4, 2), engine=_clip_each_image)) > 1.5


def test_the_contribution_test_would_notice_images_that_are_drawn_as_units() -> None:
    images = draw_maker(images=private_images(12))  # The same images, and no groups.
    everyone = list(range(12))
    rest = [image for image in everyone if GROUPS[image] != 1]
    moved = _released(everyone, 1, images) - _released(rest, 1, images)
    assert float(moved.norm()) / BOUND > 1.5


@pytest.mark.parametrize("bound", [1e9, 0.05])
def test_a_groups_vector_is_the_clipped_mean_over_its_images_and_draws(bound: float) -> None:
    denoiser = tiny_denoiser()
    rows = _maker(4, 2, shift=1).rows(np.arange(NUM_GROUPS), KEY, step=3, attempt=1)
    everyone = torch.ones(NUM_GROUPS, dtype=torch.bool)
    fast = clipped_sum(denoiser, rows, 8, bound, everyone)
    slow = reference_clipped_sum(denoiser, rows, 8, bound, everyone)
    assert float((fast - slow).norm() / slow.norm()) < (1e-5 if bound > 1 else 3e-4)
    # The oracle by hand: a mean over images of means over draws, for one group.
    one = [reference_clipped_sum(denoiser, rows[8:16][i : i + 2], 2, 1e9, everyone[:1])
           for i in (0, 2, 4, 6)]  # fmt: skip
    mean = torch.stack(one).mean(0)
    mean *= min(1.0, bound / float(mean.double().norm()))
    own = reference_clipped_sum(denoiser, rows[8:16], 8, bound, everyone[:1])
    torch.testing.assert_close(own, mean, rtol=1e-4, atol=1e-6)


def test_the_equality_test_would_notice_a_mean_of_clipped_images() -> None:
    denoiser = tiny_denoiser()
    rows = _maker(4, 2, shift=1).rows(np.arange(NUM_GROUPS), KEY, step=3, attempt=1)
    everyone = torch.ones(NUM_GROUPS, dtype=torch.bool)
    wrong = _clip_each_image(denoiser, rows, 8, 0.05, everyone) / 4
    slow = reference_clipped_sum(denoiser, rows, 8, 0.05, everyone)
    assert float((wrong - slow).norm() / slow.norm()) > 0.01


@pytest.mark.parametrize("micro_batch", [1, 2, 7])
def test_neither_micro_batches_nor_workers_change_the_step_on_groups(micro_batch: int) -> None:
    batch = list(range(NUM_GROUPS))
    alone = _released(batch, 1, _maker(3, 2))
    other = _released(batch, 2, _maker(3, 2, micro_batch=micro_batch))
    torch.testing.assert_close(other, alone, rtol=1e-4, atol=1e-5)


def _chosen(maker: DrawMaker, step: int) -> list[list[int]]:
    """Which images every group takes part with, by their pixels."""
    rows = maker.rows(np.arange(NUM_GROUPS), KEY, step, attempt=1)
    known = [to_unit(image[None])[0] for image in maker.images.images]
    draws = maker.config.multiplicity
    images = [
        next(i for i, pixels in enumerate(known) if torch.equal(pixels, clean))
        for clean in rows.clean[::draws]
    ]
    count = maker.config.images_per_group
    return [images[at : at + count] for at in range(0, len(images), count)]


@pytest.mark.parametrize("images_per_group", [1, 2, 4, 7])
def test_a_group_owns_the_same_number_of_rows_whatever_its_size(images_per_group: int) -> None:
    maker = _maker(images_per_group, 2)
    for group in range(NUM_GROUPS):
        assert len(maker.rows(np.array([group]), KEY, 0, 1)) == images_per_group * 2
    for group, images in enumerate(_chosen(maker, step=0)):
        counts = np.bincount(images, minlength=12)[group == GROUPS]
        assert counts.sum() == images_per_group  # All of them its own.
        assert counts.max() - counts.min() <= 1  # None twice while others are left.


def _draw_counts(maker: DrawMaker, steps: int) -> np.ndarray:
    counts = np.zeros(12, np.int64)
    for step in range(steps):
        np.add.at(counts, [image for images in _chosen(maker, step) for image in images], 1)
    return counts


def _evenness_p_value(counts: np.ndarray) -> float:
    """The six images of group 1 against equal shares, by chi-square.

    Images are drawn without replacement, so true counts are evener than that law says.
    """
    return float(scipy.stats.chisquare(counts[GROUPS == 1]).pvalue)


def test_every_image_of_a_group_has_the_same_share_of_its_mean() -> None:
    assert _evenness_p_value(_draw_counts(_maker(2), 300)) > FALSE_ALARM


class _FirstImages(DrawMaker):
    """The fault of a group that always takes part with the head of its list."""

    def _images_of(self, record: int, count: int, stream: np.random.Generator) -> np.ndarray:
        return np.resize(self._images_of_group[record], count)


def test_the_share_test_would_notice_a_group_that_shows_its_first_images() -> None:
    fields = {n: getattr(_maker(2), n) for n in DrawMaker.__dataclass_fields__}
    assert _evenness_p_value(_draw_counts(_FirstImages(**fields), 50)) < FALSE_ALARM


def _parts(rows: Rows) -> list[torch.Tensor]:
    return [rows.noised, rows.noise_level, rows.labels, rows.clean]


def _rows_of_group_2(changed: np.ndarray | None = None) -> list[torch.Tensor]:
    """Its rows in a batch of all, where images of group 1 may have other pixels."""
    images = _images()
    if changed is not None:
        images.images[changed] ^= 255
    maker = _maker(3, 2, images=images, mode="surrogate")
    return _parts(maker.rows(np.arange(NUM_GROUPS), KEY, 0, 1)[12:18])


def test_a_groups_rows_do_not_depend_on_other_groups() -> None:
    plain = _rows_of_group_2()
    changed = _rows_of_group_2(GROUPS == 1)
    assert all(torch.equal(a, b) for a, b in zip(plain, changed, strict=True))
    alone = _maker(3, 2, mode="surrogate").rows(np.array([2]), KEY, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(plain, _parts(alone), strict=True))


def test_the_independence_test_would_notice_a_change_in_the_group_itself() -> None:
    changed = _rows_of_group_2(GROUPS == 2)
    assert not torch.equal(_rows_of_group_2()[3], changed[3])


def test_references_are_found_for_every_image_and_labels_are_its_own() -> None:
    asked: list[np.ndarray] = []

    def find(
        images: np.ndarray, clean: torch.Tensor, streams: list[np.random.Generator]
    ) -> torch.Tensor:
        asked.append(images)
        assert len(clean) == len(streams) == len(images)
        return torch.from_numpy(images).float().view(-1, 1, 1, 1).expand_as(clean) / 100

    maker = _maker(3, 2, mode="surrogate", find_references=find, label_drop=0.0)
    rows = maker.rows(np.arange(NUM_GROUPS), KEY, 0, 1)
    assert asked[0].tolist() == [i for images in _chosen(maker, 0) for i in images]
    own = to_unit(maker.images.images[asked[0]]).repeat_interleave(2, dim=0)
    assert torch.equal(rows.clean, own)
    assert rows.labels.tolist() == np.repeat(maker.images.labels[asked[0]], 2).tolist()
    # x_t = x_0 + s_t n*, and n* = (r_0 + s_v n - x_0) / s_v: the reference is that of the image.
    late = _maker(3, 2, mode="late", label_drop=0.0).rows(np.arange(NUM_GROUPS), KEY, 0, 1)
    level = rows.noise_level.view(-1, 1, 1, 1)
    split = maker.schedule.level(maker.split_step)
    noise = (late.noised - late.clean) / level
    reference = split * (rows.noised - rows.clean) / level + rows.clean - split * noise
    wanted = torch.from_numpy(np.repeat(asked[0], 2) / 100).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(reference, wanted.expand_as(reference), rtol=1e-3, atol=1e-2)


def test_several_images_a_unit_are_refused_where_an_image_is_the_unit() -> None:
    with pytest.raises(ConfigError, match=r"train\.images_per_group is 2"):
        draw_maker(images_per_group=2)


STEPS, RATE = 400, 0.4


def _inclusions(units_of: PoissonSampler, maker: DrawMaker) -> tuple[np.ndarray, torch.Tensor]:
    """How often each group was in a step's sum, and the mean number of units in one."""
    counts = np.zeros(NUM_GROUPS, np.int64)
    units = []

    def engine(
        denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
    ) -> torch.Tensor:
        own = rows.clean.view(len(mask), draws, -1)[mask]
        known = to_unit(maker.images.images).flatten(1)
        groups = {
            int(GROUPS[int((known - clean).abs().sum(1).argmin())]) for clean in own.flatten(0, 1)
        }
        seen.update(groups)
        return torch.full((flat_size(denoiser),), float(mask.sum()))

    denoiser = tiny_denoiser()
    plan = mechanism(num_records=NUM_GROUPS, expected_batch=RATE * NUM_GROUPS)
    for step in range(STEPS):
        seen: set[int] = set()
        own = private_step(mechanism=plan, draws=maker, sampler=units_of, engine=engine)
        total = own._local_sum(denoiser, step)
        units.append(float(total[0]))
        counts[sorted(seen)] += 1
    return counts, torch.tensor(units)


def _rate_p_values(counts: np.ndarray) -> list[float]:
    return [float(scipy.stats.binomtest(int(c), STEPS, RATE).pvalue) for c in counts]


def _batch_p_value(units: torch.Tensor) -> float:
    return float(scipy.stats.binomtest(int(units.sum()), STEPS * NUM_GROUPS, RATE).pvalue)


def test_every_group_takes_part_at_the_claimed_rate_whatever_its_size() -> None:
    sampler = PoissonSampler(KEY, NUM_GROUPS, RATE, attempt=1)
    counts, units = _inclusions(sampler, _maker(2, micro_batch=5))
    assert min(_rate_p_values(counts)) > FALSE_ALARM
    # The divisor, expected_batch, is the mean number of groups in a sum.
    assert _batch_p_value(units) > FALSE_ALARM


def test_the_rate_test_would_notice_images_that_are_drawn_instead_of_groups() -> None:
    sampler = PoissonSampler(KEY, 12, RATE, attempt=1)
    counts, units = _inclusions(sampler, draw_maker(micro_batch=12))
    assert _rate_p_values(counts)[1] < FALSE_ALARM  # Six images: in with chance 1 - 0.6^6.
    assert _batch_p_value(units.clamp_max(NUM_GROUPS)) < FALSE_ALARM


def test_training_draws_from_as_many_units_as_there_are_groups() -> None:
    made: list[tuple[int, float]] = []

    class Noting(PoissonSampler):
        def __init__(self, key: SecretKey, units: int, rate: float, attempt: int) -> None:
            made.append((units, rate))
            super().__init__(key, units, rate, attempt)

    train_private(
        tiny_denoiser(),
        _maker(2),
        mechanism(num_records=NUM_GROUPS, expected_batch=RATE * NUM_GROUPS, steps=1),
        collective=SingleProcess(),
        keeper=CountingKeeper(),
        checkpoints=Checkpoints(MemoryStorage()),
        on_step=lambda figures: None,
        sampler_type=Noting,
    )
    assert made == [(NUM_GROUPS, RATE)]


def test_a_plan_for_as_many_units_as_there_are_images_is_refused() -> None:
    keeper = CountingKeeper()
    with pytest.raises(DataError, match="The plan is for 12 privacy units, secret declares 5"):
        train_private(
            tiny_denoiser(),
            _maker(2),
            mechanism(num_records=12),
            collective=SingleProcess(),
            keeper=keeper,
            checkpoints=Checkpoints(MemoryStorage()),
            on_step=lambda figures: None,
        )
    assert keeper.attempt == 0
