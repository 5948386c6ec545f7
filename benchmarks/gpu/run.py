"""Runs the rows that need a GPU, a piece at a time, in one plain process.

A piece takes no more than 8 minutes; those of quality take as many calls of at most 9.5 as they
need, and go on where the last one stopped.

    python benchmarks/gpu/run.py --list
    python benchmarks/gpu/run.py step-cifar-16 --out DIR
    python benchmarks/gpu/run.py step-cifar-16 --out DIR --rehearse    # on the CPU, small

A piece prints its table last and writes ``DIR/<piece>.json``. It needs torch, diffusers and PyYAML,
and never Ray, MLflow, faiss or pydantic. Without Opacus its ways are left out, and the output says
so; the pieces ``parts-...`` run the whole loop and need Opacus, cryptography and boto3 too. What
the pieces ``quality-...`` need, and how they are cut into minutes, says ``quality.py``:

    python benchmarks/gpu/run.py quality-mnist-1 --data DATA --runs RUNS --out DIR
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # What is beside this file,
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks beside this folder,
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # and the package, not installed.

import layers
import output
import private_step
import quality

MINUTES = 7.0  # After which no repeat begins; a repeat takes seconds.
CIFAR, LATENTS = "cifar-36m", "latents-attention"

Piece = Callable[[Path, bool], None]  # (file of the result, whether it is a rehearsal)


def step(network: str, draws: int, records: int, *ways: str, extra: tuple[str, ...] = ()) -> Piece:
    """The clipped sum by several ways, bf16 unless ``extra`` says otherwise."""

    def run(out: Path, rehearse: bool) -> None:
        found = [way for way in ways if not way.startswith("opacus") or _has("opacus")]
        for way in sorted(set(ways) - set(found)):
            print(f"left out, Opacus is not there: {way}")
        arguments = ["--only", *(f"{network}/{way}/{draws}" for way in found)]
        arguments += ["--out", str(out), "--minutes", str(MINUTES), "--precision", "bf16", *extra]
        if rehearse:
            arguments += ["--small", "--repeats", "1", "--no-memory"]
        else:
            arguments += ["--device", "cuda", "--records", str(records), "--repeats", "11"]
        options = private_step.arguments().parse_args(arguments)
        print(output.table(private_step.run(options), private_step.COLUMNS))

    return run


def shapes(network: str, *extra: str) -> Piece:
    """All layers' ways to a gradient: what the engine's choice on CUDA rests on."""

    def run(out: Path, rehearse: bool) -> None:
        arguments = ["--network", network, "--out", str(out), "--minutes", str(MINUTES)]
        arguments += ["--precision", "bf16", *extra]
        if rehearse:
            arguments += ["--small", "--repeats", "1", "--rows", "16"]
        else:
            arguments += ["--device", "cuda", "--rows", "512", "--repeats", "11"]
        layers.report(layers.arguments().parse_args(arguments))

    return run


def parts(network: str, draws: int, batch: int, micro_batch: int) -> Piece:
    """A whole step on one worker: what is not forward, backward and update."""

    def run(out: Path, rehearse: bool) -> None:
        import overhead  # It runs the whole loop, and so needs Opacus' list of layers.

        arguments = ["--networks", network, "--draws", str(draws), "--one-worker"]
        arguments += ["--precision", "bf16", "--out", str(out)]
        if rehearse:
            arguments += ["--small", "--batch", "8", "--steps", "1", "--repeats", "1"]
        else:
            arguments += ["--device", "cuda", "--batch", str(batch), "--repeats", "2"]
            arguments += ["--micro-batch", str(micro_batch)]
        overhead.report(overhead.arguments().parse_args(arguments))

    return run


_ALL = ("ours", "opacus hooks", "opacus ghost", "vmap")
PIECES: dict[str, Piece] = {
    "shapes-cifar": shapes(CIFAR),
    "shapes-cifar-channels-last": shapes(CIFAR, "--channels-last"),
    "shapes-latents": shapes(LATENTS),
    "step-cifar-1": step(CIFAR, 1, 64, *_ALL),
    "step-cifar-4": step(CIFAR, 4, 32, *_ALL),
    "step-cifar-16": step(CIFAR, 16, 16, *_ALL, "reference"),
    "step-cifar-16-many": step(CIFAR, 16, 48, "ours"),
    "step-cifar-16-fp32": step(CIFAR, 16, 16, "ours", "reference", extra=("--precision", "fp32")),
    "step-cifar-16-channels-last": step(CIFAR, 16, 16, "ours", extra=("--channels-last",)),
    "step-latents-1": step(LATENTS, 1, 64, *_ALL),
    "step-latents-4": step(LATENTS, 4, 32, *_ALL),
    "step-latents-16": step(LATENTS, 16, 16, *_ALL, "reference"),
    "step-latents-attention-only-16": step("latents-attention-only", 16, 16, "ours"),
    "step-mnist-16": step("mnist", 16, 64, *_ALL, "reference"),
    "parts-cifar-16": parts(CIFAR, 16, 256, 16),
    "parts-mnist-1": parts("mnist", 1, 4096, 512),
}


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pieces", nargs="*", metavar="piece")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at reduced size")
    parser.add_argument("--data", type=Path, default=Path("data"), help="for quality: data.root")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="for quality: state")
    parser.add_argument(
        "--minutes", type=float, default=quality.MINUTES, help="for quality: of one call"
    )
    options = parser.parse_args()
    pieces = PIECES | quality.pieces(
        options.data.resolve(), options.runs.resolve(), options.minutes
    )
    if options.list or not options.pieces:
        print("\n".join(pieces))
        return
    unknown = sorted(set(options.pieces) - set(pieces))
    if unknown:
        sys.exit(f"No such piece: {', '.join(unknown)}. --list names them.")
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here. Add --rehearse to try the scripts on the CPU.")
    for name in options.pieces:
        start = time.perf_counter()
        pieces[name](options.out / f"{name}.json", options.rehearse)
        print(f"{name}: {time.perf_counter() - start:.0f} seconds")


if __name__ == "__main__":
    main()
