"""The run that is sent to the hosts, as small as it can be, and how to look at it from outside."""

import json
import subprocess
import time
from collections.abc import Callable

from rapid_dist.config import load_recipe
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.runtime.run_directory import open_ledger
from rapid_dist.storage import open_storage
from tests.cluster.hosts.network import Host

STEPS = 40
TINY = [
    "data.public.0.count=300",
    "network.widths=[16, 16]",
    "pretrain.steps=6",
    "contrast.steps=2",
    "knowledge_base.clusters=20",
    "adapt.steps=2",
    f"privacy.steps={STEPS}",
    f"privacy.reserve_steps={STEPS}",
    "privacy.expected_batch=32",
    "train.checkpoint_every=5",
    "sampling.count=40",
    "sampling.late_intervals=2",
    "sampling.early_intervals=2",
    "evaluation.controls=false",
    "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2",
]
PATIENCE_SEC = 1800.0


def options(out: str, *more: str) -> list[str]:
    """Returns the options of a command of the tiny recipe."""
    changes = [word for change in (*TINY, *more) for word in ("--set", change)]
    return ["--recipe", "digits", *changes, "--out", out]


def ledger_of(out: str) -> Ledger:
    return open_ledger(load_recipe("digits"), out)


def steps(ledger: Ledger, kind: str = "step") -> int:
    """Returns how many entries of a kind are in a ledger by now."""
    ledger.refresh()
    return sum(entry.kind == kind for entry in ledger.entries())


def read_json(out: str, name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(open_storage(out).read(name))
    return content


def until(
    seen: Callable[[], bool], process: "subprocess.Popen[bytes]", host: Host, log: str
) -> None:
    """Waits for something to be seen while a process of a host runs."""
    deadline = time.monotonic() + PATIENCE_SEC
    while not seen():
        assert process.poll() is None, f"ended too early: {host.said(log)}"
        assert time.monotonic() < deadline, f"never came: {host.said(log)}"
        time.sleep(0.2)
