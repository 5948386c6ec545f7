"""Who takes part in a step, seen from where the sum is made.

The step, its sampler and its slices over workers are the subject's own. In place of rows the step
is given names, and in place of an engine somebody who writes them down.
"""

import threading
from dataclasses import dataclass, field, fields, replace
from typing import cast

import numpy as np
import torch
from torch import nn

from rapid_dist.audit.subject import Subject
from rapid_dist.audit.workers import ThreadWorkers
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.per_example import flat_size

PARAMETERS = 16  # Of the network that the names go through; nobody looks at its weights.
SHARE = 0.5  # Norm of one unit's vector, in units of C.


@dataclass(frozen=True, kw_only=True)
class Attendance:
    """What came of a few steps."""

    times: np.ndarray  # int64 [T, N]: how often each unit was in each step's sum.
    charged: list[int]
    released: np.ndarray  # float32 [T, PARAMETERS]


@dataclass(frozen=True, kw_only=True)
class _Named(DrawMaker):
    """Rows that carry (step, unit) as their label and nothing else."""

    units: int

    def rows(self, records: np.ndarray, key: SecretKey, step: int, attempt: int) -> Rows:
        names = torch.from_numpy(step * self.units + records)
        empty = torch.zeros(len(records), 1, 1, 1)
        return Rows(noised=empty, noise_level=empty.flatten(), labels=names, clean=empty)


@dataclass(frozen=True, kw_only=True)
class _Register:
    """An engine that writes down whom it saw, and sums one known vector a unit."""

    names: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(
        self,
        denoiser: Denoiser,
        rows: Rows,
        draws: int,
        bound: float,
        mask: torch.Tensor,
        units: int | None = None,
    ) -> torch.Tensor:
        with self.lock:
            self.names.extend(rows.labels[mask].tolist())
        size = flat_size(denoiser)
        entry = SHARE * (bound if units is None else units) / size**0.5
        return int(mask.sum()) * torch.full((size,), entry if units is None else int(entry))


def attend(
    subject: Subject,
    key: SecretKey,
    steps: int,
    *,
    world_size: int = 1,
    attempt: int = 1,
    sampler: PoissonSampler | None = None,
) -> Attendance:
    """Takes steps 0 .. ``steps`` - 1 and says who was in them."""
    units, register = subject.mechanism.num_records, _Register()
    charged: list[int] = []
    named = replace(subject, engine=register)
    real = subject.make_draws(subject.images, subject.config)
    draws = _Named(**{f.name: getattr(real, f.name) for f in fields(DrawMaker)}, units=units)
    network = nn.Module()
    network.weight = nn.Parameter(torch.zeros(PARAMETERS))
    workers = ThreadWorkers(world_size)
    own = [
        named.step(
            workers.collective(rank),
            key,
            attempt=attempt,
            charge=charged.append,
            sampler=sampler,
            draws=draws,
        )
        for rank in range(world_size)
    ]
    released = workers.run(
        lambda c: [
            own[c.rank].noised_gradient(cast(Denoiser, network), step) for step in range(steps)
        ]
    )[0]
    times = np.bincount(np.array(register.names, np.int64), minlength=steps * units)
    return Attendance(
        times=times.reshape(steps, units), charged=charged, released=torch.stack(released).numpy()
    )
