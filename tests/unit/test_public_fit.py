"""Training on public rows: it learns, it resumes, and workers stay together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rapid_dist.collective import Collective, SingleProcess
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import ConfigError
from rapid_dist.public.adapt import AdaptConfig, prior_rows
from rapid_dist.public.fit import fit_denoiser, flat_gradient, step_generator
from rapid_dist.public.pretrain import PretrainConfig, public_rows
from rapid_dist.retrieval.jitter import JitterConfig
from rapid_dist.retrieval.prior import TrajectoryPrior
from tests.fakes import MemoryStorage, ThreadWorkers
from tests.models import CLASSES, SCHEDULE, public_images, tiny_denoiser

STEPS = 8


class _Crash(Exception):
    pass


def _weights(denoiser: Denoiser) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])


def _fit(
    collective: Collective | None = None,
    storage: MemoryStorage | None = None,
    crash_at: int | None = None,
    draw: Callable[[torch.Generator, int], Rows] | None = None,
    seed: int = 1,
    **changes: Any,
) -> tuple[torch.Tensor, list[dict[str, float]]]:
    denoiser, reports = tiny_denoiser(), []
    schedule = ScheduleConfig()

    def on_step(figures: dict[str, float]) -> None:
        reports.append(figures)
        if figures["step"] == crash_at:
            raise _Crash

    settings = {"steps": STEPS, "batch_size": 8, "ema_decay": 0.9, "checkpoint_every": 3}
    fit_denoiser(
        denoiser,
        draw or public_rows(public_images(), schedule, denoiser, schedule.num_steps),
        PretrainConfig(**{**settings, **changes}),
        seed=seed,
        collective=collective or SingleProcess(),
        checkpoints=None if storage is None else Checkpoints(storage),
        on_step=on_step,
    )
    return _weights(denoiser), reports


def test_a_resumed_fit_follows_the_unbroken_one() -> None:
    storage = MemoryStorage()
    with pytest.raises(_Crash):
        _fit(storage=storage, crash_at=5)
    resumed, reports = _fit(storage=storage)
    assert [int(figures["step"]) for figures in reports] == [4, 5, 6, 7, 8]
    assert torch.equal(resumed, _fit()[0])


def test_the_resume_test_would_notice_other_rows() -> None:
    assert not torch.equal(_fit(seed=2)[0], _fit()[0])


def test_a_fit_learns_and_reports_a_falling_loss() -> None:
    rows = public_rows(public_images(3), SCHEDULE, tiny_denoiser(), SCHEDULE.num_steps)
    _, reports = _fit(steps=60, batch_size=16, learning_rate=5e-3, draw=rows)
    losses = [figures["loss"] for figures in reports]
    assert np.mean(losses[-15:]) < 0.5 * np.mean(losses[:5])


def test_workers_hold_the_same_weights_and_draw_different_rows() -> None:
    drawn: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def fit(collective: Collective) -> torch.Tensor:
        denoiser = tiny_denoiser()
        rows = public_rows(public_images(), SCHEDULE, denoiser, SCHEDULE.num_steps)

        def draw(generator: torch.Generator, count: int) -> Rows:
            own = rows(generator, count)
            drawn[collective.rank].append(own.noised)
            return own

        return _fit(collective, draw=draw)[0]

    one, other = ThreadWorkers(2).run(fit)
    assert torch.equal(one, other)
    assert all(len(part) == 4 for part in drawn[0])  # Half of the batch each.
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))


def test_the_gradient_is_the_mean_over_workers_and_so_is_the_loss() -> None:
    def gradient(collective: Collective) -> tuple[torch.Tensor | None, float]:
        parameter, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        loss = (parameter * (collective.rank + 1.0)).sum()
        mean = flat_gradient(loss, [parameter, unused], collective)
        assert torch.equal(unused.grad, torch.zeros(2))
        return parameter.grad, mean

    for found, mean in ThreadWorkers(2).run(gradient):
        assert torch.equal(found, torch.full((2,), 1.5))
        assert mean == 3.0


def test_ranks_steps_and_seeds_have_randomness_of_their_own() -> None:
    places = [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (12, 3, 0), (1, 23, 0)]
    draws = {float(torch.rand(1, generator=step_generator(*place))) for place in places}
    assert len(draws) == len(places)
    assert torch.equal(
        torch.rand(3, generator=step_generator(1, 2, 3)),
        torch.rand(3, generator=step_generator(1, 2, 3)),
    )


def test_public_rows_are_public_images_on_the_schedule_with_their_own_labels() -> None:
    images, denoiser = public_images(num_classes=3), tiny_denoiser()
    rows = public_rows(images, SCHEDULE, denoiser, 200)(torch.Generator().manual_seed(0), 3_000)
    assert float(rows.noise_level.min()) == pytest.approx(SCHEDULE.level(1), rel=1e-5)
    assert float(rows.noise_level.max()) == pytest.approx(SCHEDULE.level(200), rel=1e-5)
    pixels = ((rows.clean + 1) * 127.5).round().byte().numpy()
    label_of = {images.images[i].tobytes(): int(images.labels[i]) for i in range(len(images))}
    found = [label_of[image.tobytes()] for image in pixels]
    kept = rows.labels != denoiser.no_label
    assert rows.labels[kept].tolist() == np.array(found)[kept.numpy()].tolist()
    # Binomial(3000, 0.1): stddev 16.4; false alarm 1e-6.
    assert abs(int((~kept).sum()) - 300) < 4.9 * 16.4
    noise = (rows.noised - rows.clean) / rows.noise_level.view(-1, 1, 1, 1)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)


def test_a_fit_leaves_a_checkpoint_a_step_and_no_gradient() -> None:
    denoiser = tiny_denoiser()
    before = _weights(denoiser)
    config = PretrainConfig(steps=3, batch_size=8, checkpoint_every=1)
    storage = MemoryStorage()
    fit_denoiser(
        denoiser,
        public_rows(public_images(num_classes=3), SCHEDULE, denoiser, SCHEDULE.num_steps),
        config,
        seed=0,
        collective=SingleProcess(),
        checkpoints=Checkpoints(storage),
        on_step=lambda figures: None,
    )
    assert not torch.equal(before, _weights(denoiser))
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    assert len(storage.files) == 2


REFERENCES = public_images(6).images
PRIOR = TrajectoryPrior(
    np.array([0, 0, 1, 1, 2, 2]), np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0.5, 0.5]])
)
ENTRIES = {0: {0, 1}, 1: {2, 3}, 2: {2, 3, 4, 5}}  # What each class may draw.


def _prior_rows(whole_share: float, prior: TrajectoryPrior = PRIOR) -> Rows:
    denoiser = tiny_denoiser()
    draw = prior_rows(
        prior,
        REFERENCES,
        SCHEDULE,
        denoiser,
        split_step=100,
        whole_share=whole_share,
        jitter=JitterConfig(),
    )
    return draw(torch.Generator().manual_seed(0), 1_200)


def _drawn(rows: Rows) -> dict[int, set[int]]:
    entry_of = {image.tobytes(): entry for entry, image in enumerate(REFERENCES)}
    pixels = ((rows.clean + 1) * 127.5).round().byte().numpy()
    seen: dict[int, set[int]] = {}
    for label, image in zip(rows.labels.tolist(), pixels, strict=True):
        seen.setdefault(label, set()).add(entry_of[image.tobytes()])
    return seen


def test_prior_rows_carry_private_labels_and_references_of_their_class() -> None:
    seen = _drawn(_prior_rows(0.0))
    assert seen.pop(CLASSES) == set(range(6))  # The dropped labels.
    assert seen == ENTRIES


def test_the_prior_test_would_notice_a_prior_of_other_classes() -> None:
    turned = TrajectoryPrior(PRIOR.cluster_of_entry, PRIOR.probabilities[::-1].copy())
    seen = _drawn(_prior_rows(0.0, turned))
    seen.pop(CLASSES)
    assert seen != ENTRIES


def test_prior_rows_stay_on_the_late_steps_but_for_their_share() -> None:
    split, top = SCHEDULE.level(100) * (1 + 1e-6), SCHEDULE.noise_max * (1 + 1e-6)
    late = _prior_rows(0.0).noise_level
    assert float(late.max()) <= split
    assert float(late.min()) >= SCHEDULE.level(1) * (1 - 1e-6)
    some = _prior_rows(0.5).noise_level
    assert float(some.max()) <= top
    # Half of the rows have 90% of the schedule above the split: Binomial(1200, 0.45).
    assert abs(int((some > split).sum()) - 540) < 4.9 * 17.3


def test_adapting_moves_the_table_of_private_classes() -> None:
    denoiser = tiny_denoiser().with_classes(CLASSES, seed=3)
    before = denoiser.unet.class_embedding.weight.detach().clone()
    fit_denoiser(
        denoiser,
        prior_rows(
            PRIOR,
            REFERENCES,
            SCHEDULE,
            denoiser,
            split_step=100,
            whole_share=0.25,
            jitter=JitterConfig(rotation=0.2),
        ),
        AdaptConfig(steps=3, batch_size=16),
        seed=0,
        collective=SingleProcess(),
        checkpoints=None,
        on_step=lambda figures: None,
    )
    moved = (denoiser.unet.class_embedding.weight.detach() != before).any(dim=1)
    assert moved.all()


@pytest.mark.parametrize(
    ("config", "prefix", "setting"),
    [
        (PretrainConfig, "pretrain", {"steps": 0}),
        (PretrainConfig, "pretrain", {"batch_size": 0}),
        (PretrainConfig, "pretrain", {"checkpoint_every": 0}),
        (PretrainConfig, "pretrain", {"learning_rate": 0.0}),
        (PretrainConfig, "pretrain", {"ema_decay": 1.0}),
        (AdaptConfig, "adapt", {"steps": -1}),
        (AdaptConfig, "adapt", {"batch_size": 0}),
        (AdaptConfig, "adapt", {"learning_rate": -1.0}),
        (AdaptConfig, "adapt", {"ema_decay": -0.1}),
        (AdaptConfig, "adapt", {"whole_schedule_share": 1.5}),
    ],
)
def test_a_setting_is_refused_by_its_name(
    config: type, prefix: str, setting: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"{prefix}.*{next(iter(setting))}"):
        config(**setting)
