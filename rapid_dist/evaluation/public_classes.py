"""A feature extractor from public images alone: a small classifier of their own classes.

It depends on the recipe's public data and on no method, so every method of a comparison is measured
by the same one, and it needs no file from elsewhere. Its features are those before the last layer.
"""

import numpy as np
import torch
from torch import nn

from rapid_dist.data.images import PublicImages
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.classifiers import SmallConvNet, fit_network
from rapid_dist.evaluation.fidelity import ModuleExtractor
from rapid_dist.evaluation.settings import ClassifierConfig
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays

_NOT_FEATURES = 2  # The last layers: dropout, and the one of classes.
_SHAPE = "shape"  # Channels, side and number of classes, int64 [3].


def train_public_classifier(images: PublicImages, config: ClassifierConfig, seed: int) -> bytes:
    """Trains on uint8 [N, C, S, S] and its classes, and returns the network as an npz of arrays."""
    spec = images.spec
    if spec.num_classes < 2:
        raise ConfigError(
            "evaluation.features='public_classes' tells public classes apart, but data.public has "
            f"{spec.num_classes}. Use features pixels, or a public source with labels."
        )
    network = fit_network(images.images, images.labels, spec.num_classes, seed, config)
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    shape = np.array([spec.channels, spec.size, spec.num_classes], np.int64)
    return pack_arrays({_SHAPE: shape, **arrays})


def open_public_classifier(content: bytes, name: str, device: str = "cpu") -> ModuleExtractor:
    """Returns the extractor that ``train_public_classifier`` packed.

    Args:
      name: what tells this one from others of its kind; results carry it.
    """
    arrays = unpack_arrays(content, name)
    network = SmallConvNet(*(int(value) for value in arrays.pop(_SHAPE)))
    network.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    features = nn.Sequential(*list(network)[:-_NOT_FEATURES])
    return ModuleExtractor(features, name, device=device)
