"""A node that is lost in a build or between two searches changes neither bytes nor answers."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("node_loss.py")
PATIENT = {"RAY_raylet_start_wait_time_s": "240"}  # Four nodes start on one machine.


@pytest.mark.ray
@pytest.mark.slow
def test_a_lost_node_changes_neither_bytes_nor_answers(tmp_path: Path) -> None:
    folder = tempfile.mkdtemp(prefix="rd", dir="/tmp")  # Short, for Ray's sockets lie there.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, **PATIENT},
        capture_output=True,
        text=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["nodes"] == 2  # Both built,
    assert found["lost_at"] < found["plans"]  # and one was lost on the way.
    assert found["same_bytes"]
    assert found["same_before"]
    assert found["same_after"]
