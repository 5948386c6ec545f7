"""One logical step of DP-SGD: draw, clip, sum, reduce, charge, noise, divide, update.

The order is the privacy argument, so it is one function that can be read in one sitting:

1. one Poisson batch for the whole group (P2), this rank's even slice of it;
2. the sum of clipped per-record vectors of the slice, whole numbers with secure noise (P3);
3. rank 0 has the step charged to the ledger; without it there is no sum on any rank (P6);
4. one all-reduce of one flat vector;
5. noise, once, from the keyed stream that every rank shares (P5);
6. division by the declared expected batch (P4).

Beside the sum, threads charge this step, draw its noise, and draw the next step's batch.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from rapid_dist.ahead import Ahead
from rapid_dist.collective import Collective
from rapid_dist.diffusion.compute import device_of
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import DpSgdConfig
from rapid_dist.privacy.noise import Noise, new_noise
from rapid_dist.privacy.poisson import PoissonSampler, rank_slice
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.per_example import clipped_sum, flat_size

Charge = Callable[[int], None]  # Returns when the step is durably in the ledger, or raises.
ClippedSum = Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class PrivateStep:
    """The mechanism of one run on one worker. Holds the secret key; is never written."""

    mechanism: DpSgdConfig
    draws: DrawMaker
    sampler: PoissonSampler
    key: SecretKey
    attempt: int
    collective: Collective
    charge: Charge
    engine: ClippedSum = clipped_sum

    def noised_gradient(self, denoiser: Denoiser, step: int) -> torch.Tensor:
        """Returns the released vector of one step, float32 [P], bit-equal on every rank."""
        self.noise.prepare(step, flat_size(denoiser))
        with ThreadPoolExecutor(1) as beside:
            charged = beside.submit(self.charge, step) if self.collective.rank == 0 else None
            total = self._local_sum(denoiser, step)
            if charged is not None:
                # Before the reduction: no rank can have the sum unless the charge is durable.
                charged.result()
        self.collective.sum_(total)
        return self.noise.release(total, step) / self.mechanism.expected_batch

    @cached_property
    def noise(self) -> Noise:
        """The noise of this attempt: one stream of its own for every step."""
        return new_noise(
            self.mechanism.noise,
            self.mechanism.max_grad_norm,
            self.mechanism.noise_multiplier,
            self.key,
            self.attempt,
        )

    @cached_property
    def _batches_ahead(self) -> Ahead[np.ndarray]:
        return Ahead(self.sampler.batch)

    def _batch(self, step: int) -> np.ndarray:
        """This step's batch; the next one's is drawn while this one is computed."""
        batch = self._batches_ahead.take(step)
        if step + 1 < self.mechanism.steps:
            self._batches_ahead.prepare(step + 1)
        return batch

    def _local_sum(self, denoiser: Denoiser, step: int) -> torch.Tensor:
        config = self.draws.config
        units, device = self.noise.units, device_of(denoiser)
        assert config.micro_batch is not None, "It is solved before the loop."
        total = torch.zeros(
            flat_size(denoiser),
            dtype=torch.float32 if units is None else torch.int64,
            device=device,
        )
        parts = rank_slice(
            self._batch(step),
            self.collective.rank,
            self.collective.world_size,
            config.micro_batch,
        )
        for rows, mask in self._drawn(parts, step, ahead=device.type == "cuda"):
            total += self.engine(
                denoiser,
                rows.to(device),
                config.rows_per_record,
                self.mechanism.max_grad_norm,
                torch.from_numpy(mask).to(device),
                *(() if units is None else (units,)),
            )
        return total

    def _drawn(
        self, parts: list[tuple[np.ndarray, np.ndarray]], step: int, *, ahead: bool
    ) -> Iterator[tuple[Rows, np.ndarray]]:
        """Yields the rows of every micro-batch with its mask.

        Rows are a function of their records alone, so a thread may make the next ones ``ahead``
        while a device works on these; beside an engine on the CPU it would only be in its way.
        """

        def draw(records: np.ndarray) -> Rows:
            return self.draws.rows(records, self.key, step, self.attempt)

        if not ahead:
            for records, mask in parts:
                yield draw(records), mask
            return
        with ThreadPoolExecutor(1) as thread:
            coming = [thread.submit(draw, records) for records, _ in parts[:1]]
            for number, (_, mask) in enumerate(parts):
                rows = coming.pop().result()
                coming += [thread.submit(draw, records) for records, _ in parts[number + 1 :][:1]]
                yield rows, mask
