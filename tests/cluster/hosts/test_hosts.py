"""Runs on several hosts: jobs through a tunnel, S3 and MLflow over the network, a lost host.

Slow: eight processes' worth of Ray, MLflow and S3 on one machine. What a run of it shows is what a
rack would show, but for real distance and real clocks.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rapid_dist.config import load_recipe
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.runtime.run_directory import open_ledger
from rapid_dist.runtime.services import Services, running
from rapid_dist.storage import open_storage
from tests.cluster.hosts.machines import Machines, await_started
from tests.cluster.hosts.network import network, why_not
from tests.servers import client_of

# Whole runs over the network, one after the other: not within one test's usual time.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

TINY = [
    "data.public.0.count=300",
    "network.widths=[16, 16]",
    "pretrain.steps=6",
    "contrast.steps=2",
    "knowledge_base.clusters=20",
    "adapt.steps=2",
    "privacy.steps=40",
    "privacy.reserve_steps=40",
    "privacy.expected_batch=32",
    "train.checkpoint_every=5",
    "sampling.count=40",
    "sampling.late_intervals=2",
    "sampling.early_intervals=2",
    "evaluation.controls=false",
    "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2",
]
PUBLIC = ("public denoiser", "extractor")  # Stages of public data alone, as lineage names them.
PATIENCE_SEC = 1800.0


def _options(out: str) -> list[str]:
    changes = [word for change in TINY for word in ("--set", change)]
    return ["--recipe", "digits", *changes, "--out", out]


def _until(seen: Callable[[], bool], process: "subprocess.Popen[bytes]", said: object) -> None:
    deadline = time.monotonic() + PATIENCE_SEC
    while not seen():
        assert process.poll() is None, f"ended too early: {said}"
        assert time.monotonic() < deadline, f"never came: {said}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machines, Services]]:
    """A head and two workers with a CPU each, a desk, and this machine's S3 and MLflow."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("services")
    with (
        pytest.MonkeyPatch.context() as patch,
        network() as net,
        running(folder, host=net.services) as services,
    ):
        for name, value in services.environment.items():
            patch.setenv(name, value)
        machines = Machines(net, services.environment)
        machines.start_head()
        await_started(machines.head)
        await_started(machines.start_worker("one"), machines.start_worker("two"))
        yield machines, services


def _steps(ledger: Ledger) -> int:
    ledger.refresh()
    return sum(entry.kind == "step" for entry in ledger.entries())


def _lineage(out: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(open_storage(out).read("lineage.json"))
    return content


def test_a_run_that_loses_a_host_ends_with_whole_books_and_the_same_public_stages(
    site: tuple[Machines, Services], tmp_path: Path
) -> None:
    machines, services = site
    out = "s3://rapid/lost/digits"
    began = time.monotonic()
    job = machines.submit("job.log", "run", *_options(out))
    desk = machines.desk

    def has_stepped() -> bool:
        return "pretrain       " in desk.said("job.log")

    _until(has_stepped, job, desk)
    print(f"submit to first step: {time.monotonic() - began:.1f} s")
    ledger = open_ledger(load_recipe("digits"), out)
    _until(lambda: _steps(ledger) >= 4, job, desk)
    two = next(host for host in machines.network.hosts if host.name == "two")
    two.cut_off()
    cut_at = _steps(ledger)
    machines.start_worker("three")
    code = job.wait(PATIENCE_SEC)
    print(f"whole run: {time.monotonic() - began:.1f} s; cut off at step {cut_at}")
    assert code == 0, desk.said("job.log")
    assert cut_at < 40

    ledger.refresh()
    ledger.verify()
    attempts = [entry for entry in ledger.entries() if entry.kind == "attempt"]
    assert len(attempts) >= 2  # The loop began again,
    steps = _steps(ledger)
    assert 40 <= steps <= 80  # and what it repeated was charged again.

    alone = tmp_path / "alone" / "digits"
    done = subprocess.run(
        [sys.executable, "-m", "rapid_dist.cli", "run", *_options(str(alone))],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here, there = _lineage(str(alone)), _lineage(out)
    assert here["knowledge_base"] == there["knowledge_base"]
    for part in PUBLIC:
        assert here["artifacts"][part] == there["artifacts"][part]  # type: ignore[index]
    (job_info,) = json.loads(_jobs(machines))
    assert job_info["metadata"]["rapid_dist.run"] == ledger.runs()[0]
    assert job_info["metadata"]["rapid_dist.out"] == out
    client = client_of(services)
    assert client.search_registered_models()


def _jobs(machines: Machines) -> str:
    """Returns what the jobs API says of all jobs, as JSON."""
    code = (
        "import json, sys\n"
        "from ray.job_submission import JobSubmissionClient\n"
        "jobs = JobSubmissionClient('http://127.0.0.1:8265').list_jobs()\n"
        "told = [{'metadata': j.metadata, 'status': j.status.value} for j in jobs\n"
        "        if j.submission_id]\n"
        "json.dump(told, open(sys.argv[1], 'w'))\n"
    )
    place = machines.desk.folder / "jobs.json"
    assert machines.run([sys.executable, "-c", code, str(place)], "jobs.log") == 0
    return place.read_text()


def test_a_job_by_rays_own_command_that_is_stopped_leaves_a_run_to_go_on_with(
    site: tuple[Machines, Services],
) -> None:
    machines, services = site
    out = "s3://rapid/stopped/digits"
    words = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--working-dir", "."]
    ids = ("--submission-id", "stopped")
    job = machines.command(
        [*words, *ids, "--", "python", "jobs/pipeline.py", *_options(out)],
        "script.log",
    )
    ledger = open_ledger(load_recipe("digits"), out)
    desk = machines.desk
    _until(lambda: _steps(ledger) >= 6, job, desk)
    stop = ["ray", "job", "stop", "--address", "http://127.0.0.1:8265", "stopped"]
    assert machines.run(stop, "stop.log") == 0, desk.said("stop.log")
    job.wait(PATIENCE_SEC)
    stopped_at = _steps(ledger)
    assert stopped_at < 40
    client = client_of(services)
    found = client.get_experiment_by_name("rapid-dist")
    assert found is not None
    statuses = {
        run.info.status
        for run in client.search_runs([found.experiment_id])
        if run.data.tags.get("rapid_dist.out") == out
    }
    assert statuses == {"KILLED"}  # It had the time to close what it had open.

    again = machines.submit("again.log", "run", *_options(out))
    assert again.wait(PATIENCE_SEC) == 0, desk.said("again.log")
    ledger.refresh()
    ledger.verify()
    assert _steps(ledger) <= 40 + 5  # It went on from its checkpoint; it did not begin anew.


def test_the_smoke_check_finds_what_a_run_would_trip_over(site: tuple[Machines, Services]) -> None:
    machines, _ = site

    def smoke(storage: str, log: str) -> tuple[int, str]:
        words = [
            *("ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--working-dir", "."),
            *("--", "python", "cluster/smoke.py", "--storage", storage, "--workers", "2"),
            *("--seconds", "900"),
        ]
        code = machines.run(words, log)
        return code, machines.desk.said(log)

    code, said = smoke("s3://rapid/runs", "smoke.log")
    assert code == 0, said
    assert "checks are well" in said
    assert "1,000,000 numbers over 2 workers" in said
    own = str(machines.head.shared / "runs")  # The same path on every host, and another folder.
    code, said = smoke(own, "smoke-local.log")
    assert code == 1, said
    assert "FIX  storage" in said


def test_the_exit_code_of_a_job_is_its_senders(site: tuple[Machines, Services]) -> None:
    machines, _ = site
    out = "s3://no-such-bucket/runs/digits"
    job = machines.submit("refused.log", "train", *_options(out))
    assert job.wait(PATIENCE_SEC) == 2, machines.desk.said("refused.log")
    assert "does not answer" in machines.desk.said("refused.log")
