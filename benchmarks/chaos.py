"""Kills and stops small private runs at every named moment, and says what became of them.

    python benchmarks/chaos.py

Every fault happens once, to a run of its own; then the same command is given until the run is
done or has said in one line why not. What is held against the ledger is what the run's own
processes did (tests/cluster/chaos/). Ctrl-C writes what was tried until then. With ``--costs``:
what ledger and checkpoints cost of a step.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from output import RESULTS, table, write_json

ROOT = Path(__file__).resolve().parents[1]
COSTS_OF = {"digits": (1, 512), "mnist": (1, 1024)}  # K and batch, as in overhead.json.


def own_tests() -> None:
    """Has ``tests`` be this checkout's: somebody else's may lie in site-packages."""
    package = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules.setdefault("tests", package)


def kill(options: argparse.Namespace, folder: Path, found: dict[str, list[Any]]) -> None:
    """Lets all faults happen, and puts their results into ``found``, by where they happened."""
    from tests.cluster.chaos import killer, points
    from tests.cluster.chaos.runs import SmallRun, warm

    def say(where: str, result: Any) -> None:
        found.setdefault(where, []).append(result)
        count = sum(len(group) for group in found.values())
        kind = "survived" if result.survived else "stopped" if result.stopped else "FAILED"
        print(f"{count:4} {where}: {result.fault.kind} ({result.fault.nth}): {kind}", flush=True)
        if kind == "FAILED":
            print(killer.told([result]), flush=True)

    def place(number: int, where: str) -> Path:
        own = folder / f"{where}-{number}"
        own.mkdir()
        return own

    if options.process or options.s3:
        warm(SmallRun(folder="nowhere"))
        usual = _usual_seconds(place(0, "usual"))
    signals = ("KILL", "STOP", "TERM")
    for number, fault in enumerate(
        killer.faults_of(points.POINTS, signals, options.process, options.seed)
    ):
        own = place(number, "process")
        # Every fifth run has no reserve: it has to stop short where a step is repeated.
        run = SmallRun(folder=str(own / "all"), reserve=0 if number % 5 == 4 else 16)
        say("process", killer.survive(fault, run, own, usual_sec=usual))
    if options.s3:
        with _bucket() as bucket:
            moments = (*points.ON_S3, "before the entry", "noise, then update")
            faults = killer.faults_of(moments, ("KILL",), options.s3, options.seed)
            for number, fault in enumerate(faults):
                own = place(number, "s3")
                run = SmallRun(folder=f"{bucket}/{number}")
                say("process, on S3", killer.survive(fault, run, own, usual_sec=usual))
            rng = random.Random(options.seed)
            for number in range(options.s3 // 2):
                own = place(number, "two")
                run = SmallRun(folder=f"{bucket}/two-{number}")
                moment = rng.choice(["before the entry", "entry, then noise", "noise, then update"])
                fault = killer.Fault(
                    target="driver, and a second one takes over",
                    signal="STOP",
                    moment=moment,
                    nth=rng.randint(1, 6),
                )
                say("process, on S3", killer.overtake(fault, run, own))


def _usual_seconds(folder: Path) -> float:
    """Returns how long a run takes to which nothing happens."""
    from tests.cluster.chaos import killer
    from tests.cluster.chaos.runs import SmallRun

    late = killer.Fault(target="driver", signal="CONT", moment=killer.RANDOM)
    result = killer.survive(late, SmallRun(folder=str(folder / "all")), folder, usual_sec=0.0)
    assert result.survived, killer.told([result])
    return result.seconds


@contextmanager
def _bucket() -> Iterator[str]:
    """A bucket on an S3 server of this machine, which all that is forked from here can reach."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "chaos",
        "AWS_SECRET_ACCESS_KEY": "chaos", "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    try:
        from rapid_dist.storage import s3_client

        for _ in range(600):
            try:
                s3_client().create_bucket(Bucket="chaos")
                break
            except Exception:
                time.sleep(0.5)
        yield "s3://chaos"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def costs() -> list[dict[str, Any]]:
    """Returns what a charge and a checkpoint cost, beside the step that they are of.

    By the processor's clock, and the time that the disk takes to sync; the least of many, for other
    work may run beside, and on the same disk. A charge is made beside the sum and waited for only
    if it is slower: its whole time is the most that it can add. Steps are those of overhead.json,
    of one worker of one thread.
    """
    import torch

    from rapid_dist.config import load_recipe
    from rapid_dist.diffusion.checkpoint import Checkpoints, training_state
    from rapid_dist.diffusion.denoiser import Denoiser
    from rapid_dist.privacy.ledger import Ledger
    from rapid_dist.privacy.mechanism import DpSgdEvent
    from rapid_dist.storage import LocalStorage

    steps = {
        (row["network"], row["K"], row["batch"]): row["step seconds"]
        for row in json.loads((RESULTS / "overhead.json").read_text())["rows"]
        if (row["workers"], row["threads"]) == (1, 1)
    }
    event = DpSgdEvent(sample_rate=0.1, noise_multiplier=1.0, steps=1)
    found = []
    for name, (draws, batch) in COSTS_OF.items():
        recipe = load_recipe(name)
        private, clock = recipe.data.private, _Cost()
        denoiser = Denoiser(
            recipe.network,
            channels=private.channels,
            size=private.size,
            num_classes=private.num_classes,
        )
        parameters = list(denoiser.parameters())
        optimizer = torch.optim.Adam(parameters, foreach=False)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        state = training_state(parameters, [p.detach() for p in parameters], optimizer)
        with tempfile.TemporaryDirectory() as folder:
            disk = LocalStorage(Path(folder), sync=clock.sync)
            ledger, store = Ledger.open(disk, "private"), Checkpoints(disk.child("checkpoints"))
            attempt = ledger.begin_attempt("run")
            charges: list[float] = []
            saves: list[float] = []
            for step in range(100):
                with clock.into(charges):
                    ledger.append("step", "run", attempt=attempt, step=step, event=event)
            for step in range(9):
                with clock.into(saves):
                    store.save(step, state, {})
        every, step_sec = recipe.train.checkpoint_every, steps[name, draws, batch]
        found.append(
            {
                "recipe": name,
                "step seconds": step_sec,
                "charge seconds": min(charges),
                "checkpoint seconds": min(saves),
                "checkpoint every": every,
                "share": (min(charges) + min(saves) / every) / step_sec,
                "interval seconds": every * step_sec,
            }
        )
    return found


class _Cost:
    """Adds up what this process works, and what it waits for the disk."""

    def __init__(self) -> None:
        self._waited = 0.0

    def sync(self, descriptor: int) -> None:
        worked, start = time.process_time(), time.perf_counter()
        os.fsync(descriptor)
        self._waited += time.perf_counter() - start - (time.process_time() - worked)

    @contextmanager
    def into(self, took: list[float]) -> Iterator[None]:
        self._waited, worked = 0.0, time.process_time()
        yield
        took.append(time.process_time() - worked + self._waited)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--process", type=int, default=180, help="faults of a plain process")
    parser.add_argument("--s3", type=int, default=20, help="of one whose run is in a bucket")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--costs", action="store_true", help="measure ledger and checkpoints too")
    parser.add_argument("--planted", action="store_true", help="try what has to be found as well")
    parser.add_argument("--add", action="store_true", help="add to what the file holds")
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json")
    return parser


def report(options: argparse.Namespace) -> int:
    own_tests()
    from tests.cluster.chaos.planted import planted
    from tests.cluster.chaos.report import added, figures_of, markdown, rows_of

    with tempfile.TemporaryDirectory(prefix="rapid-chaos-") as folder:
        results: dict[str, list[Any]] = {}
        try:
            kill(options, Path(folder), results)
        except KeyboardInterrupt:
            print("Stopped: what was tried until then is written.", flush=True)
        wrong = planted(Path(folder)) if options.planted else {}
    rows = rows_of(results)
    every = [result for group in results.values() for result in group]
    figures = {
        where: figures_of(rows_of({where: group}), group) for where, group in results.items()
    }
    found: dict[str, Any] = {"rows": rows, "figures": figures, "seeds": [options.seed]}
    if options.planted:
        found["planted"] = {
            name: {
                "faults": result.finding.faults,
                "under-counted": result.finding.under_counted,
            }
            for name, result in wrong.items()
        }
    if options.costs:
        found["costs"] = costs()
        print(table(found["costs"], list(found["costs"][0])))
    if options.add and options.out.is_file():
        earlier = json.loads(options.out.read_text())
        found = {**added(earlier, found), "seeds": [*earlier["seeds"], options.seed]}
    write_json(options.out, found)
    print(markdown(found["rows"]))
    print(json.dumps(found["figures"], indent=2))
    return int(any(not (one.survived or one.stopped) for one in every))


if __name__ == "__main__":
    sys.exit(report(arguments().parse_args()))
