"""The noised rows of a record: its images, and their steps, noises and augmentations.

Every record of a step has a random stream of its own, keyed by (attempt, step, record) from the
run's secret. So a record's rows depend neither on the other records of the batch, nor on how it is
cut into micro-batches, nor on the number of workers.

A record is the privacy unit. Where the source names groups it is a group (a patient), which takes
part in a step by J of its images, drawn anew every time. Whatever the group holds, it owns J * K
rows, averaged before one clip: one unit, one clipped vector, and no shape tells its size (P2).

Letters: B records, J images a record, K draws an image, k query step, v split step, s_t the noise
level of step t.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from rapid_dist.data.images import PrivateImages, to_unit
from rapid_dist.diffusion.autoencoder import Autoencoder
from rapid_dist.diffusion.loss import Rows
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import ConfigError
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.private.settings import TrainConfig

# (images int64 [B * J], what is denoised of them float32 [B * J, c, h, w], one generator each) ->
# surrogate references, images float32 [B * J, C, H, W]. Row i may depend on image i and its
# generator alone (P14).
FindReferences = Callable[[np.ndarray, torch.Tensor, list[np.random.Generator]], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class DrawMaker:
    """Turns records into rows for the denoiser, in the mode of the recipe."""

    images: PrivateImages
    config: TrainConfig
    schedule: ScheduleConfig
    split_step: int
    no_label: int
    label_drop: float
    find_references: FindReferences | None  # Needed by mode surrogate.
    # Of a denoiser of latents: images are encoded here, once they are augmented, and no further.
    autoencoder: Autoencoder | None = None

    def __post_init__(self) -> None:
        if self.images.groups is None and self.config.images_per_group > 1:
            raise ConfigError(
                f"train.images_per_group is {self.config.images_per_group}, but an image is the "
                "privacy unit here. Set it to 1, or declare data.private.group_column."
            )

    def rows(self, records: np.ndarray, key: SecretKey, step: int, attempt: int) -> Rows:
        """Returns B * J * K rows; record i owns J * K of them, from row i * J * K on, by image.

        ``full`` draws the step from the whole schedule, ``late`` from 1..v, both by
        ``train.level_law``; the K draws of an image take one step from each K-th of the law.
        Both noise the record's own image: x_t = x_0 + s_t n. ``surrogate`` draws as ``late`` does,
        and walks from the record towards the retrieved public state: with x_v = r_0 + s_v n the
        noise that leads from x_0 to x_v is n* = (x_v - x_0) / s_v, and x_t = x_0 + s_t n*; at t = v
        the input is exactly what sampling will feed the network.
        """
        count, draws = self.config.images_per_group, self.config.multiplicity
        own_streams = [
            key.generator("draws", attempt, step, int(record)) for record in records.tolist()
        ]
        chosen = np.array(
            [
                self._images_of(record, count, stream)
                for record, stream in zip(records.tolist(), own_streams, strict=True)
            ],
            np.int64,
        ).ravel()
        streams = [stream for stream in own_streams for _ in range(count)]  # One an image.
        shape = self.images.images.shape[1:]
        states = shape if self.autoencoder is None else self.autoencoder.shape
        top = self.schedule.num_steps if self.config.mode == "full" else self.split_step
        law = self._step_law(top)
        steps = np.empty((len(chosen), draws), np.int64)
        noise = np.empty((len(chosen), draws, *states), np.float32)
        fresh = np.empty((len(chosen), draws, *states) if self._samples else 0, np.float32)
        clean = np.empty((len(chosen), draws, *shape), np.uint8)
        dropped = np.empty((len(chosen), draws), bool)
        for row, (image, stream) in enumerate(zip(chosen.tolist(), streams, strict=True)):
            quantiles = (np.arange(draws) + stream.random()) / draws
            steps[row] = 1 + np.searchsorted(law, quantiles)
            noise[row] = stream.standard_normal((draws, *states), dtype=np.float32)
            dropped[row] = stream.random(draws) < self.label_drop
            for draw in range(draws):
                clean[row, draw] = self._augment(self.images.images[image], stream)
            if self._samples:
                fresh[row] = stream.standard_normal((draws, *states), dtype=np.float32)
        level = torch.from_numpy(self.schedule.levels()[steps.ravel()]).float()
        target = self._encoded(to_unit(clean.reshape(-1, *shape)), fresh)
        path = torch.from_numpy(noise).flatten(0, 1)
        if self.config.mode == "surrogate":
            assert self.find_references is not None
            first_draws = target[::draws]
            references = self.find_references(chosen, first_draws, streams)
            if self.autoencoder is not None:
                references = self.autoencoder.encode(references)
            references = references.repeat_interleave(draws, dim=0)
            split_level = self.schedule.level(self.split_step)
            path = (references + split_level * path - target) / split_level  # n*
        labels = np.where(dropped, self.no_label, self.images.labels[chosen][:, None])
        return Rows(
            noised=target + level.view(-1, 1, 1, 1) * path,
            noise_level=level,
            labels=torch.from_numpy(labels.ravel()),
            clean=target,
        )

    def _step_law(self, top: int) -> np.ndarray:
        config = self.config
        return self.schedule.step_law(
            top, config.log_level_mean, config.log_level_std, config.level_law
        )

    @property
    def _samples(self) -> bool:
        """Whether a row's latents are a draw from the posterior, by the record's own stream."""
        return self.autoencoder is not None and self.autoencoder.posterior == "sample"

    def _encoded(self, images: torch.Tensor, fresh: np.ndarray) -> torch.Tensor:
        """Images float32 [B * J * K, C, H, W] -> what is denoised; row by row (P11)."""
        if self.autoencoder is None:
            return images
        if self._samples:
            return self.autoencoder.encode(images, torch.from_numpy(fresh).flatten(0, 1))
        if self.config.shift or self.config.flip:
            return self.autoencoder.encode(images)
        draws = self.config.multiplicity  # Copies of one image, encoded once.
        return self.autoencoder.encode(images[::draws]).repeat_interleave(draws, dim=0)

    @cached_property
    def _images_of_group(self) -> list[np.ndarray]:
        groups = self.images.groups
        assert groups is not None
        ends = np.cumsum(np.bincount(groups, minlength=self.images.spec.num_units))
        return np.split(np.argsort(groups, kind="stable"), ends[:-1])

    def _images_of(self, record: int, count: int, stream: np.random.Generator) -> np.ndarray:
        """The images int64 [count] by which a record takes part in this step.

        None twice while the group has others left: a group of fewer images gives each of them
        equally often, give or take one. Every image's expected share of the mean is one over the
        size of its group.
        """
        if self.images.groups is None:
            return np.array([record], np.int64)
        return np.resize(stream.permutation(self._images_of_group[record]), count)

    def _augment(self, image: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        if self.config.shift:
            down, right = stream.integers(-self.config.shift, self.config.shift + 1, 2)
            image = _shifted(image, int(down), int(right))
        if self.config.flip and stream.random() < 0.5:
            image = image[..., ::-1]
        return image


def _shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moves the image and repeats its border into the gap."""
    reach = max(abs(down), abs(right))
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    height, width = image.shape[1:]
    top, left = reach - down, reach - right
    return padded[:, top : top + height, left : left + width]
