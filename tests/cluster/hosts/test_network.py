"""Hosts on one machine are apart, can be cut off and powered off, and leave nothing behind.

The lightest part of tests/cluster/hosts, without Ray. test_two_hosts.py sends a job that sums over
two hosts, test_jobs.py whole runs.
"""

import subprocess
import sys
import time
from collections.abc import Callable

from tests.cluster.hosts.network import Host, Network, network

PATIENCE_SEC = 240  # However busy the machine is.
LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("listens", flush=True)
    while True:
        server.accept()[0].sendall(socket.gethostname().encode())
"""
CALL = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[2])) as there:
    print(there.recv(100).decode())
"""


def _until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SEC
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _call(host: Host, address: str, patience_sec: int = PATIENCE_SEC) -> tuple[int, str]:
    """Returns the end of a call from this host, and what the other one said."""
    words = [sys.executable, "-c", CALL, address, str(patience_sec)]
    code = host.start(words, "call.log").wait()
    lines = host.said("call.log").splitlines()
    return code, lines[-1] if lines else ""


def test_a_host_that_is_cut_off_is_reached_no_more_and_the_others_are(net: Network) -> None:
    one, two = net.add("one"), net.add("two")
    for host in (one, two):
        host.start([sys.executable, "-c", LISTEN, host.address], "listen.log")
    _until(lambda: "listens" in one.said("listen.log") and "listens" in two.said("listen.log"))
    assert _call(two, one.address) == (0, "one")  # A name, and an address, of its own.
    one.cut_off()
    code, _ = _call(two, one.address, patience_sec=3)
    assert code != 0
    assert one.processes[0].poll() is None  # It goes on, and knows of nothing.
    assert _call(two, two.address) == (0, "two")


def test_power_off_ends_whatever_was_started_there_and_nothing_is_left(net: Network) -> None:
    host = net.add("one")
    host.start(["sh", "-c", "sleep 1000 & setsid sleep 1000 & echo up; wait"], "sleep.log")

    def living() -> list[str]:
        told = subprocess.run(
            ["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=True
        )
        return told.stdout.split()

    _until(lambda: len(living()) >= 4)  # The one above them, the shell, and two that sleep.
    host.power_off()
    _until(lambda: living() == [])


def test_a_network_that_is_left_leaves_no_name_behind() -> None:
    with network() as found:
        host = found.add("one")
        folder = host.folder
        assert host.namespace in _names("netns")
        assert host.cable in _names("link")
    assert host.namespace not in _names("netns")
    assert host.cable not in _names("link")
    assert not folder.exists()


def _names(kind: str) -> str:
    return subprocess.run(["ip", kind], capture_output=True, text=True, check=True).stdout
