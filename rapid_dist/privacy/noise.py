"""The noise of a release: keyed, chunked, the same on every worker, in two kinds.

Noise is added once, to the vector that all workers already hold in sum. Every chunk of the
vector has a stream of its own, keyed by (purpose, step, attempt, chunk), so its values depend
neither on the world size nor on which worker makes them, and a repeated step gets fresh noise.

``fast``: float32 normals from Philox, a counter-based generator. Each stream has a 128-bit key,
the first half of HMAC-SHA256 under 256 secret bits of the operating system. It assumes that nobody
can tell Philox from randomness who does not know its key, which is plausible and not proved: Philox
passes statistical tests and is not a cipher. And float32 normals, and sums, are a discrete set:
the accounting is for ideal Gaussian noise.

``secure``: discrete Gaussian noise on an integer sum, exact in law, from the ChaCha20 keystream
under all 256 bits of the stream's key. No float32 is between the records and the released integers
but each record's own gradient; what is accounted is what is added (discreteness.py).
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from rapid_dist.ahead import Ahead
from rapid_dist.errors import ConfigError
from rapid_dist.privacy.discrete import CipherStream, ExactSampler
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import MOST_VALUES, UNITS, NoiseKind, grid_scale

CHUNK = 2**18  # Values in one stream. Part of the mechanism: another size is other noise.


class Noise(Protocol):
    """What makes a sum of clipped vectors public."""

    @property
    def units(self) -> int | None:
        """Whole numbers that the clip bound is cut into; None where sums are float32."""

    def prepare(self, step: int, size: int) -> None:
        """Says that ``release`` will be asked for; the noise may be drawn meanwhile."""

    def release(self, total: torch.Tensor, step: int) -> torch.Tensor:
        """Returns the sum plus noise, float32 [P]; ``total`` may be overwritten."""


class FastNoise:
    """Gaussian noise on a float32 sum; a thread draws it while the sum is computed."""

    units = None

    def __init__(self, stddev: float, key: SecretKey, attempt: int, purpose: str = "noise") -> None:
        self._stddev, self._key, self._attempt, self._purpose = stddev, key, attempt, purpose

        self._ahead = Ahead(self._draw)

    def prepare(self, step: int, size: int) -> None:
        self._ahead.prepare(step, size)

    def release(self, total: torch.Tensor, step: int) -> torch.Tensor:
        _check_noised(total, self._stddev)
        return total.add_(torch.from_numpy(self._ahead.take(step, len(total))).to(total.device))

    def _draw(self, step: int, size: int) -> np.ndarray:
        return _normals(size, self._stddev, self._key, step, self._attempt, self._purpose)


class SecureNoise:
    """Discrete Gaussian noise on an int64 sum; a thread draws it while the sum is computed.

    At most one step's noise exists, in memory alone; it is dropped if its step is not released.
    """

    units = UNITS

    def __init__(
        self,
        sensitivity: float,
        noise_multiplier: float,
        key: SecretKey,
        attempt: int,
        purpose: str = "noise",
    ) -> None:
        """Takes the mechanism; ``sensitivity`` is what ``units`` whole numbers stand for."""
        self._sensitivity = sensitivity
        self._scale = grid_scale(noise_multiplier)
        self._key, self._attempt, self._purpose = key, attempt, purpose
        self._ahead = Ahead(self._draw)

    def prepare(self, step: int, size: int) -> None:
        self._ahead.prepare(step, size)

    def release(self, total: torch.Tensor, step: int) -> torch.Tensor:
        if total.dtype != torch.int64 or total.dim() != 1:
            raise ConfigError(
                f"Secure noise is added to one int64 vector, got {total.dtype} "
                f"{list(total.shape)}. Round each record before the sum."
            )
        noise = self._ahead.take(step, len(total))
        # Past int64 both wrap around, and so would their exact sum: that is post-processing.
        total += torch.from_numpy(noise).to(total.device)
        return (total.double() * (self._sensitivity / UNITS)).float()

    def _draw(self, step: int, size: int) -> np.ndarray:
        if size > MOST_VALUES:
            raise ConfigError(
                f"Secure noise is charged for {MOST_VALUES} values, the vector has {size}. Train "
                "fewer parameters (train.trainable), or take privacy.noise=fast."
            )

        def draw(chunk: int, part: np.ndarray) -> None:
            key = self._key.derive(f"discrete {self._purpose}", step, self._attempt, chunk)
            part[:] = ExactSampler(CipherStream(key)).gaussian(self._scale, len(part))

        return _by_chunk(np.empty(size, np.int64), draw)


def new_noise(
    kind: NoiseKind,
    sensitivity: float,
    noise_multiplier: float,
    key: SecretKey,
    attempt: int,
    purpose: str = "noise",
) -> Noise:
    """Returns the noise of one mechanism in one attempt.

    Args:
      sensitivity: L2 bound on what one record adds to the sum.
      noise_multiplier: stddev of the noise over the sensitivity.
      purpose: "noise" for training steps; every other query names its own stream.
    """
    if kind == "fast":
        return FastNoise(noise_multiplier * sensitivity, key, attempt, purpose)
    return SecureNoise(sensitivity, noise_multiplier, key, attempt, purpose)


def add_noise_(
    flat: torch.Tensor,
    stddev: float,
    key: SecretKey,
    step: int,
    attempt: int,
    purpose: str = "noise",
) -> torch.Tensor:
    """Adds N(0, stddev^2) to every entry, in place, and returns the vector.

    Args:
      flat: float32 [P], on any device; the *sum* of clipped vectors, before the division.
      stddev: noise_multiplier * max_grad_norm.
      step: of the run; a triple (purpose, step, attempt) is used once.
    """
    _check_noised(flat, stddev)
    return flat.add_(
        torch.from_numpy(_normals(len(flat), stddev, key, step, attempt, purpose)).to(flat.device)
    )


def _normals(
    size: int, stddev: float, key: SecretKey, step: int, attempt: int, purpose: str
) -> np.ndarray:
    def draw(chunk: int, part: np.ndarray) -> None:
        key.generator(purpose, step, attempt, chunk).standard_normal(dtype=np.float32, out=part)
        part *= np.float32(stddev)

    return _by_chunk(np.empty(size, np.float32), draw)


def _by_chunk(values: np.ndarray, draw: Callable[[int, np.ndarray], None]) -> np.ndarray:
    """Has every chunk drawn into its place, by as many threads as torch may use."""
    parts = [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]
    if len(parts) == 1:  # A short answer: a thread would cost more than its noise.
        draw(0, parts[0])
        return values
    with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(parts)))) as threads:
        list(threads.map(draw, range(len(parts)), parts))
    return values


def _check_noised(flat: torch.Tensor, stddev: float) -> None:
    if flat.dtype != torch.float32 or flat.dim() != 1:
        raise ConfigError(
            f"Noise is added to one float32 vector, got {flat.dtype} {list(flat.shape)}. "
            "Flatten and convert the sum first."
        )
    if not 0 < stddev < math.inf:
        raise ConfigError(f"The noise's stddev must be positive and finite, got {stddev}.")
