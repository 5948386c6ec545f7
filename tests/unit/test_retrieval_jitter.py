"""Jitter is small, belongs to the sample, and varies references only after they were split off."""

import numpy as np
import pytest
import torch

from rapid_dist.data.images import content_hashes
from rapid_dist.errors import ConfigError
from rapid_dist.public.variants import with_variants
from rapid_dist.retrieval.jitter import JitterConfig, jittered
from tests.models import public_images

SOME = JitterConfig(rotation=0.2, shear=0.2, scale=0.1, shift=0.05)


def _streams(first: int, count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(first + row) for row in range(count)]


def _images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_no_jitter_leaves_images_bit_for_bit_alone() -> None:
    images = _images(3)
    assert jittered(images, _streams(0, 3), JitterConfig()) is images


def test_a_vanishing_jitter_moves_nothing_and_a_real_one_does() -> None:
    images = _images(6)
    tiny = jittered(images, _streams(0, 6), JitterConfig(rotation=1e-7))
    torch.testing.assert_close(tiny, images, atol=1e-4, rtol=0)
    moved = jittered(images, _streams(0, 6), SOME)
    assert float((moved - images).abs().flatten(1).max(dim=1).values.min()) > 0.01


def test_an_image_is_changed_by_its_own_stream_whatever_the_batch() -> None:
    images = _images(6)
    together = jittered(images, _streams(0, 6), SOME)
    alone = torch.cat([jittered(images[i : i + 1], _streams(i, 1), SOME) for i in range(6)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, jittered(images, _streams(1, 6), SOME))


def test_a_shift_alone_moves_by_at_most_its_share_of_half_the_frame() -> None:
    dot = torch.full((40, 1, 8, 8), -1.0)
    dot[:, :, 4, 4] = 1.0
    moved = jittered(dot, _streams(0, 40), JitterConfig(shift=0.25)) + 1
    columns = (moved.sum(dim=(1, 2)) * torch.arange(8.0)).sum(dim=1) / moved.sum(dim=(1, 2, 3))
    distance = (columns - 4).abs()  # 0.25 of 4 pixels is one pixel.
    assert float(distance.max()) <= 1.01
    assert float(distance.max()) > 0.5


@pytest.mark.parametrize("name", ["rotation", "shear", "scale", "shift"])
def test_a_jitter_out_of_range_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"prior.jitter.{name} must be in"):
        JitterConfig(**{name: 1.5})


def test_variants_follow_the_images_and_keep_their_labels() -> None:
    images = public_images()
    varied = with_variants(images, 3, SOME, seed=1)
    assert len(varied) == 3 * len(images)
    np.testing.assert_array_equal(varied.images[: len(images)], images.images)
    np.testing.assert_array_equal(varied.labels, np.tile(images.labels, 3))
    again = with_variants(images, 3, SOME, seed=1)
    assert varied.fingerprint == again.fingerprint
    assert varied.fingerprint != with_variants(images, 3, SOME, seed=2).fingerprint
    distinct = len(set(content_hashes(images.images)))
    assert len(set(content_hashes(varied.images))) > 2.5 * distinct  # Blank ones stay alike.


def test_one_variant_is_the_images_themselves() -> None:
    images = public_images()
    assert with_variants(images, 1, JitterConfig(), seed=0) is images
