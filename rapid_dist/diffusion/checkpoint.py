"""Checkpoints of a training loop: tensors in safetensors, facts in JSON, two kept.

A checkpoint is one file, named by its step and by the hash of its bytes, written atomically. A
torn or altered file is therefore noticed by its name, and the one before it is used. It also says
whose it is: another run's, or another data set's, is refused and not passed over, for somebody has
put it there.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from rapid_dist.errors import CheckpointError
from rapid_dist.storage import Storage, sha256_hex

_KEPT = 2
_HASH_DIGITS = 16
_NAME = re.compile(r"step-\d+-[0-9a-f]+\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a loop needs to go on: the number of finished steps, tensors and public facts."""

    step: int
    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one loop, in one folder."""

    def __init__(self, storage: Storage, *, of: str = "") -> None:
        """``of`` says whose they are: a run's, or a public folder's, named by its settings."""
        self._storage = storage
        self._of = of

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Writes a checkpoint and removes all others but the last one.

        That is this one and the one before it, or a later one that was passed over as torn.
        """
        held = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        told = {"facts": json.dumps(facts), "step": str(step), "of": self._of}
        data = save(held, metadata=told)
        name = f"step-{step:09d}-{sha256_hex(data)[:_HASH_DIGITS]}.safetensors"
        self._storage.write(name, data)
        for old in [other for other in self._names() if other != name][: 1 - _KEPT]:
            self._storage.delete(old)

    def latest(self) -> Checkpoint | None:
        """Returns the newest whole checkpoint, or None if there never was one.

        Raises:
          CheckpointError: there are checkpoints, and not one of them is whole; or the newest whole
            one is another's.
        """
        names = self._names()
        for name in reversed(names):
            data = self._storage.read(name)
            _, step, digest = name.removesuffix(".safetensors").split("-")
            if sha256_hex(data)[:_HASH_DIGITS] != digest:
                continue
            metadata, tensors, facts = self._opened(name, data)
            if int(metadata["step"]) != int(step):
                continue  # An older one by a newer one's name.
            if metadata.get("of", "") != self._of:
                raise CheckpointError(
                    f"Checkpoint {self._storage.uri}/{name} is of {metadata.get('of', '')!r}, this "
                    f"is {self._of!r}. Remove it to go on from the run's own, or use another --out."
                )
            return Checkpoint(step=int(step), tensors=tensors, facts=facts)
        if names:
            raise CheckpointError(
                f"No checkpoint in {self._storage.uri} is whole: {', '.join(names)}. Restore one, "
                "or remove them to start this stage again; private steps are then charged again."
            )
        return None

    def _opened(
        self, name: str, data: bytes
    ) -> tuple[dict[str, str], dict[str, torch.Tensor], dict[str, Any]]:
        """Returns metadata, tensors and facts; nothing of what is there is run (P16)."""
        try:
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length])["__metadata__"]
            int(metadata["step"])
            return metadata, load(data), json.loads(metadata["facts"])
        except (KeyError, TypeError, ValueError, OverflowError, SafetensorError) as error:
            raise CheckpointError(
                f"{self._storage.uri}/{name} is no checkpoint ({type(error).__name__}), though its "
                "name has its hash: somebody has put it there. Remove it to go on from another."
            ) from error

    def _names(self) -> list[str]:
        return [name for name in self._storage.list("step-") if _NAME.fullmatch(name)]


def training_state(
    parameters: list[nn.Parameter], average: list[torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Returns parameters, their EMA and the optimizer's state under flat names."""
    tensors: dict[str, torch.Tensor] = {}
    for index, (parameter, mean) in enumerate(zip(parameters, average, strict=True)):
        tensors[f"parameter.{index}"] = parameter
        tensors[f"average.{index}"] = mean
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return tensors


@torch.no_grad()
def restore_training_state(
    tensors: Mapping[str, torch.Tensor],
    parameters: list[nn.Parameter],
    average: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Puts back what ``training_state`` returned."""
    for index, (parameter, mean) in enumerate(zip(parameters, average, strict=True)):
        stored = tensors.get(f"parameter.{index}")
        if stored is None or stored.shape != parameter.shape:
            raise CheckpointError(
                f"The checkpoint's parameter {index} does not fit this network. It is another "
                "recipe's: use another --out, or remove the checkpoints."
            )
        parameter.copy_(stored)
        mean.copy_(tensors[f"average.{index}"])
        prefix = f"optimizer.{index}."
        optimizer.state[parameter] = {
            # Adam keeps its count of steps on the CPU, whatever the device of the parameter.
            name.removeprefix(prefix): value.to(parameter.device) if value.dim() else value.clone()
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
