"""The micro-batch that a memory bound allows, measured on rows of chance.

No private row is looked at: the peak of the clipped sum is taken on two batches of random rows and
drawn out in a line. What a library keeps inside one call cannot be seen and is left room for.
"""

import ctypes
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rapid_dist.diffusion.compute import device_of
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.errors import ConfigError
from rapid_dist.private.per_example import clipped_sum, flat_size, per_record_gradients

_GB = 2**30
_PROCESS = 3 * _GB // 4  # Python with torch and diffusers, before any image: 0.6 GB were seen.
_VECTORS = 8  # Of the trained values, beside the sum: weights, average, Adam's two, a checkpoint.
_ROOM = 1.25  # For scratch memory inside calls and for what the allocator cannot join.
_GPU_SHARE = 0.8  # Of the memory that is free on a CUDA device.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # As in malloc.h.
_ROWS = 4  # On which the peak is measured at least; and on twice as many.


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that were made inside it and are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, freed)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Returns how much more memory than before tensors take at the peak of a call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peak: int = torch.cuda.max_memory_allocated(device)
        return peak - before
    tensors = LiveBytes()
    with tensors:
        call()
    return tensors.peak


def keep_freed_memory() -> None:
    """Has the C library keep what is freed, up to 1 GB, for the next pass of the same size.

    Otherwise every pass gives its gradients' pages back and faults them in again, which took a
    tenth of a step of one draw a record. Does nothing where the library is another one.
    """
    try:
        tune = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        tune(option, _GB)


def random_rows(denoiser: Denoiser, count: int) -> Rows:
    """Returns rows of chance in the denoiser's shape, on its device."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, denoiser.channels, denoiser.size, denoiser.size)
    level = torch.rand(count, generator=generator) + 0.05
    clean = torch.rand(shape, generator=generator) * 2 - 1
    noise = torch.randn(shape, generator=generator)
    return Rows(
        noised=clean + level.view(-1, 1, 1, 1) * noise,
        noise_level=level,
        labels=torch.randint(denoiser.num_classes + 1, (count,), generator=generator),
        clean=clean,
    ).to(device_of(denoiser))


def memory_of(denoiser: Denoiser, draws: int) -> tuple[float, float]:
    """Returns the bytes that a clipped sum takes at its peak: fixed, and more with every record."""
    device, evaluations = device_of(denoiser), denoiser.evaluations
    count = math.ceil(_ROWS / draws)

    def peaks(records: int) -> tuple[int, int]:
        rows = random_rows(denoiser, records * draws)
        mask = torch.ones(records, dtype=torch.bool, device=device)
        return (
            peak_bytes(lambda: per_record_gradients(denoiser, rows, draws), device),
            peak_bytes(lambda: clipped_sum(denoiser, rows, draws, 1.0, mask), device),
        )

    if device.type == "cuda":
        peaks(count)  # The first call takes workspaces that stay.
    few, more = peaks(count), peaks(2 * count)
    denoiser.evaluations = evaluations
    # With few records the peak is in the clip, with many in the backward pass: a line for each.
    slopes = [(two - one) / count for one, two in zip(few, more, strict=True)]
    starts = [one - count * slope for one, slope in zip(few, slopes, strict=True)]
    return max(0.0, *starts), max(slopes)


def solve_micro_batch(
    denoiser: Denoiser, draws: int, *, memory_gb: float, held_bytes: int, share: float
) -> int:
    """Returns the number of records in a forward pass that fits the memory of one worker.

    The result of a step does not depend on it but by the rounding of sums. It is the same on every
    worker of one device and one version of torch.

    Args:
      draws: rows of a record, J * K.
      memory_gb: what the worker may take of the host's memory; on CUDA, what is free there counts.
      held_bytes: what the worker holds besides, the declared images above all.
      share: records that a worker has to expect in a step; the last part is filled up, so parts
        are made alike.

    Raises:
      ConfigError: not even one record fits.
    """
    device = device_of(denoiser)
    fixed, per_record = memory_of(denoiser, draws)
    fixed += 4 * _VECTORS * flat_size(denoiser)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] * _GPU_SHARE
        where = "the free memory of the CUDA device"
    else:
        free = memory_gb * _GB
        fixed += _PROCESS + held_bytes
        where = "runtime.memory_gb"
    most = int((free - fixed) / (_ROOM * per_record))
    if most < 1:
        needed = (fixed + _ROOM * per_record) / _GB
        raise ConfigError(
            f"One record of {draws} rows needs {needed:.2f} GB, {where} is {free / _GB:.2f}. Raise "
            "runtime.memory_gb, or lower train.multiplicity, train.images_per_group or the network."
        )
    largest = max(1.0, share + 3 * math.sqrt(share))  # A Poisson draw seldom passes this.
    parts = math.ceil(largest / most)
    return math.ceil(largest / parts)
