"""Features are per image, of unit length, and survive their file."""

import numpy as np
import pytest
import torch

from rapid_dist.errors import CheckpointError, ConfigError
from rapid_dist.retrieval.features import (
    ContrastExtractor,
    ExtractorConfig,
    load_extractor,
    pixel_features,
    save_extractor,
)


def _extractor(channels: int = 1, size: int = 8, seed: int = 0) -> ContrastExtractor:
    torch.manual_seed(seed)
    return ContrastExtractor(ExtractorConfig(width=8, dim=16), channels, size).freeze()


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 37), (1, 64)])
def test_any_allowed_image_gives_a_unit_vector(channels, size):
    extractor = _extractor(channels, size)
    x = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(extractor(x).norm(dim=1), torch.ones(3))
    assert extractor(x).shape == (3, 16)
    assert extractor.project(x).shape == (3, 64)


def test_an_image_has_the_same_features_whatever_is_beside_it():
    extractor = _extractor()
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    other = torch.cat([x[:1], 100 * x[1:]])
    torch.testing.assert_close(extractor(x)[0], extractor(other)[0], rtol=0, atol=0)


def test_an_extractor_survives_its_files(tmp_path):
    extractor = _extractor()
    save_extractor(extractor, tmp_path)
    opened = load_extractor(tmp_path)
    assert opened.fingerprint() == extractor.fingerprint() != _extractor(seed=1).fingerprint()
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(opened(x), extractor(x))
    assert not opened.training


def test_weights_of_another_extractor_are_refused(tmp_path):
    save_extractor(_extractor(), tmp_path)
    settings = (tmp_path / "extractor.json").read_text()
    save_extractor(_extractor(seed=1), tmp_path)
    (tmp_path / "extractor.json").write_text(settings)
    with pytest.raises(CheckpointError, match=r"extractor\.safetensors does not hold"):
        load_extractor(tmp_path)


def test_pixel_features_are_pooled_to_sixteen_pixels_and_centred_by_constants():
    grey = np.full((2, 1, 28, 28), 255, np.uint8)
    np.testing.assert_array_equal(pixel_features(grey), np.ones((2, 14 * 14), np.float32))
    assert pixel_features(np.zeros((1, 3, 64, 64), np.uint8)).shape == (1, 3 * 16 * 16)
    assert pixel_features(np.zeros((1, 1, 8, 8), np.uint8)).shape == (1, 64)
    assert pixel_features(np.zeros((1, 1, 37, 37), np.uint8)).shape == (1, 100)


def test_pixel_features_average_neighbours():
    image = np.zeros((1, 1, 18, 18), np.uint8)
    image[0, 0, :2, :2] = [[0, 255], [255, 255]]
    assert pixel_features(image)[0, 0] == pytest.approx(0.5)


def test_wrong_widths_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"extractor\.width must be a multiple of 8, got 12"):
        ExtractorConfig(width=12)
    with pytest.raises(ConfigError, match="got 2 and 8"):
        ContrastExtractor(ExtractorConfig(), 2, 8)
