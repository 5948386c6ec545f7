"""An autoencoder of latents: row by row, scaled by public statistics, without a pickle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from rapid_dist.diffusion.autoencoder import (
    Autoencoder,
    VaeConfig,
    load_autoencoder,
    new_vae,
    open_vae,
    save_autoencoder,
    vae_shape,
)
from rapid_dist.diffusion.denoiser import Denoiser, load_denoiser, save_denoiser
from rapid_dist.errors import CheckpointError, ConfigError
from rapid_dist.private.allowed import check_layers
from rapid_dist.private.coupling import check_rows_apart
from rapid_dist.public.autoencode import AutoencoderConfig, measure_latents
from tests.models import latent_denoiser, public_images, random_rows, tiny_autoencoder


def _images(count: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, channels, 8, 8, generator=generator) - 1


def _of(denoiser: Denoiser) -> Autoencoder:
    assert denoiser.autoencoder is not None
    return denoiser.autoencoder


def test_latents_have_the_declared_shape_and_lead_back_to_images() -> None:
    autoencoder = tiny_autoencoder()
    latents = autoencoder.encode(_images(5))
    assert tuple(latents.shape) == (5, *autoencoder.shape) == (5, 2, 4, 4)
    assert tuple(autoencoder.decode(latents).shape) == (5, 1, 8, 8)
    assert autoencoder.encode(_images(0)).shape[0] == autoencoder.decode(latents[:0]).shape[0] == 0


def test_latents_of_public_images_have_the_spread_of_the_schedule() -> None:
    autoencoder, images = tiny_autoencoder(), public_images(64)
    unit = torch.from_numpy(images.images).float() / 127.5 - 1
    for data_std in (0.5, 2.0):
        measure_latents(autoencoder, images, 64, seed=0, data_std=data_std)
        latents = autoencoder.encode(unit)
        assert float(latents.mean(dim=(0, 2, 3)).abs().max()) < 1e-4
        assert float(latents.std(correction=0)) == pytest.approx(data_std, rel=1e-4)
    # The twin: before it is measured, an autoencoder has a spread of its own.
    assert float(tiny_autoencoder(measured=False).encode(unit).std()) != pytest.approx(0.5, rel=0.1)


def test_statistics_are_those_that_diffusers_reads_and_undoing_them_gives_the_raw_latents() -> None:
    autoencoder, images = tiny_autoencoder(), _images(3)
    config = autoencoder.vae.config
    raw = autoencoder.vae.encode(images).latent_dist.mean
    mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1)
    std = torch.tensor(config.latents_std).view(1, -1, 1, 1)
    torch.testing.assert_close(
        autoencoder.encode(images), (raw - mean) * config.scaling_factor / std
    )
    back = autoencoder.vae.decode(raw).sample
    torch.testing.assert_close(
        autoencoder.decode(autoencoder.encode(images)), back, atol=1e-4, rtol=1e-4
    )


def test_latents_that_are_all_alike_are_refused() -> None:
    with pytest.raises(ConfigError, match="says nothing"):
        tiny_autoencoder().set_statistics([0.0, 0.0], 0.0, 0.5)


def test_a_row_is_encoded_alike_whatever_stands_beside_it() -> None:
    autoencoder, images = tiny_autoencoder(), _images(4)
    other = torch.cat([images[:1], _images(3, seed=9)])
    torch.testing.assert_close(autoencoder.encode(images)[0], autoencoder.encode(other)[0])
    torch.testing.assert_close(
        autoencoder.decode(autoencoder.encode(images))[:1],
        autoencoder.decode(autoencoder.encode(images)[:1]),
    )


def test_training_mode_does_not_reach_an_autoencoder_and_nothing_of_it_is_trained() -> None:
    denoiser = latent_denoiser()
    denoiser.train()
    assert denoiser.unet.training
    assert not any(module.training for module in _of(denoiser).modules())
    assert not any(p.requires_grad for p in _of(denoiser).parameters())


class _MinusBatchMean(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden - 0.01 * hidden.mean(0)


def test_an_autoencoder_that_looks_across_the_batch_is_refused() -> None:
    check_layers(latent_denoiser())
    check_rows_apart(latent_denoiser())
    denoiser = latent_denoiser()
    _of(denoiser).vae.encoder.conv_act = _MinusBatchMean()
    with pytest.raises(ConfigError, match="latents of one image"):
        check_rows_apart(denoiser)
    denoiser = latent_denoiser()
    _of(denoiser).vae.encoder.conv_norm_out = nn.BatchNorm2d(8)
    with pytest.raises(ConfigError, match="buffers"):
        check_layers(denoiser)


def test_what_is_stored_opens_in_diffusers_and_has_no_pickle(tmp_path: Path) -> None:
    autoencoder, images = tiny_autoencoder(), _images(3)
    save_autoencoder(autoencoder, tmp_path)
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert names == [
        "autoencoder.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    found = load_autoencoder(tmp_path)
    assert torch.equal(found.encode(images), autoencoder.encode(images))
    theirs = AutoencoderKL.from_pretrained(tmp_path / "vae", local_files_only=True).eval()
    assert torch.equal(
        theirs.encode(images).latent_dist.mean, autoencoder.vae.encode(images).latent_dist.mean
    )
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="whole autoencoder"):
        load_autoencoder(tmp_path)


def test_a_denoiser_of_latents_keeps_its_autoencoder_and_one_of_pixels_has_none(
    tmp_path: Path,
) -> None:
    denoiser, rows = latent_denoiser(), random_rows(2, channels=2)
    assert (denoiser.channels, denoiser.size, denoiser.image_shape) == (2, 4, (1, 8, 8))
    save_denoiser(denoiser, tmp_path / "latent")
    found = load_denoiser(tmp_path / "latent").with_classes(2, seed=0)
    assert found.autoencoder is not None
    assert torch.equal(found.encode(_images(2)), denoiser.encode(_images(2)))
    noised = rows.noised[:, :, :4, :4]
    labels = torch.zeros(2, dtype=torch.int64)
    again = load_denoiser(tmp_path / "latent")
    assert torch.equal(
        again(noised, rows.noise_level, labels), denoiser(noised, rows.noise_level, labels)
    )
    plain = Denoiser(denoiser.config, channels=1, size=8, num_classes=3)
    save_denoiser(plain, tmp_path / "plain")
    assert not (tmp_path / "plain" / "vae").exists()
    assert "autoencoder" not in json.loads((tmp_path / "plain" / "denoiser.json").read_text())
    assert torch.equal(plain.encode(_images(2)), _images(2))


def test_a_denoiser_whose_autoencoder_is_lost_is_refused(tmp_path: Path) -> None:
    save_denoiser(latent_denoiser(), tmp_path)
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="whole denoiser"):
        load_denoiser(tmp_path)


def test_a_denoiser_refuses_the_autoencoder_of_other_images() -> None:
    with pytest.raises(ConfigError, match="autoencoder is for images"):
        Denoiser(
            latent_denoiser().config, channels=1, size=16, num_classes=3,
            autoencoder=tiny_autoencoder(),
        )  # fmt: skip


def _foreign(folder: Path, **changes: Any) -> Path:
    """Somebody's autoencoder in diffusers' layout, for colour images."""
    settings = {"widths": (8, 8), "latent_channels": 3, "norm_groups": 4, **changes}
    vae = new_vae(VaeConfig(**settings), channels=3, size=32)
    vae.register_to_config(latents_mean=[9.0] * 3, latents_std=[9.0] * 3)
    vae.save_pretrained(folder, safe_serialization=True)
    return folder


def test_anybodys_autoencoder_is_opened_and_its_own_statistics_are_dropped(tmp_path: Path) -> None:
    place = _foreign(tmp_path / "theirs")
    assert vae_shape(str(place)) == (3, 1)
    vae = open_vae(str(place))
    assert vae.config.latents_mean is None
    autoencoder = Autoencoder(vae, channels=1, size=8)  # Grey images, as colour without colours.
    assert tuple(autoencoder.encode(_images(2)).shape) == (2, 3, 4, 4)
    assert tuple(autoencoder.decode(autoencoder.encode(_images(2))).shape) == (2, 1, 8, 8)


def test_nothing_that_is_stored_says_where_an_autoencoder_was_read(tmp_path: Path) -> None:
    vae = open_vae(str(_foreign(tmp_path / "somebodys-folder")))
    save_autoencoder(Autoencoder(vae, channels=3, size=8), tmp_path / "stored")
    save_autoencoder(load_autoencoder(tmp_path / "stored"), tmp_path / "again")
    first, again = (
        (tmp_path / folder / "vae" / "config.json").read_text() for folder in ("stored", "again")
    )
    assert first == again
    assert "somebodys-folder" not in first


def test_weights_that_are_not_safetensors_are_not_read(tmp_path: Path) -> None:
    place = _foreign(tmp_path / "theirs")
    weights = place / "diffusion_pytorch_model.safetensors"
    weights.rename(place / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        open_vae(str(place))


def test_a_name_that_is_no_folder_is_not_looked_up_elsewhere_unless_that_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"autoencoder\.hub"):
        open_vae("somebody/their-vae")


def test_a_source_needs_a_licence() -> None:
    with pytest.raises(ConfigError, match=r"autoencoder\.licence"):
        AutoencoderConfig(source="somewhere")


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"kl_weight": -1.0}, {"posterior": "both"}, {"statistics_images": 1}],
)
def test_settings_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="autoencoder"):
        AutoencoderConfig(**wrong)


def test_sizes_that_do_not_divide_are_refused_before_anything_is_made() -> None:
    config = AutoencoderConfig(network=VaeConfig(widths=(8, 8, 8)))
    assert config.latent_shape(28) == (4, 7)
    with pytest.raises(ConfigError, match="divide"):
        config.latent_shape(30)


# Diffusers tells the hub's client of an option that it no longer has.
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_a_hub_that_may_be_asked_and_is_switched_off_is_named_as_such(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for ask in (open_vae, vae_shape):
        with pytest.raises(ConfigError, match="export HF_HUB_OFFLINE=0"):
            ask("nobody/no-autoencoder", hub=True)
