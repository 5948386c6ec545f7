"""Where a network computes, and in which precision. Both change rounding, and nothing else.

Draws, keys and noise are made on the CPU wherever that is, so a device changes no random number.
"""

from typing import Literal

import torch
from torch import nn

from rapid_dist.errors import ConfigError

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]


def device_named(name: str) -> torch.device:
    """Returns the device of a setting; ``auto`` is CUDA where there is one.

    Raises:
      ConfigError: ``cuda`` was asked for, and this process sees no such device.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError(
            "runtime.device is 'cuda', but this process sees no CUDA device. Set it to auto or cpu."
        )
    return torch.device("cuda" if name != "cpu" and found else "cpu")


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is worth choosing unasked: in a device's own arithmetic, not emulated."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def precision_on(device: torch.device, precision: Precision) -> Literal["fp32", "bf16"]:
    """Returns what ``auto`` means on a device, or the precision that was asked for.

    Raises:
      ConfigError: bf16 was asked of a CUDA device that would only emulate it.
    """
    if precision == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    if precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise ConfigError(
            f"Precision is 'bf16', which {torch.cuda.get_device_name(device)} only emulates. "
            "Set train.precision and sampling.precision to fp32 or auto."
        )
    return precision
