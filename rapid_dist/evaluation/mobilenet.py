"""ImageNet's MobileNetV2 as a feature extractor, read from one npz file of uint8 arrays.

The file holds a program, a JSON list of layers in order, and for layer n its weights ``wn``
(uint8) with zero point ``wzn`` and scale ``wsn``, and its bias ``bn``. It is opened without
pickle. The 1280 features are those before the classifier.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.fidelity import ModuleExtractor
from rapid_dist.storage import StorageMissing, open_storage, require_reachable

FILE_NAME = "mobilenet_v2/mobilenet_v2_1.0_224_imagenet_uint8.npz"
SIDE = 96  # Pixels the network sees: features of small images, five times cheaper than at 224.


class MobileNetFeatures(nn.Module):
    """float32 [B, C, H, W] in [-1, 1] -> features [B, 1280]; grey is repeated to colour."""

    def __init__(self, source: Path | io.BytesIO, side: int = SIDE) -> None:
        super().__init__()
        with np.load(source, allow_pickle=False) as file:
            self._program: list[dict[str, Any]] = json.loads(str(file["program"]))
            for layer in self._program:
                if layer["op"] in ("CONV", "DW"):
                    self._register(layer, file)
        self._side = side

    def _register(self, layer: dict[str, Any], file: Any) -> None:
        number = layer["out"]
        quantised = file[f"w{number}"].astype(np.float32)
        weight = (quantised - file[f"wz{number}"].astype(np.float32)) * file[f"ws{number}"]
        order = (0, 3, 1, 2) if layer["op"] == "CONV" else (3, 0, 1, 2)  # From TensorFlow's.
        weight = np.ascontiguousarray(weight.transpose(order), dtype=np.float32)
        self.register_buffer(f"w{number}", torch.from_numpy(weight))
        self.register_buffer(f"b{number}", torch.from_numpy(file[f"b{number}"]))

    def forward(self, images: Tensor) -> Tensor:
        """float32 [B, C, H, W] in [-1, 1] -> float32 [B, 1280]."""
        size = (self._side, self._side)
        pixels = F.interpolate(
            images.expand(-1, 3, -1, -1), size=size, mode="bilinear", antialias=True
        )
        states = {0: (pixels + 1) * (127.5 / 128) - 1}  # The range it was quantised for.
        for layer in self._program:
            entering = states[layer["inp"][0]]
            if layer["op"] == "AVGPOOL":
                return entering.mean((2, 3)).clamp(*layer["clamp"])
            if layer["op"] == "ADD":
                leaving = entering + states[layer["inp"][1]]
            else:
                leaving = self._convolve(layer, entering)
            states[layer["out"]] = leaving.clamp(*layer["clamp"])
        raise ConfigError("The MobileNetV2 file has no pooling layer. Fetch the file again.")

    def _convolve(self, layer: dict[str, Any], entering: Tensor) -> Tensor:
        weight = self.get_buffer(f"w{layer['out']}")
        bias = self.get_buffer(f"b{layer['out']}")
        kernel, stride = weight.shape[-1], layer["stride"]
        if layer["same"] and kernel > 1:  # TensorFlow's padding: the odd pixel goes last.
            side = entering.shape[-1]
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            first, last = total // 2, total - total // 2
            entering = F.pad(entering, (first, last, first, last))
        groups = weight.shape[0] if layer["op"] == "DW" else 1
        return F.conv2d(entering, weight, bias, stride=stride, groups=groups)


def open_mobilenet(data_root: str | Path, device: str = "cpu") -> ModuleExtractor:
    """Returns the extractor in the file below ``data_root``, a folder or ``s3://bucket/prefix``."""
    network = MobileNetFeatures(_source(str(data_root).rstrip("/")))
    return ModuleExtractor(network, f"mobilenet_v2@{SIDE}px", device=device)


def _source(root: str) -> Path | io.BytesIO:
    path = Path(root, FILE_NAME).expanduser()
    if root.startswith("s3://"):
        require_reachable(root)
        with contextlib.suppress(StorageMissing):
            return io.BytesIO(open_storage(root).read(FILE_NAME))
    elif path.is_file():
        return path
    raise ConfigError(
        f"The features 'mobilenet' need {root}/{FILE_NAME}, which is missing. Set data.root to the "
        "folder that holds it, or use the features 'pixels'."
    )
