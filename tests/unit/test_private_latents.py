"""Private images become latents inside the boundary, one record at a time."""

from typing import Any

import numpy as np
import pytest
import torch

from rapid_dist.collective import Collective, SingleProcess
from rapid_dist.config import load_recipe, method_settings
from rapid_dist.data.images import to_unit
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.errors import ConfigError
from rapid_dist.methods import catalog
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.loop import train_private
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.private.subset import restrict_trainable
from tests.fakes import MemoryStorage, ThreadWorkers
from tests.models import (
    KEY,
    CountingKeeper,
    FixedBatch,
    draw_maker,
    each_left_out,
    latent_denoiser,
    mechanism,
    private_images,
    private_step,
    tiny_autoencoder,
)

RECORDS, BOUND = 3, 0.5


def _maker(posterior: Any = "mean", **changes: Any) -> DrawMaker:
    settings = {"multiplicity": 4, "micro_batch": 2, **changes}
    return draw_maker(autoencoder=tiny_autoencoder(posterior=posterior), **settings)


def _rows(maker: DrawMaker, *records: int) -> Rows:
    return maker.rows(np.array(records, np.int64), KEY, 0, 1)


@pytest.mark.parametrize("augmented", [{}, {"shift": 1, "flip": True}])
@pytest.mark.parametrize("mode", ["full", "late", "surrogate"])
def test_rows_are_latents_of_the_augmented_image_and_noise_is_added_there(
    mode: str, augmented: dict[str, Any]
) -> None:
    maker = _maker(mode=mode, **augmented)
    pixels = draw_maker(mode=mode, multiplicity=4, **augmented)
    rows, clean = _rows(maker, 0, 3), _rows(pixels, 0, 3).clean
    assert tuple(rows.noised.shape) == (8, 2, 4, 4)
    if not augmented:
        expected = tiny_autoencoder().encode(to_unit(private_images().images[[0, 3]]))
        torch.testing.assert_close(rows.clean, expected.repeat_interleave(4, dim=0))
        torch.testing.assert_close(rows.clean, tiny_autoencoder().encode(clean))
    levels = rows.noise_level.view(-1, 1, 1, 1)
    noise = (rows.noised - rows.clean) / levels
    assert 0.5 < float(noise.std()) < 2


def test_a_records_latents_do_not_depend_on_the_rest_of_its_batch() -> None:
    for posterior in ("mean", "sample"):
        maker = _maker(posterior)
        alone, beside = _rows(maker, 3), _rows(maker, 1, 3, 5)
        torch.testing.assert_close(alone.noised, beside.noised[4:8])
        torch.testing.assert_close(alone.clean, beside.clean[4:8])
    other = _rows(_maker(), 1)
    assert not torch.allclose(other.noised, alone.noised)


def test_a_draw_from_the_posterior_is_fresh_for_every_row_and_the_mean_is_not() -> None:
    mean, drawn = _rows(_maker(), 2).clean, _rows(_maker("sample"), 2).clean
    assert torch.equal(mean[0], mean[1])
    assert len({float(row.sum()) for row in drawn}) == 4
    std = tiny_autoencoder().moments(to_unit(private_images().images[[2]]))[1]
    assert float(((drawn - mean) / std).std()) == pytest.approx(1.0, abs=0.3)


def _contributions(mode: str, world_size: int = 1, **changes: Any) -> list[float]:
    """||S(D) - S(D without x)|| / C for every record x of the batch in turn."""

    def released(records: list[int]) -> torch.Tensor:
        def step(collective: Collective) -> torch.Tensor:
            own = private_step(
                collective,
                mechanism=mechanism(max_grad_norm=BOUND),
                sampler=FixedBatch(*records),
                draws=_maker(mode=mode, shift=1),
                **changes,
            )
            denoiser = latent_denoiser()
            restrict_trainable(denoiser, "attention")
            return own.noised_gradient(denoiser, step=0) * own.mechanism.expected_batch

        return ThreadWorkers(world_size).run(step)[0]

    whole = released(list(range(RECORDS)))
    return [
        float((whole - released(rest)).double().norm()) / BOUND
        for _, rest in each_left_out(RECORDS)
    ]


@pytest.mark.parametrize(("mode", "world_size"), [("full", 1), ("surrogate", 1), ("late", 2)])
def test_a_record_in_latents_adds_no_more_than_the_bound(mode: str, world_size: int) -> None:
    found = _contributions(mode, world_size)
    assert max(found) <= 1 + 1e-4
    assert max(found) > 0.99


def _clip_each_draw(
    denoiser: Denoiser, rows: Rows, draws: int, bound: float, mask: torch.Tensor
) -> torch.Tensor:
    return clipped_sum(denoiser, rows, 1, bound, mask.repeat_interleave(draws))


def test_the_contribution_test_would_notice_draws_that_are_clipped_apart() -> None:
    assert max(_contributions("full", engine=_clip_each_draw)) > 1.5


def _train(denoiser: Denoiser, storage: MemoryStorage | None = None, steps: int = 3) -> None:
    train_private(
        denoiser,
        draw_maker(
            autoencoder=denoiser.autoencoder, mode="full", trainable="lora", micro_batch=4,
            checkpoint_every=1,
        ),
        mechanism(steps=steps, expected_batch=4.0),
        collective=SingleProcess(),
        keeper=CountingKeeper(),
        checkpoints=Checkpoints(storage or MemoryStorage()),
        on_step=lambda figures: None,
    )  # fmt: skip


def test_training_in_latents_leaves_plain_layers_and_the_autoencoder_as_it_was() -> None:
    denoiser, before = latent_denoiser(), latent_denoiser().state_dict()
    _train(denoiser)
    after = denoiser.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name for name in moved if "attentions" in name}
    assert all(".to_" in name or "class_embedding" in name for name in moved)


def test_a_run_with_adapters_goes_on_from_its_checkpoint() -> None:
    storage = MemoryStorage()
    _train(latent_denoiser(), storage)
    resumed = latent_denoiser()
    _train(resumed, storage)  # All steps are done: what it leaves is the checkpoint's average.
    again = latent_denoiser()
    _train(again, storage)
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    fresh = latent_denoiser().state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in again.state_dict().items())


def test_an_autoencoder_that_couples_records_is_refused_before_a_step() -> None:
    maker = _maker(mode="full")
    assert maker.autoencoder is not None

    class Coupled(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden - 0.01 * hidden.mean(0)

    maker.autoencoder.vae.encoder.conv_act = Coupled()
    keeper = CountingKeeper()
    with pytest.raises(ConfigError, match="others of its batch"):
        train_private(
            latent_denoiser(),
            maker,
            mechanism(),
            collective=SingleProcess(),
            keeper=keeper,
            checkpoints=Checkpoints(MemoryStorage()),
            on_step=lambda figures: None,
        )
    assert not keeper.charged


DP_LDM = ["method=dp_ldm"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["autoencoder=null"], "autoencoder is null"),
        (["train.trainable=all"], "trains a part"),
        (["train.mode=late"], "retrieves nothing"),
        (["sampling.source=uniform"], "retrieves nothing"),
        (["train.start=scratch"], "public weights"),
        (["train.blocks=9"], r"train\.blocks"),
        (["autoencoder.network.widths=[8, 8, 8, 8, 8]"], "divide"),
    ],
)
def test_settings_that_would_not_be_dp_ldm_are_refused(overrides: list[str], said: str) -> None:
    catalog.check_method(method_settings(load_recipe("digits", DP_LDM)))
    with pytest.raises(ConfigError, match=said):
        catalog.check_method(method_settings(load_recipe("digits", [*DP_LDM, *overrides])))


def test_a_method_without_public_data_refuses_an_autoencoder() -> None:
    recipe = load_recipe("digits", ["method=dpdm", "autoencoder.steps=3"])
    with pytest.raises(ConfigError, match="no public data"):
        catalog.check_method(method_settings(recipe))
