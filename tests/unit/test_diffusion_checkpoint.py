"""Checkpoints: two are kept, a torn one is passed over, and none is a pickle."""

import pytest
import torch

from rapid_dist.diffusion.checkpoint import Checkpoints, restore_training_state, training_state
from rapid_dist.errors import CheckpointError
from tests.fakes import MemoryStorage


def _saved(storage: MemoryStorage, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(storage)
    for step in steps:
        checkpoints.save(step, {"weight": torch.full((3,), float(step))}, {"attempt": step + 1})
    return checkpoints


def _names(storage: MemoryStorage) -> list[str]:
    return sorted(storage.files)


def test_there_is_no_checkpoint_before_the_first() -> None:
    assert Checkpoints(MemoryStorage()).latest() is None


def test_the_newest_checkpoint_comes_back_with_its_facts() -> None:
    found = _saved(MemoryStorage(), 5, 10, 100).latest()
    assert found is not None
    assert found.step == 100
    assert found.facts == {"attempt": 101}
    assert torch.equal(found.tensors["weight"], torch.full((3,), 100.0))


def test_only_the_last_two_are_kept() -> None:
    storage = MemoryStorage()
    _saved(storage, 5, 10, 15, 20)
    assert [name.split("-")[1] for name in _names(storage)] == ["000000015", "000000020"]


@pytest.mark.parametrize("damage", ["torn", "altered", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: str) -> None:
    storage = MemoryStorage()
    checkpoints = _saved(storage, 5, 10)
    newest = _names(storage)[-1]
    data = storage.files[newest]
    storage.files[newest] = {
        "torn": data[:-5], "altered": data[:-1] + bytes([data[-1] ^ 1]), "empty": b"",
    }[damage]  # fmt: skip
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 5


def test_when_all_are_damaged_a_loop_does_not_silently_begin_anew() -> None:
    storage = MemoryStorage()
    checkpoints = _saved(storage, 5, 10)
    for name in storage.files:
        storage.files[name] = storage.files[name][:40]
    with pytest.raises(CheckpointError, match="No checkpoint"):
        checkpoints.latest()


def test_a_loop_that_fell_back_keeps_a_whole_checkpoint_at_every_time() -> None:
    storage = MemoryStorage()
    checkpoints = _saved(storage, 5, 10)
    storage.files[_names(storage)[-1]] = b"torn"
    for step in (6, 7, 8, 9, 10, 11):
        _saved(storage, step)
        found = checkpoints.latest()
        assert found is not None
        assert found.step == step


def test_what_was_just_written_is_kept_beside_later_ones_that_are_torn() -> None:
    storage = MemoryStorage()
    _saved(storage, 10, 15)
    for name in _names(storage):
        storage.files[name] = storage.files[name][:40]
    found = _saved(storage, 5).latest()  # From an older one that somebody has put back.
    assert found is not None
    assert found.step == 5


@pytest.mark.parametrize("of", ["", "another"])
def test_a_whole_checkpoint_of_somebody_else_is_refused_and_not_passed_over(of: str) -> None:
    storage = MemoryStorage()
    own = Checkpoints(storage, of="run")
    own.save(1, {"weight": torch.zeros(3)}, {})
    Checkpoints(storage, of=of).save(2, {"weight": torch.zeros(3)}, {})
    with pytest.raises(CheckpointError, match=rf"step-000000002-.* is of '{of}', this is 'run'"):
        own.latest()


def test_an_older_checkpoint_by_a_newer_name_is_passed_over() -> None:
    storage = MemoryStorage()
    checkpoints = _saved(storage, 5, 10)
    older, newer = _names(storage)
    del storage.files[newer]
    storage.files[f"step-{99:09d}-{older.split('-')[-1]}"] = storage.files[older]
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 5


def test_other_files_in_the_folder_are_left_alone() -> None:
    storage = MemoryStorage({"step-notes.txt": b"mine", "other.safetensors": b"x"})
    found = _saved(storage, 1, 2, 3).latest()
    assert found is not None
    assert {"step-notes.txt", "other.safetensors"} < storage.files.keys()


def _loop(steps: int, resume_at: int | None = None) -> torch.Tensor:
    """Adam on a parabola; stored and taken up again in between where asked to."""
    parameter = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    average = [parameter.detach().clone()]
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    for step in range(steps):
        if step == resume_at:
            checkpoints = Checkpoints(MemoryStorage())
            checkpoints.save(step, training_state([parameter], average, optimizer), {})
            parameter = torch.nn.Parameter(torch.zeros(2))
            optimizer = torch.optim.Adam([parameter], lr=0.1)
            found = checkpoints.latest()
            assert found is not None
            restore_training_state(found.tensors, [parameter], average, optimizer)
        parameter.grad = 2 * parameter.detach()
        optimizer.step()
        average[0].lerp_(parameter.detach(), 0.1)
    return torch.cat([parameter.detach(), average[0]])


@pytest.mark.parametrize("resume_at", [0, 4, 9])
def test_a_loop_that_is_taken_up_again_follows_the_unbroken_one(resume_at: int) -> None:
    assert torch.equal(_loop(10, resume_at), _loop(10))


def test_a_checkpoint_of_another_network_is_refused() -> None:
    one, other = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([one])
    stored = training_state([one], [one.detach()], optimizer)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_training_state(stored, [other], [torch.zeros(3)], torch.optim.Adam([other]))
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_training_state(
            stored, [one, other], [torch.zeros(2), torch.zeros(3)], torch.optim.Adam([one, other])
        )
