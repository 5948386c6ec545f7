"""Whether a cluster can do what a run will ask of it, found out in a minute and before the run.

Every check is something that has gone wrong on a cluster and was hard to read from what a run then
said. What a node says of itself is gathered by one actor a node; judging it needs no cluster.
"""

import contextlib
import os
import platform
import secrets
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rapid_dist.collective import Collective
from rapid_dist.errors import RapidError
from rapid_dist.installed import code_version
from rapid_dist.runtime.cluster import nodes
from rapid_dist.runtime.train_workers import RayWorkers
from rapid_dist.storage import AlreadyExists, open_storage

PACKAGES = ("ray", "torch", "numpy", "diffusers", "opacus", "dp-accounting", "mlflow")
MOST_SKEW_SEC = 2.0  # Entries of a ledger are ordered by number; times are read by people.
LEAST_SHM_GB = 0.2
SUM_SEC = 120.0
END_SEC = 30.0  # For a group that did not sum to have ended.
NUMBERS = 1_000_000  # Of the vector that is summed.


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    found: str
    remedy: str = ""  # What to do; empty where all is well.

    def told(self) -> str:
        word = "FIX " if self.remedy else "ok  "
        fix = f"\n          -> {self.remedy}" if self.remedy else ""
        return f"{word} {self.name:<12} {self.found}{fix}"


class Probe:
    """The actor: one a node. It takes no CPU, for the workers' are what is looked at."""

    def facts(self) -> dict[str, Any]:
        """Returns what a node says of itself."""
        return {
            "host": socket.gethostname(),
            "versions": _versions(),
            "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "shm_gb": shutil.disk_usage("/dev/shm").total / 2**30,
            "auth": os.environ.get("RAY_AUTH_MODE", ""),
            "open_token": _open_token(),
            "gloo": os.environ.get("GLOO_SOCKET_IFNAME", ""),
            "interfaces": [name for _, name in socket.if_nameindex() if name != "lo"],
        }

    def now(self) -> float:
        return time.time()

    def exchange(self, storage_uri: str, name: str, expected: bytes) -> str:
        """Reads what the driver has written and writes a file beside it; "" if all went well."""
        try:
            storage = open_storage(storage_uri)
            if storage.read(name) != expected:
                return "reads other bytes than were written"
            storage.write(f"{name}-{socket.gethostname()}-{os.getpid()}", expected)
        except Exception as error:  # Whatever a storage raises, it is the answer.
            return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return ""

    def create(self, storage_uri: str, name: str) -> bool:
        """Whether this node is the one that created a name which all create at once."""
        try:
            open_storage(storage_uri).create(name, os.urandom(16))
        except AlreadyExists:
            return False
        return True

    def reaches(self, host: str, port: int) -> bool:
        """Whether a port of another node is open to this one."""
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=3).close()
            return True
        return False


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "rapid-dist": code_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]  # +cpu and +cu130 compute alike.
    for name in ("faiss-cpu", "faiss-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            found["faiss"] = version(name)
    return found


def _open_token() -> str:
    """Returns the token's file if others can read it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    with contextlib.suppress(OSError):
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return str(path)
    return ""


def look(
    storage_uri: str,
    *,
    workers: int,
    threads: int = 1,
    device: str = "cpu",
    labels: Mapping[str, str] | None = None,
    seconds: float = SUM_SEC,
) -> list[Check]:
    """Returns all checks of the cluster that is connected. Needs a storage that it may write to.

    Args:
      storage_uri: where runs will be written; files are made below ``smoke/`` and removed.
      workers: of the all-reduce, as ``runtime.workers``.
      labels: of the nodes that the workers are put on, as ``runtime.worker_labels``.
      seconds: for the group to start and to have summed.
    """
    alive = [node for node in nodes() if node["Alive"]]
    actor: Any = ray.remote(num_cpus=0)(Probe)
    probes: dict[str, Any] = {
        node["NodeManagerAddress"]: actor.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in alive
    }
    facts: dict[str, dict[str, Any]] = {
        name: ray.get(probe.facts.remote()) for name, probe in probes.items()
    }
    checks = [
        check_versions({name: fact["versions"] for name, fact in facts.items()}),
        check_devices({n["NodeManagerAddress"]: n["Resources"].get("GPU", 0.0) for n in alive},
                      {name: fact["cuda"] for name, fact in facts.items()}),
        check_tokens(facts),
        check_memory({name: fact["shm_gb"] for name, fact in facts.items()}),
        check_clocks({name: _skew(probe) for name, probe in probes.items()}),
        check_dashboard(_head(alive), probes),
        *_storage_checks(storage_uri, probes),
        check_sum(workers, threads, device, facts, labels=labels, seconds=seconds),
    ]  # fmt: skip
    for probe in probes.values():
        ray.kill(probe)
    return checks


def check_versions(versions: Mapping[str, Mapping[str, str]]) -> Check:
    """All nodes run the same code and the same libraries."""
    names = sorted({name for found in versions.values() for name in found})
    differing = {
        name: sorted({found.get(name, "none") for found in versions.values()}) for name in names
    }
    odd = {name: found for name, found in differing.items() if len(found) > 1}
    if odd:
        told = "; ".join(f"{name} {' and '.join(found)}" for name, found in odd.items())
        return Check(
            name="versions",
            found=told,
            remedy="Start all nodes from one image, and submit with --working-dir of one checkout.",
        )
    first = next(iter(versions.values()))
    told = ", ".join(
        f"{name} {first[name]}" for name in ("python", "ray", "torch") if name in first
    )
    return Check(name="versions", found=f"{len(versions)} nodes alike: {told}")


def check_devices(promised: Mapping[str, float], seen: Mapping[str, Sequence[str]]) -> Check:
    """What Ray hands out as a GPU, torch sees."""
    odd = [name for name, count in promised.items() if count > len(seen[name])]
    total = sum(promised.values())
    if odd:
        return Check(
            name="devices",
            found=f"Ray offers GPUs on {', '.join(odd)} that torch cannot use there",
            remedy="Use cluster/Dockerfile.gpu there, the NVIDIA container runtime, and a driver "
            "as new as torch's CUDA (580 for CUDA 13; on AWS the machine's image brings it).",
        )
    kinds = sorted({kind for name in seen for kind in seen[name]})
    return Check(name="devices", found=f"{total:g} GPUs{': ' if kinds else ''}{', '.join(kinds)}")


def check_tokens(facts: Mapping[str, Mapping[str, Any]]) -> Check:
    """Every node asks for a token, and keeps it to itself."""
    without = [name for name, fact in facts.items() if fact["auth"] != "token"]
    if without:
        return Check(
            name="token",
            found=f"RAY_AUTH_MODE is not token on {', '.join(without)}",
            remedy="export RAY_AUTH_MODE=token before every `ray start`, with one token for all.",
        )
    readable = [
        f"{name}:{fact['open_token']}" for name, fact in facts.items() if fact["open_token"]
    ]
    if readable:
        return Check(
            name="token", found=f"others can read {', '.join(readable)}", remedy="chmod 600 it."
        )
    return Check(name="token", found="asked for on every node, and readable by its owner alone")


def check_memory(shm_gb: Mapping[str, float]) -> Check:
    """Ray's object store fits the shared memory; Docker's own default is 64 MB."""
    small = {name: size for name, size in shm_gb.items() if size < LEAST_SHM_GB}
    if small:
        told = ", ".join(f"{name} has {size * 1024:.0f} MB" for name, size in small.items())
        return Check(name="memory", found=f"/dev/shm: {told}", remedy="docker run --shm-size=8g.")
    return Check(name="memory", found=f"/dev/shm: {min(shm_gb.values()):.1f} GB at least")


def check_clocks(skews: Mapping[str, float]) -> Check:
    """Clocks agree; ``skews`` are seconds against the driver's."""
    worst = max(skews, key=lambda name: abs(skews[name]))
    told = f"{worst} differs most, by {skews[worst]:+.2f} s"
    if abs(skews[worst]) > MOST_SKEW_SEC:
        return Check(
            name="clock", found=told, remedy="Run chrony or systemd-timesyncd on all nodes."
        )
    return Check(name="clock", found=told)


def check_dashboard(head: str, probes: Mapping[str, Any]) -> Check:
    """The jobs API, which runs whatever it is told, listens to the head alone."""
    others = {name: probe for name, probe in probes.items() if name != head}
    port = int(os.environ.get("RAPID_DASHBOARD_PORT", "8265"))
    answers = [n for n, probe in others.items() if ray.get(probe.reaches.remote(head, port))]
    if answers:
        return Check(
            name="dashboard",
            found=f"port {port} of {head} is open to {answers[0]}",
            remedy="Start the head with --dashboard-host=127.0.0.1 and come by a tunnel. (On "
            "Kubernetes it has to listen; there a NetworkPolicy is the wall.)",
        )
    return Check(name="dashboard", found=f"closed to {len(others)} other nodes")


def _skew(probe: Any) -> float:
    """Returns a node's clock against ours, without its answer's way: the fastest of five."""
    best = (float("inf"), 0.0)
    for _ in range(5):
        before = time.time()
        there: float = ray.get(probe.now.remote())
        after = time.time()
        best = min(best, (after - before, there - (before + after) / 2))
    return best[1]


def _head(alive: Sequence[Mapping[str, Any]]) -> str:
    heads = [n for n in alive if "node:__internal_head__" in n["Resources"]]
    return str((heads or alive)[0]["NodeManagerAddress"])


def _storage_checks(storage_uri: str, probes: Mapping[str, Any]) -> Iterator[Check]:
    """Every node reads and writes the same storage; of all that create one name, one does."""
    name, content = f"smoke/{secrets.token_hex(8)}", os.urandom(64)
    remedy = (
        "Use s3:// or a folder that all nodes mount, and give every node the same AWS_... "
        "environment."
    )
    try:
        storage = open_storage(storage_uri)
        storage.write(name, content)
    except Exception as error:
        told = f"{storage_uri}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        yield Check(name="storage", found=told, remedy=remedy)
        return
    try:
        said = {
            n: ray.get(p.exchange.remote(storage_uri, name, content)) for n, p in probes.items()
        }
        failed = [f"{node}: {answer}" for node, answer in said.items() if answer]
        written = len(storage.list(f"{name}-"))
        if not failed and written < len(probes):
            failed = [f"{len(probes) - written} nodes wrote where the driver does not see it"]
        yield Check(
            name="storage",
            found="; ".join(failed) or f"{storage_uri}: read and written by {len(probes)} nodes",
            remedy=remedy if failed else "",
        )
        if failed:
            return
        tries = [p.create.remote(storage_uri, f"{name}.once") for p in probes.values()]
        created = sum(ray.get(tries))
        with contextlib.suppress(AlreadyExists):
            storage.create(f"{name}.once", b"again")
            created += 1
        yield Check(
            name="ledger",
            found=f"{created} of {len(probes) + 1} created one name",
            remedy=""
            if created == 1
            else "The store ignores If-None-Match, so two runs could take one ledger entry. Put "
            "runtime.ledger_dir on another.",
        )
    finally:
        for left in storage.list("smoke/"):
            if left.startswith(name):
                storage.delete(left)


def check_sum(
    workers: int,
    threads: int,
    device: str,
    facts: Mapping[str, Mapping[str, Any]],
    *,
    labels: Mapping[str, str] | None = None,
    seconds: float = SUM_SEC,
) -> Check:
    """A group of workers sums a vector, as every step of training does."""
    reports: list[dict[str, float]] = []
    group = RayWorkers(
        threads=threads,
        max_failures=0,
        device=device,
        labels=labels,
        on_report=lambda name, figures: reports.append(figures),
    )
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            group.run(partial(_sum_task, device), name="smoke", num_workers=workers)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    several = {name: fact["interfaces"] for name, fact in facts.items() if not fact["gloo"]}
    remedy = "Set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) on every node to the interface that "
    remedy += f"they share; nodes without it have {several}." if several else "they share."
    if thread.is_alive():
        give_up = time.monotonic() + END_SEC
        while thread.is_alive() and time.monotonic() < give_up:
            group.release()  # Or to leave Ray would end this process, before anything is told.
            thread.join(1)
        return Check(name="all-reduce", found=f"no sum after {seconds:g} s", remedy=remedy)
    if outcome:
        told = str(outcome[0]) if isinstance(outcome[0], RapidError) else type(outcome[0]).__name__
        return Check(name="all-reduce", found=told, remedy=remedy)
    took = reports[-1]["seconds"] if reports else float("nan")
    return Check(
        name="all-reduce",
        found=f"{NUMBERS:,} numbers over {workers} workers on {device} in {1000 * took:.0f} ms",
    )


def _sum_task(device: str, collective: Collective, report: Callable[..., None]) -> None:
    """Sums twice: the first sum also connects."""
    for _ in range(2):
        flat = torch.full((NUMBERS,), float(collective.rank + 1), device=device)
        began = time.perf_counter()
        collective.sum_(flat)
        expected = collective.world_size * (collective.world_size + 1) / 2
        if float(flat[-1]) != expected:
            raise RapidError(f"The sum is {float(flat[-1])} and should be {expected}.")
        took = time.perf_counter() - began
    report({"step": 1, "steps": 1, "seconds": took})
    collective.barrier()
