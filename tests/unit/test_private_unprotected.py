"""Training without privacy: the same step as private training, but for clip and noise."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from rapid_dist.collective import Collective, SingleProcess
from rapid_dist.data.images import to_unit
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import row_losses
from rapid_dist.private.unprotected import train_unprotected
from tests.fakes import MemoryStorage, ThreadWorkers
from tests.models import draw_maker, private_images, random_rows, tiny_denoiser

PACKAGE = Path(__file__).parents[2] / "rapid_dist"


def _trained(
    collective: Collective | None = None,
    *,
    steps: int = 3,
    expected_batch: float = 12.0,  # All twelve records, so no draw of a batch is left to chance.
    checkpoints: Checkpoints | None = None,
    **changes: Any,
) -> tuple[Denoiser, list[dict[str, float]]]:
    told: list[dict[str, float]] = []
    denoiser = tiny_denoiser()
    train_unprotected(
        denoiser,
        draw_maker(**{"mode": "full", "multiplicity": 2, "precision": "fp32", **changes}),
        steps=steps,
        expected_batch=expected_batch,
        collective=collective or SingleProcess(),
        checkpoints=checkpoints or Checkpoints(MemoryStorage()),
        on_step=told.append,
    )
    return denoiser, told


def _loss(denoiser: Denoiser) -> float:
    """Mean loss on the records at fixed levels and noises."""
    rows = random_rows(48, seed=9)
    clean = to_unit(private_images().images).repeat(4, 1, 1, 1)
    level = rows.noise_level.view(-1, 1, 1, 1)
    noised = clean + level * rows.noised
    own = type(rows)(noised=noised, noise_level=rows.noise_level, labels=rows.labels, clean=clean)
    with torch.no_grad():
        return float(row_losses(denoiser, own).mean())


def test_it_learns_the_records() -> None:
    trained, told = _trained(steps=25, learning_rate=0.003, warmup_steps=1, ema_decay=0.5)
    assert _loss(trained) < 0.8 * _loss(tiny_denoiser())
    assert {key for figures in told for key in figures} == {"step", "steps", "rows"}


def test_the_learning_test_would_notice_training_that_moves_nothing() -> None:
    still, _ = _trained(steps=25, learning_rate=1e-9)
    assert _loss(still) > 0.99 * _loss(tiny_denoiser())


def _parameters(denoiser: Denoiser) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in denoiser.parameters()])


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_ends_with_the_same_weights(world_size: int) -> None:
    found = ThreadWorkers(world_size).run(lambda collective: _trained(collective)[0])
    first = _parameters(found[0])
    assert all(torch.equal(first, _parameters(other)) for other in found)
    assert not torch.equal(first, _parameters(tiny_denoiser()))


def test_it_goes_on_from_its_last_checkpoint() -> None:
    checkpoints = Checkpoints(MemoryStorage())
    _trained(steps=2, checkpoints=checkpoints)
    _, told = _trained(steps=4, checkpoints=checkpoints)
    assert [figures["step"] for figures in told] == [3, 4]


def test_only_the_method_without_a_promise_imports_it() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "rapid_dist.private.unprotected":
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"methods/nonprivate.py"}
