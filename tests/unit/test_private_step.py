"""The order of a step: charge, then reduce, then noise; and division by what was declared."""

import threading

import pytest
import torch

from rapid_dist.collective import Collective, SingleProcess
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.errors import BudgetError
from rapid_dist.privacy.noise import Noise, add_noise_
from rapid_dist.private.per_example import flat_size
from rapid_dist.private.step import PrivateStep
from tests.fakes import ThreadWorkers
from tests.models import (
    KEY,
    CountingKeeper,
    FixedBatch,
    draw_maker,
    mechanism,
    private_step,
    tiny_denoiser,
)


class _LoggedNoise:
    """Notes when noise is added."""

    def __init__(self, inner: Noise, log: list[str]) -> None:
        self._inner, self._log = inner, log
        self.units = inner.units

    def prepare(self, step: int, size: int) -> None:
        self._inner.prepare(step, size)

    def release(self, total: torch.Tensor, step: int) -> torch.Tensor:
        self._log.append("noise")
        return self._inner.release(total, step)


class _LoggedProcess(SingleProcess):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def sum_(self, flat: torch.Tensor) -> None:
        self.log.append("sum")


class _ChargesAfter(PrivateStep):
    """The fault of a step that pays when it is done."""

    def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
        total = self._local_sum(denoiser, step)
        self.collective.sum_(total)
        released = self.noise.release(total, step)
        self.charge(step)
        return released / self.mechanism.expected_batch


def _log_of(kind: type[PrivateStep], refuse: bool = False) -> list[str]:
    log: list[str] = []

    def charge(step: int) -> None:
        log.append("charge")
        if refuse:
            raise BudgetError("Nothing is left.")

    fields = {name: getattr(private_step(), name) for name in PrivateStep.__dataclass_fields__}
    fields |= {"collective": _LoggedProcess(log), "charge": charge}
    own = kind(**fields)
    vars(own)["noise"] = _LoggedNoise(own.noise, log)
    try:
        own.noised_gradient(tiny_denoiser(), step=0)
    except BudgetError:
        log.append("refused")
    return log


def test_a_step_is_charged_before_it_is_summed_and_noised() -> None:
    assert _log_of(PrivateStep) == ["charge", "sum", "noise"]


def test_a_refused_step_is_neither_summed_nor_noised() -> None:
    assert _log_of(PrivateStep, refuse=True) == ["charge", "refused"]


def test_the_order_test_would_notice_a_step_that_charges_after() -> None:
    assert _log_of(_ChargesAfter) != ["charge", "sum", "noise"]
    assert "noise" in _log_of(_ChargesAfter, refuse=True)


def test_a_refusal_on_rank_0_leaves_every_other_rank_without_a_sum() -> None:
    got: list[torch.Tensor] = []

    def step(collective: Collective) -> None:
        keeper = CountingKeeper(affordable=0)
        own = private_step(collective, charge=keeper.charge)
        got.append(own.noised_gradient(tiny_denoiser(), step=0))

    workers = ThreadWorkers(2)
    with pytest.raises(BudgetError):
        workers.run(step)
    assert got == []
    assert isinstance(workers.errors[0], BudgetError)
    assert isinstance(workers.errors[1], threading.BrokenBarrierError)


def test_only_rank_0_charges() -> None:
    keeper = CountingKeeper()
    ThreadWorkers(3).run(
        lambda c: private_step(c, charge=keeper.charge).noised_gradient(tiny_denoiser(), step=2)
    )
    assert keeper.charged == [(0, 2)]


def test_an_empty_batch_is_a_charged_step_of_noise_alone() -> None:
    keeper = CountingKeeper()
    step = private_step(sampler=FixedBatch(), charge=keeper.charge)
    denoiser = tiny_denoiser()
    released = step.noised_gradient(denoiser, step=3)
    noise = torch.zeros(flat_size(denoiser))
    add_noise_(noise, step.mechanism.noise_stddev, KEY, step=3, attempt=1)
    assert keeper.charged == [(0, 3)]
    assert torch.equal(released, noise / step.mechanism.expected_batch)


def test_the_empty_batch_test_would_notice_a_random_record_in_its_place() -> None:
    empty = private_step(sampler=FixedBatch()).noised_gradient(tiny_denoiser(), step=3)
    filled = private_step(sampler=FixedBatch(7)).noised_gradient(tiny_denoiser(), step=3)
    assert not torch.equal(empty, filled)


def _count(
    denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
) -> torch.Tensor:
    """An engine whose sum is the number of records in it."""
    return torch.full((flat_size(denoiser),), float(mask.sum()))


def _seen_rows(step: int, attempt: int) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def engine(denoiser: Denoiser, rows: Rows, *others: object) -> torch.Tensor:
        seen.append(rows.noised)
        return torch.zeros(flat_size(denoiser))

    private_step(attempt=attempt, engine=engine).noised_gradient(tiny_denoiser(), step)
    return torch.cat(seen)


def test_every_step_and_attempt_noises_the_images_anew() -> None:
    first = _seen_rows(step=0, attempt=1)
    assert torch.equal(first, _seen_rows(step=0, attempt=1))
    assert not torch.equal(first, _seen_rows(step=1, attempt=1))
    assert not torch.equal(first, _seen_rows(step=0, attempt=2))


class _DividesByObserved(PrivateStep):
    """The fault of a mean over the batch that was drawn."""

    def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
        expected = self.mechanism.expected_batch
        observed = len(self.sampler.batch(step))
        return super().noised_gradient(denoiser, step) * expected / observed


def _mean_released(kind: type[PrivateStep], count: int) -> float:
    own = private_step(
        mechanism=mechanism(expected_batch=8.0),
        sampler=FixedBatch(*range(count)),
        draws=draw_maker(micro_batch=4),
        engine=_count,
    )
    fields = {name: getattr(own, name) for name in PrivateStep.__dataclass_fields__}
    vector = kind(**fields).noised_gradient(tiny_denoiser(), step=0)
    noise = torch.zeros(len(vector))
    add_noise_(noise, own.mechanism.noise_stddev, KEY, step=0, attempt=1)
    return float((vector - noise / 8.0).mean())


@pytest.mark.parametrize("count", [1, 5, 8, 11])
def test_the_sum_is_divided_by_the_declared_batch(count: int) -> None:
    assert _mean_released(PrivateStep, count) == pytest.approx(count / 8.0, rel=1e-4)


@pytest.mark.parametrize("count", [1, 5, 11])
def test_the_division_test_would_notice_an_observed_count(count: int) -> None:
    assert _mean_released(_DividesByObserved, count) != pytest.approx(count / 8.0, rel=1e-2)


def test_a_step_shows_neither_its_key_nor_its_images() -> None:
    shown = repr(private_step())
    assert "hidden" in shown
    assert not any(str(byte) in shown for byte in [KEY.reveal(), KEY.reveal().hex()])
    assert "array" not in shown
