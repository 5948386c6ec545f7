"""The jobs that come after a run: its audit, its release, and a sweep, sent to a cluster's head.

Slow: an audit takes minutes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rapid_dist.privacy.ledger import Ledger
from tests.cluster.hosts.machines import Machines, await_started
from tests.cluster.hosts.network import network
from tests.cluster.hosts.runs import PATIENCE_SEC, options, read_json, steps

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]

# One point on public images; its trial is a group of workers, as that of a large sweep is.
SPACE = ["sweep.search=grid", "sweep.concurrent=1", "sweep.solve=noise_multiplier",
         "sweep.space={split.split_step: [300], privacy.steps: [3]}"]  # fmt: skip


@pytest.fixture
def machines() -> Iterator[Machines]:
    """A head with two CPUs, and the desk."""
    with network() as net:
        found = Machines(net, {})
        found.start_head(cpus=2)
        await_started(found.head)
        yield found


def test_audit_release_and_sweep_are_jobs_that_end_as_their_commands_do(
    machines: Machines, tmp_path: Path
) -> None:
    out, key = str(tmp_path / "runs" / "digits"), str(tmp_path / "key.pem")
    recipe = options(out, "privacy.steps=4", "runtime.workers=1", "release.synthetic=12")

    def sent(job: str, name: str, *words: str) -> tuple[int, str]:
        process = machines.ray_submit(f"{name}.log", "--", "python", f"jobs/{job}.py", *words)
        return process.wait(PATIENCE_SEC), machines.desk.said(f"{name}.log")

    make = [sys.executable, "-m", "rapid_dist.cli", "release", "keygen", "--key", key]
    assert machines.run(make, "keygen.log") == 0, machines.desk.said("keygen.log")
    signed = (*recipe, "--key", key, "--signer", "A. Officer")

    code, said = sent("pipeline", "pipeline", *recipe)
    assert code == 0, said
    code, said = sent("release", "too-early", *signed)
    assert code == 1, said  # Of Ray's own command, whatever ended the script.
    assert "failed with exit code 4" in said
    assert "There is no audit of this run" in said
    code, said = sent("audit", "audit", *recipe)
    assert code == 0, said
    assert read_json(out, "audit.json")["passed"] is True
    code, said = sent("release", "release", *signed)
    assert code == 0, said
    assert "@released" in said
    charged = steps(Ledger.open(tmp_path / "runs" / "ledger", "digits"))
    assert charged == 4

    where = str(tmp_path / "runs" / "sweep")
    code, said = sent("sweep", "sweep", *options(where, "runtime.workers=1", *SPACE))
    assert code == 0, said
    assert read_json(where, "sweep.json")["promise"] == "public_proxy"
    ledger = Ledger.open(tmp_path / "runs" / "ledger", "digits")
    assert steps(ledger) == charged  # A sweep on public images charges nothing.
