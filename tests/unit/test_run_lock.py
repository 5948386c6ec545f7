"""Two processes do not write one run directory, and a dead one does not keep it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rapid_dist.errors import ConfigError
from rapid_dist.runtime.lock import LOCK, locked

HOLD = """
import sys, time
from rapid_dist.runtime.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_holder_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    named = f"in use by process {os.getpid()} on {socket.gethostname()}"
    with locked(str(tmp_path)):
        with pytest.raises(ConfigError, match=named) as caught, locked(str(tmp_path)):
            pass
        assert "\n" not in str(caught.value)
        with locked(str(tmp_path / "another")):
            pass
    with locked(str(tmp_path)):  # The refused one took nothing away, and left nothing behind.
        pass


def test_a_directory_is_free_again_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(str(tmp_path)):
        raise KeyboardInterrupt
    assert (tmp_path / LOCK).read_text() == ""
    with locked(str(tmp_path)):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_running_process_keeps_its_directory_and_a_killed_one_does_not(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid} on"), locked(str(tmp_path)):
            pass
        holder.send_signal(signal.SIGKILL)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid  # It could not tidy up.
    with locked(str(tmp_path)):
        pass


def test_what_another_node_has_left_is_not_taken_from_it(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"pid": 7, "host": "some-other-node"}))
    with pytest.raises(ConfigError, match="process 7 on some-other-node") as caught:
        locked(str(tmp_path)).__enter__()
    assert f"delete {LOCK}" in str(caught.value)
    (tmp_path / LOCK).unlink()
    with locked(str(tmp_path)):
        pass


@pytest.mark.parametrize("torn", ["", '{"pid": 7, "ho', "7"])
def test_a_torn_lock_is_nobodys(tmp_path: Path, torn: str) -> None:
    (tmp_path / LOCK).write_text(torn)
    with locked(str(tmp_path)):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_bucket_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with locked("s3://bucket/run"), locked("s3://bucket/run"):
        pass
    assert list(tmp_path.iterdir()) == []
