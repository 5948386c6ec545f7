"""Which parameters DP-SGD moves: a subset by name, declared in the recipe.

The private step's noise has the same length whatever is trained, so fewer numbers have more signal
each: Liu et al. (2024, DP-LDM) train attention and the condition's embedder, in the last blocks
alone; adapters of low rank (``lora.py``) train fewer still.
"""

import re
from typing import Protocol

from torch import nn

from rapid_dist.errors import ConfigError
from rapid_dist.private import lora

# Names as in diffusers' UNet2DModel. The class embedding is always in: the classes are private.
_PATTERNS = {
    "all": r"",
    "attention": r"\.attentions\.|class_embedding",
    "norm_bias": r"norm.*\.(weight|bias)$|\.bias$|class_embedding",
    "last_blocks": r"unet\.(up_blocks|conv_norm_out|conv_out|class_embedding)",
}
_ADAPTERS = {"lora": lora.ATTENTION, "lora_all": lora.EVERYWHERE}
NAMES = (*_PATTERNS, *_ADAPTERS)
RANK = 4
_BLOCK = re.compile(r"unet\.(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.")
_CLASSES = "class_embedding"
_FROZEN = "autoencoder."  # Public, and in eval mode for good.


class Subset(Protocol):
    """What a recipe says of the subset; ``TrainConfig`` does."""

    @property
    def trainable(self) -> str: ...
    @property
    def blocks(self) -> int | None: ...
    @property
    def lora_rank(self) -> int: ...


def apply_subset(network: nn.Module, config: Subset) -> int:
    """Makes the recipe's subset trainable and returns how many numbers that are."""
    return restrict_trainable(network, config.trainable, config.blocks, config.lora_rank)


def restrict_trainable(
    network: nn.Module, subset: str, blocks: int | None = None, rank: int = RANK
) -> int:
    """Freezes all parameters outside ``subset`` and returns how many numbers stay trainable.

    Adapters are put in where the subset is one of them, and those of before are merged; given
    twice, it leaves what it left once. ``merge_adapters`` takes them out.

    Args:
      subset: a name of this module's tables, or a regular expression on parameter names.
      blocks: so many of the U-Net's blocks, counted from the end (down, middle, up); what comes
        behind them and the class embedding stay in. None = wherever the subset has parameters.
      rank: of adapters.

    Raises:
      ConfigError: the expression is not one, or nothing matches it, or not in these blocks.
    """
    try:
        pattern = re.compile(_PATTERNS.get(subset, subset))
    except re.error as error:
        raise ConfigError(
            f"train.trainable={subset!r} is neither one of {', '.join(NAMES)} nor a regular "
            f"expression ({error})."
        ) from error
    lora.merge_adapters(network)
    if subset == "last_blocks" and blocks is not None:
        pattern = re.compile(_PATTERNS["all"])  # The number says where they begin.
    inside = _range(network, blocks)
    adapted: set[str] | None = None
    if subset in _ADAPTERS:
        layers = re.compile(_ADAPTERS[subset])
        adapted = lora.insert_adapters(
            network,
            lambda path: (
                not path.startswith(_FROZEN)
                and bool(inside.match(f"{path}.") and layers.search(path))
            ),
            rank,
        )
    count = classes = 0
    for name, parameter in network.named_parameters():
        is_class = _CLASSES in name
        if name.startswith(_FROZEN):
            chosen = False
        elif adapted is not None:
            chosen = is_class or name in adapted
        else:
            chosen = bool(pattern.search(name)) and (is_class or bool(inside.match(name)))
        parameter.requires_grad_(chosen)
        count += parameter.numel() if chosen else 0
        classes += parameter.numel() if chosen and is_class else 0
    if count == 0:
        raise ConfigError(
            f"train.trainable={subset!r} matches no parameter. Use one of {', '.join(NAMES)}."
        )
    if count == classes and (blocks is not None or subset in NAMES):
        where = "the network" if blocks is None else f"its last {blocks} blocks"
        raise ConfigError(
            f"train.trainable={subset!r} finds nothing in {where} but the class embedding. "
            "Raise train.blocks, or say in network.attention where attention is."
        )
    return count


def _range(network: nn.Module, blocks: int | None) -> re.Pattern[str]:
    """An expression that matches the names of what lies in the last blocks, or behind them."""
    if blocks is None:
        return re.compile("")
    found = (_BLOCK.match(name) for name, _ in network.named_parameters())
    order = ("down_blocks", "mid_block", "up_blocks")
    path = sorted(
        {match[1] for match in found if match},
        key=lambda block: (order.index(block.split(".")[0]), int(f"0{block.partition('.')[2]}")),
    )
    if not 1 <= blocks <= len(path):
        raise ConfigError(
            f"train.blocks is {blocks}, but the network has {len(path)} blocks: "
            f"{', '.join(path)}. Give 1 to {len(path)}, or null for all of it."
        )
    last = "|".join(re.escape(name) for name in path[-blocks:])
    return re.compile(rf"unet\.(?:{last}|conv_norm_out|conv_out)\.")


def told(count: int, network: nn.Module) -> str:
    """Says how many numbers are trained, of all that the network itself has."""
    own = [
        parameter.numel()
        for name, parameter in network.named_parameters()
        if not name.startswith(_FROZEN) and not re.search(r"\.(down|up)\.weight$", name)
    ]
    total = sum(own)
    fewer = 100 * (1 - count / total)
    return f"trainable parameters: {count:,} of {total:,} ({fewer:.0f}% fewer)"
