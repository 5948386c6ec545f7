"""The contrastive extractor: its loss, its views, and that it is frozen ever after."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from rapid_dist.collective import Collective, SingleProcess
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError
from rapid_dist.public.contrast import ContrastConfig, nt_xent, train_extractor
from rapid_dist.public.embedding import clean_estimate
from rapid_dist.retrieval.features import ContrastExtractor, ExtractorConfig
from tests.fakes import MemoryStorage, ThreadWorkers
from tests.models import public_images, random_rows, tiny_denoiser

SMALL = ExtractorConfig(dim=8, width=8, projection_dim=4)
LEVEL = 2.0


def _unit_rows(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, 5, generator=generator), dim=1)


def _by_hand(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    """Chen et al. (2020), Eq. 1, term by term."""
    both = torch.cat([first, second]).double()
    count, total = len(first), 0.0
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        terms = [torch.exp(both[i] @ both[k] / temperature) for k in range(2 * count) if k != i]
        positive = torch.exp(both[i] @ both[partner] / temperature)
        total -= float(torch.log(positive / torch.stack(terms).sum()))
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_nt_xent(temperature: float) -> None:
    first, second = _unit_rows(4, 0), _unit_rows(4, 1)
    expected = _by_hand(first, second, temperature)
    assert float(nt_xent(first, second, temperature)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_least_when_the_two_views_agree() -> None:
    first = torch.eye(5)
    turned = first.roll(1, 0)
    assert float(nt_xent(first, first, 0.1)) < 0.01 < float(nt_xent(first, turned, 0.1))


def test_a_clean_estimate_is_one_evaluation_without_a_label_inside_the_range() -> None:
    denoiser, state = tiny_denoiser(), 3 * random_rows(4).noised
    found = clean_estimate(denoiser, state, LEVEL)
    assert denoiser.evaluations == 4
    assert float(found.abs().max()) <= 1
    with torch.no_grad():
        none = torch.full((4,), denoiser.no_label)
        expected = denoiser(state, torch.full((4,), LEVEL), none).clamp(-1, 1)
        other = denoiser(state, torch.full((4,), LEVEL), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(found, expected)
    assert not torch.allclose(found, other.clamp(-1, 1))
    assert not found.requires_grad


class _Crash(Exception):
    pass


def _extractor() -> ContrastExtractor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ContrastExtractor(SMALL, 1, 8)


def _train(
    extractor: ContrastExtractor,
    denoiser: Denoiser,
    collective: Collective | None = None,
    storage: MemoryStorage | None = None,
    crash_at: int | None = None,
    level: float = LEVEL,
    **changes: Any,
) -> list[float]:
    losses: list[float] = []

    def on_step(figures: dict[str, float]) -> None:
        losses.append(figures["loss"])
        if figures["step"] == crash_at:
            raise _Crash

    settings = {"extractor": SMALL, "steps": 6, "batch_size": 8, "checkpoint_every": 2}
    train_extractor(
        extractor,
        denoiser,
        public_images(),
        ContrastConfig(**{**settings, **changes}),
        query_level=level,
        seed=4,
        collective=collective or SingleProcess(),
        checkpoints=None if storage is None else Checkpoints(storage),
        on_step=on_step,
    )
    return losses


def test_training_changes_the_extractor_freezes_it_and_leaves_the_denoiser_alone() -> None:
    extractor, denoiser = _extractor(), tiny_denoiser()
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    fingerprint = extractor.fingerprint()
    _train(extractor, denoiser)
    assert extractor.fingerprint() != fingerprint
    assert not extractor.training
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())


def _fall(level: float) -> float:
    losses = _train(_extractor(), tiny_denoiser(), steps=60, learning_rate=5e-3, level=level)
    return sum(losses[-10:]) / sum(losses[:10])


def test_training_lowers_the_loss_where_views_tell_images_apart() -> None:
    assert _fall(level=0.05) < 0.8


def test_the_training_test_would_notice_views_of_different_images() -> None:
    assert _fall(level=100.0) > 0.95  # So much noise that two views have nothing in common.


def test_a_resumed_training_follows_the_unbroken_one() -> None:
    whole, resumed, storage = _extractor(), _extractor(), MemoryStorage()
    _train(whole, tiny_denoiser())
    with pytest.raises(_Crash):
        _train(_extractor(), tiny_denoiser(), storage=storage, crash_at=5)
    assert len(_train(resumed, tiny_denoiser(), storage=storage)) == 2
    assert resumed.fingerprint() == whole.fingerprint()


def test_workers_end_with_the_same_extractor() -> None:
    extractors = [_extractor(), _extractor()]
    ThreadWorkers(2).run(lambda c: _train(extractors[c.rank], tiny_denoiser(), c))
    assert extractors[0].fingerprint() == extractors[1].fingerprint()


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0},
        {"checkpoint_every": 0},
        {"batch_size": 3},
        {"learning_rate": 0.0},
        {"temperature": 0.0},
    ],
)
def test_a_setting_is_refused_by_its_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"contrast.*{next(iter(setting))}"):
        ContrastConfig(**setting)
