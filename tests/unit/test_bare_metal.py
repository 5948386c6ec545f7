"""`cluster/up.sh`, with folders in the place of machines and a script in the place of Ray."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rapid_dist.runtime.cluster import HEAD_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
# What up.sh asks of other machines is done here, each with a home of its own. Ray is a script.
SSH = """#!/bin/sh
there=$(dirname "$0")/$1
shift
printf '%s\\n' "$(basename "$there") $*" >> "$there/../asked"
cd "$there" && HOME=$there exec sh -c "$*"
"""
RAY = """#!/bin/sh
printf '%s\\n' "$@" > told
env > environment
test ! -e broken || { echo "no port is free"; exit 1; }
echo "Ray runtime started."
exec sleep 600
"""
ADDRESSES = """#!/bin/sh
for number in 1 2 3; do
    echo "$number: eth9    inet 10.0.0.${number}0/24 brd 10.0.0.255 scope global eth9"
    echo "$number: eth$number    inet 10.0.0.$number/24 brd 10.0.0.255 scope global eth$number"
done
"""
HOSTS = ("10.0.0.1", "10.0.0.2", "10.0.0.3")


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Path]:
    """A folder a machine, reached by a command in the place of ssh; what was started is ended."""
    places = {tmp_path / "ssh": SSH}
    for host in HOSTS:
        tools = tmp_path / host / "rapid-dist" / ".venv" / "bin"
        places |= {tools / "ray": RAY, tools / "ip": ADDRESSES}
    for place, text in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755)
    yield tmp_path
    for pid in tmp_path.glob("*/rapid-dist/ray.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def _up(rack: Path, *words: str, told: str = "") -> tuple[int, str, list[str]]:
    """Runs up.sh; returns how that ended and the command lines that others could have read."""
    done = subprocess.run(
        ["sh", str(ROOT / "cluster" / "up.sh"), *words],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(rack),
            "RAPID_SSH": str(rack / "ssh"),
            "RAPID_ENV": told,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    asked = rack / "asked"
    return done.returncode, done.stderr, asked.read_text().splitlines() if asked.exists() else []


def _is_alive(pid: int) -> bool:
    try:
        return b"Z" not in Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False


def test_bare_metal_hosts_start_ray_with_token_and_environment_that_nobody_else_sees(rack) -> None:
    hosts = ("10.0.0.1", "10.0.0.2:train", "10.0.0.3:memory")
    old = rack / HOSTS[0] / ".ray" / "auth_token"  # That others can read, and may have opened.
    old.parent.mkdir()
    old.write_text("old")
    old.chmod(0o644)
    held = old.open()
    code, said, asked = _up(rack, *hosts, told="AWS_REGION=here AWS_SECRET_ACCESS_KEY=planted")
    assert code == 0, said
    token = (rack / ".ray" / "auth_token").read_text().strip()
    assert len(token) == 64
    assert held.read() == "old"
    held.close()
    assert not [line for line in asked if token in line or "planted" in line]
    for number, (host, pool) in enumerate(zip(HOSTS, ("head", "train", "memory"), strict=True), 1):
        home = rack / host
        for name in ("auth_token", "environment"):
            assert (home / ".ray" / name).stat().st_mode & 0o777 == 0o600
        assert (home / ".ray" / "auth_token").read_text() == token
        told = (home / "rapid-dist" / "told").read_text().split()
        assert told[0] == "start"
        assert {"--block", f"--node-ip-address={host}", f"--labels=pool={pool}"} <= set(told)
        as_head = {"--head", "--port=6379", "--dashboard-host=127.0.0.1", "--num-cpus=0"}
        assert set(told) >= (as_head if pool == "head" else {"--address=10.0.0.1:6379"})
        assert ("--head" in told) == (pool == "head")
        environment = (home / "rapid-dist" / "environment").read_text().splitlines()
        expected = {f"{name}={value}" for name, value in HEAD_ENVIRONMENT.items()}
        expected |= {"RAY_AUTH_MODE=token", "AWS_REGION=here", "AWS_SECRET_ACCESS_KEY=planted"}
        expected |= {f"{kind}_SOCKET_IFNAME=eth{number}" for kind in ("GLOO", "NCCL")}
        assert expected <= set(environment)
    code, said, _ = _up(rack, *hosts)
    assert code == 1
    assert "runs there already" in said


def test_bare_metal_hosts_are_left_by_the_process_that_was_started_there(rack) -> None:
    hosts = ("10.0.0.1", "10.0.0.2:train")
    assert _up(rack, *hosts)[0] == 0
    pids = [int((rack / host / "rapid-dist" / "ray.pid").read_text()) for host in HOSTS[:2]]
    assert all(_is_alive(pid) for pid in pids)
    (rack / "asked").unlink()
    code, said, asked = _up(rack, "--down", *hosts)
    assert code == 0, said
    assert [line.split()[0] for line in asked] == ["10.0.0.2", "10.0.0.1"]  # The head last.
    assert not [line for line in asked if "ray stop" in line]  # That would end everybody's Ray.
    deadline = time.monotonic() + 240
    while any(_is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_bare_metal_host_on_which_ray_does_not_start_is_told_of_with_its_reason(rack) -> None:
    (rack / "10.0.0.2" / "rapid-dist" / "broken").touch()
    code, said, _ = _up(rack, *HOSTS)
    assert code == 1
    assert "no port is free" in said
    assert "Ray did not start on 10.0.0.2" in said
    assert not (rack / "10.0.0.3" / "rapid-dist" / "told").exists()


def test_without_a_host_nothing_is_started(rack) -> None:
    code, said, asked = _up(rack)
    assert (code, asked) == (2, [])
    assert "HEAD" in said
