"""The loop of private training: the same on one process and on many workers.

What leaves it: noised updates, their EMA, the step count. Losses, norms, batch sizes and draws do
not (P9). The number of steps is fixed before the first, by the plan and the ledger alone.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Protocol

import torch

from rapid_dist.collective import Collective
from rapid_dist.diffusion.checkpoint import (
    Checkpoint,
    Checkpoints,
    restore_training_state,
    training_state,
)
from rapid_dist.diffusion.compute import device_of, precision_on
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.ema import Ema
from rapid_dist.errors import BudgetError, CheckpointError, DataError
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.mechanism import DpSgdConfig
from rapid_dist.privacy.poisson import PoissonSampler, sampler_for
from rapid_dist.private.allowed import check_layers
from rapid_dist.private.coupling import check_latents_apart, check_rows_apart
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.lora import merge_adapters
from rapid_dist.private.per_example import clipped_sum, trainable
from rapid_dist.private.step import ClippedSum, PrivateStep
from rapid_dist.private.subset import apply_subset

# Takes the figures of a step. What it returns, if anything, is called when a checkpoint of that
# step is written: this process, or its machine, was told to leave.
OnStep = Callable[[dict[str, float]], Callable[[], None] | None]


class Attempt(Protocol):
    @property
    def number(self) -> int: ...

    @property
    def affordable_steps(self) -> int: ...


class Keeper(Protocol):
    """Who pays: the ledger's keeper, beside the driver."""

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Attempt: ...

    def charge(self, step: int, attempt: int | None = None) -> None: ...

    def stop_short(self, step: int, attempt: int | None = None) -> None: ...


def train_private(
    denoiser: Denoiser,
    draws: DrawMaker,
    mechanism: DpSgdConfig,
    *,
    collective: Collective,
    keeper: Keeper,
    checkpoints: Checkpoints,
    on_step: OnStep,
    on_begin: Callable[[], object] = lambda: None,
    engine: ClippedSum = clipped_sum,
    step_type: type[PrivateStep] = PrivateStep,
    sampler_type: type[PoissonSampler] | None = None,
    new_key: Callable[[], SecretKey] = SecretKey.generate,
) -> None:
    """Trains in place by DP-SGD, where the denoiser is, and leaves the EMA weights in it, merged.

    After a restart it goes on from the last checkpoint, under a new attempt with new keys; steps
    that are made again are charged again. If the budget then does not pay for all that are left,
    the last one that it pays for is the last one, and the ledger says so. The last four arguments
    are there for the audit, which proves that it would notice a faulty part; nobody else gives
    them.

    Args:
      on_begin: called before the first charge: from here on whoever is to leave has a step to end.

    Raises:
      BudgetError: the budget does not pay for a single step.
      CheckpointError: the workers do not all start from the same state, or not from this plan's.
      LedgerError: the ledger lacks what has paid for the checkpoint.
      ConfigError: the network has a layer that is not known to be safe.
      DataError: the mechanism was planned for another number of records (or groups).
    """
    spec = draws.images.spec
    if spec.num_units != mechanism.num_records:
        raise DataError(
            f"The plan is for {mechanism.num_records} privacy units, {spec.name} declares "
            f"{spec.num_units}. Plan again with that number."
        )
    denoiser.precision = precision_on(device_of(denoiser), draws.config.precision)
    apply_subset(denoiser, draws.config)
    check_layers(denoiser)
    check_rows_apart(denoiser)
    if draws.autoencoder is not None:  # The one that private images go through.
        check_layers(draws.autoencoder)
        check_latents_apart(draws.autoencoder)
    parameters = trainable(denoiser)
    optimizer = torch.optim.Adam(parameters, lr=draws.config.learning_rate, foreach=False)
    ema = Ema(parameters, draws.config.ema_decay)
    first, after = 0, None
    found = checkpoints.latest()
    if found is not None:
        restore_training_state(found.tensors, parameters, ema.average, optimizer)
        ema.updates = first = found.step
        after = (int(found.facts["attempt"]), first)  # The ledger has to know it.
        _refuse_other_plan(found, mechanism)
    draws = _cut_alike(draws, collective)
    start = {**denoiser.state_dict(), **training_state(parameters, ema.average, optimizer)}
    attempt, affordable, key = _open_attempt(
        collective, lambda: keeper.begin_attempt(after), new_key, first, _digest(first, start)
    )
    end = min(mechanism.steps, first + affordable)
    if end == 0:
        raise BudgetError(
            f"The budget pays for none of the run's {mechanism.steps} steps any more. Use another "
            "--out, and plan with privacy.reserve_steps to pay for repeats."
        )
    sampler_type = sampler_type or sampler_for(mechanism.noise)
    private_step = step_type(
        mechanism=mechanism,
        draws=draws,
        sampler=sampler_type(key, mechanism.num_records, mechanism.sample_rate, attempt),
        key=key,
        attempt=attempt,
        collective=collective,
        charge=lambda step: keeper.charge(step, attempt),
        engine=engine,
    )
    on_begin()
    for step in range(first, end):
        flat = private_step.noised_gradient(denoiser, step)
        rate = min(1.0, (step + 1) / max(1, draws.config.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = draws.config.learning_rate * rate
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
        ema.update()
        done = step + 1
        figures = {"step": done, "steps": mechanism.steps, "rows": mechanism.expected_batch}
        leave = on_step(dict(figures))
        is_due = done == end or done % draws.config.checkpoint_every == 0
        if collective.rank == 0 and (is_due or leave is not None):
            checkpoints.save(
                done,
                training_state(parameters, ema.average, optimizer),
                # Attempt and step name the entry of the ledger that the state is paid for until.
                {"attempt": attempt, "figures": figures, "mechanism": asdict(mechanism)},
            )
        if leave is not None:
            leave()
    if end < mechanism.steps and collective.rank == 0:
        keeper.stop_short(end, attempt)
    for parameter in parameters:
        parameter.grad = None
    ema.copy_to(parameters)
    merge_adapters(denoiser)


def _refuse_other_plan(found: Checkpoint, mechanism: DpSgdConfig) -> None:
    """Rate, noise, clip and expected batch never change within a run, whatever else does."""
    if found.step > mechanism.steps:
        raise CheckpointError(
            f"The checkpoint is of step {found.step}, the plan has {mechanism.steps} steps. It is "
            "another plan's: use another --out."
        )
    now = asdict(mechanism)
    if set(found.facts.get("mechanism", ())) != set(now):
        raise CheckpointError(
            f"The checkpoint of step {found.step} does not say by which mechanism it was made. Go "
            "on with the version that began the run, or use another --out."
        )
    for name, was in found.facts["mechanism"].items():
        same = now.get(name) == was
        if isinstance(was, float):  # Another machine may solve the last digits otherwise.
            same = math.isclose(was, now.get(name, math.nan), rel_tol=1e-6)
        if not same:
            raise CheckpointError(
                f"The checkpoint was made with {name}={was}, the plan has {now.get(name)}. Go on "
                "with the settings and the version that began the run, or use another --out."
            )


def _cut_alike(draws: DrawMaker, collective: Collective) -> DrawMaker:
    """Has all workers cut their slices into micro-batches of one size, the smallest of theirs.

    One that was solved for a worker's own memory may differ from another's. Libraries compute
    another size in another order, so a record would not have the same bits wherever it is summed.
    """
    assert draws.config.micro_batch is not None, "It is solved before the loop."
    size = collective.least(draws.config.micro_batch)
    return replace(draws, config=replace(draws.config, micro_batch=size))


def _open_attempt(
    collective: Collective,
    begin_attempt: Callable[[], Attempt],
    new_key: Callable[[], SecretKey],
    first: int,
    digest: bytes,
) -> tuple[int, int, SecretKey]:
    """Rank 0 opens the attempt and draws the key; every rank gets both over the collective.

    A rank that starts elsewhere would draw its slice of another step's batch: one record could be
    in both, and add two clipped vectors to one sum. So the start travels with the key.
    """
    payload = bytes(16 + len(digest) + KEY_BYTES)
    if collective.rank == 0:
        attempt = begin_attempt()
        payload = (
            attempt.number.to_bytes(8, "big")
            + attempt.affordable_steps.to_bytes(8, "big")
            + digest
            + new_key().reveal()
        )
    payload = collective.broadcast_bytes(payload)
    number, affordable = (int.from_bytes(payload[at : at + 8], "big") for at in (0, 8))
    if payload[16:-KEY_BYTES] != digest:
        raise CheckpointError(
            f"Rank {collective.rank} would start at step {first} from other weights or another "
            "step than rank 0. Keep the checkpoints where every worker reads the same files."
        )
    return number, affordable, SecretKey.from_bytes(payload[-KEY_BYTES:])


def _digest(first: int, tensors: Mapping[str, torch.Tensor]) -> bytes:
    digest = hashlib.sha256(first.to_bytes(8, "big"))
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()
