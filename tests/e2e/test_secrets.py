"""Planted secrets are in nothing that a whole tiny run says, writes or records.

Not those of the environment, not a password in the tracking server's address, not the keys of
noise and batches. Each run is a process of its own, so that its every word is known; what it leaves
is searched in every form that ``tests/planted_secrets.py`` knows.
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rapid_dist.cli.main import main
from rapid_dist.runtime.services import Services
from tests.planted_secrets import forms_of, planted_environment, planted_run, search
from tests.servers import services as services

PASSWORD = "planted-password-0a1b2c3d4e5f"


@pytest.mark.slow
def test_a_run_with_a_server_tells_no_secret_of_its_environment_and_no_key(
    tmp_path: Path, services: Services
) -> None:
    server = services.tracking_uri.replace("://", f"://trainer:{PASSWORD}@")
    environment = {**planted_environment(), "MLFLOW_TRACKING_URI": server}
    run = planted_run(tmp_path, environment, planted=[PASSWORD])
    assert run.done.returncode == 0, run.done.stderr
    assert len(run.keys) >= 2  # Of the histogram, and of an attempt.
    registry = Path(services.folder)
    assert run.searched(registry).bytes_found == 0
    summary = json.loads((tmp_path / "runs" / "digits" / "summary.json").read_text())
    assert summary["recipe"] == "digits"
    # The twin: what somebody tells MLflow of a secret is found there.
    client = MlflowClient(tracking_uri=services.tracking_uri)
    experiment = client.get_experiment_by_name("rapid-dist")
    assert experiment is not None
    tracked = client.search_runs([experiment.experiment_id])[0].info.run_id
    client.set_tag(tracked, "note", f"used {PASSWORD}")
    assert run.searched(registry).bytes_found >= len(PASSWORD)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_a_run_on_ray_tells_no_secret_in_its_session_logs_either(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="rd", dir="/tmp") as session:  # Short, for sockets.
        run = planted_run(tmp_path, planted_environment(), session=session)
        assert run.done.returncode == 0, run.done.stderr
        assert len(run.keys) >= 2  # Made by workers.
        assert list(Path(session).rglob("raylet.out"))
        found = run.searched(Path(session))
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
