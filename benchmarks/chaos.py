"""Kills and stops small private runs at every named moment, and says what became of them.

    python benchmarks/chaos.py
    python benchmarks/chaos.py --process 0 --s3 0 --ray 0 --costs --add

Every fault happens once, to a run of its own; then the same command is given until the run is
done or has said in one line why not. What is held against the ledger is what the run's own
processes did (tests/cluster/chaos/). Ctrl-C writes what was tried until then. With ``--lost``: how
much later a run is for a worker that was killed; with ``--costs``, on a quiet machine: what ledger
and checkpoints cost of a step. All of it goes into the file, and its tables into docs/results.md.
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
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from output import RESULTS, in_document, table, write_json

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "results.md"
PACED = "Ray, 2 workers, paced"
FACTS = ("command", "machine", "versions")  # That write_json adds.
LOST_INTERVAL_SEC = 18.0  # Between two checkpoints of a run whose workers are killed: digits' own.


def own_tests() -> None:
    """Has ``tests`` be this checkout's: somebody else's may lie in site-packages."""
    package = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules.setdefault("tests", package)


def kill(options: argparse.Namespace, folder: Path, found: dict[str, list[Any]]) -> None:
    """Lets all faults happen, and puts their results into ``found``, by where they happened."""
    from tests.cluster.chaos import killer, on_ray, points
    from tests.cluster.chaos.runs import EVERY, SmallRun, warm

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
    for number, fault in enumerate(
        killer.faults_of(points.POINTS, tuple(options.signals), options.process, options.seed)
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

    for number in range(options.ray):
        fault = on_ray.FAULTS[(options.first + number) % len(on_ray.FAULTS)]
        say("Ray, 2 workers", on_ray.survive_on_ray(fault, place(number, "ray")))
    if options.ray_s3:
        with _bucket() as bucket:
            for number, fault in enumerate(on_ray.FAULTS_ON_S3[: options.ray_s3]):
                where = f"{bucket}/ray-{number}"
                found_there = on_ray.survive_on_ray(fault, place(number, "ray-s3"), where=where)
                say("Ray, 2 workers, on S3", found_there)
    for number in range(options.lost):  # At the end of each step between two checkpoints.
        nth = EVERY + 1 + number % EVERY
        fault = killer.Fault(target="worker", signal="KILL", moment="noise, then update", nth=nth)
        pace = LOST_INTERVAL_SEC / EVERY
        say(PACED, on_ray.survive_on_ray(fault, place(number, "lost"), pace_sec=pace))


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


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--process", type=int, default=180, help="faults of a plain process")
    parser.add_argument("--signals", nargs="+", default=["KILL", "STOP", "TERM"], help="of those")
    parser.add_argument("--s3", type=int, default=20, help="of one whose run is in a bucket")
    parser.add_argument("--ray", type=int, default=21, help="on Ray, a cluster each")
    parser.add_argument("--ray-s3", type=int, default=5, help="of those whose run is in a bucket")
    parser.add_argument("--first", type=int, default=0, help="place of the first one on Ray")
    parser.add_argument("--lost", type=int, default=0, help="workers killed in a paced run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--costs", action="store_true", help="measure ledger and checkpoints too")
    parser.add_argument("--planted", action="store_true", help="try what has to be found as well")
    parser.add_argument("--add", action="store_true", help="add to what the file holds")
    parser.add_argument("--document", action="store_true", help="tables from the file, no fault")
    parser.add_argument("--merge", type=Path, help="add another file's faults to it, no new one")
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json")
    return parser


def tried(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Returns what came of all that was asked for, and whether nothing of it is wrong."""
    from tests.cluster.chaos.planted import planted
    from tests.cluster.chaos.report import figures_of, rows_of

    is_well = True
    with tempfile.TemporaryDirectory(prefix="rapid-chaos-") as folder:
        results: dict[str, list[Any]] = {}
        try:
            kill(options, Path(folder), results)
        except KeyboardInterrupt:
            print("Stopped: what was tried until then is written.", flush=True)
        except Exception:
            traceback.print_exc()
            is_well = False
        wrong = planted(Path(folder)) if options.planted else {}
    found: dict[str, Any] = {
        "rows": rows_of(results),
        "figures": {name: figures_of(rows_of({name: of}), of) for name, of in results.items()},
        "seeds": [options.seed] if results else [],
    }
    if options.planted:
        found["planted"] = {
            name: {
                "faults": result.finding.faults,
                "under-counted": result.finding.under_counted,
            }
            for name, result in wrong.items()
        }
    if options.costs:
        from safety_costs import costs

        found["costs"] = costs()
    if options.lost:
        found["paced"] = paced(results.get(PACED, []))
    every = [result for group in results.values() for result in group]
    return found, is_well and all(one.survived or one.stopped for one in every)


def paced(results: list[Any]) -> list[dict[str, float]]:
    """Returns of each worker that was killed what it has cost: steps, seconds, and of a step."""
    return [
        {
            "repeated": result.finding.repeated,
            "lost seconds": result.finding.lost_sec,
            "step seconds": result.finding.step_sec,
        }
        for result in results
        if result.finding.lost_sec is not None and result.finding.step_sec is not None
    ]


def report(options: argparse.Namespace) -> int:
    own_tests()
    from safety_costs import COLUMNS, lost, usual_intervals

    from tests.cluster.chaos.report import added, by_signal, markdown

    is_well = True
    if options.document:
        found = json.loads(options.out.read_text())
    elif options.merge:
        other = json.loads(options.merge.read_text())
        told = {name: value for name, value in other.items() if name not in FACTS}
        found = added(json.loads(options.out.read_text()), told)
    else:
        found, is_well = tried(options)
        print(markdown(found["rows"]))
        print(json.dumps(found["figures"], indent=2))
        if options.add and options.out.is_file():
            found = added(json.loads(options.out.read_text()), found)
    intervals = {row["recipe"]: row["interval seconds"] for row in found.get("costs", [])}
    if "paced" in found:
        found["lost"] = lost(found["paced"], intervals or usual_intervals())
    if not options.document:
        write_json(options.out, found)
    tables = [markdown(by_signal(found["rows"]))]
    tables += [table(found[name], of) for name, of in COLUMNS.items() if found.get(name)]
    print("\n\n".join(tables[1:]))
    if options.out == RESULTS / "chaos.json":
        DOCUMENT.write_text(in_document(DOCUMENT.read_text(), "chaos", "\n\n".join(tables)))
    return int(not is_well)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # In the background shells ignore it.
    sys.exit(report(arguments().parse_args()))
