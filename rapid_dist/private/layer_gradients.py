"""The per-record gradient of one layer, out of its input and the gradient of its output.

A record's K draws are folded into the position axis, so its weight gradient is one matrix product
over K * T positions and its memory does not grow with K. Only what is asked for is computed: where
the bias alone is trained no weight gradient is formed, and ``inputs`` may then be empty.

A convolution has several ways to the same gradient, and which is fastest depends on its shape and
on the device. ``conv_way`` chooses by these alone, so every worker chooses alike;
``benchmarks/layers.py`` measures all of them.

Letters: B records, K draws, T positions, p outputs, d inputs of a layer. Inputs and gradients have
B * K rows; those of one record stand together.
"""

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

Wanted = Collection[str]  # Names of the layer's own parameters.
Found = dict[str, torch.Tensor]  # One [B, *shape] a parameter.
LayerGradient = Callable[[nn.Module, torch.Tensor, torch.Tensor, int, Wanted], Found]
ConvWay = Literal["groups", "records", "patches", "product"]

# From so many multiply-adds, or so many positions, one record's weight gradient is fastest alone.
# A core's were measured; a GPU's are assumed from the cost of starting a kernel.
_ALONE_FROM = {"cpu": (2**26, 2**11), "cuda": (2**31, 2**16)}


def conv_way(layer: nn.Conv2d, draws: int, pixels: int, device: str) -> ConvWay:
    """Returns the way to a convolution's gradient that is fastest at this shape.

    Args:
      draws: K.
      pixels: T, of one output.
    """
    work, long = _ALONE_FROM.get(device, _ALONE_FROM["cuda"])
    positions = draws * pixels
    if positions * layer.weight.numel() >= work or positions >= long:
        return "records"
    # A core would first have to copy several draws, to have a record's positions in one row.
    if _is_product(layer) and (draws == 1 or device != "cpu"):
        return "product"
    # cuDNN has no fast weight gradient of many groups, oneDNN has; a CPU has no bandwidth to spare
    # for patches, which are as many times the input as the kernel has entries.
    return "groups" if device == "cpu" else "patches"


def conv(
    layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor, draws: int, wanted: Wanted
) -> Found:
    assert isinstance(layer, nn.Conv2d)
    records = len(grads) // draws
    if "weight" not in wanted:
        return {"bias": _summed(grads.flatten(2), records, (1, 3))}
    way = conv_way(layer, draws, grads.shape[2:].numel(), grads.device.type)
    return CONV_WAYS[way](layer, inputs, grads, draws, wanted)


def _by_groups(
    layer: nn.Conv2d, inputs: torch.Tensor, grads: torch.Tensor, draws: int, wanted: Wanted
) -> Found:
    """The B records become B groups of one convolution, the K draws its batch.

    One call of the vendor's weight gradient then costs what the plain one does: no im2col, and no
    memory that grows with K.
    """
    records = len(grads) // draws

    def group(rows: torch.Tensor) -> torch.Tensor:  # [B * K, c, H, W] -> [K, B * c, H, W]
        by_draw = rows.reshape(records, draws, *rows.shape[1:]).transpose(0, 1)
        return by_draw.reshape(draws, -1, *rows.shape[2:])

    weight, bias = _vendor(layer, group(inputs), group(grads), records, "bias" in wanted)
    found = {"weight": weight.reshape(records, *layer.weight.shape)}
    if bias is not None:
        found["bias"] = bias.reshape(records, -1)
    return found


def _by_records(
    layer: nn.Conv2d, inputs: torch.Tensor, grads: torch.Tensor, draws: int, wanted: Wanted
) -> Found:
    """One call of the vendor's weight gradient a record: the plain kernels, on K rows each."""
    records = len(grads) // draws
    weight = grads.new_empty(records, *layer.weight.shape)
    bias = grads.new_empty(records, layer.out_channels) if "bias" in wanted else None
    for record in range(records):
        own = slice(record * draws, (record + 1) * draws)
        weight[record], own_bias = _vendor(layer, inputs[own], grads[own], 1, bias is not None)
        if bias is not None and own_bias is not None:
            bias[record] = own_bias
    return {"weight": weight} | ({} if bias is None else {"bias": bias})


def _by_patches(
    layer: nn.Conv2d, inputs: torch.Tensor, grads: torch.Tensor, draws: int, wanted: Wanted
) -> Found:
    """Every position's patch is written out (im2col); the gradient is then one batched product."""
    assert not isinstance(layer.padding, str)  # Refused by check_layers.
    patches = functional.unfold(
        inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )
    found = _of_products(patches.mT, grads.flatten(2).mT, draws, wanted)
    found["weight"] = found["weight"].reshape(-1, *layer.weight.shape)
    return found


def _by_product(
    layer: nn.Conv2d, inputs: torch.Tensor, grads: torch.Tensor, draws: int, wanted: Wanted
) -> Found:
    """A convolution over single pixels is a linear layer at every position."""
    assert _is_product(layer)
    found = _of_products(inputs.flatten(2).mT, grads.flatten(2).mT, draws, wanted)
    found["weight"] = found["weight"][..., None, None]
    return found


CONV_WAYS: dict[ConvWay, Callable[..., Found]] = {
    "groups": _by_groups,
    "records": _by_records,
    "patches": _by_patches,
    "product": _by_product,
}


def linear(
    layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor, draws: int, wanted: Wanted
) -> Found:
    return _of_products(inputs, grads, draws, wanted)


def group_norm_by_row(
    layer: nn.GroupNorm, inputs: torch.Tensor, wanted: Wanted
) -> tuple[torch.Tensor, Found]:
    """The layer's output, with a scale and a shift of its own for every row.

    R rows of C channels are one row of R * C to the vendor's kernel. So the backward pass, which
    has the sums at hand, gives one gradient a row at no cost, in autograd's own arithmetic.

    Returns:
      the output, and one leaf float32 [R * C] for each parameter that is wanted.
    """
    rows, channels = inputs.shape[:2]
    own = {n: p.detach().repeat(rows) for n, p in layer.named_parameters(recurse=False)}
    for name in wanted:
        own[name].requires_grad_()
    one_row = inputs.reshape(1, rows * channels, *inputs.shape[2:])
    output = functional.group_norm(
        one_row, rows * layer.num_groups, own["weight"], own["bias"], layer.eps
    )
    return output.view_as(inputs), {name: own[name] for name in wanted}


def embedding(
    layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor, draws: int, wanted: Wanted
) -> Found:
    assert isinstance(layer, nn.Embedding)
    records = len(inputs) // draws
    tables = grads.new_zeros(records, layer.num_embeddings, layer.embedding_dim)
    record_of = torch.arange(records, device=grads.device)
    places = (record_of.repeat_interleave(inputs.numel() // records), inputs.flatten())
    tables.index_put_(places, grads.reshape(-1, layer.embedding_dim), accumulate=True)
    if layer.padding_idx is not None:
        tables[:, layer.padding_idx] = 0
    return {"weight": tables}


# Out of a layer's inputs and its outputs' gradients. A GroupNorm's are autograd's own.
GRADIENTS: dict[type[nn.Module], LayerGradient] = {
    nn.Conv2d: conv,
    nn.Linear: linear,
    nn.Embedding: embedding,
}

# The layers whose gradients are known; every other one that is trained is refused.
KNOWN_LAYERS = frozenset({*GRADIENTS, nn.GroupNorm})


def _of_products(inputs: torch.Tensor, grads: torch.Tensor, draws: int, wanted: Wanted) -> Found:
    """Gradients of y = W x + b at every position: inputs [B * K, ..., d], grads [B * K, ..., p]."""
    records = len(grads) // draws
    found = {}
    left = grads.reshape(records, -1, grads.shape[-1])  # [B, K * T, p]
    if "weight" in wanted:
        right = inputs.reshape(records, -1, inputs.shape[-1])  # [B, K * T, d]
        found["weight"] = torch.bmm(left.mT, right)
    if "bias" in wanted:
        found["bias"] = left.sum(dim=1)
    return found


def _summed(rows: torch.Tensor, records: int, axes: tuple[int, ...]) -> torch.Tensor:
    return rows.reshape(records, -1, *rows.shape[1:]).sum(dim=axes)


def _is_product(layer: nn.Conv2d) -> bool:
    single = layer.kernel_size == (1, 1) and layer.stride == (1, 1)
    return single and layer.padding == (0, 0)


def _vendor(
    layer: nn.Conv2d, inputs: torch.Tensor, grads: torch.Tensor, groups: int, with_bias: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The library's weight gradient of a convolution with this layer's shape, ``groups`` times."""
    outputs = groups * layer.out_channels
    _, weight, bias = torch.ops.aten.convolution_backward(
        grads,
        inputs,
        inputs.new_empty(outputs, *layer.weight.shape[1:]),  # Only its shape is read.
        [outputs],
        list(layer.stride),
        list(layer.padding),
        list(layer.dilation),
        False,
        [0, 0],
        groups,
        [False, True, with_bias],
    )
    return weight, bias
