"""Training on private records without any privacy: the ceiling that methods are measured against.

The draws, batches, steps, optimizer and average of private training; no clip, no noise, no charge.
Its gradients, its weights and all that is drawn from them are as private as the records themselves.
Nothing of them may leave the place of internal results (P13): whoever calls this sees to that. No
method with a promise imports this file, and a test says so.
"""

from collections.abc import Callable

import torch

from rapid_dist.collective import Collective
from rapid_dist.diffusion.checkpoint import Checkpoints, restore_training_state, training_state
from rapid_dist.diffusion.compute import device_of, precision_on
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.ema import Ema
from rapid_dist.diffusion.loss import row_losses
from rapid_dist.errors import CheckpointError
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.poisson import PoissonSampler, rank_slice
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.lora import merge_adapters
from rapid_dist.private.per_example import trainable
from rapid_dist.private.subset import apply_subset

OnStep = Callable[[dict[str, float]], Callable[[], None] | None]  # As of the private loop.


def train_unprotected(
    denoiser: Denoiser,
    draws: DrawMaker,
    *,
    steps: int,
    expected_batch: float,
    collective: Collective,
    checkpoints: Checkpoints,
    on_step: OnStep,
) -> None:
    """Trains in place WITHOUT PRIVACY, and leaves the average of the weights in the denoiser.

    A step's gradient is the sum over its Poisson batch of each record's mean loss, divided by the
    expected batch, as in private training but for clip and noise. What it reports is how far it is.

    Raises:
      CheckpointError: the workers do not all start from the same step.
    """
    config, num_units = draws.config, draws.images.spec.num_units
    assert config.micro_batch is not None, "It is solved before the loop."
    device, micro_batch = device_of(denoiser), collective.least(config.micro_batch)
    denoiser.precision = precision_on(device, config.precision)
    apply_subset(denoiser, config)
    parameters = trainable(denoiser)
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, foreach=False)
    ema, first = Ema(parameters, config.ema_decay), 0
    found = checkpoints.latest()
    if found is not None:
        restore_training_state(found.tensors, parameters, ema.average, optimizer)
        ema.updates = first = found.step
    key = _shared_key(collective, first)
    sampler = PoissonSampler(key, num_units, expected_batch / num_units, attempt=1)
    for step in range(first, steps):
        flat = torch.zeros(sum(p.numel() for p in parameters), device=device)
        batch = sampler.batch(step)
        parts = rank_slice(batch, collective.rank, collective.world_size, micro_batch)
        for records, mask in parts:
            rows = draws.rows(records, key, step, attempt=1).to(device)
            losses = row_losses(denoiser, rows).view(len(records), -1).mean(dim=1)
            counted = torch.from_numpy(mask).to(device)
            loss = losses[counted].sum() / expected_batch
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
            flat += torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g.float()).flatten()
                    for p, g in zip(parameters, grads, strict=True)
                ]
            )
        collective.sum_(flat)
        rate = min(1.0, (step + 1) / max(1, config.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
        ema.update()
        done = step + 1
        figures = {"step": done, "steps": steps, "rows": expected_batch}
        leave = on_step(dict(figures))
        is_due = done == steps or done % config.checkpoint_every == 0 or leave is not None
        if collective.rank == 0 and is_due:
            state = training_state(parameters, ema.average, optimizer)
            checkpoints.save(done, state, {"figures": figures})
        if leave is not None:
            leave()
    for parameter in parameters:
        parameter.grad = None
    ema.copy_to(parameters)
    merge_adapters(denoiser)


def _shared_key(collective: Collective, first: int) -> SecretKey:
    """Returns rank 0's fresh key on every rank: it draws batches and rows, and protects nothing."""
    payload = bytes(8 + KEY_BYTES)
    if collective.rank == 0:
        payload = first.to_bytes(8, "big") + SecretKey.generate().reveal()
    payload = collective.broadcast_bytes(payload)
    if int.from_bytes(payload[:8], "big") != first:
        raise CheckpointError(
            f"Rank {collective.rank} would start at step {first}, rank 0 at another. Keep the "
            "checkpoints where every worker reads the same files."
        )
    return SecretKey.from_bytes(payload[8:])
