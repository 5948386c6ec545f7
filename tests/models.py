"""Networks, private images and steps small enough for hundreds of gradients a second."""

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rapid_dist.collective import Collective, SingleProcess
from rapid_dist.data.images import ImageSpec, PrivateImages, PublicImages, to_unit
from rapid_dist.diffusion.autoencoder import Autoencoder, Posterior, VaeConfig, new_vae
from rapid_dist.diffusion.denoiser import Denoiser, NetworkConfig
from rapid_dist.diffusion.loss import Rows
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import BudgetError
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.mechanism import DpSgdConfig
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.settings import TrainConfig
from rapid_dist.private.step import PrivateStep
from rapid_dist.public.autoencode import measure_latents

SIZE, CLASSES = 8, 3
KEY = SecretKey(bytes(range(KEY_BYTES)))  # Fixed, so that a test gives the same result every time.
SCHEDULE = ScheduleConfig()
_ONE_AT_A_TIME = threading.Lock()  # Torch's own generator is one for all threads.


def tiny_network(**changes: Any) -> NetworkConfig:
    settings = {"widths": (16,), "attention": (False,), "norm_groups": 4, "head_width": 8}
    return NetworkConfig(**{**settings, **changes})


def tiny_denoiser(channels: int = 1, seed: int = 0, **network: Any) -> Denoiser:
    """Returns a network whose every parameter matters to its output."""
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Denoiser(
            tiny_network(**network), channels=channels, size=SIZE, num_classes=CLASSES
        )
        # Untrained, the output layer is nearly zero, and so would all other gradients be.
        torch.nn.init.normal_(denoiser.unet.conv_out.weight, std=0.2)
    return denoiser


def tiny_autoencoder(seed: int = 0, measured: bool = True, **facts: Any) -> Autoencoder:
    """Returns an untrained autoencoder of 8x8 grey images, latents [2, 4, 4], scaled."""
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VaeConfig(widths=(8, 8), latent_channels=2, norm_groups=4)
        vae = new_vae(config, channels=1, size=SIZE)
    autoencoder = Autoencoder(vae, channels=1, size=SIZE, **facts)
    if measured:
        measure_latents(autoencoder, public_images(), 40, seed=0, data_std=0.5)
    return autoencoder


def latent_denoiser(seed: int = 0, posterior: Posterior = "mean", **network: Any) -> Denoiser:
    """Returns a network of such latents, every parameter of which matters."""
    autoencoder = tiny_autoencoder(posterior=posterior)
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Denoiser(
            tiny_network(**network), channels=1, size=SIZE, num_classes=CLASSES,
            autoencoder=autoencoder,
        )  # fmt: skip
        torch.nn.init.normal_(denoiser.unet.conv_out.weight, std=0.2)
    return denoiser


def random_rows(count: int, seed: int = 0, channels: int = 1) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, SIZE, SIZE)
    return Rows(
        noised=torch.randn(shape, generator=generator),
        noise_level=0.1 + 2 * torch.rand(count, generator=generator),
        labels=torch.randint(CLASSES + 1, (count,), generator=generator),
        clean=torch.rand(shape, generator=generator) * 2 - 1,
    )


def _pixels(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 1, 8, 8]; the first three are black, white and a chessboard."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 1, SIZE, SIZE), dtype=np.uint8)
    images[0], images[1] = 0, 255
    images[2, 0] = 255 * (np.indices((SIZE, SIZE)).sum(0) % 2)
    return images


def private_images(count: int = 12, groups: np.ndarray | None = None) -> PrivateImages:
    spec = ImageSpec(
        name="secret", num_records=count, channels=1, size=SIZE, num_classes=CLASSES,
        licence="none", num_groups=None if groups is None else len(np.unique(groups)),
    )  # fmt: skip
    labels = np.arange(count, dtype=np.int64) % CLASSES
    return PrivateImages(images=_pixels(count, 5), labels=labels, groups=groups, spec=spec)


def public_images(count: int = 40, num_classes: int = 4) -> PublicImages:
    spec = ImageSpec(
        name="open", num_records=count, channels=1, size=SIZE, num_classes=num_classes,
        licence="none",
    )  # fmt: skip
    labels = np.arange(count, dtype=np.int64) % num_classes
    return PublicImages(images=_pixels(count, 6), labels=labels, spec=spec)


def fixed_keys() -> Callable[[], SecretKey]:
    """Returns what gives another key at every call, and in every run of the tests the same ones."""
    numbers = itertools.count(1)
    return lambda: SecretKey(next(numbers).to_bytes(KEY_BYTES, "big"))


def references_of(
    records: np.ndarray, clean: torch.Tensor, streams: list[np.random.Generator]
) -> torch.Tensor:
    """A retrieval for tests: of each record alone, one of the public images."""
    base = to_unit(public_images().images)
    return base[[int(stream.integers(len(base))) for stream in streams]]


def draw_maker(**changes: Any) -> DrawMaker:
    """Returns a maker; ``changes`` are of its fields, or of its TrainConfig."""
    fields: dict[str, Any] = {
        "images": private_images(), "schedule": SCHEDULE, "split_step": 450, "no_label": CLASSES,
        "label_drop": 0.1, "find_references": references_of, "autoencoder": None,
    }  # fmt: skip
    config = {"micro_batch": 4, **{k: changes[k] for k in changes.keys() - fields}}
    fields |= {k: changes[k] for k in changes.keys() & fields}
    return DrawMaker(config=TrainConfig(**config), **fields)


def mechanism(**changes: Any) -> DpSgdConfig:
    settings = {
        "num_records": 12, "expected_batch": 6.0, "steps": 4, "max_grad_norm": 1.0,
        "noise_multiplier": 0.7,
    }  # fmt: skip
    return DpSgdConfig(**{**settings, **changes})


class FixedBatch(PoissonSampler):
    """Draws the same records in every step."""

    def __init__(self, *records: int) -> None:
        self._records = np.array(sorted(records), np.int64)

    def batch(self, step: int) -> np.ndarray:
        return self._records


@dataclass(frozen=True)
class Attempt:
    number: int
    affordable_steps: int


@dataclass
class CountingKeeper:
    """Pays for ``affordable`` steps and remembers what it charged: (attempt, step)."""

    affordable: int = 1_000
    attempt: int = 0
    charged: list[tuple[int, int]] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)  # Steps before which it was ended.

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Attempt:
        self.attempt += 1
        return Attempt(self.attempt, self.affordable - len(self.charged))

    def charge(self, step: int, attempt: int | None = None) -> None:
        if len(self.charged) >= self.affordable:
            raise BudgetError(f"Step {step} is not paid for.")
        self.charged.append((self.attempt, step))

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        self.stopped.append(step)


def private_step(collective: Collective | None = None, **changes: Any) -> PrivateStep:
    """Returns a step on all of ``private_images``; ``changes`` are of its fields."""
    settings = {
        "mechanism": mechanism(), "draws": draw_maker(), "sampler": FixedBatch(*range(6)),
        "key": KEY, "attempt": 1, "collective": collective or SingleProcess(),
        "charge": CountingKeeper().charge,
    }  # fmt: skip
    return PrivateStep(**{**settings, **changes})


def each_left_out(count: int) -> Iterator[tuple[int, list[int]]]:
    """Yields every record with the batch that is left without it."""
    for record in range(count):
        yield record, [other for other in range(count) if other != record]
