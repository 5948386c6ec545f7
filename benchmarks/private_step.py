"""The clipped sum of one micro-batch against the same step without privacy.

    python benchmarks/private_step.py

Rows: plain (mean loss, one gradient), ours, Opacus' hooks, torch.func's vmap, and the reference.
All see the same rows, interleaved, medians; the last column is time / plain time.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from common import table, write
from opacus.grad_sample import GradSampleModule
from torch.func import functional_call, grad, vmap

from rapid_dist.config import load_recipe
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import Rows, row_losses
from rapid_dist.private.per_example import clip_and_sum, clipped_sum, trainable
from rapid_dist.private.reference import reference_clipped_sum

CLIP = 1.0


def make_rows(denoiser: Denoiser, count: int) -> Rows:
    generator = torch.Generator().manual_seed(0)
    shape = (count, denoiser.channels, denoiser.size, denoiser.size)
    clean = torch.randn(shape, generator=generator) * 0.5
    level = torch.rand(count, generator=generator) + 0.05
    noise = torch.randn(shape, generator=generator)
    return Rows(
        noised=clean + level.view(-1, 1, 1, 1) * noise,
        noise_level=level,
        labels=torch.randint(denoiser.num_classes, (count,), generator=generator),
        clean=clean,
    )


def plain(denoiser: Denoiser, rows: Rows) -> None:
    torch.autograd.grad(row_losses(denoiser, rows).mean(), trainable(denoiser))


def by_opacus_hooks(hooked: Denoiser, rows: Rows, draws: int, mask: torch.Tensor) -> torch.Tensor:
    """Opacus' per-row gradients, averaged over the draws of a record, then our clip."""
    for parameter in hooked.parameters():
        parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
    row_losses(hooked, rows).sum().backward()  # type: ignore[no-untyped-call]
    found: list[Any] = [p.grad_sample for p in trainable(hooked)]  # type: ignore[attr-defined]
    gradients = [part.unflatten(0, (-1, draws)).mean(dim=1) for part in found]
    return clip_and_sum(gradients, CLIP, mask)


def by_vmap(denoiser: Denoiser, rows: Rows, draws: int, mask: torch.Tensor) -> torch.Tensor:
    parameters: dict[str, torch.Tensor] = dict(denoiser.named_parameters())

    def loss(values: dict[str, torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
        noised, level, labels, clean = parts
        estimate: torch.Tensor = functional_call(denoiser, values, (noised, level, labels))
        weight = (level**2 + denoiser.data_std**2) / (level * denoiser.data_std) ** 2
        return (weight * (estimate - clean).square().flatten(1).mean(dim=1)).mean()

    split = [
        part.unflatten(0, (-1, draws))  # type: ignore[no-untyped-call]
        for part in (rows.noised, rows.noise_level, rows.labels, rows.clean)
    ]
    found = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(parameters, *split)
    return clip_and_sum([found[name] for name in parameters], CLIP, mask)


def open_denoiser(name: str) -> Denoiser:
    recipe = load_recipe(name)
    source = recipe.data.private
    return Denoiser(
        recipe.network,
        channels=source.channels,
        size=source.size,
        num_classes=source.num_classes,
    )


def measure(name: str, draws: int, num_rows: int, repeats: int) -> list[dict[str, object]]:
    """Returns a table row for each way, from interleaved repeats on the same rows."""
    denoiser, hooked = open_denoiser(name), open_denoiser(name)
    keep = GradSampleModule(hooked, loss_reduction="sum")  # Its hooks live as long as it does.
    rows = make_rows(denoiser, num_rows)
    mask = torch.ones(num_rows // draws, dtype=torch.bool)
    ways: dict[str, Callable[[], object]] = {
        "plain": partial(plain, denoiser, rows),
        "ours": partial(clipped_sum, denoiser, rows, draws, CLIP, mask),
        "opacus hooks": partial(by_opacus_hooks, hooked, rows, draws, mask),
        "vmap": partial(by_vmap, denoiser, rows, draws, mask),
        "reference": partial(reference_clipped_sum, denoiser, rows, draws, CLIP, mask),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, call in ways.items():
            start = time.perf_counter()
            call()
            seconds[way].append(time.perf_counter() - start)
    keep.remove_hooks()
    return [
        {
            "network": name,
            "K": draws,
            "way": way,
            "rows per second": round(num_rows / median(times)),
            "time / plain": median(times) / median(seconds["plain"]),
        }
        for way, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", default="digits,mnist")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = [
        row
        for name in options.recipes.split(",")
        for draws in (1, 4)
        for row in measure(name, draws, options.rows, options.repeats)
    ]
    print(table(found, ["network", "K", "way", "rows per second", "time / plain"]))
    write("private_step", {"rows": found, "threads": options.threads, "batch": options.rows})


if __name__ == "__main__":
    main()
