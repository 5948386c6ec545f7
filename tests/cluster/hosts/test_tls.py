"""Ray's TLS between hosts: nodes with a certificate talk, others do not, and nobody reads along.

Slow: a cluster on two hosts that are network namespaces, and the same one without TLS as the twin
in whose packets the planted words can be read.
"""

import contextlib
import runpy
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from rapid_dist.runtime.cluster import ENVIRONMENT
from tests.cluster.hosts.machines import AGENT_PORTS, await_started
from tests.cluster.hosts.network import Host, Network

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[3]
PORT = 6379
STORE_BYTES = str(80 * 2**20)
WAIT_SEC = 1500.0
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP = 263, 1  # Of packet(7); Python does not name them.
# On the head: Ray, and then drivers one after the other. They need its processes and its memory, so
# they cannot come from another namespace.
HEAD = """
"$@"
number=0
while :; do
    number=$((number + 1))
    until [ -e "$RD_OWN/go$number" ]; do sleep 0.3; done
    sh "$RD_OWN/go$number" > "$RD_OWN/driver$number.log" 2>&1
    echo $? > "$RD_OWN/code.tmp"
    mv "$RD_OWN/code.tmp" "$RD_OWN/code$number"
done
"""
# Joins as a run does, has a task done where there is a CPU, and says where that was.
DRIVER = """
import sys, ray
from rapid_dist.runtime.cluster import session
from rapid_dist.runtime.needs import Needs
with session(Needs(cpus=1)):
    where = ray.remote(num_cpus=1)(lambda word: (__import__("socket").gethostname(), word[::-1]))
    host, word = ray.get(where.remote(sys.argv[1]))
print("done on", host, word == sys.argv[1][::-1])
"""


class Reader:
    """Reads along on a network: every packet that its switch sees. Use it in ``with``."""

    def __init__(self, net: Network) -> None:
        self._switch = net._switch
        self._ended = threading.Event()
        self.seen = bytearray()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # The network was taken down.
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    self.seen += self._socket.recv(65536)

    def __enter__(self) -> "Reader":
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((self._switch, 0))
        # Promiscuous, or a switch hands up only what is for this machine and for everybody.
        everything = struct.pack("iHH8s", socket.if_nametoindex(self._switch), 1, 0, b"")
        self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, everything)
        self._socket.settimeout(0.2)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()


def _environment(token: str, tls: Mapping[str, str]) -> dict[str, str]:
    return {
        **ENVIRONMENT,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_raylet_start_wait_time_s": "1800",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        **tls,
    }


def _tls(folder: Path, host: Host) -> dict[str, str]:
    """Makes a host's own certificate, by the script that docs/security.md names."""
    runpy.run_path(str(ROOT / "cluster" / "certificates.py"))["make"](folder, [host.address])
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": str(folder / "ca.pem"),
        "RAY_TLS_SERVER_CERT": str(folder / f"{host.address}.pem"),
        "RAY_TLS_SERVER_KEY": str(folder / f"{host.address}.key"),
    }


def _start_head(net: Network, environment: Mapping[str, str], cpus: int = 0) -> Host:
    head = net.hosts[0]
    head.environment |= environment
    head.start(
        [
            *("sh", "-c", HEAD, "sh", "ray", "start", "--head", "--include-dashboard=false"),
            *("--num-cpus", str(cpus), "--node-ip-address", head.address, "--port", str(PORT)),
            *("--temp-dir", str(head.shared), "--object-store-memory", STORE_BYTES, *AGENT_PORTS),
        ],
        "ray.log",
    )
    await_started(head)
    return head


def _cluster(net: Network, folder: Path | None) -> tuple[Host, str]:
    """Starts a head without CPUs and a worker with one; with TLS if there is a folder for it."""
    token = secrets.token_hex(32)
    head, worker = net.add("head"), net.add("worker")
    own = [_environment(token, {} if folder is None else _tls(folder, h)) for h in (head, worker)]
    _start_head(net, own[0])
    worker.environment |= own[1]
    worker.start(
        [
            *("ray", "start", "--block", "--address", f"{head.address}:{PORT}", "--num-cpus", "1"),
            *("--node-ip-address", worker.address, "--object-store-memory", STORE_BYTES),
            *AGENT_PORTS,
        ],
        "ray.log",
    )
    await_started(worker)
    return head, token


def _drive(head: Host, word: str, number: int = 1, **environment: str) -> tuple[int, str]:
    """Runs a driver on the head and returns its exit code, and what it said."""
    told = {"RAY_ADDRESS": f"{head.address}:{PORT}", **environment}
    lines = [f"export {name}={value}" for name, value in told.items()]
    (head.folder / "driver.py").write_text(DRIVER)
    python = f"exec {sys.executable} {head.folder / 'driver.py'} {word}"
    (head.folder / "go.tmp").write_text("\n".join([*lines, python, ""]))
    (head.folder / "go.tmp").rename(head.folder / f"go{number}")
    deadline = time.monotonic() + WAIT_SEC
    while not (head.folder / f"code{number}").exists():
        assert time.monotonic() < deadline, head.said(f"driver{number}.log")
        time.sleep(0.3)
    return int((head.folder / f"code{number}").read_text()), head.said(f"driver{number}.log")


def _come_from_elsewhere(
    net: Network, head: Host, token: str, log: str, tls: Mapping[str, str]
) -> tuple[int, str]:
    """Runs a driver on a host that is no node, with the token."""
    stranger = next((host for host in net.hosts if host.name == "stranger"), None)
    stranger = stranger or net.add("stranger")
    own = {**_environment(token, tls), "RAY_ADDRESS": f"{head.address}:{PORT}"}
    code = stranger.start([sys.executable, "-c", DRIVER, "word"], log, own).wait(WAIT_SEC)
    return code, stranger.said(log)


def test_hosts_with_certificates_work_together_and_nobody_reads_along(
    net: Network, tmp_path: Path
) -> None:
    word = f"PLANTED{secrets.token_hex(16)}"
    with Reader(net) as reader:
        head, token = _cluster(net, tmp_path / "tls")
        code, said = _drive(head, word)
        assert code == 0, said
        assert "done on worker True" in said
    print(f"{len(reader.seen):,} bytes on the wire, with TLS")
    assert len(reader.seen) > 10_000
    assert word.encode() not in reader.seen
    assert token.encode() not in reader.seen  # Nor what lets somebody in.

    # The token alone lets nobody in, nor does somebody else's certificate.
    code, said = _come_from_elsewhere(net, head, token, "plain.log", {})
    assert code != 0
    assert "names no Ray cluster that answers" in said
    host = next(host for host in net.hosts if host.name == "stranger")
    other = _tls(tmp_path / "other", host)
    code, said = _come_from_elsewhere(net, head, token, "other.log", other)
    assert code != 0
    assert "names no Ray cluster that answers" in said


def test_without_tls_the_same_words_can_be_read_on_the_wire(net: Network) -> None:
    word = f"PLANTED{secrets.token_hex(16)}"
    with Reader(net) as reader:
        head, token = _cluster(net, None)
        code, said = _drive(head, word)
        assert code == 0, said
    print(f"{len(reader.seen):,} bytes on the wire, without TLS")
    assert word.encode() in reader.seen
    assert token.encode() in reader.seen


def test_a_cluster_that_asks_for_no_token_is_not_joined_over_a_network(net: Network) -> None:
    net.add("head")
    head = _start_head(net, {**_environment("", {}), "RAY_AUTH_MODE": "disabled"}, cpus=1)
    code, said = _drive(head, "word")
    assert code != 0
    assert "asks for no token" in said
    # To bring a token does not make it a cluster that asks for one.
    code, said = _drive(head, "word", 2, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    assert code != 0
    assert "asks for no token" in said
