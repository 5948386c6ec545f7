"""Adapters are trained record by record, and leave a network of plain layers."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from rapid_dist.collective import Collective
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.errors import ConfigError
from rapid_dist.private.allowed import check_layers
from rapid_dist.private.coupling import check_rows_apart
from rapid_dist.private.lora import Adapted, merge_adapters
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.private.reference import reference_clipped_sum
from rapid_dist.private.subset import restrict_trainable, told
from tests.fakes import ThreadWorkers
from tests.models import (
    FixedBatch,
    draw_maker,
    each_left_out,
    mechanism,
    private_step,
    random_rows,
    tiny_denoiser,
)

RECORDS, DRAWS, BOUND = 3, 8, 0.5
SUBSETS = ("lora", "lora_all")


def _network(**network: Any) -> Denoiser:
    return tiny_denoiser(widths=(16, 16), attention=(False, True), **network)


def _adapted(subset: str, blocks: int | None = None) -> Denoiser:
    """A network in the midst of training: its adapters matter to what it says."""
    denoiser = _network()
    restrict_trainable(denoiser, subset, blocks, rank=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for module in denoiser.modules():
            if isinstance(module, Adapted):
                nn.init.normal_(module.up.weight, std=0.3)
    return denoiser


def _estimate(denoiser: Denoiser) -> torch.Tensor:
    rows = random_rows(6)
    with torch.no_grad():
        estimate: torch.Tensor = denoiser(rows.noised, rows.noise_level, rows.labels)
    return estimate


@pytest.mark.parametrize("subset", SUBSETS)
def test_new_adapters_change_nothing_and_trained_ones_do(subset: str) -> None:
    fresh = _network()
    restrict_trainable(fresh, subset)
    assert torch.equal(_estimate(fresh), _estimate(_network()))
    assert not torch.allclose(_estimate(_adapted(subset)), _estimate(_network()), atol=1e-3)


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_merged_network_has_plain_layers_and_says_the_same(subset: str) -> None:
    denoiser = _adapted(subset)
    before = _estimate(denoiser)
    merge_adapters(denoiser)
    assert denoiser.state_dict().keys() == _network().state_dict().keys()
    torch.testing.assert_close(_estimate(denoiser), before, atol=1e-5, rtol=1e-4)


def test_giving_a_subset_twice_leaves_what_it_left_once() -> None:
    once = _network()
    count = restrict_trainable(once, "lora_all")
    twice = copy.deepcopy(once)
    assert restrict_trainable(twice, "lora_all") == count
    assert once.state_dict().keys() == twice.state_dict().keys()
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name]), name


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("subset", SUBSETS)
def test_the_engine_gives_adapters_the_gradient_of_autograd(subset: str, draws: int) -> None:
    denoiser, rows = _adapted(subset), random_rows(2 * draws)
    mask = torch.ones(2, dtype=torch.bool)
    found = clipped_sum(denoiser, rows, draws, BOUND, mask)
    expected = reference_clipped_sum(denoiser, rows, draws, BOUND, mask)
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    wrong = reference_clipped_sum(denoiser, rows, draws, BOUND, torch.tensor([True, False]))
    assert float((found - wrong).norm() / expected.norm()) > 0.1


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_network_with_adapters_passes_the_allow_list(subset: str) -> None:
    denoiser = _adapted(subset)
    check_layers(denoiser)
    check_rows_apart(denoiser)


def test_an_adapter_that_couples_rows_is_refused() -> None:
    denoiser = _adapted("lora")
    adapter = next(m for m in denoiser.modules() if isinstance(m, Adapted))
    adapter.up = nn.Sequential(adapter.up, nn.BatchNorm1d(16))  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="BatchNorm"):
        check_layers(denoiser)


def _clip_each_copy(
    denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
) -> torch.Tensor:
    """DP-LoRA's released code: each of the K copies of an image is a record to the optimizer."""
    return clipped_sum(denoiser, rows, 1, bound, mask.repeat_interleave(draws))


def _contributions(subset: str, world_size: int = 1, **changes: Any) -> list[float]:
    """||S(D) - S(D without x)|| / C for every record x of the batch in turn."""
    maker = draw_maker(multiplicity=DRAWS, mode="full", trainable=subset, micro_batch=2)
    denoiser = _adapted(subset)  # Here: torch's own generator is one for all threads.

    def released(records: list[int]) -> torch.Tensor:
        def step(collective: Collective) -> torch.Tensor:
            own = private_step(
                collective,
                mechanism=mechanism(max_grad_norm=BOUND),
                sampler=FixedBatch(*records),
                draws=maker,
                **changes,
            )
            released = own.noised_gradient(copy.deepcopy(denoiser), step=0)
            return released * own.mechanism.expected_batch

        return ThreadWorkers(world_size).run(step)[0]

    whole = released(list(range(RECORDS)))
    return [
        float((whole - released(rest)).double().norm()) / BOUND
        for _, rest in each_left_out(RECORDS)
    ]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("subset", [*SUBSETS, "last_blocks", "attention", "norm_bias"])
def test_a_record_of_eight_draws_adds_no_more_than_the_bound(subset: str, world_size: int) -> None:
    found = _contributions(subset, world_size)
    assert max(found) <= 1 + 1e-4
    assert max(found) > 0.99  # The clip was at work, or nothing was tested.


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_contribution_test_would_notice_copies_that_are_clipped_apart(subset: str) -> None:
    assert max(_contributions(subset, engine=_clip_each_copy)) > 2


def test_blocks_are_counted_from_the_end() -> None:
    denoiser = _network()
    path = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    for blocks in range(1, 6):
        restrict_trainable(denoiser, "last_blocks", blocks)
        names = {name for name, p in denoiser.named_parameters() if p.requires_grad}
        found = {place for place in path if any(f".{place}." in name for name in names)}
        assert found == set(path[-blocks:])
        assert {"unet.class_embedding.weight", "unet.conv_out.weight"} <= names
        assert not any("conv_in" in name or "time_embedding" in name for name in names)


def test_adapters_stay_within_the_blocks() -> None:
    places = {
        path
        for path, module in _adapted("lora", blocks=2).named_modules()
        if isinstance(module, Adapted)
    }
    assert places
    assert all(path.startswith("unet.up_blocks.") for path in places)
    everywhere = {
        path for path, module in _adapted("lora").named_modules() if isinstance(module, Adapted)
    }
    assert places < everywhere


@pytest.mark.parametrize(
    ("subset", "blocks", "said"),
    [
        ("attention", 1, "nothing"),
        ("lora", 1, "nothing"),
        ("all", 6, "5 blocks"),
        ("all", 0, "1 to"),
    ],
)
def test_blocks_that_are_none_are_refused(subset: str, blocks: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        restrict_trainable(_network(), subset, blocks)


def test_what_is_told_counts_the_networks_own_parameters() -> None:
    denoiser = _network()
    whole = restrict_trainable(denoiser, "all")
    assert told(whole, denoiser) == f"trainable parameters: {whole:,} of {whole:,} (0% fewer)"
    few = restrict_trainable(denoiser, "lora")
    assert 0 < few < whole / 10
    assert told(few, denoiser).endswith(f"of {whole:,} ({100 * (1 - few / whole):.0f}% fewer)")
