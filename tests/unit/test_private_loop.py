"""The loop of private training: what a crash costs, what a budget refuses, what it leaves alone."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from rapid_dist.collective import SingleProcess
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import BudgetError, CheckpointError, ConfigError, DataError, LedgerError
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DiscreteDpSgdEvent
from rapid_dist.privacy.poisson import CipherPoissonSampler, PoissonSampler
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.loop import train_private
from rapid_dist.private.settings import TrainConfig
from rapid_dist.private.step import PrivateStep
from tests.fakes import FakeClock, MemoryStorage
from tests.models import (
    KEY,
    CountingKeeper,
    draw_maker,
    mechanism,
    private_images,
    private_step,
    tiny_denoiser,
)

STEPS = 6


class _Crash(Exception):
    pass


def _weights(denoiser: Denoiser) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])


def _train(
    keeper: Any,
    storage: MemoryStorage,
    *,
    crash_at: int | None = None,
    overtaken_at: int | None = None,
    denoiser: Denoiser | None = None,
    plan: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[Denoiser, dict[int, torch.Tensor]]:
    """Trains; returns the network and its weights after every step."""
    seen: dict[int, torch.Tensor] = {}
    own = denoiser or tiny_denoiser()

    def on_step(figures: dict[str, float]) -> None:
        seen[int(figures["step"])] = _weights(own)
        if figures["step"] == overtaken_at:
            keeper.begin_attempt()
        if figures["step"] == crash_at:
            raise _Crash(seen)

    train_private(
        own,
        draw_maker(**{"checkpoint_every": 2, **changes}),
        mechanism(**{"steps": STEPS, **(plan or {})}),
        collective=SingleProcess(),
        keeper=keeper,
        checkpoints=Checkpoints(storage),
        on_step=on_step,
    )
    return own, seen


def _crash(keeper: Any, storage: MemoryStorage, at: int, **changes: Any) -> dict[int, torch.Tensor]:
    with pytest.raises(_Crash) as crash:
        _train(keeper, storage, crash_at=at, **changes)
    seen: dict[int, torch.Tensor] = crash.value.args[0]
    return seen


def test_every_planned_step_is_charged_once_and_in_order() -> None:
    keeper = CountingKeeper()
    _, seen = _train(keeper, MemoryStorage())
    assert keeper.charged == [(1, step) for step in range(STEPS)]
    assert list(seen) == list(range(1, STEPS + 1))


def test_the_number_of_steps_does_not_depend_on_empty_batches() -> None:
    keeper = CountingKeeper()
    _train(keeper, MemoryStorage(), plan={"expected_batch": 1e-9})  # No record, in all likelihood.
    assert keeper.charged == [(1, step) for step in range(STEPS)]


def test_steps_that_a_crash_repeats_are_charged_again_under_a_new_attempt() -> None:
    keeper, storage = CountingKeeper(), MemoryStorage()
    _crash(keeper, storage, at=3)  # The checkpoint is of step 2: the third is lost.
    _train(keeper, storage)
    assert keeper.charged == [(1, 0), (1, 1), (1, 2), (2, 2), (2, 3), (2, 4), (2, 5)]


@pytest.mark.parametrize("noise", ["fast", "secure"])
def test_a_repeated_step_has_other_noise(noise: str) -> None:
    keeper, storage = CountingKeeper(), MemoryStorage()
    empty = {"expected_batch": 1e-9, "noise": noise}  # Updates are noise and nothing else.
    before = _crash(keeper, storage, at=3, plan=empty)
    _, after = _train(keeper, storage, plan=empty)
    assert not torch.equal(before[3], after[3])


def test_two_runs_of_one_recipe_have_other_noise() -> None:
    empty = {"expected_batch": 1e-9}
    one, other = (_train(CountingKeeper(), MemoryStorage(), plan=empty)[1] for _ in range(2))
    assert not torch.equal(one[1], other[1])


def test_the_noise_test_would_notice_a_restart_that_takes_up_the_old_key_and_attempt() -> None:
    # The same start, step, key and attempt give the same vector: only those tell repeats apart.
    first, again, other = (
        private_step(attempt=attempt).noised_gradient(tiny_denoiser(), step=2)
        for attempt in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_run_that_is_done_is_not_trained_or_charged_again() -> None:
    keeper, storage = CountingKeeper(), MemoryStorage()
    done, _ = _train(keeper, storage)
    again, seen = _train(keeper, storage)
    assert seen == {}
    assert len(keeper.charged) == STEPS
    assert torch.equal(_weights(done), _weights(again))


def test_a_resumed_run_goes_on_from_the_checkpoint() -> None:
    keeper, storage = CountingKeeper(), MemoryStorage()
    before = _crash(keeper, storage, at=3)
    kept = Checkpoints(storage).latest()
    assert kept is not None
    assert kept.step == 2
    stored = [
        kept.tensors[f"parameter.{i}"] for i in range(len(list(tiny_denoiser().parameters())))
    ]
    assert torch.equal(torch.cat([part.flatten() for part in stored]), before[2])


def test_a_checkpoint_holds_no_key_and_nothing_of_a_record() -> None:
    storage = MemoryStorage()
    _train(CountingKeeper(), storage)
    kept = Checkpoints(storage).latest()
    assert kept is not None
    assert set(kept.facts) == {"attempt", "figures", "mechanism"}
    assert kept.facts["figures"] == {"step": STEPS, "steps": STEPS, "rows": 6.0}
    assert {name.split(".")[0] for name in kept.tensors} == {"parameter", "average", "optimizer"}


def test_a_refused_charge_leaves_the_weights_as_they_were() -> None:
    class Refuses(CountingKeeper):
        def charge(self, step: int, attempt: int | None = None) -> None:
            raise BudgetError("Nothing is left.")

    denoiser, storage = tiny_denoiser(), MemoryStorage()
    with pytest.raises(BudgetError):
        _train(Refuses(), storage, denoiser=denoiser)
    assert torch.equal(_weights(denoiser), _weights(tiny_denoiser()))
    assert storage.files == {}


def _ledger_keeper(storage: MemoryStorage, reserve: int) -> LedgerKeeper:
    """A real keeper whose budget pays for ``reserve`` steps more than are planned."""
    enough = epsilons([mechanism().event(STEPS + reserve)], delta=1e-3).reported
    return LedgerKeeper(
        Ledger.open(storage, "faces", clock=FakeClock()),
        "run-1",
        Budget(epsilon=enough + 1e-3, delta=1e-3),
        mechanism().event(),
        planned_steps=STEPS,
        reserve_steps=reserve,
    )


def test_the_ledger_holds_every_step_of_every_attempt() -> None:
    ledger, storage = MemoryStorage(), MemoryStorage()
    _crash(_ledger_keeper(ledger, reserve=1), storage, at=3)
    _train(_ledger_keeper(ledger, reserve=1), storage)
    entries = Ledger.open(ledger, "faces").entries()
    steps = [(entry.attempt, entry.step) for entry in entries if entry.kind == "step"]
    assert steps == [(1, 0), (1, 1), (1, 2), (2, 2), (2, 3), (2, 4), (2, 5)]


def test_a_crashed_run_with_secure_noise_pays_for_its_repeats_as_what_they_are() -> None:
    ledger, storage, own = MemoryStorage(), MemoryStorage(), mechanism(noise="secure", steps=STEPS)
    budget = Budget(epsilon=epsilons([own.event(STEPS + 1)], 1e-3).reported + 1e-6, delta=1e-3)
    keeper = LedgerKeeper(Ledger.open(ledger, "faces"), "run-1", budget, own.event(), STEPS, 1)
    _crash(keeper, storage, at=3, plan={"noise": "secure"})
    _train(keeper, storage, plan={"noise": "secure"})
    events = Ledger.open(ledger, "faces").events("run-1")
    assert events == [own.event()] * (STEPS + 1)
    assert {type(event) for event in events} == {DiscreteDpSgdEvent}
    assert keeper.spent() == epsilons([own.event(STEPS + 1)], 1e-3)
    assert keeper.affordable_steps() == 0


@pytest.mark.parametrize(
    ("noise", "sampler"), [("fast", PoissonSampler), ("secure", CipherPoissonSampler)]
)
def test_batches_come_from_a_cipher_exactly_if_the_noise_does(
    noise: str, sampler: type[PoissonSampler]
) -> None:
    steps: list[PrivateStep] = []

    def step_type(**fields: Any) -> PrivateStep:
        steps.append(PrivateStep(**fields))
        return steps[0]

    own = mechanism(noise=noise, steps=1)
    train_private(
        tiny_denoiser(), draw_maker(), own, collective=SingleProcess(), keeper=CountingKeeper(),
        checkpoints=Checkpoints(MemoryStorage()), on_step=lambda figures: None,
        step_type=cast(Any, step_type), new_key=lambda: KEY,
    )  # fmt: skip
    (step,) = steps
    assert type(step.sampler) is sampler
    mine = sampler(KEY, own.num_records, own.sample_rate, attempt=1)
    assert all(np.array_equal(step.sampler.batch(n), mine.batch(n)) for n in range(5))


def test_a_worker_thought_dead_takes_no_step_once_the_others_have_begun_again() -> None:
    ledger, storage = MemoryStorage(), MemoryStorage()
    with pytest.raises(LedgerError, match="Attempt 1 of run 'run-1' is fenced: attempt 2"):
        _train(_ledger_keeper(ledger, reserve=1), storage, overtaken_at=3)  # One keeper for both.
    entries = Ledger.open(ledger, "faces").entries()
    assert [(entry.attempt, entry.step) for entry in entries if entry.kind == "step"] == [
        (1, 0), (1, 1), (1, 2)
    ]  # fmt: skip


def test_a_crash_without_a_reserve_costs_a_step_and_the_ledger_says_so() -> None:
    ledger, storage = MemoryStorage(), MemoryStorage()
    _crash(_ledger_keeper(ledger, reserve=0), storage, at=3)
    keeper = _ledger_keeper(ledger, reserve=0)
    _, seen = _train(keeper, storage)
    assert list(seen) == [3, 4, 5]
    assert keeper.stopped() == "stopped after step 5 of 6, for the budget pays for no more"
    assert len(Ledger.open(ledger, "faces").events("run-1")) == STEPS
    _, again = _train(_ledger_keeper(ledger, reserve=0), storage)  # The same command once more.
    assert again == {}
    assert len(Ledger.open(ledger, "faces").events("run-1")) == STEPS


@pytest.mark.parametrize("subset", ["norm_bias", "last_blocks"])
def test_frozen_parameters_are_not_touched_and_no_gradient_stays_behind(subset: str) -> None:
    trained, _ = _train(CountingKeeper(), MemoryStorage(), trainable=subset)
    fresh = dict(tiny_denoiser().named_parameters())
    moved = {n for n, p in trained.named_parameters() if not torch.equal(p, fresh[n])}
    asked = {n for n, p in trained.named_parameters() if p.requires_grad}
    assert moved == asked
    assert 0 < len(asked) < len(fresh)
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_what_is_left_in_the_network_is_the_average_of_its_weights() -> None:
    trained, seen = _train(CountingKeeper(), MemoryStorage(), ema_decay=0.5)
    average = _weights(tiny_denoiser())
    for update, step in enumerate(seen):
        decay = min(0.5, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * seen[step]
    torch.testing.assert_close(_weights(trained), average, rtol=1e-5, atol=1e-6)


def test_reports_hold_declared_figures_alone() -> None:
    reports: list[dict[str, float]] = []
    train_private(
        tiny_denoiser(),
        draw_maker(),
        mechanism(),
        collective=SingleProcess(),
        keeper=CountingKeeper(),
        checkpoints=Checkpoints(MemoryStorage()),
        on_step=reports.append,
    )
    plan = mechanism()
    assert reports == [
        {"step": step + 1, "steps": plan.steps, "rows": plan.expected_batch}
        for step in range(plan.steps)
    ]


def test_a_plan_for_another_number_of_records_is_refused() -> None:
    keeper = CountingKeeper()
    with pytest.raises(DataError, match="13 privacy units"):
        _train(keeper, MemoryStorage(), plan={"num_records": 13})
    assert keeper.attempt == 0


def test_a_checkpoint_of_another_network_is_refused() -> None:
    storage = MemoryStorage()
    _train(CountingKeeper(), storage, denoiser=tiny_denoiser(widths=(32,)))
    with pytest.raises(CheckpointError, match="does not fit"):
        _train(CountingKeeper(), storage)


def test_a_checkpoint_of_a_longer_plan_is_refused() -> None:
    storage = MemoryStorage()
    _train(CountingKeeper(), storage)
    with pytest.raises(CheckpointError, match="step 6, the plan has 5 steps"):
        _train(CountingKeeper(), storage, plan={"steps": 5})


class _BatchMean(torch.nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden - hidden.mean(0)


@pytest.mark.parametrize(
    ("layer", "complaint"), [(torch.nn.BatchNorm2d(16), "BatchNorm"), (_BatchMean(), "other rows")]
)
def test_a_network_that_couples_records_is_refused_before_an_attempt_begins(
    layer: torch.nn.Module, complaint: str
) -> None:
    denoiser, keeper = tiny_denoiser(), CountingKeeper()
    denoiser.unet.conv_norm_out = layer
    with pytest.raises(ConfigError, match=complaint):
        _train(keeper, MemoryStorage(), denoiser=denoiser)
    assert keeper.attempt == 0


@pytest.mark.parametrize(
    "setting",
    [
        {"mode": "early"},
        {"multiplicity": 0},
        {"micro_batch": 0},
        {"checkpoint_every": 0},
        {"shift": -1},
        {"warmup_steps": -1},
        {"learning_rate": 0.0},
        {"ema_decay": 1.0},
    ],
)
def test_a_setting_is_refused_by_its_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"train.*{next(iter(setting))}"):
        TrainConfig(**setting)


def test_group_units_train_with_as_many_records_as_there_are_groups() -> None:
    groups = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    keeper = CountingKeeper()
    plan = {"num_records": 5, "expected_batch": 2.0}
    _train(keeper, MemoryStorage(), images=private_images(12, groups), plan=plan)
    assert len(keeper.charged) == STEPS
