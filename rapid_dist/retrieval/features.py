"""What two images are compared by: a small contrastive extractor, or pooled pixels.

Shapes: B or N images, C channels (1 or 3), S x S pixels (8..64), D features.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rapid_dist.errors import CheckpointError, ConfigError
from rapid_dist.retrieval.trajectory import unit_images

_POOLED_SIZE = 16  # Pixels are pooled until a side is at most this.
_LAST_SIZE = 4  # Side of the extractor's last feature map: keeps where things are.
_GROUPS = 8
_WEIGHTS, _SETTINGS = "extractor.safetensors", "extractor.json"


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """Shape of the contrastive extractor."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    dim: int = 128
    width: int = 32  # Channels of the first block; doubled at every halving, at most 4 times it.
    projection_dim: int = 64  # Used by the training loss only.

    def __post_init__(self) -> None:
        if self.dim < 2 or self.projection_dim < 2:
            raise ConfigError(
                f"extractor.dim and projection_dim must be at least 2, got {self.dim} "
                f"and {self.projection_dim}."
            )
        if self.width < _GROUPS or self.width % _GROUPS:
            raise ConfigError(
                f"extractor.width must be a multiple of {_GROUPS}, got {self.width}. Try 32."
            )


class ContrastExtractor(nn.Module):
    """Clean estimates [B, C, S, S] float32 -> unit vectors [B, dim].

    Group normalisation only: an image's features never depend on the rest of its batch.
    """

    def __init__(self, config: ExtractorConfig, channels: int, size: int) -> None:
        super().__init__()
        if channels not in (1, 3) or not 8 <= size <= 64:
            raise ConfigError(
                f"The extractor takes 1 or 3 channels and 8..64 pixels, got {channels} and {size}."
            )
        self.config, self.channels, self.size = config, channels, size
        width = config.width
        blocks = [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(_GROUPS, width), nn.SiLU()]
        while size > _LAST_SIZE:
            wider = min(2 * width, 4 * config.width)
            blocks += [
                nn.Conv2d(width, wider, 3, stride=2, padding=1),
                nn.GroupNorm(_GROUPS, wider),
                nn.SiLU(),
            ]
            width, size = wider, (size + 1) // 2
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width * size * size, config.dim)
        self.projection = nn.Sequential(
            nn.SiLU(), nn.Linear(config.dim, config.dim), nn.SiLU(),
            nn.Linear(config.dim, config.projection_dim),
        )  # fmt: skip

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.head(self.blocks(x).flatten(1))
        return features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B, C, S, S] -> float32 [B, dim], every row of length 1."""
        return nn.functional.normalize(self._features(x), dim=1)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B, C, S, S] -> float32 [B, projection_dim] of length 1, for NT-Xent alone."""
        return nn.functional.normalize(self.projection(self._features(x)), dim=1)

    def freeze(self) -> "ContrastExtractor":
        """Puts the extractor in eval mode for good and returns it."""
        return self.eval().requires_grad_(False)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the settings and of every weight."""
        digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _settings(self) -> dict[str, object]:
        return {"config": asdict(self.config), "channels": self.channels, "size": self.size}


def save_extractor(extractor: ContrastExtractor, directory: Path) -> None:
    """Writes weights as safetensors and settings as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.contiguous() for name, weight in extractor.state_dict().items()}
    save_file(weights, directory / _WEIGHTS)
    settings = extractor._settings() | {"fingerprint": extractor.fingerprint()}
    (directory / _SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def load_extractor(directory: Path) -> ContrastExtractor:
    """Reads what ``save_extractor`` wrote, frozen.

    Raises:
      CheckpointError: the folder holds no whole extractor, or weights of other settings or runs.
    """
    try:
        settings = json.loads((directory / _SETTINGS).read_text())
        extractor = ContrastExtractor(
            ExtractorConfig(**settings["config"]), settings["channels"], settings["size"]
        )
        extractor.load_state_dict(load_file(directory / _WEIGHTS))
        named = settings["fingerprint"]
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory} does not hold a whole extractor ({' '.join(str(error).split())[:160]}). "
            "Train again, or restore it."
        ) from error
    if extractor.fingerprint() != named:
        raise CheckpointError(
            f"{directory / _WEIGHTS} does not hold the weights that {_SETTINGS} names. "
            "Delete both and train the extractor again."
        )
    return extractor.freeze()


def pixel_features(images: np.ndarray) -> np.ndarray:
    """uint8 [N, C, S, S] -> float32 [N, D]: pixels in [-1, 1], averaged 2 x 2 until S <= 16.

    Per image and by declared constants alone; an odd last row or column is repeated.
    """
    pooled = unit_images(images)
    while max(pooled.shape[2:]) > _POOLED_SIZE:
        odd_rows, odd_columns = pooled.shape[2] % 2, pooled.shape[3] % 2
        pooled = np.pad(pooled, ((0, 0), (0, 0), (0, odd_rows), (0, odd_columns)), "edge")
        pooled = (pooled[:, :, ::2] + pooled[:, :, 1::2]) * np.float32(0.5)
        pooled = (pooled[:, :, :, ::2] + pooled[:, :, :, 1::2]) * np.float32(0.5)
    return np.ascontiguousarray(pooled.reshape(len(images), int(np.prod(pooled.shape[1:]))))
