"""FID-like figures against definitions written out, and against sets made to be bad."""

import json
from pathlib import Path

import boto3
import numpy as np
import pytest
import scipy.linalg
import torch
from moto import mock_aws
from torch import nn

from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.fidelity import (
    CHUNK_ROWS,
    ModuleExtractor,
    PixelExtractor,
    compare,
    frechet_distance,
    kernel_distance,
)
from rapid_dist.evaluation.mobilenet import FILE_NAME, MobileNetFeatures, open_mobilenet


def _normal(num: int, dim: int, seed: int, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(mean, std, (num, dim))
    return drawn.astype(np.float32)


def test_the_frechet_distance_is_its_formula() -> None:
    real = _normal(300, 6, 0) @ _normal(6, 6, 1)
    synthetic = _normal(200, 6, 2, mean=0.5) @ _normal(6, 6, 3)
    mean = real.mean(0) - synthetic.mean(0)
    left, right = (np.cov(f.astype(np.float64), rowvar=False) for f in (real, synthetic))
    root = scipy.linalg.sqrtm(left @ right).real
    expected = mean @ mean + np.trace(left + right - 2 * root)
    assert frechet_distance(real, synthetic) == pytest.approx(expected, rel=1e-5)


def test_the_frechet_distance_of_a_set_to_itself_is_zero_even_with_few_images() -> None:
    few = _normal(5, 20, 0)  # Fewer images than features: both covariances are singular.
    assert 0 <= frechet_distance(few, few) < 1e-5
    assert frechet_distance(few, few + 1) == pytest.approx(20, rel=1e-3)


def test_the_kernel_distance_is_its_formula_and_leaves_the_global_generator_alone() -> None:
    real, synthetic = _normal(40, 3, 0), _normal(40, 3, 1, mean=0.5)
    state = torch.random.get_rng_state()
    found = kernel_distance(real, synthetic, seed=0)  # Fewer than a subset: all, every time.
    assert torch.equal(torch.random.get_rng_state(), state)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray((x.astype(np.float64) @ y.T.astype(np.float64) / 3 + 1) ** 3)

    def apart(x: np.ndarray) -> float:
        return float((kernel(x, x).sum() - np.trace(kernel(x, x))) / (40 * 39))

    expected = apart(real) + apart(synthetic) - 2 * kernel(real, synthetic).mean()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_kernel_distance_of_one_source_is_around_zero() -> None:
    near = kernel_distance(_normal(600, 4, 0), _normal(600, 4, 1), seed=0)
    far = kernel_distance(_normal(600, 4, 0), _normal(600, 4, 1, mean=0.5), seed=0)
    assert abs(near) < 0.05 < far


def test_manifold_figures_are_their_definitions_across_chunks() -> None:
    k = 4
    real = _normal(CHUNK_ROWS + 50, 3, 0)
    synthetic = _normal(CHUNK_ROWS + 20, 3, 1, mean=0.7, std=0.8)
    radii = {
        name: np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, k]
        for name, x in (("real", real), ("synthetic", synthetic))
    }  # Column 0 is the point itself.
    distances = np.linalg.norm(real[:, None] - synthetic[None], axis=2)
    in_real = distances < radii["real"][:, None]
    found = compare(real, synthetic, neighbors=k)
    assert found.precision == pytest.approx(in_real.any(0).mean(), abs=2e-3)
    assert found.recall == pytest.approx((distances < radii["synthetic"]).any(1).mean(), abs=2e-3)
    assert found.density == pytest.approx(in_real.sum() / k / len(synthetic), abs=2e-3)
    assert found.coverage == pytest.approx(in_real.any(1).mean(), abs=2e-3)


def test_a_set_from_the_same_source_is_close_in_every_figure() -> None:
    found = compare(_normal(500, 4, 0), _normal(500, 4, 1), neighbors=5)
    assert min(found.precision, found.recall, found.coverage) > 0.9
    assert found.density == pytest.approx(1, abs=0.15)
    assert found.frechet_distance < 0.1


def test_dropped_modes_show_in_recall_and_coverage_but_not_in_precision() -> None:
    modes = np.repeat([[0.0], [100.0]], 250, axis=0).astype(np.float32)
    found = compare(_normal(500, 4, 0) + modes, _normal(500, 4, 1), neighbors=5)
    assert found.precision > 0.9
    assert found.recall < 0.6
    assert found.coverage < 0.6


def test_noise_shows_in_precision_and_density() -> None:
    found = compare(_normal(500, 4, 0), _normal(500, 4, 1, std=5.0), neighbors=5)
    assert found.precision < 0.5
    assert found.density < 0.5
    assert found.frechet_distance > 10


@pytest.mark.parametrize("neighbors", [0, 10])
def test_a_number_of_neighbors_that_a_set_does_not_have_is_refused(neighbors: int) -> None:
    with pytest.raises(ConfigError, match=f"got {neighbors}"):
        compare(_normal(10, 2, 0), _normal(20, 2, 1), neighbors=neighbors)


@pytest.mark.parametrize(("size", "features"), [(8, 64), (16, 256), (28, 196), (64, 256)])
def test_pixels_are_averaged_down_to_sixteen_a_side(size: int, features: int) -> None:
    images = np.full((2, 1, size, size), 255, np.uint8)
    found = PixelExtractor()(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.ones((2, features), np.float32))


def test_a_module_extracts_in_eval_mode_whatever_the_batch_size() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).train()
    images = np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), dtype=np.uint8)
    one = ModuleExtractor(module, "m", batch_size=1)(images)
    many = ModuleExtractor(module, "m", batch_size=5)(images)
    assert one.shape == (7, 3)
    np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-7)


def _tiny_mobilenet(path: Path) -> None:
    """Writes a file of the real one's format: 3x3 stride-2 CONV, 3x3 DW, ADD, AVGPOOL."""
    rng = np.random.default_rng(0)
    clamp = [-1000.0, 1000.0]
    program = [
        {"op": "CONV", "inp": [0], "out": 1, "stride": 2, "same": True, "clamp": clamp},
        {"op": "DW", "inp": [1], "out": 2, "stride": 1, "same": True, "clamp": [0.0, 6.0]},
        {"op": "ADD", "inp": [2, 1], "out": 3, "clamp": clamp},
        {"op": "AVGPOOL", "inp": [3], "out": 4, "clamp": clamp},
    ]
    arrays = {"program": np.array(json.dumps(program))}
    for number, shape in ((1, (5, 3, 3, 3)), (2, (1, 3, 3, 5))):
        arrays[f"w{number}"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"wz{number}"] = np.array(120)
        arrays[f"ws{number}"] = np.array(0.01, np.float32)
        arrays[f"b{number}"] = rng.normal(size=5).astype(np.float32)
    path.parent.mkdir(parents=True)
    np.savez(path, **arrays)


def test_the_mobilenet_file_is_run_as_its_program_says(tmp_path: Path) -> None:
    _tiny_mobilenet(tmp_path / FILE_NAME)
    images = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = MobileNetFeatures(tmp_path / FILE_NAME, side=6)(images)
    file = np.load(tmp_path / FILE_NAME)
    weights = [(file[f"w{n}"].astype(np.float32) - 120) * np.float32(0.01) for n in (1, 2)]
    pixels = ((images.expand(-1, 3, -1, -1).numpy() + 1) / 2 * 255) / 128 - 1
    expected = np.empty((2, 5))
    for row, image in enumerate(pixels):
        padded = np.pad(image, ((0, 0), (0, 1), (0, 1)))  # Stride 2 on 6: one pixel, at the end.
        first = np.empty((5, 3, 3))
        for o, y, x in np.ndindex(first.shape):
            patch = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3].transpose(1, 2, 0)
            first[o, y, x] = (patch * weights[0][o]).sum() + file["b1"][o]
        around = np.pad(first, ((0, 0), (1, 1), (1, 1)))
        second = np.empty_like(first)
        for o, y, x in np.ndindex(first.shape):
            patch = around[o, y : y + 3, x : x + 3]
            second[o, y, x] = (patch * weights[1][0, :, :, o]).sum() + file["b2"][o]
        expected[row] = (first + second.clip(0, 6)).mean((1, 2))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_mobilenet_extractor_takes_grey_and_colour_images(tmp_path: Path) -> None:
    _tiny_mobilenet(tmp_path / FILE_NAME)
    extract = open_mobilenet(tmp_path)
    grey = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    assert extract.name == "mobilenet_v2@96px"
    np.testing.assert_allclose(extract(grey), extract(grey.repeat(3, axis=1)), rtol=1e-6)


def test_a_missing_mobilenet_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root"):
        open_mobilenet(tmp_path)


@mock_aws
def test_the_mobilenet_file_of_a_bucket_gives_the_features_of_the_one_on_a_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client, root = boto3.client("s3"), "s3://scans/sets"
    client.create_bucket(Bucket="scans")
    with pytest.raises(ConfigError, match=f"need {root}/{FILE_NAME}, which is missing"):
        open_mobilenet(root)
    _tiny_mobilenet(tmp_path / FILE_NAME)
    content = (tmp_path / FILE_NAME).read_bytes()
    client.put_object(Bucket="scans", Key=f"sets/{FILE_NAME}", Body=content)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    here, there = open_mobilenet(tmp_path), open_mobilenet(root)
    np.testing.assert_array_equal(here(images), there(images))
