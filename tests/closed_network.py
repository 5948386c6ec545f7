"""A network that leads nowhere, in which every packet that would leave is written down.

A process runs in a network namespace of its own, whose only cable ends in nothing. It has an
address, a default route and a name server, so that whoever wants out gets as far as the cable: any
process, by any library, in any language. What is sent to itself does not pass there, and its own
address and name are in its table of hosts, as every machine's are.

    python closed_network.py FOUND.json COMMAND...      # inside; `closed` below begins it

Needs root.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ADDRESS, GATEWAY, NAME_SERVER = "10.255.255.1", "10.255.255.2", "10.255.255.3"
_SETUP = f"""
set -e
echo "nameserver {NAME_SERVER}" > "$CLOSED_RESOLV"
mount --bind "$CLOSED_RESOLV" /etc/resolv.conf
printf "127.0.0.1 localhost\\n{ADDRESS} $(hostname)\\n" > "$CLOSED_HOSTS"
mount --bind "$CLOSED_HOSTS" /etc/hosts
ip link set lo up
ip link add out type veth peer name nowhere
for one in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $one || true; done
ip addr add {ADDRESS}/24 dev out
ip link set out up
ip link set nowhere up
for one in {GATEWAY} {NAME_SERVER}; do ip neigh add $one lladdr 02:00:00:00:00:02 dev out; done
ip route add default via {GATEWAY} dev out
exec "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Closed:
    """What came of a command in a closed network."""

    code: int
    stdout: str
    stderr: str
    targets: tuple[str, ...]  # Of packets that would have left: "udp 10.255.255.3:53 example.org".


def why_not() -> str | None:
    """Returns why this machine cannot have one, or nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a closed network needs Linux and root"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c",
         "ip link add out type veth peer name nowhere && mount -t tmpfs none /mnt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return None if tried.returncode == 0 else f"no closed network here: {tried.stderr.strip()}"


def closed(
    words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Closed:
    """Runs a command to its end, and that of all that it has started.

    Args:
      environment: beside this process's; what is empty there is taken away.
    """
    found, resolv, hosts = (folder / name for name in ("targets.json", "resolv.conf", "hosts"))
    told = {"CLOSED_RESOLV": str(resolv), "CLOSED_HOSTS": str(hosts)}
    own = {**os.environ, **(environment or {}), **told}
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
         "sh", "-c", _SETUP, "sh", sys.executable, __file__, str(found), *words],
        env={name: value for name, value in own.items() if value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    targets = tuple(json.loads(found.read_text())) if found.exists() else ("not watched",)
    return Closed(code=done.returncode, stdout=done.stdout, stderr=done.stderr, targets=targets)


def target_of(frame: bytes) -> str | None:
    """Returns where an Ethernet frame leads, and the name that it asks for if it asks for one."""
    if frame[12:14] != b"\x08\x00":  # No IPv4: the cable's own, such as who has an address.
        return None
    header = (frame[14] & 15) * 4
    protocol, packet = frame[23], frame[14:]
    host = socket.inet_ntoa(packet[16:20])
    kind = {6: "tcp", 17: "udp", 1: "icmp", 2: "igmp"}.get(protocol, str(protocol))
    if protocol not in (6, 17):
        return f"{kind} {host}"
    (port,) = struct.unpack("!H", packet[header + 2 : header + 4])
    asked = f" {_name(packet[header + 20 :])}" if (protocol, port) == (17, 53) else ""
    return f"{kind} {host}:{port}{asked}"


def _name(question: bytes) -> str:
    labels, at = [], 0
    while at < len(question) and question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode(errors="replace"))
        at += 1 + question[at]
    return ".".join(labels)


def _watch(found: Path, words: list[str]) -> int:
    seen: set[str] = set()
    ended = threading.Event()
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.bind(("out", 0))
    tap.settimeout(0.2)

    def read() -> None:
        while True:
            try:
                target = target_of(tap.recv(65536))
            except TimeoutError:
                if ended.is_set():
                    return
                continue
            if target is not None:
                seen.add(target)

    reader = threading.Thread(target=read)
    reader.start()
    code = subprocess.run(words, check=False).returncode
    ended.set()
    reader.join()
    found.write_text(json.dumps(sorted(seen)))
    return code


if __name__ == "__main__":
    sys.exit(_watch(Path(sys.argv[1]), sys.argv[2:]))
