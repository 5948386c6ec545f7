"""Jobs sent to a cluster of several hosts through a tunnel, with S3 and MLflow over the network.

Slow: a dozen processes of Ray, MLflow and S3 on one machine.
"""

import json
import sys

import pytest

from rapid_dist.runtime.services import Services
from tests.cluster.hosts.machines import JOBS, Machines
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

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

POOR = ("privacy.steps=null", "privacy.noise_multiplier=0.7", "privacy.reserve_steps=5000")
Site = tuple[Machines, Services]


def _statuses(services: Services, out: str) -> list[str]:
    """Returns how MLflow's runs of a run directory ended, children among them."""
    client = client_of(services)
    found = client.get_experiment_by_name("rapid-dist")
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    return sorted(run.info.status for run in runs if run.data.tags.get("rapid_dist.out") == out)


def _smoke(machines: Machines, storage: str, log: str) -> tuple[int, str]:
    words = ("--storage", storage, "--workers", "2", "--seconds", "900")
    job = machines.ray_submit(log, "--", "python", "cluster/smoke.py", *words)
    return job.wait(PATIENCE_SEC), machines.desk.said(log)


def test_the_smoke_check_finds_what_a_run_would_trip_over(site: Site) -> None:
    machines, _ = site
    code, said = _smoke(machines, "s3://rapid/runs", "smoke.log")
    assert code == 0, said
    assert "checks are well" in said
    assert "1,000,000 numbers over 2 workers" in said
    own = str(machines.head.shared / "runs")  # The same path on every host, and another folder.
    code, said = _smoke(machines, own, "smoke-local.log")
    assert code == 1, said
    assert "FIX  storage" in said


@pytest.mark.parametrize(
    ("name", "out", "changes", "code", "said"),
    [
        ("place", "s3://no-such-bucket/runs/digits", (), 2, "does not answer"),
        ("room", "s3://rapid/room/digits", ("runtime.workers=9",), 2, "needs 9 CPUs, the cluster"),
        ("budget", "s3://rapid/budget/digits", POOR, 3, "of which reserve_steps=5000 leaves none"),
    ],
)
def test_the_exit_code_of_a_job_is_its_senders(
    site: Site, name: str, out: str, changes: tuple[str, ...], code: int, said: str
) -> None:
    machines, _ = site
    job = machines.submit(f"{name}.log", "run", *options(out, *changes))
    log = machines.desk
    assert job.wait(PATIENCE_SEC) == code, log.said(f"{name}.log")
    assert said in log.said(f"{name}.log")


def test_every_stage_by_its_own_script_makes_the_run_that_one_job_makes(site: Site) -> None:
    machines, services = site
    out = "s3://rapid/scripts/digits"
    for stage in ("pretrain", "index", "train", "generate", "evaluate"):
        words = ("python", f"jobs/{stage}.py", *options(out, "privacy.steps=4"))
        job = machines.ray_submit(f"{stage}.log", "--", *words)
        assert job.wait(PATIENCE_SEC) == 0, machines.desk.said(f"{stage}.log")
    summary = read_json(out, "summary.json")
    assert summary["registry"]["aliases"] == ["candidate"]  # type: ignore[index]
    assert steps(ledger_of(out)) == 4
    assert set(_statuses(services, out)) == {"FINISHED"}


def test_a_job_that_is_stopped_leaves_a_run_that_the_same_submission_goes_on_with(
    site: Site,
) -> None:
    machines, services = site
    out, desk = "s3://rapid/stopped/digits", machines.desk
    words = ("--submission-id", "stopped", "--", "python", "jobs/pipeline.py", *options(out))
    job = machines.ray_submit("script.log", *words)
    ledger = ledger_of(out)
    until(lambda: steps(ledger) >= 6, job, desk, "script.log")
    stop = ["ray", "job", "stop", "--address", JOBS, "stopped"]
    assert machines.run(stop, "stop.log") == 0, desk.said("stop.log")
    job.wait(PATIENCE_SEC)
    stopped_at = steps(ledger)
    assert stopped_at < STEPS
    # It had the time to close its books: those of stages that were done before, and its own.
    assert set(_statuses(services, out)) == {"FINISHED", "KILLED"}

    again = machines.submit("again.log", "run", *options(out))
    assert again.wait(PATIENCE_SEC) == 0, desk.said("again.log")
    assert "pretrain       done before" in desk.said("again.log")
    ledger.refresh()
    ledger.verify()
    assert STEPS <= steps(ledger) <= STEPS + 5  # From its checkpoint: it did not begin anew.
    told = [one for one in json.loads(machines.jobs()) if one["metadata"].get("rapid_dist.run")]
    names = {one["metadata"]["rapid_dist.run"] for one in told}
    assert set(ledger.runs()) <= names

    status = [sys.executable, "-m", "rapid_dist.cli", "status", out]
    assert machines.run(status, "status.log") == 0
    assert "done" in desk.said("status.log")
