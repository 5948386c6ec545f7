"""One layer's per-record gradients against its plain weight gradient, by every way there is.

    python benchmarks/layers.py --network cifar-36m --draws 1 4 16

Every shape of the network's trained layers, once, with how often it occurs; not GroupNorm, whose
gradients are autograd's own. ``ghost`` is a linear layer's norm by Gram matrices and its sum by one
product, ``instantiated`` the same by per-record gradients: norm, clip and sum included in both. For
all others the columns are the time of the gradients alone, over that of the plain weight gradient.
``chosen`` is the engine's own choice.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from networks import Network, networks
from output import RESULTS, table, write_json
from torch import nn

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.private.layer_gradients import CONV_WAYS, GRADIENTS, conv_way
from rapid_dist.private.memory import keep_freed_memory, random_rows

Shape = tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]  # Name, layer, in and out of a row.
COLUMNS = ["layer", "times", "K", "records", "plain ms", "chosen", "best", "chosen / plain"]


def shapes_of(denoiser: Denoiser) -> tuple[dict[str, Shape], Counter[str]]:
    """Returns the trained layers by description, and how often each occurs."""
    found: dict[str, Shape] = {}
    times: Counter[str] = Counter()

    def watch(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inside, outside = tuple(args[0].shape[1:]), tuple(output.shape[1:])
        name = f"{type(layer).__name__} {list(inside)} to {list(outside)}"
        if isinstance(layer, nn.Conv2d):
            name += f" by {layer.kernel_size[0]}x{layer.kernel_size[1]}"
        found.setdefault(name, (name, layer, inside, outside))
        times[name] += 1

    trained = [
        module
        for module in denoiser.modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
        and not isinstance(module, nn.GroupNorm)
    ]
    handles = [module.register_forward_hook(watch) for module in trained]
    rows = random_rows(denoiser, 1)
    with torch.no_grad():
        denoiser(rows.noised, rows.noise_level, rows.labels)
    for handle in handles:
        handle.remove()
    return found, times


def plain_way(layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor) -> Callable[[], Any]:
    """The weight gradient of the plain step, summed over the batch."""
    if isinstance(layer, nn.Conv2d):
        return lambda: torch.ops.aten.convolution_backward(
            grads, inputs, layer.weight.to(grads.dtype), [layer.out_channels], list(layer.stride),
            list(layer.padding), list(layer.dilation), False, [0, 0], 1, [False, True, True],
        )  # fmt: skip
    if isinstance(layer, nn.Linear):
        left, right = grads.reshape(-1, grads.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
        return lambda: (left.mT @ right, left.sum(0))
    assert isinstance(layer, nn.Embedding)
    return lambda: torch.ops.aten.embedding_dense_backward(
        grads, inputs, layer.num_embeddings, -1, False
    )


def ghost(inputs: torch.Tensor, grads: torch.Tensor, draws: int) -> torch.Tensor:
    """The clipped sum of a linear layer alone, by Gram matrices of [K T, K T] a record."""
    left = grads.reshape(len(grads) // draws, -1, grads.shape[-1]).float()
    right = inputs.reshape(len(left), -1, inputs.shape[-1]).float()
    gram = torch.bmm(left, left.mT).double() * torch.bmm(right, right.mT).double()
    factors = (1 / gram.sum((1, 2)).clamp_min(1e-30).sqrt()).clamp_max(1.0).float()
    scaled = left * factors[:, None, None]
    total: torch.Tensor = scaled.flatten(0, 1).mT @ right.flatten(0, 1)
    return total


def instantiated(inputs: torch.Tensor, grads: torch.Tensor, draws: int) -> torch.Tensor:
    left = grads.reshape(len(grads) // draws, -1, grads.shape[-1])
    right = inputs.reshape(len(left), -1, inputs.shape[-1])
    found = torch.bmm(left.mT, right).flatten(1).float()
    factors = (1 / found.norm(dim=1).clamp_min(1e-30)).clamp_max(1.0)
    total: torch.Tensor = factors @ found
    return total


def ways_of(
    layer: nn.Module, inputs: torch.Tensor, grads: torch.Tensor, draws: int
) -> dict[str, Callable[[], Any]]:
    wanted = [name for name, p in layer.named_parameters(recurse=False) if p.requires_grad]
    if isinstance(layer, nn.Conv2d):
        single = layer.kernel_size == (1, 1) and layer.stride == (1, 1)
        return {
            name: lambda way=way: way(layer, inputs, grads, draws, wanted)  # type: ignore[misc]
            for name, way in CONV_WAYS.items()
            if name != "product" or single
        }
    engine = GRADIENTS[type(layer)]
    ways: dict[str, Callable[[], Any]] = {
        "engine": lambda: engine(layer, inputs, grads, draws, wanted)
    }
    positions = draws * max(1, grads[0].numel() // grads.shape[-1])
    if isinstance(layer, nn.Linear) and positions <= 4096:
        ways["ghost"] = lambda: ghost(inputs, grads, draws)
        ways["instantiated"] = lambda: instantiated(inputs, grads, draws)
    return ways


def measure(shape: Shape, draws: int, records: int, options: argparse.Namespace) -> dict[str, Any]:
    name, layer, inside, outside = shape
    rows = records * draws
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    if isinstance(layer, nn.Embedding):
        dtype = torch.float32
    grads = torch.randn(rows, *outside, device=options.device, dtype=dtype)
    inputs = torch.randn(rows, *inside, device=options.device, dtype=dtype)
    if isinstance(layer, nn.Embedding):
        inputs = torch.randint(layer.num_embeddings, (rows,), device=options.device)
    if options.channels_last and inputs.dim() == 4:
        inputs, grads = (t.to(memory_format=torch.channels_last) for t in (inputs, grads))
    ways = {"plain": plain_way(layer, inputs, grads), **ways_of(layer, inputs, grads, draws)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for repeat in range(options.repeats + 1):
            for way, call in ways.items():
                took = _seconds(call, options)
                if repeat:
                    times[way].append(took)
    middle = {way: median(seconds) for way, seconds in times.items()}
    chosen = "engine"
    if isinstance(layer, nn.Conv2d):
        chosen = conv_way(layer, draws, grads.shape[2:].numel(), options.device)
    rest = {way: seconds for way, seconds in middle.items() if way not in _NOT_ALONE}
    return {
        "layer": name,
        "K": draws,
        "records": records,
        "plain ms": 1e3 * middle["plain"],
        "chosen": chosen,
        "best": min(rest, key=lambda way: rest[way]),
        "chosen / plain": middle[chosen] / middle["plain"],
        **{f"{way} / plain": seconds / middle["plain"] for way, seconds in middle.items()},
    }


_NOT_ALONE = ("plain", "ghost", "instantiated")


def _seconds(call: Callable[[], Any], options: argparse.Namespace) -> float:
    clock = time.process_time if options.clock == "processor" else time.perf_counter
    if options.device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if options.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def run(network: Network, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for every shape and K, and stops when the time is up."""
    deadline = time.perf_counter() + 60 * options.minutes
    found, times = shapes_of(network.open(options.device))
    rows: list[dict[str, Any]] = []
    for draws in options.draws:
        records = max(2, options.rows // draws)
        for name, shape in found.items():
            if time.perf_counter() > deadline:
                print(f"no time left for K = {draws}, {name}")
                continue
            rows.append({**measure(shape, draws, records, options), "times": times[name]})
    return rows


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, for every K, what all layers together cost by the engine's choice and at best."""
    found = []
    for draws in dict.fromkeys(row["K"] for row in rows):
        own = [row for row in rows if row["K"] == draws]
        plain = sum(row["times"] * row["plain ms"] for row in own)
        found.append(
            {
                "K": draws,
                "plain ms": plain,
                "chosen / plain": sum(
                    row["times"] * row["plain ms"] * row["chosen / plain"] for row in own
                )
                / plain,
                "best / plain": sum(
                    row["times"] * row["plain ms"] * row[f"{row['best']} / plain"] for row in own
                )
                / plain,
            }
        )
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="mnist", choices=list(networks()))
    parser.add_argument("--draws", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rows", type=int, default=64, help="B * K of one pass")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--clock", default="wall", choices=["wall", "processor"])
    parser.add_argument("--small", action="store_true", help="rehearse on a narrow network")
    parser.add_argument("--out", type=Path)
    return parser


def report(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    network = networks()[options.network]
    rows = run(network.small() if options.small else network, options)
    extra = sorted({c for row in rows for c in row if c.endswith(" / plain")} - set(COLUMNS))
    out = options.out or RESULTS / f"layers_{options.network}.json"
    settings = {"device": options.device, "precision": options.precision, "small": options.small}
    write_json(out, {"rows": rows, "totals": totals(rows), **settings})
    print(table(rows, [*COLUMNS, *extra]))
    print(table(totals(rows), ["K", "plain ms", "chosen / plain", "best / plain"]))


if __name__ == "__main__":
    report(arguments().parse_args())
