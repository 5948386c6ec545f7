"""The job of benchmarks/cluster.py: steps of private training, in a plain process and on Ray.

    ray job submit --working-dir . -- python benchmarks/cluster_steps.py --storage s3://bucket/runs

For one worker, then two, and so on, as many plain processes and the workers take the same steps in
turn. Loop, ledgers in the bucket and network are the same in both; the processes share the rows and
sum nothing. On Ray the keeper is an actor beside the driver, and every step is reported to it. The
last line of stdout is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import rapid_dist
from rapid_dist.collective import Collective, SingleProcess
from rapid_dist.methods.task import Report
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent
from rapid_dist.privacy.settings import Budget
from rapid_dist.runtime.cluster import session
from rapid_dist.runtime.keeper_client import keep_beside_driver
from rapid_dist.runtime.needs import Needs
from rapid_dist.runtime.train_workers import RayWorkers


@dataclass(frozen=True, kw_only=True)
class KeeperOf:
    """Opens the keeper of a ledger in the bucket, where it is called."""

    storage: str
    run: str
    steps: int

    def __call__(self) -> LedgerKeeper:
        event = DpSgdEvent(sample_rate=1 / 8, noise_multiplier=1.0, steps=1)
        budget = Budget(epsilon=1000.0, delta=1e-5)
        ledger = Ledger.open(f"{self.storage}/ledger", "random")
        return LedgerKeeper(ledger, self.run, budget, event, self.steps)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What every worker does; rank 0 reports the sum of all workers' processor seconds.

    It goes to other hosts by value, and they find the modules beside this one only once they know
    where to look: in the copy of this folder that the job brought.
    """

    network: str
    batch: int
    steps: int
    keeper: Any

    def __call__(self, collective: Collective, report: Report) -> None:
        sys.path.insert(0, str(Path(rapid_dist.__file__).parents[1] / "benchmarks"))
        from step_parts import Setting, run_worker

        def told(metrics: dict[str, float]) -> None:
            report({"step": metrics["step"], "steps": self.steps + 1})

        setting = Setting(network=self.network, batch=self.batch, steps=self.steps)
        with tempfile.TemporaryDirectory() as folder:
            found = run_worker(setting, collective, Path(folder), self.keeper, told)
        processor = torch.tensor([found["processor seconds"]], dtype=torch.float64)
        collective.sum_(processor)
        report({"step": 1, "steps": 1, "seconds": found["step"], "processor": float(processor)})


def plain(asked: argparse.Namespace, count: int, run: str) -> dict[str, float]:
    """The same rows in processes without Ray, side by side, that hear nothing of each other."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from cluster_steps import in_process\n"
        "print(json.dumps(in_process(*json.loads(sys.argv[2]))))"
    )
    here = str(Path(__file__).parent)
    started = []
    for number in range(count):
        # A ledger has one writer: each of them has a ledger of its own.
        storage = f"{asked.storage}/plain-{number}"
        told = json.dumps([asked.network, asked.batch // count, asked.steps, storage, run])
        words = [sys.executable, "-c", code, here, told]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    found: list[dict[str, float]] = []
    for process in started:
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(process.returncode)
        found.append(json.loads(said.splitlines()[-1]))
    return {
        "seconds": max(one["seconds"] for one in found),
        "processor": sum(one["processor"] for one in found),
    }


def in_process(network: str, batch: int, steps: int, storage: str, run: str) -> dict[str, float]:
    found: list[dict[str, float]] = []
    keeper = KeeperOf(storage=storage, run=run, steps=steps + 1)()
    task = Steps(network=network, batch=batch, steps=steps, keeper=keeper)
    task(SingleProcess(), lambda figures, part="": found.append(figures))
    return found[-1]


def new_group() -> tuple[RayWorkers, list[dict[str, float]]]:
    """Returns workers that are yet to start, and what they will have reported."""
    reports: list[dict[str, float]] = []
    workers = RayWorkers(
        threads=1, max_failures=0, on_report=lambda _, figures: reports.append(figures)
    )
    return workers, reports


def on_workers(
    workers: RayWorkers,
    reports: list[dict[str, float]],
    asked: argparse.Namespace,
    count: int,
    run: str,
) -> dict[str, float]:
    opened = KeeperOf(storage=asked.storage, run=run, steps=asked.steps + 1)
    task = Steps(
        network=asked.network,
        batch=asked.batch,
        steps=asked.steps,
        keeper=keep_beside_driver(opened),
    )
    # Random images: the group may stay, as it does between public stages.
    workers.run(task, name="train", num_workers=count, private=False)
    return reports[-1]


def measure(asked: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with session(Needs(cpus=asked.workers)):
        for count in range(1, asked.workers + 1):
            workers, reports = new_group()
            pairs = []
            for turn in range(asked.repeats):
                alone = plain(asked, count, f"plain-{count}-{turn}")
                pairs.append(
                    (alone, on_workers(workers, reports, asked, count, f"ray-{count}-{turn}"))
                )
            workers.release()
            of = {
                f"{way} {figure}": median(pair[place][figure] for pair in pairs)
                for place, way in enumerate(("plain", "ray"))
                for figure in ("seconds", "processor")
            }
            ratios = [ray["processor"] / alone["processor"] for alone, ray in pairs]
            walls = [ray["seconds"] / alone["seconds"] for alone, ray in pairs]
            rows.append(
                {
                    "hosts": count,
                    **of,
                    "processor ratio": median(ratios),
                    "ratios": ratios,
                    "wall ratio": median(walls),
                    "work per processor second": 1 / median(ratios),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--storage", required=True)
    parser.add_argument("--network", default="digits")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=3)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
