"""The networks that the private step is measured on, and rows of chance for them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rapid_dist.diffusion.denoiser import Denoiser, NetworkConfig
from rapid_dist.private.subset import restrict_trainable
from rapid_dist.recipe_files import read_tree


@dataclass(frozen=True, kw_only=True)
class Network:
    """A denoiser's shape, and which of its parameters are trained."""

    config: NetworkConfig
    channels: int
    size: int
    num_classes: int = 10
    trainable: str = "all"
    records: int = 64  # In one pass at K = 1; fewer with more draws.

    def small(self) -> "Network":
        """The same shape with narrow layers and few pixels, for a rehearsal."""
        config = replace(
            self.config,
            widths=tuple(16 * (1 + level % 2) for level in range(len(self.config.widths))),
            norm_groups=8,
            head_width=8,
        )
        return replace(self, config=config, size=16, records=4)

    def open(self, device: str = "cpu") -> Denoiser:
        torch.manual_seed(0)
        denoiser = Denoiser(
            self.config, channels=self.channels, size=self.size, num_classes=self.num_classes
        )
        # Untrained, the last layer is nearly zero, and so would all other gradients be.
        torch.nn.init.normal_(denoiser.unet.conv_out.weight, std=0.02)
        restrict_trainable(denoiser, self.trainable)
        return denoiser.to(device)


def _of_recipe(name: str) -> Network:
    tree = read_tree(Path(name))
    network: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in tree["network"].items()
    }
    private = tree["data"]["private"]
    return Network(
        config=NetworkConfig(**network),
        channels=private.get("channels", 1),
        size=private["size"],
        num_classes=private["num_classes"],
    )


def networks() -> dict[str, Network]:
    """Returns them by name; the CIFAR network is that of Ho et al. (2020), with 36M parameters."""
    cifar = NetworkConfig(
        widths=(128, 256, 256, 256),
        attention=(False, True, False, False),
        layers_per_block=2,
        head_width=64,
        norm_groups=32,
    )
    latents = replace(cifar, widths=(128, 256, 256), attention=(False, True, True))
    return {
        "digits": _of_recipe("digits"),
        "mnist": _of_recipe("mnist"),
        "cifar-36m": Network(config=cifar, channels=3, size=32, records=16),
        # As DP-LDM trains: the attention layers and the classes, on latents of 4 channels.
        "latents-attention": Network(
            config=latents, channels=4, size=32, trainable="attention", records=16
        ),
        # The same without the classes, so that nothing is trained below the first attention layer.
        "latents-attention-only": Network(
            config=latents, channels=4, size=32, trainable=r"\.attentions\.", records=16
        ),
    }


def open_denoiser(name: str) -> Denoiser:
    return networks()[name].open()
