"""Data-parallel training on public rows: of a denoiser, and of what else is public.

Pretraining and the adaptation to the private classes only differ in where rows come from. No
privacy here: what goes in is public, or is the output of a DP mechanism.
"""

import hashlib
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from rapid_dist.collective import Collective
from rapid_dist.diffusion.checkpoint import Checkpoints, restore_training_state, training_state
from rapid_dist.diffusion.compute import device_of
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.ema import Ema
from rapid_dist.diffusion.loss import Rows, row_losses

DrawRows = Callable[[torch.Generator, int], Rows]  # (randomness, number of rows) -> rows
LossOf = Callable[[torch.Generator, int], torch.Tensor]  # The mean loss of so many drawn rows.
# Takes the figures of a step. What it returns, if anything, is called when a checkpoint of that
# step is written: this process, or its machine, was told to leave.
OnStep = Callable[[dict[str, float]], Callable[[], None] | None]


class FitConfig(Protocol):
    """What pretraining and adaptation have in common."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...  # Of all workers together.
    @property
    def learning_rate(self) -> float: ...
    @property
    def ema_decay(self) -> float: ...
    @property
    def checkpoint_every(self) -> int: ...


def fit_denoiser(
    denoiser: Denoiser,
    draw_rows: DrawRows,
    config: FitConfig,
    *,
    seed: int,
    collective: Collective,
    checkpoints: Checkpoints | None,
    on_step: OnStep,
) -> None:
    """Trains in place, where the denoiser is, and leaves the EMA weights in it; see ``fit``."""
    device = device_of(denoiser)

    def loss_of(generator: torch.Generator, count: int) -> torch.Tensor:
        return row_losses(denoiser, draw_rows(generator, count).to(device)).mean()

    fit(
        [p for p in denoiser.parameters() if p.requires_grad],
        loss_of,
        config,
        seed=seed,
        collective=collective,
        checkpoints=checkpoints,
        on_step=on_step,
    )


def fit(
    parameters: list[nn.Parameter],
    loss_of: LossOf,
    config: FitConfig,
    *,
    seed: int,
    collective: Collective,
    checkpoints: Checkpoints | None,
    on_step: OnStep,
) -> None:
    """Trains parameters in place by Adam, and leaves their EMA in them.

    Rank r's rows are a pure function of (seed, step, r), so a resumed run follows the unbroken
    one. The learning rate rises for a twentieth of the steps and then falls linearly to zero.
    """
    steps, batch_size = config.steps, config.batch_size
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    ema = Ema(parameters, config.ema_decay)
    first = 0
    found = checkpoints.latest() if checkpoints else None
    if found is not None:
        restore_training_state(found.tensors, parameters, ema.average, optimizer)
        ema.updates = first = found.step
    own_rows = max(1, batch_size // collective.world_size)
    warmup = max(1, steps // 20)
    for step in range(first, steps):
        rate = min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, rate)
        loss = loss_of(step_generator(seed, step, collective.rank), own_rows)
        mean_loss = flat_gradient(loss, parameters, collective)
        optimizer.step()
        ema.update()
        done = step + 1
        figures = {"step": done, "steps": steps, "rows": batch_size, "loss": mean_loss}
        leave = on_step(dict(figures))
        is_due = done % config.checkpoint_every == 0 or leave is not None
        if checkpoints and is_due and done < steps and collective.rank == 0:
            state = training_state(parameters, ema.average, optimizer)
            checkpoints.save(done, state, {"figures": figures})
        if leave is not None:
            leave()
    for parameter in parameters:
        parameter.grad = None
    ema.copy_to(parameters)


def noised_rows(
    clean: torch.Tensor,
    level: torch.Tensor,
    labels: torch.Tensor,
    denoiser: Denoiser,
    generator: torch.Generator,
) -> Rows:
    """Returns rows of clean images [B, C, H, W] at noise levels [B], some without their label."""
    noise = torch.randn(clean.shape, generator=generator)
    dropped = torch.rand(len(clean), generator=generator) < denoiser.config.label_drop
    return Rows(
        noised=clean + level.view(-1, 1, 1, 1) * noise,
        noise_level=level,
        labels=torch.where(dropped, torch.tensor(denoiser.no_label), labels),
        clean=clean,
    )


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Returns the public randomness of one rank in one step."""
    digest = hashlib.sha256(f"{seed}|{step}|{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def flat_gradient(
    loss: torch.Tensor, parameters: list[nn.Parameter], collective: Collective
) -> float:
    """Sets every ``.grad`` to the mean over all workers and returns the mean loss.

    One flat all-reduce; the loss travels with it.
    """
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    present = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)
    ]
    flat = torch.cat([g.flatten() for g in present] + [loss.detach().reshape(1)])
    collective.sum_(flat)
    flat /= collective.world_size
    parts = torch.split(flat[:-1], [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return float(flat[-1])
