"""Drawing from a bundle on a CUDA device, and what evaluation trains and asks. `pytest -m gpu`."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rapid_dist.data.images import ImageSpec, PrivateImages
from rapid_dist.evaluation.classifiers import train_and_score
from rapid_dist.evaluation.settings import ClassifierConfig, EvaluationConfig
from rapid_dist.evaluation.suite import Yardstick
from rapid_dist.release.generator import Generator
from tests.bundles import tiny_bundle, tiny_denoiser

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICE = "cuda"
LABELS = np.arange(150) % 2  # Two whole blocks of 64 rows and a part.


@pytest.fixture(autouse=True)
def whole_floats() -> Iterator[None]:
    """Keeps convolutions from rounding to TF32, which would hide an error of one in a thousand."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_the_denoiser_estimates_on_the_device_what_it_does_on_the_cpu() -> None:
    denoiser = tiny_denoiser().eval()
    generator = torch.Generator().manual_seed(0)
    state = torch.randn((8, 1, 8, 8), generator=generator)
    level = 0.1 + 3 * torch.rand(8, generator=generator)
    labels = torch.arange(8) % 3  # The third is "no label".
    with torch.no_grad():
        expected = denoiser(state, level, labels)
        denoiser.to(DEVICE)
        found = denoiser(state.to(DEVICE), level.to(DEVICE), labels.to(DEVICE))
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


def _drawn(device: str, seed: int = 0, batch_size: int = 256) -> np.ndarray:
    generator = Generator(tiny_bundle(), device)
    return generator.generate(LABELS, seed=seed, batch_size=batch_size)


def _apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_the_device_draws_the_images_of_the_cpu_but_for_rounding() -> None:
    assert _apart(_drawn(DEVICE), _drawn("cpu")) <= 1


def test_the_comparison_with_the_cpu_would_notice_another_seed() -> None:
    assert _apart(_drawn(DEVICE, seed=1), _drawn("cpu")) > 50


def test_an_image_does_not_depend_on_the_batch_size_on_the_device_either() -> None:
    whole = _drawn(DEVICE)
    for batch_size in (1, 7, 100):
        np.testing.assert_array_equal(_drawn(DEVICE, batch_size=batch_size), whole)


def test_classifiers_learn_on_the_device() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    images = rng.integers(0, 120, (400, 1, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 130  # The bright rows say the class.
    spec = ImageSpec(name="bars", num_records=200, channels=1, size=8, num_classes=4, licence="")
    shown = images.astype(np.uint8)
    real = PrivateImages(images=shown[200:], labels=labels[200:], spec=spec)
    config = ClassifierConfig(logistic_iterations=50, hidden_width=16, steps=60, batch_size=32)
    scores = train_and_score(shown[:200], labels[:200], real, 4, 0, config, DEVICE)
    assert min(scores.mlp, scores.cnn) > 0.8
    every = EvaluationConfig(classifiers=config, class_balance=True, neighbors=3)
    yardstick = Yardstick(real, real, every, 0, smallest_set=200, device=DEVICE)
    found = yardstick.measure(shown[:200], labels[:200])
    assert found.balance is not None
    assert found.balance.judge_accuracy > 0.8
