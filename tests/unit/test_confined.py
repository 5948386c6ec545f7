"""A process with private content leaves no core dump and no temporary file, however it ends."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rapid_dist.confined import PREFIX, private_folder, remove_left_behind, write_own

# Holds a private file until it is ended; argv: the way. What it says first is where the file is.
HOLD = """
import signal, sys, time
from rapid_dist.cli.main import main
from rapid_dist.confined import private_folder, write_own
import typer
app = typer.Typer(pretty_exceptions_enable=False)

@app.command()
def hold(way: str) -> None:
    with private_folder() as folder:
        write_own(folder / "scans" / "a.png", b"private")
        print(folder, flush=True)
        if way == "error":
            raise ValueError("private")
        time.sleep(600)

# A shell that puts tests into the background turns Ctrl-C off for all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(app=app))
"""


def _left(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if "rapid" in path.name)


@pytest.mark.parametrize(
    ("way", "number", "left"),
    [
        ("error", 0, 0),
        ("wait", signal.SIGINT, 0),
        ("wait", signal.SIGTERM, 0),
        ("wait", signal.SIGKILL, 1),  # The twin: nobody is asked, and the search finds the folder.
    ],
)
def test_a_private_folder_is_gone_however_its_process_ends(tmp_path, way, number, left) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, way],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.parent == tmp_path
    if number:
        assert remove_left_behind(tmp_path) == []  # It is in use.
        process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == (-signal.SIGKILL if left else 1)
    assert "private" not in said.replace(PREFIX, "")
    assert len(_left(tmp_path)) == left
    assert len(remove_left_behind(tmp_path)) == left  # By the next process that needs a folder.
    assert _left(tmp_path) == []


def test_private_files_and_folders_are_their_owners_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = os.umask(0)
    try:
        with private_folder() as folder:
            write_own(folder / "train" / "benign" / "a.png", b"x")
            found = {path: path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]}
    finally:
        os.umask(before)
    assert {mode for path, mode in found.items() if path.suffix} == {0o600}
    assert {mode for path, mode in found.items() if not path.suffix} == {0o700}
    assert _left(tmp_path) == []


def test_a_private_file_replaces_none_and_follows_no_link(tmp_path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_own(tmp_path / "a", b"x")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_of_that_name_that_is_a_link_is_left_alone(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "mine")
    assert remove_left_behind(tmp_path) == []
    assert (tmp_path / "mine").is_dir()


# Says the limits before and after a process comes by a key, or by private records.
LIMITS = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
before = resource.getrlimit(resource.RLIMIT_CORE)
if sys.argv[1] == "key":
    from rapid_dist.privacy.keys import SecretKey
    SecretKey.generate()
elif sys.argv[1] == "received":
    from rapid_dist.privacy.keys import SecretKey
    SecretKey.from_bytes(bytes(32))
elif sys.argv[1] == "records":
    from rapid_dist.data.sources import PrivateSource, load_private
    kind = {"source": "npz", "path": "/nowhere.npz"}
    try:
        load_private(PrivateSource(**kind, name="d", num_records=9, num_classes=2, size=8))
    except ValueError:
        pass  # They are not there, which is only found out by then.
print(json.dumps([before, resource.getrlimit(resource.RLIMIT_CORE)]))
"""


@pytest.mark.parametrize("holds", ["nothing", "key", "received", "records"])
def test_a_process_that_holds_private_content_dumps_no_core(holds: str) -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine allows no core dumps")
    done = subprocess.run(
        [sys.executable, "-c", LIMITS, holds], capture_output=True, text=True, check=True
    )
    before, after = json.loads(done.stdout)
    assert before != [0, 0]
    assert after == (before if holds == "nothing" else [0, 0])


def test_two_folders_in_use_leave_each_other_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with private_folder() as one, private_folder() as two:
        assert one.is_dir()
        assert two.is_dir()
        assert remove_left_behind(tmp_path) == []
