"""What a training loop needs from the other workers: a sum, a broadcast, a minimum, a barrier.

Loops take a ``Collective`` as an argument, so the same loop runs in one plain process and
on Ray Train's workers, and neither knows which.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist


class Collective(Protocol):
    """One worker's view of the group of workers that run the same loop."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def sum_(self, flat: torch.Tensor) -> None:
        """Replaces ``flat`` by its sum over all workers, bit-equal on every one of them."""

    def broadcast_bytes(self, payload: bytes) -> bytes:
        """Returns rank 0's payload on every rank; all ranks pass payloads of one length."""

    def least(self, number: int) -> int:
        """Returns the smallest of all workers' numbers, on every one of them."""

    def barrier(self) -> None: ...


class SingleProcess:
    """The group of one."""

    rank = 0
    world_size = 1

    def sum_(self, flat: torch.Tensor) -> None:
        pass

    def broadcast_bytes(self, payload: bytes) -> bytes:
        return payload

    def least(self, number: int) -> int:
        return number

    def barrier(self) -> None:
        pass


class UnansweredError(Exception):
    """Another worker has died, hangs, or cannot be reached: this one waited for it in vain.

    No ``RapidError``, for those are final: a group of workers that fails so is started again.
    """


class TorchCollective:
    """The group of an initialised ``torch.distributed`` process group (Gloo or NCCL).

    Every exchange raises ``UnansweredError`` when another worker's part does not come in the
    group's time.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._device = device or torch.device("cpu")

    def sum_(self, flat: torch.Tensor) -> None:
        with _answered():
            dist.all_reduce(flat, op=dist.ReduceOp.SUM)

    def broadcast_bytes(self, payload: bytes) -> bytes:
        buffer = torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(self._device)
        with _answered():
            dist.broadcast(buffer, src=0)
            return bytes(buffer.cpu().numpy())

    def least(self, number: int) -> int:
        buffer = torch.tensor([number], dtype=torch.int64, device=self._device)
        with _answered():
            dist.all_reduce(buffer, op=dist.ReduceOp.MIN)
            return int(buffer)

    def barrier(self) -> None:
        with _answered():
            dist.barrier()


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # Of Gloo, and of torch's DistBackendError for NCCL.
        raise UnansweredError(
            "Another worker does not answer: it has died, hangs, or has lost its network."
        ) from error
