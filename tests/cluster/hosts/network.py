"""Hosts of a network on one machine: namespaces with own addresses, names, processes and folders.

A host is a network namespace, joined by a cable (a veth pair) to a switch (a bridge) in this
machine's own. What runs there runs in further namespaces of its own, below one process: its end is
the end of all of them, as when a machine loses power. Names and addresses are made from the id of
the testing process, so two of them do not meet; everything is taken down by the ids and names that
were made here.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SERVICES = 254  # The last number of this machine's own address on the switch.
# Each host sees folders of its own under the paths that all hosts use, and its own shared memory.
_MOUNTS = """
set -e
hostname "$RD_NAME"
mount --bind "$RD_OWN/ray" "$RD_RAY"
mount --bind "$RD_OWN/hosts" /etc/hosts
mount -t tmpfs -o size=600m tmpfs /dev/shm
exec "$@"
"""


def why_not() -> str | None:
    """Returns why this machine cannot have hosts, or nothing."""
    if sys.platform != "linux" or not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return "network namespaces need Linux, ip (iproute2) and unshare (util-linux)"
    name = f"rd{os.getpid()}try"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = _said("ip", "netns", "add", name)
    if tried is None:
        inside = ("ip", "netns", "exec", name, *_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt")
        cable = ("ip", "link", "add", f"rd{os.getpid()}a", "type", "veth", "peer", "name", "eth0",
                 "netns", name)  # fmt: skip
        tried = _said(*inside) or _said(*cable)
        _said("ip", "netns", "del", name)
    return None if tried is None else f"network namespaces are not allowed here: {tried}"


_UNSHARE = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child",
            "--mount-proc")  # fmt: skip


def _said(*words: str) -> str | None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip() or "refused")


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, capture_output=True, text=True)


@dataclass(kw_only=True)
class Host:
    """One host; what it runs ends with ``power_off`` at the latest."""

    name: str
    address: str
    folder: Path  # Of its own: home, temporary files, logs.
    shared: Path  # Where all hosts think that Ray's folder is.
    namespace: str
    cable: str  # This machine's end of it.
    environment: dict[str, str]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(
        self, words: Sequence[str], log: str, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Starts a process there, in namespaces of its own; ``log`` is a file in its folder."""
        told = {
            "RD_NAME": self.name,
            "RD_OWN": str(self.folder),
            "RD_RAY": str(self.shared),
        }
        with (self.folder / log).open("ab") as file:
            process = subprocess.Popen(
                [
                    "ip",
                    "netns",
                    "exec",
                    self.namespace,
                    *_UNSHARE,
                    "sh",
                    "-c",
                    _MOUNTS,
                    "sh",
                    *words,
                ],
                env={**self.environment, **told, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def said(self, log: str) -> str:
        return (self.folder / log).read_text(errors="replace")

    def cut_off(self) -> None:
        """Pulls the cable: nothing there is told, nothing there ends."""
        _ip("link", "set", self.cable, "down")

    def power_off(self) -> None:
        """Ends all that runs there at once, and waits for that."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)  # And with it, all of its namespace.
            process.wait()
        self.processes.clear()


class Network:
    """A switch and its hosts. Use it in ``with``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder  # Short, for Ray's sockets lie below it (107 bytes).
        self._tag = os.getpid() % 100_000
        self._subnet = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self._switch = f"rdsw{self._tag}"
        self.hosts: list[Host] = []

    @property
    def services(self) -> str:
        """This machine's own address on the switch."""
        return f"{self._subnet}.{SERVICES}"

    def __enter__(self) -> "Network":
        self.shared.mkdir(parents=True)
        _ip("link", "add", self._switch, "type", "bridge")
        _ip("addr", "add", f"{self.services}/24", "dev", self._switch)
        _ip("link", "set", self._switch, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for host in self.hosts:
            host.power_off()
            _said("ip", "link", "del", host.cable)
            _said("ip", "netns", "del", host.namespace)
        _said("ip", "link", "del", self._switch)

    @property
    def shared(self) -> Path:
        return self._folder / "ray"

    def add(self, name: str) -> Host:
        """Adds a host and plugs it in."""
        number = len(self.hosts) + 1
        host = Host(
            name=name,
            address=f"{self._subnet}.{number}",
            folder=self._folder / name,
            shared=self.shared,
            namespace=f"rd{self._tag}{name}",
            cable=f"rd{self._tag}n{number}",
            environment={},
        )
        for part in ("home", "ray", "tmp"):
            (host.folder / part).mkdir(parents=True)
        _ip("netns", "add", host.namespace)
        self.hosts.append(host)  # From here on it is taken down.
        _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns",
            host.namespace)  # fmt: skip
        _ip("link", "set", host.cable, "master", self._switch)
        _ip("link", "set", host.cable, "up")
        inside = ("-n", host.namespace)
        _ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "route", "add", "default", "via", self.services)  # Leads nowhere.
        (host.folder / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {name}\n")
        host.environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(host.folder / "home"),
            "TMPDIR": str(host.folder / "tmp"),
            "LANG": "C.UTF-8",
        }
        return host


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Holds an empty network, and a folder for it that is removed."""
    folder = Path(tempfile.mkdtemp(prefix="rd", dir="/tmp"))
    try:
        with Network(folder) as found:
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
