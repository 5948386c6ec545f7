"""What torch.compile and channels-last would bring: one evaluation, and one plain step.

    python benchmarks/compiled.py

``evaluation`` is a forward pass without gradients, as sampling makes it; ``step`` forward, loss and
backward on the same rows. Every variant is a network of its own with the same weights; repeats are
interleaved, and what counts is the ratio to ``eager``. ``first`` is the first call, compilation
included; ``pays after`` so many calls it has earned that back. The private step is not among them:
it hands gradients out by hooks, which a compiled graph does not call layer by layer.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from networks import Network, networks
from output import RESULTS, table, write_json

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.diffusion.loss import row_losses
from rapid_dist.private.memory import random_rows
from rapid_dist.private.per_example import trainable

VARIANTS = ("eager", "channels last", "compiled", "compiled, channels last")
COLUMNS = [
    "network", "what", "rows", "variant", "seconds", "time / eager", "first", "pays after",
]  # fmt: skip


def open_variant(network: Network, variant: str, device: str) -> Denoiser:
    denoiser = network.open(device)
    if "channels last" in variant:
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if "compiled" in variant:
        denoiser.unet = torch.compile(denoiser.unet, dynamic=False)
    return denoiser


def call_of(what: str, denoiser: Denoiser, count: int) -> Callable[[], object]:
    rows = random_rows(denoiser, count)

    def evaluation() -> object:
        with torch.no_grad():
            return denoiser(rows.noised, rows.noise_level, rows.labels)

    def step() -> object:
        return torch.autograd.grad(row_losses(denoiser, rows).mean(), trainable(denoiser))

    return evaluation if what == "evaluation" else step


def seconds_of(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, what: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    network = networks()[name].small() if options.small else networks()[name]
    count = options.rows or network.records
    calls = {
        variant: call_of(what, open_variant(network, variant, options.device), count)
        for variant in VARIANTS
    }
    first = {variant: seconds_of(call, options.device) for variant, call in calls.items()}
    took: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.repeats):
        for variant, call in calls.items():
            took[variant].append(seconds_of(call, options.device))
    usual = {variant: median(seconds) for variant, seconds in took.items()}
    rows = []
    for variant, seconds in usual.items():
        row: dict[str, Any] = {
            "network": name, "what": what, "rows": count, "variant": variant,
            "seconds": seconds, "time / eager": seconds / usual["eager"], "first": first[variant],
        }  # fmt: skip
        if "compiled" in variant:
            saved = usual["eager"] - seconds
            row["pays after"] = round((first[variant] - seconds) / saved) if saved > 0 else "never"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["digits", "mnist"])
    parser.add_argument("--rows", type=int, help="in one pass, in place of the network's own")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="rehearse on narrow networks")
    parser.add_argument("--out", type=Path, default=RESULTS / "compiled.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        row
        for name in options.networks
        for what in ("evaluation", "step")
        for row in measure(name, what, options)
    ]
    print(table(rows, COLUMNS))
    settings = {name: getattr(options, name) for name in ("threads", "device", "small")}
    write_json(options.out, {"rows": rows, **settings})


if __name__ == "__main__":
    main()
