"""Rows per second over 1 to 4 workers of this machine, and a cost model of many more.

    python benchmarks/scaling.py

Workers are processes of one thread that meet over Gloo and share this machine's cores: with more
workers than cores the efficiency is that of the cores, not of the software. The model is

    step(W) = rows(W) c + [P n - rows(W) c] + [a - rows(W) c] + 2 (W - 1)/W 4P / b + (W - 1) l

with W workers, P trained values, b bytes and l latency of a link in a ring, n the noise of a value
(made whole by every worker), a the ledger's append (rank 0's, nobody releases before it), c the
compute of a row, rows(W) what the fullest slice of a Poisson draw is padded to, and [x] nothing
where x is negative: noise is drawn and the ledger written while gradients are made. Where no core
is free for it the noise counts in full. c, n and a are measured here, b and l are fitted to the
runs with several workers, and for GPUs they are assumed; ``--gpu`` names a result of benchmarks/gpu
for c.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from output import RESULTS, table, write_json
from step_parts import Setting, interleaved, with_workers

GPU_WORKERS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The constants of the model, in seconds and bytes."""

    row: float  # Forward, backward, clip and sum of one row on one worker.
    noise: float  # Of one trained value.
    append: float  # To the ledger.
    bandwidth: float  # Bytes a second of a link.
    latency: float  # Of a message.
    values: float  # P

    def step(
        self, workers: int, batch: int, draws: int, micro_batch: int, cores: float = math.inf
    ) -> dict[str, float]:
        """Returns the seconds of one step by part, on as many cores or devices as workers have."""
        at_once = max(1.0, workers / cores)  # Workers to a core.
        compute = padded_records(batch, workers, micro_batch) * draws * self.row * at_once
        noise = self.values * self.noise * at_once
        ring = 2 * (workers - 1) / workers * 4 * self.values / self.bandwidth
        return {
            "compute": compute,
            "reduce": ring + (workers - 1) * self.latency,
            "noise": max(0.0, noise - compute) if workers < cores else noise,
            "charge": max(0.0, self.append - compute),
        }


def padded_records(batch: int, workers: int, micro_batch: int) -> float:
    """Returns the expected records, padding included, of the fullest slice of a Poisson draw.

    Slices of one draw differ by one record at most, so workers do not wait for an unlucky one;
    what they wait for is the last micro-batch, which is filled up with rows that are masked.
    """
    sizes = np.random.default_rng(0).poisson(batch, 1000)
    slices = np.ceil(sizes / workers)
    return float(np.mean(np.ceil(slices / micro_batch) * micro_batch))


def fitted(found: dict[int, dict[str, float]], setting: Setting) -> Costs:
    """Fits the model to measured runs; the link by least squares over runs of several workers."""
    one = found[1]
    records = padded_records(setting.batch, 1, setting.micro_batch)
    several = [workers for workers in found if workers > 1]
    ring = [2 * (w - 1) / w * 4 * one["values"] for w in several]
    matrix = np.array([[bytes_sent, w - 1] for bytes_sent, w in zip(ring, several, strict=True)])
    seconds = np.array([found[w]["reduce"] for w in several])
    per_byte, latency = np.linalg.lstsq(matrix, seconds, rcond=None)[0]
    if per_byte <= 0 or latency < 0:  # Three points do not always tell the two apart.
        per_byte, latency = float((matrix[:, 0] @ seconds) / (matrix[:, 0] @ matrix[:, 0])), 0.0
    return Costs(
        row=one["compute"] / (records * setting.draws),
        noise=one["noise alone"] / one["values"],
        append=one["charge beside"],
        bandwidth=1 / per_byte,
        latency=float(latency),
        values=one["values"],
    )


def measured_rows(
    found: dict[int, dict[str, float]], costs: Costs, setting: Setting, cores: int
) -> list[dict[str, Any]]:
    rows = []
    for workers, figures in found.items():
        model = costs.step(workers, setting.batch, setting.draws, setting.micro_batch, cores)
        ideal = found[1]["rows per second"] * min(workers, cores)
        rows.append(
            {
                "workers": workers,
                "rows per second": round(figures["rows per second"]),
                "efficiency": figures["rows per second"] / ideal,
                "step seconds": figures["step"],
                "model": sum(model.values()),
                "reduce": figures["reduce"],
                "noise": figures["noise"],
                "wait": figures["wait"],
            }
        )
    return rows


def predicted_rows(costs: Costs, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a cluster of GPUs would do."""
    rows, base = [], 0.0
    for workers in (1, *GPU_WORKERS):
        parts = costs.step(workers, options.gpu_batch, options.gpu_draws, options.gpu_micro_batch)
        seconds = sum(parts.values())
        speed = options.gpu_batch * options.gpu_draws / seconds
        base = base or speed
        rows.append(
            {
                "workers": workers,
                "step seconds": seconds,
                "rows per second": round(speed),
                "efficiency": speed / (workers * base),
                **{f"{part} share": value / seconds for part, value in parts.items()},
            }
        )
    return rows


def plot(path: Path, measured: list[dict[str, Any]], predicted: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    workers = [row["workers"] for row in measured]
    left.plot(workers, [row["step seconds"] for row in measured], "o-", label="measured")
    left.plot(workers, [row["model"] for row in measured], "x--", label="model")
    left.set(xlabel="workers of one thread, this machine", ylabel="seconds a step", ylim=(0, None))
    left.set_xticks(workers)
    right.plot(
        [row["workers"] for row in predicted], [row["efficiency"] for row in predicted], "o-"
    )
    right.set_xscale("log", base=2)
    right.set(xlabel="GPUs (predicted)", ylabel="efficiency", ylim=(0, 1.05))
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    print(f"written: {path}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="mnist")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--most-workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="that workers really have")
    parser.add_argument("--small", action="store_true", help="rehearse on a narrow network")
    parser.add_argument("--gpu", type=Path, help="a result of benchmarks/gpu with rows a second")
    parser.add_argument("--gpu-rows-per-second", type=float, default=8000.0)
    parser.add_argument("--gpu-values", type=float, default=36e6)
    parser.add_argument("--gpu-batch", type=int, default=16384)
    parser.add_argument("--gpu-draws", type=int, default=16)
    parser.add_argument("--gpu-micro-batch", type=int, default=16)
    parser.add_argument("--gpu-bandwidth", type=float, default=40e9, help="bytes a second, a link")
    parser.add_argument("--gpu-latency", type=float, default=1e-5)
    parser.add_argument("--gpu-threads", type=int, default=8, help="of a worker, for its noise")
    return parser


def gpu_costs(costs: Costs, options: argparse.Namespace) -> Costs:
    """The same software on GPUs: noise and ledger as measured here, links as assumed."""
    speed = options.gpu_rows_per_second
    if options.gpu:
        rows = json.loads(options.gpu.read_text())["rows"]
        speed = max(
            row["rows per second"]
            for row in rows
            if row["way"] == "ours" and row["K"] == options.gpu_draws and "rows per second" in row
        )
    return replace(
        costs,
        row=1 / speed,
        noise=costs.noise / options.gpu_threads,
        bandwidth=options.gpu_bandwidth,
        latency=options.gpu_latency,
        values=options.gpu_values,
    )


def main() -> None:
    options = arguments().parse_args()
    setting = Setting(
        network=options.network, batch=options.batch, steps=options.steps, small=options.small
    )
    runs = interleaved(
        {str(w): with_workers(setting, w, 1) for w in range(1, options.most_workers + 1)},
        options.repeats,
    )
    found = {int(workers): figures for workers, figures in runs.items()}
    costs = fitted(found, setting)
    measured = measured_rows(found, costs, setting, options.cores)
    on_gpus = gpu_costs(costs, options)
    predicted = predicted_rows(on_gpus, options)
    worst = max(abs(math.log(row["model"] / row["step seconds"])) for row in measured)
    print(table(measured, list(measured[0])))
    print(f"\nThe model is off by a factor of {math.exp(worst):.2f} at most.\n")
    print(table(predicted, list(predicted[0])))
    write_json(
        RESULTS / "scaling.json",
        {
            "setting": asdict(setting),
            "costs": asdict(costs),
            "gpu": {
                "costs": asdict(on_gpus),
                "rows per second": "measured" if options.gpu else "assumed",
                "batch": options.gpu_batch,
                "draws": options.gpu_draws,
                "micro batch": options.gpu_micro_batch,
                "threads": options.gpu_threads,
            },
            "measured": measured,
            "predicted": predicted,
            "small": options.small,
        },
    )
    plot(RESULTS / "scaling.png", measured, predicted)


if __name__ == "__main__":
    main()
