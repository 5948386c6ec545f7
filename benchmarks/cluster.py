"""A cluster of hosts on this machine: what Ray costs a step, several hosts, and a start.

    sudo python benchmarks/cluster.py

The hosts are those of tests/cluster/hosts: network namespaces with their own addresses, a worker of
one thread each, S3 over the network. They share this machine's cores, so more hosts are no faster
here; what is compared is work for a second of processor time, of all workers together. It knows
nothing of waiting: for that there is the cost model of benchmarks/scaling.py. Ratios are of pairs:
as many plain processes as there are workers, side by side and without a sum, and the workers take
the same steps in turn, by the same clock.

``standing`` is the processor time that Ray's own processes take on an idle node, a second.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.modules["tests"] = ModuleType("tests")  # Another package may be called so in site-packages.
sys.modules["tests"].__path__ = [str(ROOT / "tests")]

from output import RESULTS, table, write_json  # noqa: E402

from rapid_dist.runtime.services import running  # noqa: E402
from tests.cluster.hosts.machines import Machines, await_started  # noqa: E402
from tests.cluster.hosts.network import Host, network, why_not  # noqa: E402
from tests.cluster.hosts.runs import options  # noqa: E402

COLUMNS = [
    "hosts", "plain processor", "ray processor", "processor ratio", "work per processor second",
    "plain seconds", "ray seconds", "wall ratio",
]  # fmt: skip
IDLE_SEC = 30.0
TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(host: Host) -> float:
    """Processor time that what runs on a host now has taken, ended children of it included."""
    listed = subprocess.run(
        ["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=True
    )
    total = 0.0
    for pid in listed.stdout.split():
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended since.
        total += sum(int(word) for word in words[11:15]) / TICKS
    return total


def standing(hosts: list[Host]) -> dict[str, float]:
    """Returns the processor time a second of idle nodes, by name."""
    before = {host.name: processor_seconds(host) for host in hosts}
    began = time.monotonic()
    time.sleep(IDLE_SEC)
    took = time.monotonic() - began
    return {host.name: (processor_seconds(host) - before[host.name]) / took for host in hosts}


def first_step(machines: Machines, name: str) -> dict[str, float]:
    """Seconds from `rapid-dist submit` to the first step that its log shows, and to the end."""
    log = f"{name}.log"
    began = time.monotonic()
    job = machines.submit(log, "run", *options(f"s3://rapid/{name}/digits"))

    def until(seen: Callable[[str], bool]) -> float:
        while not seen(machines.desk.said(log)):
            if job.poll() not in (None, 0):
                raise SystemExit(machines.desk.said(log))
            time.sleep(0.1)
        return time.monotonic() - began

    return {
        "to job": until(lambda said: "\njob  " in said),
        "to first step": until(lambda said: "pretrain  " in said),
        "whole run": until(lambda said: job.poll() == 0),
    }


def steps(machines: Machines, asked: argparse.Namespace) -> list[dict[str, Any]]:
    machines.check_out("benchmarks")
    words = ["python", "benchmarks/cluster_steps.py", "--storage", "s3://rapid/steps"]
    for name in ("network", "batch", "steps", "repeats"):
        words += [f"--{name}", str(getattr(asked, name))]
    code = machines.ray_submit("steps.log", "--", *words).wait()
    said = machines.desk.said("steps.log")
    if code:
        raise SystemExit(said)
    line = next(line for line in reversed(said.splitlines()) if line.lstrip().startswith("[{"))
    found: list[dict[str, Any]] = json.loads(line)
    return found


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with network() as net, running(folder, host=net.services) as services:
        machines = Machines(net, services.environment)
        machines.start_head()
        await_started(machines.head)
        workers = [machines.start_worker(name) for name in ("one", "two", "three")]
        await_started(*workers)
        if "standing" in asked.parts:
            found["standing"] = standing([machines.head, *workers])
        if "start" in asked.parts:
            found["start"] = [first_step(machines, f"start{turn}") for turn in range(asked.starts)]
        if "steps" in asked.parts:
            found["steps"] = steps(machines, asked)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["standing", "start", "steps"])
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--network", default="digits")
    parser.add_argument("--batch", type=int, default=512, help="records expected in a step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "cluster.json")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # The hosts end with us.
    reason = why_not()
    if reason:
        raise SystemExit(f"cluster: {reason}")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked, Path(folder))
    earlier = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    kept = {part: earlier[part] for part in ("standing", "start", "steps") if part in earlier}
    asks = {"network": asked.network, "batch": asked.batch}
    cores = len(os.sched_getaffinity(0))
    write_json(asked.out, {**kept, **found, **asks, "load before": load, "cores used": cores})
    if "steps" in found:
        print(table(found["steps"], COLUMNS))
    print(json.dumps({name: found.get(name) for name in ("standing", "start")}, indent=2))


if __name__ == "__main__":
    main()
