"""What killed processes leave is removed, and nothing that anybody is writing."""

import os
import subprocess
import sys
from pathlib import Path

from rapid_dist.leftovers import (
    LEFT_SEC,
    TEMPORARY,
    cleared,
    machine,
    remove_leftovers,
    temporary_name,
)

KILLED = """
import os, signal, sys
from rapid_dist.storage import LocalStorage
LocalStorage(sys.argv[1], sync=lambda opened: os.kill(os.getpid(), signal.SIGKILL)).write("a", b"b")
"""


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(TEMPORARY)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_command_leaves_nothing_of_workers_that_were_killed_while_it_ran(tmp_path: Path) -> None:
    with cleared([tmp_path]):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_is_writing_stays(tmp_path: Path) -> None:
    own, others = tmp_path / temporary_name(), tmp_path / f"{TEMPORARY}{machine()}-1-ab"
    for path in (own, others, tmp_path / "a.json"):
        path.touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {own.name, others.name, "a.json"}


def test_what_another_machine_was_writing_stays_for_a_day(tmp_path: Path) -> None:
    left = tmp_path / "below" / f"{TEMPORARY}00000000-1-ab"
    left.parent.mkdir()
    left.touch()
    written = os.stat(left).st_mtime
    remove_leftovers(tmp_path, clock=lambda: written + LEFT_SEC - 1)
    assert left.exists()
    remove_leftovers(tmp_path, clock=lambda: written + LEFT_SEC + 1)
    assert not left.exists()
