"""Inception V3 with the weights of the original FID, from a file that the user has.

The network and its resizing are torch-fidelity's, as torchmetrics takes them: without antialiasing,
as in the published figures. Nothing is downloaded, and no pickle of others is opened: the weights
are a safetensors file, and what the library insists on unpickling was written here just before.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchmetrics.image.fid import NoTrainInceptionV3

from rapid_dist.data.images import UInt8Array
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.fidelity import Float32Array

NAME = "inception_v3"
_FEATURES = "2048"  # The pooled features that FID is defined on.


class InceptionExtractor:
    """uint8 [N, C, H, W] -> features float32 [N, 2048]; grey is repeated to colour."""

    name = NAME

    def __init__(self, network: nn.Module, batch_size: int = 64, device: str = "cpu") -> None:
        self._network, self._batch_size = network.to(device), batch_size
        self._device = device

    @torch.no_grad()
    def __call__(self, images: UInt8Array) -> Float32Array:
        """uint8 [N, C, H, W] -> features float32 [N, 2048]."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).expand(-1, 3, -1, -1)
        parts = [
            self._network(part.to(self._device)).cpu()
            for part in torch.split(pixels, self._batch_size)
        ]
        features: Float32Array = torch.cat(parts).float().numpy()
        return features


def open_inception(path: Path, device: str = "cpu") -> InceptionExtractor:
    """Returns the extractor whose weights are in ``path``; there is no other way to FID."""
    if not path.is_file():
        raise ConfigError(
            f"evaluation.inception_weights={path} is missing, and FID is Inception's or none. Give "
            "its weights as a safetensors file (docs/operations.md), or other features."
        )
    try:
        weights = load_file(path)
        with tempfile.TemporaryDirectory(prefix="rapid-") as folder:
            own = Path(folder) / "weights.pth"
            torch.save(weights, own)
            network = NoTrainInceptionV3(NAME, [_FEATURES], str(own), antialias=False)
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(
            f"evaluation.inception_weights={path} does not hold the weights of FID's Inception "
            f"({' '.join(str(error).split())[:120]}). Convert them as docs/operations.md says."
        ) from None
    return InceptionExtractor(network, device=device)
