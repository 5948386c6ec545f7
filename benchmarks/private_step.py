"""The sum of clipped gradients of one pass against the same step without privacy.

    python benchmarks/private_step.py                       # everything: hours on two cores
    python benchmarks/private_step.py --only 'mnist/*/16'   # network/way/K; --add keeps others

All ways see the same B * K rows, interleaved; times are medians of one run, and what counts is
their ratio to ``plain``, which is measured with every piece. ``difference`` is from ours.

On a busy CPU ``--clock processor`` counts the time that this process had a core for.

Memory is what torch allocated at its highest: weights, rows, activations and gradients. On a CPU
the resident set is larger, by what the C library keeps of freed blocks.
"""

import argparse
import time
from collections.abc import Callable
from fnmatch import fnmatch
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import torch
from networks import Network, networks
from output import RESULTS, merged, table, write_json
from step_ways import WAYS, Call, Case
from torch.profiler import ProfilerActivity, profile

from rapid_dist.diffusion.compute import precision_on
from rapid_dist.private.memory import keep_freed_memory, peak_bytes, random_rows

DRAWS = (1, 4, 16)
COLUMNS = [
    "network", "K", "records", "way", "precision", "seconds", "time / plain", "rows per second",
    "peak MB", "peak / plain", "difference",
]  # fmt: skip
NAMES_ROW = ("network", "K", "way", "precision", "channels last", "device")
MB = 2**20
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def open_case(network: Network, draws: int, records: int, options: argparse.Namespace) -> Case:
    denoiser = network.open(options.device)
    denoiser.precision = precision_on(torch.device(options.device), options.precision)
    if options.channels_last:
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Case(denoiser=denoiser, rows=random_rows(denoiser, records * draws), draws=draws)


def seconds_of(call: Call, options: argparse.Namespace) -> tuple[float, torch.Tensor]:
    clock = CLOCKS[options.clock]
    if options.device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    result = call()
    if options.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start, result


def peak_of(case: Case, call: Call) -> int:
    """Returns the bytes of weights, rows, and all that torch allocated beside them at its peak."""
    weights = sum(p.numel() * p.element_size() for p in case.denoiser.parameters())
    return _allocated(call, case.rows.noised.device) + weights + 2 * case.rows.noised.nbytes


def _allocated(call: Call, device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return peak_bytes(call, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    found: Any = profiler.profiler
    events = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    highest: int = max(accumulate(event.nbytes() for event in events))
    return highest


def _network(name: str, options: argparse.Namespace) -> Network:
    network = networks()[name]
    return network.small() if options.small else network


def _records(network: Network, draws: int, options: argparse.Namespace) -> int:
    """As many rows at K = 4 and more, and four times fewer records at K = 16."""
    return options.records or max(2, network.records * min(draws, 4) // draws)


def measure(
    name: str, draws: int, ways: list[str], options: argparse.Namespace, deadline: float
) -> list[dict[str, Any]]:
    """Returns a table row for each way, from interleaved repeats on the same rows."""
    network = _network(name, options)
    records = _records(network, draws, options)
    cases = {way: open_case(network, draws, records, options) for way in ways}
    calls = {way: WAYS[way](case) for way, case in cases.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    results: dict[str, torch.Tensor] = {}
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    for repeat in range(options.repeats + 1):  # The first warms up.
        for way in [way for way in ways if way not in failed]:
            if repeat > 1 and time.perf_counter() > deadline:
                break
            try:
                took, results[way] = seconds_of(calls[way], options)
                if repeat == 0 and options.memory:
                    peaks[way] = peak_of(cases[way], calls[way])
            except torch.OutOfMemoryError:
                failed[way] = "out of memory"
                torch.cuda.empty_cache()
                continue
            if repeat:
                seconds[way].append(took)
    rows = []
    for way in ways:
        row: dict[str, Any] = {
            "network": name, "K": draws, "records": records, "way": way,
            "precision": cases[way].denoiser.precision, "channels last": options.channels_last,
            "device": options.device, "repeats": len(seconds[way]),
        }  # fmt: skip
        if seconds[way]:
            middle = median(seconds[way])
            row |= {"seconds": middle, "rows per second": round(records * draws / middle)}
            if seconds["plain"]:
                row["time / plain"] = middle / median(seconds["plain"])
        else:
            row["seconds"] = failed.get(way, "no time left")
        peak, plain = peaks.get(way), peaks.get("plain")
        if peak:
            row["peak MB"] = round(peak / MB)
        if peak and plain:
            row["peak / plain"] = peak / plain
        if "ours" in results and way in results and way not in ("plain", "ours"):
            apart = (results[way] - results["ours"]).norm() / results["ours"].norm()
            row["difference"] = f"{float(apart):.1e}"
        rows.append(row)
    return rows


def pieces(options: argparse.Namespace) -> list[tuple[str, int, list[str]]]:
    """Returns (network, K, ways) for what ``--only`` names; ``plain`` and ``ours`` always."""
    found = []
    for name in networks():
        for draws in DRAWS:
            ways = [way for way in WAYS if _asked(f"{name}/{way}/{draws}", options)]
            if ways:
                found.append((name, draws, list(dict.fromkeys(["plain", "ours", *ways]))))
    return found


def _asked(piece: str, options: argparse.Namespace) -> bool:
    return any(fnmatch(piece, pattern) for pattern in options.only)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="network/way/K, with *")
    parser.add_argument("--add", action="store_true", help="keep the file's other rows")
    parser.add_argument("--small", action="store_true", help="rehearse: narrow networks, few rows")
    parser.add_argument("--records", type=int, help="in one pass, in place of the network's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no repeat begins")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="beside other work")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--out", type=Path, default=RESULTS / "private_step.json")
    return parser


def run(options: argparse.Namespace, note: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measures all pieces that there is time for, writing the file after each."""
    deadline = time.perf_counter() + 60 * options.minutes
    done: list[dict[str, Any]] = []
    for name, draws, ways in pieces(options):
        if time.perf_counter() > deadline:
            note(f"no time left for {name}, K = {draws}")
            continue
        done += measure(name, draws, ways, options, deadline)
        rows = merged(options.out, done, NAMES_ROW) if options.add else done
        settings = {name: getattr(options, name) for name in ("threads", "small", "clock")}
        write_json(options.out, {"rows": rows, **settings})
    return done


def main() -> None:
    options = arguments().parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # As training does.
    print(table(run(options), COLUMNS))


if __name__ == "__main__":
    main()
