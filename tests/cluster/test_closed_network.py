"""A run connects to nothing that it was not given: no packet of it leaves the machine.

Seen from the kernel's side, for Ray's own processes are not Python's. The twins try to get out, by
a name, by an address, and as a vendor does that is not told to be silent, and are caught.
"""

import sys
from pathlib import Path

import pytest

from rapid_dist.environment import SILENT
from tests.closed_network import Closed, closed, why_not

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "data.public.0.count=300", "network.widths=[16, 16]", "pretrain.steps=2", "contrast.steps=2",
    "knowledge_base.clusters=20", "adapt.steps=2", "privacy.steps=3", "privacy.expected_batch=32",
    "sampling.count=24", "sampling.late_intervals=2", "sampling.early_intervals=2",
    "evaluation.controls=false", "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2",
]  # fmt: skip
BY_NAME = """
import urllib.request
try:
    urllib.request.urlopen("http://telemetry.example.org/", timeout=2)
except OSError as error:
    print(type(error).__name__)
"""
BY_ADDRESS = """
import socket
try:
    socket.create_connection(("192.0.2.7", 443), timeout=1)
except OSError as error:
    print(type(error).__name__)
"""
# MLflow asks for its telemetry's configuration as soon as it has something to report.
TELEMETRY = """
import sys, time, mlflow
client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{sys.argv[1]}/a.db")
client.create_experiment("e")
time.sleep(3)
"""


# Starts a cluster as a run does, and waits until its head has done what it does about statistics.
HEAD = """
import sys, time
from pathlib import Path
import ray
from rapid_dist.runtime import cluster
if sys.argv[1] == "loud":
    cluster.ASKS_NO_CLOUD.clear()
with cluster.session(cluster.Needs(cpus=1)):
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for turn in range(3000):
        told = [path.read_text(errors="replace") for path in logs.glob("dashboard*")]
        if any("Usage reporting is disabled." in text for text in told):
            sys.exit(0)
        time.sleep(0.3)
sys.exit("never told")
"""


@pytest.fixture(autouse=True)
def needs_a_network() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


def _environment(**changes: str) -> dict[str, str]:
    """As a user's shell that has decided nothing, without what quietens pytest's vendors."""
    loud = dict.fromkeys([*SILENT, "CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION"], "")
    return {**loud, "PYTHONPATH": str(ROOT), **changes}


def _python(code: str, folder: Path, *words: str, **environment: str) -> Closed:
    return closed([sys.executable, "-c", code, *words], folder, _environment(**environment))


def test_what_asks_for_a_name_or_goes_to_an_address_is_caught(tmp_path: Path) -> None:
    asked = _python(BY_NAME, tmp_path)
    assert "udp 10.255.255.3:53 telemetry.example.org" in asked.targets
    went = _python(BY_ADDRESS, tmp_path)
    assert went.targets == ("tcp 192.0.2.7:443",)


def test_what_stays_on_the_machine_is_nobodys_business(tmp_path: Path) -> None:
    code = """
import socket
with socket.create_server(("10.255.255.1", 5000)) as server:
    socket.create_connection(("10.255.255.1", 5000)).close()
    socket.create_connection(("10.255.255.1", 5000)).close()
socket.gethostbyaddr("10.255.255.1")
"""
    found = _python(code, tmp_path)
    assert (found.code, found.targets) == (0, ())


def _run(backend: str, folder: Path) -> Closed:
    changes = [*TINY, f"runtime.backend={backend}"]
    options = [word for change in changes for word in ("--set", change)]
    out = str(folder / "runs" / "digits")
    words = ["run", "--recipe", "digits", *options, "--out", out]
    return closed([sys.executable, "-m", "rapid_dist.cli", *words], folder, _environment())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", ["process", "ray"])
def test_a_whole_run_sends_nothing_to_anybody(backend: str, tmp_path: Path) -> None:
    found = _run(backend, tmp_path)
    assert found.code == 0, found.stderr
    assert (tmp_path / "runs" / "digits" / "summary.json").exists()
    # Torch asks for the names of nodes whose workers meet, and does not look into /etc/hosts.
    own_name = {"udp 10.255.255.3:53 1.255.255.10.in-addr.arpa"}
    assert set(found.targets) <= (own_name if backend == "ray" else set())


@pytest.mark.slow
def test_telemetry_that_is_not_switched_off_would_be_caught(tmp_path: Path) -> None:
    loud = _python(TELEMETRY, tmp_path, str(tmp_path), MLFLOW_DISABLE_TELEMETRY="false")
    quiet = _python(TELEMETRY, tmp_path, str(tmp_path), MLFLOW_DISABLE_TELEMETRY="true")
    assert quiet.targets == ()
    assert [target for target in loud.targets if "mlflow" in target]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_head_node_asks_no_cloud_where_it_is_though_ray_would(tmp_path: Path) -> None:
    quiet = _python(HEAD, tmp_path, "quiet")
    assert (quiet.code, quiet.targets) == (0, ()), quiet.stderr
    loud = _python(HEAD, tmp_path, "loud")
    assert loud.code == 0, loud.stderr
    assert "tcp 169.254.169.254:80" in loud.targets
