"""Small random affine changes of a reference image, one to a sample.

A prior enters sampling at few references a class. Jitter gives every sample its own variant of the
reference it drew; at the split step's noise it is a different trajectory. A pure function of
(seed, id): post-processing, and independent of batches and workers.

Letters: n images, C channels, S pixels a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from rapid_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """The largest change in either direction; all 0 leaves images as they are."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rotation: float = 0.0  # Radians.
    shear: float = 0.0
    scale: float = 0.0  # Of width and height, each on its own, relative.
    shift: float = 0.0  # Share of half the frame.

    def __post_init__(self) -> None:
        for name in ("rotation", "shear", "scale", "shift"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"prior.jitter.{name} must be in [0, 1), got {getattr(self, name)}. "
                    "0 leaves references as they are."
                )

    @property
    def is_off(self) -> bool:
        return not (self.rotation or self.shear or self.scale or self.shift)


def jittered(
    images: torch.Tensor, streams: Sequence[np.random.Generator], config: JitterConfig
) -> torch.Tensor:
    """float32 [n, C, S, S] -> the same, each image changed by its own stream.

    Pixels that come from outside the frame repeat its border. Row i depends on image i and stream
    i alone.
    """
    if config.is_off or not len(images):
        return images
    draws = np.stack([stream.uniform(-1.0, 1.0, 6) for stream in streams]).astype(np.float32)
    draw = torch.from_numpy(draws)
    angle, shear = config.rotation * draw[:, 0], config.shear * draw[:, 1]
    wide, high = 1 + config.scale * draw[:, 2], 1 + config.scale * draw[:, 3]
    matrix = torch.stack(
        [
            torch.stack([angle.cos() * wide, shear - angle.sin() * wide], dim=1),
            torch.stack([angle.sin() * high, angle.cos() * high], dim=1),
        ],
        dim=1,
    )
    affine = torch.cat([matrix, config.shift * draw[:, 4:, None]], dim=2)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
