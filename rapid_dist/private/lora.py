"""Low-rank adapters beside frozen layers (Hu et al., 2022): W x + B A x, with A [r, d], B [p, r].

An adapter is two ordinary layers without a bias. So its gradient is made record by record like any
other, with a record's K draws folded together before the one clip: what is repeated K times in a
batch is still one record, and adds at most C. In the end an adapter is merged into its layer, W + B
A, and nothing of it is left in what is stored or released.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

# The projections of diffusers' attention; its query, key, value and output.
ATTENTION = r"\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)$"
EVERYWHERE = r""


class Adapted(nn.Module):
    """A frozen layer with an adapter beside it."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        with torch.device("meta"):  # Nobody's random numbers are used up.
            if isinstance(base, nn.Linear):
                self.down = nn.Linear(base.in_features, rank, bias=False)
                self.up = nn.Linear(rank, base.out_features, bias=False)
            else:
                kernel = (base.kernel_size[0], base.kernel_size[1])
                self.down = nn.Conv2d(base.in_channels, rank, kernel, bias=False)
                self.down.stride, self.down.padding = base.stride, base.padding
                self.down.dilation = base.dilation
                self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        self.down.to_empty(device=base.weight.device)
        self.up.to_empty(device=base.weight.device)
        weight = self.down.weight
        reach = math.sqrt(1 / weight[0].numel())
        drawn = torch.empty(weight.shape).uniform_(-reach, reach, generator=generator)
        with torch.no_grad():
            weight.copy_(drawn)
            self.up.weight.zero_()  # So that nothing is changed before the first step.

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base(inputs) + self.up(self.down(inputs))
        return output

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """Returns the layer that does alone what it did with its adapter."""
        up, down = self.up.weight.flatten(1), self.down.weight.flatten(1)
        self.base.weight += (up @ down).view_as(self.base.weight)
        return self.base


def insert_adapters(network: nn.Module, wanted: Callable[[str], bool], rank: int) -> set[str]:
    """Puts an adapter beside each linear layer and convolution whose path is ``wanted``.

    A layer whose weight is no larger than its adapter would be gets none: it is named among what
    is to be trained instead. What A starts from is a public constant, so all workers start alike.

    Returns:
      the names of the parameters that are to be trained.
    """
    generator = torch.Generator().manual_seed(0)
    names: set[str] = set()
    for path, layer in list(network.named_modules()):
        if type(layer) not in (nn.Linear, nn.Conv2d) or not wanted(path):
            continue
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        weight = layer.weight
        if rank * (weight[0].numel() + len(weight)) >= weight.numel():
            names.add(f"{path}.weight")
            continue
        parent, _, own = path.rpartition(".")
        setattr(network.get_submodule(parent), own, Adapted(layer, rank, generator))
        names |= {f"{path}.down.weight", f"{path}.up.weight"}
    return names


def merge_adapters(network: nn.Module) -> None:
    """Takes out all adapters and leaves the network computing what it did with them."""
    for path, layer in list(network.named_modules()):
        if isinstance(layer, Adapted):
            parent, _, own = path.rpartition(".")
            setattr(network.get_submodule(parent), own, layer.merged())
