"""Training an autoencoder on public images: it learns, it resumes, and workers stay together."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from rapid_dist.collective import Collective, SingleProcess
from rapid_dist.config import load_recipe, method_settings
from rapid_dist.data.images import to_unit
from rapid_dist.diffusion.autoencoder import Autoencoder, save_autoencoder
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.errors import ConfigError
from rapid_dist.methods import artifacts, catalog
from rapid_dist.methods.autoencode_stage import AutoencodeTask
from rapid_dist.public.autoencode import AutoencoderConfig, make_autoencoder, train_autoencoder
from rapid_dist.storage import LocalStorage
from tests.fakes import MemoryStorage, ThreadWorkers
from tests.models import public_images, tiny_autoencoder

STEPS = 6


class _Crash(Exception):
    pass


def _weights(autoencoder: Autoencoder) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in autoencoder.parameters()])


def _fit(
    collective: Collective | None = None,
    storage: MemoryStorage | None = None,
    crash_at: int | None = None,
    seed: int = 1,
    images: int = 40,
    **changes: Any,
) -> tuple[Autoencoder, list[float]]:
    autoencoder, losses = tiny_autoencoder(measured=False), []

    def on_step(figures: dict[str, float]) -> None:
        losses.append(figures["loss"])
        if figures["step"] == crash_at:
            raise _Crash

    settings = {"steps": STEPS, "batch_size": 8, "ema_decay": 0.9, "checkpoint_every": 2}
    train_autoencoder(
        autoencoder,
        public_images(images),
        AutoencoderConfig(**{**settings, **changes}),
        seed=seed,
        collective=collective or SingleProcess(),
        checkpoints=None if storage is None else Checkpoints(storage),
        on_step=on_step,
    )
    return autoencoder, losses


def test_a_resumed_training_follows_the_unbroken_one() -> None:
    storage = MemoryStorage()
    with pytest.raises(_Crash):
        _fit(storage=storage, crash_at=5)
    resumed, losses = _fit(storage=storage)
    assert len(losses) == 2
    assert torch.equal(_weights(resumed), _weights(_fit()[0]))


def test_the_resume_test_would_notice_other_rows() -> None:
    assert not torch.equal(_weights(_fit(seed=2)[0]), _weights(_fit()[0]))


def test_two_workers_end_with_the_same_weights() -> None:
    first, second = ThreadWorkers(2).run(lambda collective: _weights(_fit(collective)[0]))
    assert torch.equal(first, second)
    assert not torch.equal(first, _weights(tiny_autoencoder()))


def test_training_makes_images_come_back_and_freezes_what_it_leaves() -> None:
    def error(autoencoder: Autoencoder) -> float:
        images = to_unit(public_images(3).images)
        return float((autoencoder.decode(autoencoder.encode(images)) - images).square().mean())

    # Three images: black, white and a chessboard.
    trained, losses = _fit(images=3, steps=80, batch_size=16, learning_rate=1e-2)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert error(trained) < 0.8 * error(tiny_autoencoder())
    assert not any(p.requires_grad or p.grad is not None for p in trained.parameters())


def _settings(*overrides: str) -> Any:
    tiny = [
        "data.public.0.count=60", "autoencoder.steps=2", "autoencoder.network.widths=[8, 8]",
        "autoencoder.batch_size=8",
    ]  # fmt: skip
    return method_settings(load_recipe("digits", [*tiny, *overrides]))


def test_the_stage_stores_an_autoencoder_that_is_measured_on_public_images(tmp_path: Path) -> None:
    settings = _settings()
    AutoencodeTask(settings=settings, public_uri=str(tmp_path))(
        SingleProcess(), lambda figures, part="": None
    )
    found = artifacts.open_autoencoder(settings, str(tmp_path))
    assert found is not None
    images, _ = artifacts.load_plain_split(settings)
    spread = float(found.encode(to_unit(images.images)).std())
    assert spread == pytest.approx(settings.schedule.data_std, rel=0.1)
    assert artifacts.is_done(LocalStorage(tmp_path).child(artifacts.autoencoder_name(settings)))


def test_somebodys_autoencoder_is_stored_as_it_is_and_measured_anew(tmp_path: Path) -> None:
    save_autoencoder(tiny_autoencoder(seed=4), tmp_path / "theirs")
    settings = _settings(
        f"autoencoder.source={tmp_path / 'theirs' / 'vae'}", "autoencoder.licence=MIT"
    )
    AutoencodeTask(settings=settings, public_uri=str(tmp_path / "public"))(
        SingleProcess(), lambda figures, part="": None
    )
    found = artifacts.open_autoencoder(settings, str(tmp_path / "public"))
    assert found is not None
    assert torch.equal(_weights(found), _weights(tiny_autoencoder(seed=4)))
    assert found.vae.config.latents_mean != tiny_autoencoder(seed=4).vae.config.latents_mean


def test_an_autoencoder_names_what_is_built_on_it_and_pixels_keep_their_names() -> None:
    pixels = method_settings(load_recipe("digits", ["data.public.0.count=60"]))
    latents = _settings()
    for name in (artifacts.pretrain_name, artifacts.extractor_name, artifacts.knowledge_base_name):
        assert name(pixels) != name(latents) != name(_settings("autoencoder.steps=3"))
    # As it was before there were autoencoders.
    parts = (pixels.network, pixels.schedule, pixels.pretrain)
    before = artifacts.fingerprint(
        artifacts.public_data_identity(pixels), *(asdict(part) for part in parts)
    )
    assert artifacts.pretrain_name(pixels) == f"denoiser-{before}"
    # What shapes no weight gives no other name.
    told = _settings("autoencoder.hub=true", "autoencoder.licence=x")
    assert artifacts.autoencoder_name(told) == artifacts.autoencoder_name(latents)


def test_the_stage_is_there_exactly_where_latents_are_diffused() -> None:
    assert catalog.stages_of(_settings())[0].name == "autoencode"
    assert not catalog.has_stage(method_settings(load_recipe("digits", [])), "autoencode")


def test_an_untrained_autoencoder_of_ours_has_the_recipes_shape() -> None:
    config = AutoencoderConfig(posterior="sample")
    autoencoder = make_autoencoder(config, channels=3, size=16)
    assert (autoencoder.shape, autoencoder.posterior) == ((4, 8, 8), "sample")
    with pytest.raises(ConfigError, match="divide"):
        make_autoencoder(config, channels=3, size=15)
