"""Exponential moving average of parameters."""

from collections.abc import Iterable

import torch
from torch import nn


class Ema:
    """Averages the trainable parameters of a network.

    The decay is ``min(decay, (1 + t) / (10 + t))`` at update t, so that a short run does not
    remember its start. Averages of released parameters are post-processing: they cost no privacy.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._live = [parameter for parameter in parameters if parameter.requires_grad]
        self.average = [parameter.detach().clone() for parameter in self._live]
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self._live], 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Writes the averages into another network's trainable parameters, in the same order."""
        targets = [parameter for parameter in parameters if parameter.requires_grad]
        for target, value in zip(targets, self.average, strict=True):
            target.copy_(value)
