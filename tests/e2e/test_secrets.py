"""Planted secrets are in nothing that a whole tiny run says, writes or records.

Not those of the environment, not a password in the tracking server's address, not the keys of
noise and batches. Each run is a process of its own, so that its every word is known; what it leaves
is searched in every form that ``tests/planted_secrets.py`` knows.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rapid_dist.cli.main import main
from rapid_dist.runtime.services import Services
from tests.planted_secrets import Search, forms_of, planted_environment, search
from tests.servers import services as services

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "planted-password-0a1b2c3d4e5f"
TINY = [
    "data.public.0.count=300", "network.widths=[16, 16]", "pretrain.steps=2", "contrast.steps=2",
    "knowledge_base.clusters=20", "adapt.steps=2", "privacy.steps=3", "privacy.expected_batch=32",
    "sampling.count=24", "sampling.late_intervals=2", "sampling.early_intervals=2",
    "evaluation.controls=false", "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2",
]  # fmt: skip
# argv: where keys are written down, where Ray's session is to stay ("" = no Ray), the command line.
RUN = """
import json, sys
from rapid_dist.privacy.keys import SecretKey
keys, make = [], SecretKey.generate.__func__

def generate(cls):
    key = make(cls)
    keys.append(key.reveal().hex())
    return key

SecretKey.generate = classmethod(generate)
if sys.argv[2]:
    import os, ray
    from rapid_dist.runtime import cluster
    cluster._prepare_environment(local=True)
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[2])
from rapid_dist.cli.main import main
code = main(sys.argv[3:])
open(sys.argv[1], "w").write(json.dumps(keys))
sys.exit(code)
"""


def _run(
    folder: Path, backend: str, environment: dict[str, str], session: str = ""
) -> tuple["subprocess.CompletedProcess[str]", list[bytes]]:
    changes = [*TINY, f"runtime.backend={backend}", "runtime.workers=1"]
    options = [word for change in changes for word in ("--set", change)]
    command = ["run", "--recipe", "digits", *options, "--out", str(folder / "runs" / "digits")]
    keys = folder / "keys.json"
    (folder / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(keys), session, *command, "--json"],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done, [bytes.fromhex(key) for key in json.loads(keys.read_text())]


def _searched(
    folder: Path, done: "subprocess.CompletedProcess[str]", planted: list[bytes], *more: Path
) -> Search:
    texts = {"stdout": done.stdout, "stderr": done.stderr}
    found = search(planted, texts, [folder / "runs", folder / "home", *more])
    print(found.told())
    return found


@pytest.mark.slow
def test_a_run_with_a_server_tells_no_secret_of_its_environment_and_no_key(
    tmp_path: Path, services: Services
) -> None:
    environment = planted_environment()
    server = services.tracking_uri.replace("://", f"://trainer:{PASSWORD}@")
    done, keys = _run(tmp_path, "process", {**environment, "MLFLOW_TRACKING_URI": server})
    planted = [*(value.encode() for value in environment.values()), PASSWORD.encode(), *keys]
    assert keys
    registry = Path(services.folder)
    assert _searched(tmp_path, done, planted, registry).bytes_found == 0
    summary = json.loads((tmp_path / "runs" / "digits" / "summary.json").read_text())
    assert summary["recipe"] == "digits"
    # The twin: what somebody tells MLflow of a secret is found there.
    client = MlflowClient(tracking_uri=services.tracking_uri)
    experiment = client.get_experiment_by_name("rapid-dist")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id])[0].info.run_id
    client.set_tag(run, "note", f"used {PASSWORD}")
    assert _searched(tmp_path, done, planted, registry).bytes_found >= len(PASSWORD)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_a_run_on_ray_tells_no_secret_in_its_session_logs_either(tmp_path: Path) -> None:
    environment = planted_environment()
    with tempfile.TemporaryDirectory(prefix="rd", dir="/tmp") as session:  # Short, for sockets.
        done, keys = _run(tmp_path, "ray", environment, session)
        planted = [*(value.encode() for value in environment.values()), *keys]
        assert list(Path(session).rglob("raylet.out"))
        found = _searched(tmp_path, done, planted, Path(session))
    assert found.bytes_found == 0
    assert found.places > 20


def test_a_secret_that_is_put_where_none_belongs_is_found(tmp_path: Path, monkeypatch) -> None:
    """The twin of both: a recipe that names an experiment by a secret shows it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(["run", "--recipe", "digits", "--dry-run", "--set",
                     f"tracking.experiment={PASSWORD}"])  # fmt: skip
    assert code == 0
    assert search([PASSWORD.encode()], {"stdout": said.getvalue()}, []).where == ("stdout",)


@pytest.mark.parametrize("form", sorted(forms_of(PASSWORD.encode())))
def test_a_secret_is_found_in_every_form(form: bytes, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.out").write_bytes(b"x=" + form + b"\n")
    found = search([PASSWORD.encode()], {}, [tmp_path])
    assert found.bytes_found >= len(form)
    assert search([b"another-secret-of-that-length"], {}, [tmp_path]).bytes_found == 0
