"""How close a set of images is to another, in a feature space: fidelity and diversity.

Everything here is FID-like, not FID, unless the features are Inception's (``inception.py``): the
figures compare methods with each other under one extractor, whose name stands beside them, and are
never put beside published FID.

    extract = PixelExtractor()
    fidelity = compare(extract(real), extract(synthetic), neighbors=5)

The Frechet distance and the kernel distance (KID, Binkowski et al. 2018) are torchmetrics'.
Precision and recall follow Kynkaanniemi et al. (2019), density and coverage Naeem et al. (2020): a
ball around every point reaches to its k-th nearest neighbour of the same set. These four are our
own: their authors' package, prdc, holds whole distance matrices and is no longer maintained.

Letters: N real images, M synthetic ones, D features, k neighbours.
"""

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from rapid_dist.data.images import UInt8Array, to_unit
from rapid_dist.errors import ConfigError

Float32Array = npt.NDArray[np.float32]

LARGEST_PIXEL_SIDE = 16  # Sides above it are averaged down: 28 -> 14, 32 and 64 -> 16.
CHUNK_ROWS = 1_000  # Rows of a distance matrix held at once.
KERNEL_SUBSETS = 50  # Means over so many draws of so many images: steadier, and bounded in cost.
KERNEL_IMAGES = 500


class Extractor(Protocol):
    """Turns images into feature vectors, each image on its own."""

    name: str

    def __call__(self, images: UInt8Array) -> Float32Array:
        """uint8 [N, C, H, W] -> features float32 [N, D]."""
        ...


class PixelExtractor:
    """Pixels in [-1, 1], averaged down to at most 16 a side; needs no network and no file."""

    name = "pixels"

    def __call__(self, images: UInt8Array) -> Float32Array:
        """uint8 [N, C, H, W] -> features float32 [N, D]."""
        pixels = to_unit(images)
        while pixels.shape[-1] > LARGEST_PIXEL_SIDE:
            pixels = F.avg_pool2d(pixels, 2)
        features: Float32Array = pixels.flatten(1).numpy()
        return features


class ModuleExtractor:
    """Features of a torch module that maps float32 [B, C, H, W] in [-1, 1] to [B, D]."""

    def __init__(
        self, module: nn.Module, name: str, batch_size: int = 256, device: str = "cpu"
    ) -> None:
        self.name = name
        self._module = module.to(device).eval()
        self._batch_size = batch_size
        self._device = device

    @torch.no_grad()
    def __call__(self, images: UInt8Array) -> Float32Array:
        """uint8 [N, C, H, W] -> features float32 [N, D]."""
        parts = [
            self._module(to_unit(images[start : start + self._batch_size]).to(self._device)).cpu()
            for start in range(0, len(images), self._batch_size)
        ]
        features: Float32Array = torch.cat(parts).float().numpy()
        return features


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """FID-like figures of a synthetic set against a real one, under a named extractor."""

    frechet_distance: float  # 0 for equal means and covariances; smaller is better.
    precision: float  # Share of synthetic images that lie where real ones are.
    recall: float  # Share of real images that lie where synthetic ones are.
    density: float  # Like precision, but a crowd of real images counts once each; may pass 1.
    coverage: float  # Share of real images with a synthetic one in their own ball.
    kernel_distance: float | None = None  # Unbiased, so it may pass below 0; smaller is better.

    def to_json(self) -> dict[str, float | None]:
        """Returns the figures by name."""
        return asdict(self)


def compare(
    real: Float32Array, synthetic: Float32Array, *, neighbors: int, seed: int = 0
) -> Fidelity:
    """Returns all figures for features float32 [N, D] and [M, D].

    Guarantees: a permutation of either set changes nothing beyond rounding, but for the kernel
    distance, which is a mean over subsets that ``seed`` draws.
    """
    smallest = min(len(real), len(synthetic))
    if not 1 <= neighbors < smallest:
        raise ConfigError(
            f"neighbors must be in 1..{smallest - 1} for a set of {smallest} images, got "
            f"{neighbors}. Evaluate more images or fewer neighbors."
        )
    precision, recall, density, coverage = _manifold_figures(
        torch.from_numpy(real).double(), torch.from_numpy(synthetic).double(), neighbors
    )
    return Fidelity(
        frechet_distance=frechet_distance(real, synthetic),
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
        kernel_distance=kernel_distance(real, synthetic, seed),
    )


def kernel_distance(real: Float32Array, synthetic: Float32Array, seed: int) -> float:
    """Returns the squared maximum mean discrepancy of [N, D] and [M, D] under KID's cubic kernel.

    Unbiased, so sets of different size compare.
    """
    with warnings.catch_warnings():  # That it keeps all features is meant.
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(
            feature=_Given(real.shape[1]),
            subsets=KERNEL_SUBSETS,
            subset_size=min(KERNEL_IMAGES, len(real), len(synthetic)),
            sync_on_compute=False,
        )
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(synthetic).double(), real=False)
    with torch.random.fork_rng(devices=[]):  # It draws from the global generator.
        torch.manual_seed(seed)
        return float(metric.compute()[0])


def frechet_distance(real: Float32Array, synthetic: Float32Array) -> float:
    """Returns the squared Frechet distance of two Gaussians fitted to [N, D] and [M, D].

    It is biased upwards by few images, so it is only comparable between sets of equal size.
    """
    # In a process group it would add up what all workers hold, and they hold different sets.
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]), sync_on_compute=False)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(synthetic).double(), real=False)
    return max(float(metric.compute()), 0.0)  # Rounding can pass below zero on equal sets.


class _Given(nn.Identity):
    """Tells torchmetrics that what it is handed are features already, ``num_features`` wide."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _manifold_figures(real: Tensor, synthetic: Tensor, k: int) -> tuple[float, ...]:
    """Returns precision, recall, density and coverage of float64 [N, D] and [M, D]."""
    real_radius = _radii(real, k)
    synthetic_radius = _radii(synthetic, k)
    inside_real = torch.zeros(len(synthetic), dtype=torch.int64)  # Real balls each one lies in.
    recalled = covered = 0
    for rows, distances in _distance_rows(real, synthetic):
        within_real = distances < real_radius[rows, None]
        inside_real += within_real.sum(0)
        covered += int(within_real.any(1).sum())
        recalled += int((distances < synthetic_radius).any(1).sum())
    precision = float((inside_real > 0).double().mean())
    density = float(inside_real.double().mean()) / k
    return precision, recalled / len(real), density, covered / len(real)


def _radii(points: Tensor, k: int) -> Tensor:
    """Returns each point's distance to its k-th nearest other point, float64 [N]."""
    radii = torch.empty(len(points), dtype=points.dtype)
    for rows, distances in _distance_rows(points, points):
        own = torch.arange(rows.start, rows.stop)
        distances[own - rows.start, own] = torch.inf
        radii[rows] = distances.kthvalue(k, dim=1).values
    return radii


def _distance_rows(left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields rows of the distance matrix [N, M], so that it never exists as a whole."""
    for start in range(0, len(left), CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, len(left)))
        yield rows, torch.cdist(left[rows], right)
