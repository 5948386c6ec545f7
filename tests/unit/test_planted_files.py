"""Planted files that would run something do nothing, and are refused in one line (P16)."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rapid_dist.config import load_recipe
from rapid_dist.data.sources import PrivateSource, load_private
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.denoiser import load_denoiser, save_denoiser
from rapid_dist.errors import RapidError
from rapid_dist.release.bundle import write_bundle
from rapid_dist.release.checksums import write_checksums
from rapid_dist.release.generator import Generator
from rapid_dist.retrieval.arrays import unpack_arrays
from rapid_dist.retrieval.features import ContrastExtractor, ExtractorConfig, load_extractor
from rapid_dist.retrieval.features import save_extractor as save
from rapid_dist.retrieval.inverted import InvertedIndex
from rapid_dist.retrieval.prior import TrajectoryPrior
from rapid_dist.runtime.run_directory import RunDirectory
from rapid_dist.storage import LocalStorage, sha256_hex
from tests.bundles import tiny_bundle, tiny_denoiser


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self._marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def _pickled(marker: Path) -> bytes:
    return pickle.dumps(Payload(marker))


def _object_array(marker: Path) -> np.ndarray:
    array = np.empty(1, object)
    array[0] = Payload(marker)
    return array


def _objects(marker: Path, *names: str) -> bytes:
    file = io.BytesIO()
    np.savez(file, **dict.fromkeys(names, _object_array(marker)))
    return file.getvalue()


def _torch_saved(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"x": Payload(marker)}, file)
    return file.getvalue()


def _checkpoint(folder: Path, marker: Path) -> None:
    data = _pickled(marker)
    name = f"step-000000007-{sha256_hex(data)[:16]}.safetensors"  # As whole as any, by its name.
    (folder / name).write_bytes(data)
    Checkpoints(LocalStorage(folder)).latest()


def _torch_checkpoint(folder: Path, marker: Path) -> None:
    data = _torch_saved(marker)
    name = f"step-000000007-{sha256_hex(data)[:16]}.safetensors"
    (folder / name).write_bytes(data)
    Checkpoints(LocalStorage(folder)).latest()


def _network(folder: Path, marker: Path) -> None:
    """Without safetensors diffusers would take what PyTorch has saved."""
    save_denoiser(tiny_denoiser(), folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(_torch_saved(marker))
    load_denoiser(folder)


def _renamed_network(folder: Path, marker: Path) -> None:
    save_denoiser(tiny_denoiser(), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(_torch_saved(marker))
    load_denoiser(folder)


def _extractor(folder: Path, marker: Path) -> None:
    save(ContrastExtractor(ExtractorConfig(dim=8, width=8), 1, 8), folder)
    (folder / "extractor.safetensors").write_bytes(_pickled(marker))
    load_extractor(folder)


def _arrays(folder: Path, marker: Path) -> None:
    unpack_arrays(_objects(marker, "keys"), "shard.npz")


def _torn_arrays(folder: Path, marker: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("keys.npy", _pickled(marker))
    unpack_arrays(file.getvalue(), "shard.npz")


def _prior(folder: Path, marker: Path) -> None:
    TrajectoryPrior.from_bytes(_objects(marker, "cluster_of_entry", "probabilities"))


def _private_npz(folder: Path, marker: Path) -> None:
    (folder / "scans.npz").write_bytes(_objects(marker, "images", "labels"))
    kind = {"source": "npz", "path": str(folder / "scans.npz")}
    load_private(PrivateSource(**kind, name="scans", num_records=9, num_classes=2, size=8))


def _index(folder: Path, marker: Path) -> None:
    InvertedIndex(_pickled(marker), 1, [])


def _bundle(folder: Path, marker: Path) -> None:
    """Whole by its own checksums, and its prior is objects."""
    write_bundle(tiny_bundle(), folder / "bundle")
    (folder / "bundle" / "prior.npz").write_bytes(
        _objects(marker, "cluster_of_entry", "probabilities")
    )
    write_checksums(folder / "bundle")
    Generator.open(folder / "bundle")


def _recipe(folder: Path, marker: Path) -> None:
    text = f"name: !!python/object/apply:os.mkdir [{json.dumps(str(marker))}]\n"
    (folder / "bad.yaml").write_text(text)
    load_recipe(folder / "bad.yaml")


def _override(folder: Path, marker: Path) -> None:
    load_recipe("digits", [f"name=!!python/object/apply:os.mkdir ['{marker}']"])


def _config_of_a_run(folder: Path, marker: Path) -> None:
    text = f"name: !!python/object/apply:os.mkdir [{json.dumps(str(marker))}]\n"
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(text)
    RunDirectory(load_recipe("digits"), str(folder / "run"))


PLANTS: list[Callable[[Path, Path], None]] = [
    _checkpoint, _torch_checkpoint, _network, _renamed_network, _extractor, _arrays, _torn_arrays,
    _prior, _private_npz, _index, _bundle, _recipe, _override, _config_of_a_run,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_file_runs_nothing_and_is_refused_in_one_line(
    plant: Callable[[Path, Path], None], tmp_path: Path, marker: Path
) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(RapidError) as refused:
        plant(tmp_path / "store", marker)
    assert not marker.exists()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_code_that_lies_in_a_bundle_is_not_run_when_it_is_opened(
    tmp_path: Path, marker: Path
) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(tiny_bundle(), bundle)
    evil = f"import os; os.mkdir({str(marker)!r})\n"
    for name in ("sampler.py", "code/rapid_dist/__init__.py", "unet/modeling_unet.py"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(evil)
    (bundle / "python_model.pkl").write_bytes(_pickled(marker))
    write_checksums(bundle)
    images = Generator.open(bundle).generate(np.array([0, 1]), seed=1)
    assert images.shape == (2, 1, 8, 8)
    assert not marker.exists()


def test_the_payloads_would_run_where_somebody_unpickles_them(tmp_path: Path, marker: Path) -> None:
    opened = [
        lambda: pickle.loads(_pickled(marker)),
        lambda: torch.load(io.BytesIO(_torch_saved(marker)), weights_only=False),
        lambda: np.load(io.BytesIO(_objects(marker, "a")), allow_pickle=True)["a"],
    ]
    for read in opened:
        read()
        assert marker.exists()
        marker.rmdir()
