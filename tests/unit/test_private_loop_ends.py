"""How the loop of private training ends: by its budget, by a notice, or by a refusal."""

from typing import Any

import pytest
import torch

from rapid_dist.collective import SingleProcess
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import BudgetError, CheckpointError
from rapid_dist.private.loop import train_private
from tests.fakes import MemoryStorage
from tests.models import CountingKeeper, draw_maker, mechanism, tiny_denoiser

STEPS = 6


class _Crash(Exception):
    pass


def _weights(denoiser: Denoiser) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in denoiser.parameters()])


def _train(
    keeper: CountingKeeper, storage: MemoryStorage, *, told_at: int = 0, **plan: Any
) -> tuple[Denoiser, list[int]]:
    """Trains with a checkpoint every other step; returns the network and the steps it made."""
    own, seen = tiny_denoiser(), []

    def leave() -> None:
        raise _Crash

    def on_step(figures: dict[str, float]) -> Any:
        seen.append(int(figures["step"]))
        return leave if figures["step"] == told_at else None

    train_private(
        own,
        draw_maker(checkpoint_every=2),
        mechanism(**{"steps": STEPS, **plan}),
        collective=SingleProcess(),
        keeper=keeper,
        checkpoints=Checkpoints(storage),
        on_step=on_step,
    )
    return own, seen


def _crash(keeper: CountingKeeper, storage: MemoryStorage) -> None:
    """Makes three steps, the last of which is in no checkpoint."""

    class Crashes(MemoryStorage):
        def write(self, name: str, data: bytes) -> None:
            if name.startswith("step-000000004"):
                raise _Crash
            super().write(name, data)

    with pytest.raises(_Crash):
        _train(keeper, Crashes(storage.files))


def test_a_run_stops_at_the_last_step_that_its_budget_pays_for() -> None:
    keeper, storage = CountingKeeper(affordable=STEPS), MemoryStorage()
    _crash(keeper, storage)  # Two steps are lost: the last two are not paid for.
    denoiser, seen = _train(keeper, storage)
    assert seen == [3, 4]
    assert len(keeper.charged) == STEPS
    assert keeper.stopped == [4]
    kept = Checkpoints(storage).latest()
    assert kept is not None
    assert kept.step == 4
    average = [kept.tensors[f"average.{i}"] for i in range(len(list(denoiser.parameters())))]
    assert torch.equal(torch.cat([part.flatten() for part in average]), _weights(denoiser))


def test_a_run_whose_budget_pays_for_no_step_is_refused() -> None:
    with pytest.raises(BudgetError, match="pays for none of the run's 6 steps"):
        _train(CountingKeeper(affordable=0), MemoryStorage())


def test_a_run_that_its_budget_pays_for_is_not_stopped_short() -> None:
    keeper = CountingKeeper(affordable=STEPS)
    _train(keeper, MemoryStorage())
    assert keeper.stopped == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"expected_batch": 5.0}, r"expected_batch=6\.0, the plan has 5\.0"),
        ({"noise_multiplier": 0.8}, r"noise_multiplier=0\.7, the plan has 0\.8"),
        ({"max_grad_norm": 2.0}, r"max_grad_norm=1\.0, the plan has 2\.0"),
        ({"noise": "secure"}, "noise=fast, the plan has secure"),
        ({"steps": STEPS + 1}, "steps=6, the plan has 7"),
    ],
)
def test_the_constants_of_the_mechanism_never_change_within_a_run(
    change: dict[str, Any], says: str
) -> None:
    storage = MemoryStorage()
    _crash(CountingKeeper(), storage)
    with pytest.raises(CheckpointError, match=says):
        _train(CountingKeeper(), storage, **change)
    _train(CountingKeeper(), storage, noise_multiplier=0.7 * (1 + 1e-12))


def test_a_checkpoint_that_does_not_say_its_mechanism_is_not_gone_on_with() -> None:
    storage, keeper = MemoryStorage(), CountingKeeper()
    _crash(keeper, storage)
    kept, charged = Checkpoints(storage).latest(), len(keeper.charged)
    assert kept is not None
    for name in storage.list():
        storage.delete(name)
    Checkpoints(storage).save(kept.step, kept.tensors, {"attempt": kept.facts["attempt"]})
    with pytest.raises(CheckpointError, match="does not say by which mechanism"):
        _train(keeper, storage)
    assert len(keeper.charged) == charged


def test_who_is_told_to_leave_has_a_checkpoint_first_and_repeats_nothing() -> None:
    keeper, storage = CountingKeeper(), MemoryStorage()
    with pytest.raises(_Crash):
        _train(keeper, storage, told_at=3)  # Not a step that is due.
    _train(keeper, storage)
    assert keeper.charged == [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4), (2, 5)]


def test_a_loop_says_that_it_begins_before_anything_is_charged_for_a_step() -> None:
    keeper, begun = CountingKeeper(), []
    train_private(
        tiny_denoiser(),
        draw_maker(),
        mechanism(steps=2),
        collective=SingleProcess(),
        keeper=keeper,
        checkpoints=Checkpoints(MemoryStorage()),
        on_step=lambda figures: None,
        on_begin=lambda: begun.append((keeper.attempt, len(keeper.charged))),
    )
    assert begun == [(1, 0)]
