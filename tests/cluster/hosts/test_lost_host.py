"""A host is cut off in the middle of private training while another one joins.

Slow: a dozen processes of Ray, MLflow and S3 on one machine. What it shows is what a rack would
show, but for real distance and real clocks.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rapid_dist.runtime.services import Services
from tests.cluster.hosts.machines import Machines
from tests.cluster.hosts.runs import (
    PATIENCE_SEC,
    STEPS,
    ledger_of,
    options,
    read_json,
    steps,
    until,
)
from tests.servers import client_of

# Whole runs over the network: not within one test's usual time.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

PUBLIC = ("public denoiser", "extractor")  # Stages of public data alone, as lineage names them.
MECHANISM = ("delta", "max_grad_norm", "noise_multiplier", "relation", "sample_rate", "unit")


def test_a_run_that_loses_a_host_ends_with_whole_books_and_the_same_public_stages(
    site: tuple[Machines, Services], tmp_path: Path
) -> None:
    machines, services = site
    out = "s3://rapid/lost/digits"
    began = time.monotonic()
    job = machines.submit("job.log", "run", *options(out))
    desk = machines.desk
    until(lambda: "pretrain       " in desk.said("job.log"), job, desk, "job.log")
    print(f"submit to first step: {time.monotonic() - began:.1f} s")
    ledger = ledger_of(out)
    until(lambda: steps(ledger) >= 4, job, desk, "job.log")
    two = next(host for host in machines.network.hosts if host.name == "two")
    two.cut_off()
    cut, cut_at, attempts = time.monotonic(), steps(ledger), steps(ledger, "attempt")
    machines.start_worker("three")
    until(lambda: steps(ledger, "attempt") > attempts, job, desk, "job.log")
    print(f"cut off at step {cut_at}; training again {time.monotonic() - cut:.1f} s later")
    code = job.wait(PATIENCE_SEC)
    print(f"whole run: {time.monotonic() - began:.1f} s")
    assert code == 0, desk.said("job.log")
    assert cut_at < STEPS

    ledger.verify()
    charged = steps(ledger)
    assert STEPS < charged <= 2 * STEPS  # What the loop repeated was charged again.

    alone = str(tmp_path / "alone" / "digits")
    done = subprocess.run(
        [sys.executable, "-m", "rapid_dist.cli", "run", *options(alone)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here, there = read_json(alone, "lineage.json"), read_json(out, "lineage.json")
    assert here["knowledge_base"] == there["knowledge_base"]
    for part in PUBLIC:
        assert here["artifacts"][part] == there["artifacts"][part]  # type: ignore[index]
    mine, theirs = (read_json(place, "summary.json")["privacy"] for place in (alone, out))
    for name in MECHANISM:
        assert mine[name] == theirs[name]  # type: ignore[index]
    jobs = json.loads(machines.jobs())
    (job_info,) = [one for one in jobs if one["metadata"]["rapid_dist.out"] == out]
    assert job_info["metadata"]["rapid_dist.run"] == ledger.runs()[0]
    assert client_of(services).search_registered_models()
