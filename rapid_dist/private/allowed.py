"""Which layers a private network may have: an allow-list, and Opacus' list of those that couple."""

from opacus.validators import ModuleValidator
from torch import nn

from rapid_dist.errors import ConfigError
from rapid_dist.private.layer_gradients import KNOWN_LAYERS


def check_layers(network: nn.Module) -> None:
    """Refuses every layer whose per-example gradient is not known to be right (P11).

    Raises:
      ConfigError: a module couples examples, trained or not; or a trainable one is not on the
        allow-list, pads otherwise than with zeros, has grouped channels or shares a parameter.
    """
    seen: dict[int, str] = {}
    for path, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if list(module.buffers(recurse=False)):
            raise ConfigError(
                f"Layer {path} ({type(module).__name__}) keeps buffers, which may carry one "
                "example into another's gradient. Use GroupNorm in place of BatchNorm."
            )
        # Opacus would look at trainable modules only; a frozen BatchNorm couples examples as well.
        refusal = ModuleValidator.VALIDATORS.get(type(module))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (refusal and refusal(module)):
            raise ConfigError(
                f"Layer {path} ({type(module).__name__}) makes an example's gradient depend on the "
                "others of its batch, or has none of its own. Use GroupNorm in place of BatchNorm."
            )
        if own and type(module) not in KNOWN_LAYERS:
            raise ConfigError(
                f"Layer {path} ({type(module).__name__}) has no per-example gradient here. "
                f"Freeze it, or use one of {', '.join(sorted(t.__name__ for t in KNOWN_LAYERS))}."
            )
        if isinstance(module, nn.Conv2d) and own:
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise ConfigError(
                    f"Layer {path} pads by {module.padding_mode!r}/{module.padding!r}; only "
                    "numeric zero padding has a per-example gradient here."
                )
            if module.groups != 1:
                raise ConfigError(
                    f"Layer {path} has {module.groups} channel groups; only 1 is supported."
                )
        if isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq):
            raise ConfigError(
                f"Layer {path} changes its own weights or scales by frequency. Switch "
                "max_norm and scale_grad_by_freq off."
            )
        for parameter in own:
            first = seen.setdefault(id(parameter), path)
            if first != path:
                raise ConfigError(
                    f"Layers {first} and {path} share a parameter, which has two gradients a "
                    "record. Untie it."
                )
