"""A Ray cluster over the hosts of a network, started as docs/operations.md says, and a desk beside.

The head holds the drivers, workers one training worker each, the desk submits. The dashboard
listens to the head alone, so jobs go through a tunnel; every node has the token in a file of its
own. The object stores are small: eight of them are to fit on one machine.
"""

import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rapid_dist.runtime.cluster import ENVIRONMENT, HEAD_ENVIRONMENT
from tests.cluster.hosts.network import Host, Network

ROOT = Path(__file__).resolve().parents[3]
RELAY = Path(__file__).with_name("relay.py")
PORT, JOBS_PORT = 6379, 8265
JOBS = f"http://127.0.0.1:{JOBS_PORT}"
STORE_BYTES = str(80 * 2**20)  # The least that Ray takes.
# Chosen here: otherwise the raylet waits 15 s for its agents to say which they have taken, and then
# gives up. Starved of CPU they take longer.
AGENT_PORTS = (
    *("--dashboard-agent-grpc-port", "8266", "--dashboard-agent-listen-port", "8267"),
    *("--metrics-export-port", "8268", "--runtime-env-agent-port", "8269"),
)
START_SEC = 1800.0
_LIST = f"""
import json, sys
from ray.job_submission import JobSubmissionClient
jobs = [job for job in JobSubmissionClient("{JOBS}").list_jobs() if job.submission_id]
told = [{{"metadata": job.metadata or {{}}, "status": job.status.value}} for job in jobs]
json.dump(told, open(sys.argv[1], "w"))
"""


class Machines:
    """Starts Ray on hosts and commands on a desk."""

    def __init__(self, network: Network, environment: Mapping[str, str]) -> None:
        self.network = network
        self._token = secrets.token_hex(32)
        self._environment = {
            **ENVIRONMENT,
            **environment,
            "RAY_AUTH_MODE": "token",
            # Many nodes start on one machine.
            "RAY_raylet_start_wait_time_s": "1800",
            "RAY_agent_register_timeout_ms": "900000",
            # Ray's own is 15: whatever else runs on this machine would go before the workers.
            "RAY_worker_niceness": "0",
            # All hosts share one memory, with whatever else runs here: none may kill for it.
            "RAY_memory_monitor_refresh_ms": "0",
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.head = self._new("head")
        self.desk = self._new("desk")
        self.checkout = self.desk.folder / "checkout"  # What is sent to the cluster.
        self.check_out("rapid_dist", "jobs", "cluster")

    def check_out(self, *parts: str) -> None:
        """Gives the desk a copy of these folders of the repository."""
        unwanted = shutil.ignore_patterns("__pycache__", "results")
        for part in parts:
            shutil.copytree(ROOT / part, self.checkout / part, ignore=unwanted)

    def _new(self, name: str) -> Host:
        host = self.network.add(name)
        token = host.folder / "home" / "token"
        token.touch(mode=0o600)
        token.write_text(self._token)
        host.environment |= {**self._environment, "RAY_AUTH_TOKEN_PATH": str(token)}
        return host

    def start_head(self, *, cpus: int = 0) -> None:
        self.head.start(
            [
                *("ray", "start", "--head", "--block", "--node-ip-address", self.head.address),
                *("--port", str(PORT), "--dashboard-host", "127.0.0.1"),
                *("--dashboard-port", str(JOBS_PORT), "--num-cpus", str(cpus), "--temp-dir"),
                *(str(self.head.shared), "--object-store-memory", STORE_BYTES, *AGENT_PORTS),
            ],
            "ray.log",
            HEAD_ENVIRONMENT,
        )
        self._tunnel()

    def start_worker(self, name: str, *, cpus: int = 1, labels: str = "pool=cpu") -> Host:
        """Adds a host that joins the cluster; does not wait for it."""
        host = self._new(name)
        host.start(
            [
                *("ray", "start", "--block", "--address", f"{self.head.address}:{PORT}"),
                *("--node-ip-address", host.address, "--num-cpus", str(cpus)),
                *("--labels", labels, "--object-store-memory", STORE_BYTES, *AGENT_PORTS),
            ],
            "ray.log",
        )
        return host

    def _tunnel(self) -> None:
        socket = str(self.network.shared.parent / "tunnel")
        python = sys.executable
        self.head.start([python, str(RELAY), "connect", socket, str(JOBS_PORT)], "relay.log")
        self.desk.start([python, str(RELAY), "listen", str(JOBS_PORT), socket], "relay.log")

    def command(
        self, words: list[str], log: str, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Starts a command of this checkout at the desk."""
        return self.desk.start(
            ["sh", "-c", 'cd "$0" && exec "$@"', str(self.checkout), *words],
            log,
            {"PYTHONPATH": str(self.checkout), **(environment or {})},
        )

    def run(self, words: list[str], log: str) -> int:
        """Runs a command at the desk and returns its exit code."""
        return self.command(words, log).wait()

    def submit(self, log: str, *words: str) -> "subprocess.Popen[bytes]":
        return self.command([sys.executable, "-m", "rapid_dist.cli", "submit", *words], log)

    def ray_submit(self, log: str, *words: str) -> "subprocess.Popen[bytes]":
        """Submits by Ray's own command; ``words`` are its options, ``--``, and the script's."""
        own = ["ray", "job", "submit", "--address", JOBS, "--working-dir", "."]
        return self.command([*own, *words], log)

    def jobs(self) -> str:
        """Returns what the jobs API says of all submitted jobs, as JSON."""
        place = self.desk.folder / "jobs.json"
        assert self.run([sys.executable, "-c", _LIST, str(place)], "jobs.log") == 0
        return place.read_text()


def await_started(*hosts: Host) -> None:
    """Waits until Ray says on each of these hosts that it has joined the cluster."""
    deadline = time.monotonic() + START_SEC
    for host in hosts:
        while "Ray runtime started" not in host.said("ray.log"):
            ended = [process.args for process in host.processes if process.poll() is not None]
            assert not ended, host.said("ray.log")
            assert time.monotonic() < deadline, host.said("ray.log")
            time.sleep(0.2)
