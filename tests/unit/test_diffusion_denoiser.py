"""The denoiser: its limits, its classes, and files that diffusers can open."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from rapid_dist.diffusion.denoiser import Denoiser, NetworkConfig, load_denoiser, save_denoiser
from rapid_dist.errors import CheckpointError, ConfigError
from tests.models import CLASSES, random_rows, tiny_denoiser, tiny_network

NETWORKS = [{}, {"patch": 2}, {"widths": (16, 16), "attention": (False, True)}]


@torch.no_grad()
def _estimate(denoiser: Denoiser, level: float, labels: torch.Tensor | None = None) -> torch.Tensor:
    rows = random_rows(4, channels=denoiser.channels)
    own = rows.labels if labels is None else labels
    estimate: torch.Tensor = denoiser(rows.noised, torch.full((4,), level), own)
    return estimate


@pytest.mark.parametrize("network", NETWORKS)
def test_without_noise_the_estimate_is_the_image_itself(network: dict[str, Any]) -> None:
    denoiser = tiny_denoiser(**network)
    noised = random_rows(4).noised
    torch.testing.assert_close(_estimate(denoiser, 1e-6), noised, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(_estimate(denoiser, 0.5), noised, atol=1e-2)


@pytest.mark.parametrize("level", [0.01, 1.0, 40.0])
def test_the_estimate_is_preconditioned_as_in_karras_table_1(level: float) -> None:
    denoiser, rows = tiny_denoiser(), random_rows(4)
    total = (level**2 + 0.5**2) ** 0.5
    times = torch.full((4,), 100 * torch.tensor(level).log().item())
    with torch.no_grad():
        raw = denoiser.unet(rows.noised / total, times, class_labels=rows.labels).sample
    expected = 0.25 / total**2 * rows.noised + level * 0.5 / total * raw
    torch.testing.assert_close(_estimate(denoiser, level), expected, rtol=1e-4, atol=1e-5)


def test_in_pure_noise_the_image_itself_hardly_counts() -> None:
    denoiser, rows = tiny_denoiser(), random_rows(4)
    skip = 0.25 / (40.0**2 + 0.25)
    assert skip * float(rows.noised.abs().max()) < 1e-3
    assert float(_estimate(denoiser, 40.0).std()) > 0.01


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_stay_and_rows_are_counted(network: dict[str, Any], channels: int) -> None:
    denoiser = tiny_denoiser(channels=channels, **network)
    assert _estimate(denoiser, 0.5).shape == (4, channels, 8, 8)
    assert denoiser.evaluations == 4


def test_labels_matter_and_the_last_one_means_none() -> None:
    denoiser = tiny_denoiser()
    assert denoiser.no_label == CLASSES
    found = [_estimate(denoiser, 0.5, torch.full((4,), label)) for label in range(CLASSES + 1)]
    for one in range(CLASSES):
        assert not torch.allclose(found[one], found[one + 1], atol=1e-4)


def _table(denoiser: Denoiser) -> torch.Tensor:
    table: torch.Tensor = denoiser.unet.class_embedding.weight.detach()
    return table


@pytest.mark.parametrize("num_classes", [1, 3, 7])
def test_other_classes_get_a_new_table_and_leave_all_else(num_classes: int) -> None:
    old = tiny_denoiser()
    new = old.with_classes(num_classes, seed=5)
    assert new.num_classes == new.no_label == num_classes
    assert _table(new).shape == (num_classes + 1, _table(old).shape[1])
    assert torch.equal(_table(new)[-1], _table(old)[-1])  # "No label" stays what it was.
    assert all(p.requires_grad for p in new.parameters())
    for name, value in old.state_dict().items():
        if "class_embedding" not in name:
            assert torch.equal(new.state_dict()[name], value)
    assert torch.equal(_table(new), _table(old.with_classes(num_classes, seed=5)))
    assert not torch.equal(_table(new), _table(old.with_classes(num_classes, seed=6)))


def test_a_copy_with_other_classes_shares_no_weight_with_its_origin() -> None:
    old = tiny_denoiser()
    before = {name: value.clone() for name, value in old.state_dict().items()}
    with torch.no_grad():
        for copied in (old.with_classes(2, seed=0), old.without_labels(2)):
            for parameter in copied.parameters():
                parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    assert old.num_classes == CLASSES


def test_a_copy_without_labels_heeds_none() -> None:
    old = tiny_denoiser()
    new = old.without_labels(5)
    none = torch.full((4,), old.no_label)
    for label in range(6):
        found = _estimate(new, 0.5, torch.full((4,), label))
        torch.testing.assert_close(found, _estimate(old, 0.5, none))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_saved_denoiser_comes_back_as_it_was(network: dict[str, Any], tmp_path: Path) -> None:
    for denoiser in (tiny_denoiser(**network), tiny_denoiser(**network).with_classes(6, seed=1)):
        save_denoiser(denoiser, tmp_path / str(denoiser.num_classes))
        loaded = load_denoiser(tmp_path / str(denoiser.num_classes))
        assert loaded.config == denoiser.config
        assert loaded.num_classes == denoiser.num_classes
        assert torch.equal(_estimate(loaded, 0.5), _estimate(denoiser, 0.5))


def test_diffusers_opens_the_network_and_no_file_is_a_pickle(tmp_path: Path) -> None:
    denoiser = tiny_denoiser().with_classes(5, seed=1)
    save_denoiser(denoiser, tmp_path)
    unet = UNet2DModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
    assert unet.config.num_class_embeds == 6
    for name, value in denoiser.unet.state_dict().items():
        assert torch.equal(unet.state_dict()[name], value)
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert names == {"denoiser.json", "unet/config.json", weights}


def _tear(directory: Path, name: str) -> None:
    path = directory / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name", ["denoiser.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
)
@pytest.mark.parametrize("torn", [True, False])
def test_a_denoiser_that_is_not_whole_is_refused(name: str, torn: bool, tmp_path: Path) -> None:
    save_denoiser(tiny_denoiser(), tmp_path)
    if torn:
        _tear(tmp_path, name)
    else:
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="does not hold a whole denoiser"):
        load_denoiser(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_denoiser(tiny_denoiser(), tmp_path)
    facts = json.loads((tmp_path / "denoiser.json").read_text())
    facts["network"]["widths"] = [32]
    (tmp_path / "denoiser.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError):
        load_denoiser(tmp_path)


@pytest.mark.parametrize(
    "setting",
    [
        {"widths": (16, 16)},
        {"widths": (18,)},
        {"norm_groups": 16},  # One channel a group: noise level and label would not be heard.
        {"widths": (), "attention": ()},
        {"norm_groups": 0},
        {"head_width": 0},
        {"patch": 0},
        {"layers_per_block": 0},
        {"label_drop": 1.0},
    ],
)
def test_a_network_setting_is_refused_by_its_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"network.*{next(iter(setting))}"):
        tiny_network(**setting)


def test_images_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not divide"):
        Denoiser(
            NetworkConfig(widths=(16, 16), attention=(False, False)),
            channels=1, size=9, num_classes=2,
        )  # fmt: skip
