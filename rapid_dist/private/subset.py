"""Which parameters DP-SGD moves: a subset by name, declared in the recipe."""

import re

from torch import nn

from rapid_dist.errors import ConfigError

# Names as in diffusers' UNet2DModel. The class embedding is always in: the classes are private.
_PATTERNS = {
    "all": r"",
    "attention": r"\.attentions\.|class_embedding",
    "norm_bias": r"norm.*\.(weight|bias)$|\.bias$|class_embedding",
    "last_blocks": r"unet\.(up_blocks|conv_norm_out|conv_out|class_embedding)",
}


def restrict_trainable(network: nn.Module, subset: str) -> int:
    """Freezes all parameters outside ``subset`` and returns how many numbers stay trainable.

    Args:
      subset: a name of this module's table, or a regular expression on parameter names.

    Raises:
      ConfigError: the expression is not one, or nothing matches it.
    """
    try:
        pattern = re.compile(_PATTERNS.get(subset, subset))
    except re.error as error:
        raise ConfigError(
            f"train.trainable={subset!r} is neither one of {', '.join(_PATTERNS)} nor a regular "
            f"expression ({error})."
        ) from error
    count = 0
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(bool(pattern.search(name)))
        count += parameter.numel() if parameter.requires_grad else 0
    if count == 0:
        raise ConfigError(
            f"train.trainable={subset!r} matches no parameter. Use one of {', '.join(_PATTERNS)}."
        )
    return count
