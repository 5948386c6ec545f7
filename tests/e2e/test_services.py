"""`make services`: a stack keeps its data over a restart, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rapid_dist.errors import ConfigError
from rapid_dist.runtime import services
from rapid_dist.runtime.services import running

PATIENCE_SEC = 600.0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b"Z" not in Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]


def test_what_was_stored_is_there_after_a_restart_and_no_server_is_left(tmp_path: Path) -> None:
    with running(tmp_path, mirror_sec=3600) as first:  # Only the copy at the end.
        first.s3().put_object(Bucket="rapid", Key="runs/a/config.yaml", Body=b"seed: 1")
        first.s3().put_object(Bucket="rapid", Key="runs/a/old", Body=b"")
        first.s3().delete_object(Bucket="rapid", Key="runs/a/old")
        client = MlflowClient(tracking_uri=first.tracking_uri)
        run = client.create_run(client.create_experiment("e")).info.run_id
        client.log_text(run, "hello", "note.txt")
        with pytest.raises(ConfigError, match="in use by process"), running(tmp_path):
            pass
    assert not any(_is_alive(pid) for pid in first.pids.values())
    with running(tmp_path) as second:
        kept = second.s3().list_objects_v2(Bucket="rapid")["Contents"]
        assert [item["Key"] for item in kept] == ["runs/a/config.yaml"]
        client = MlflowClient(tracking_uri=second.tracking_uri)
        found = Path(client.download_artifacts(run, "note.txt", str(tmp_path)))
        assert found.read_text() == "hello"


def test_a_stack_is_stopped_from_another_shell_also_when_its_owner_was_killed(
    tmp_path: Path,
) -> None:
    for kill in (False, True):
        log = tmp_path / "said.txt"
        with log.open("wb") as out:
            owner = subprocess.Popen(
                [sys.executable, "-m", "rapid_dist.runtime.services", "--folder", str(tmp_path)],
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + PATIENCE_SEC
        while b"services-stop" not in log.read_bytes():
            assert owner.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        state = services.state_of(tmp_path)
        urllib.request.urlopen(f"{state['tracking_uri']}/health", timeout=60).close()
        if kill:
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            assert all(_is_alive(pid) for pid in state["pids"].values())
        assert services.stop(tmp_path)
        if not kill:
            assert owner.wait(PATIENCE_SEC) == 0
        assert not any(_is_alive(pid) for pid in state["pids"].values())
        assert not services.stop(tmp_path)
