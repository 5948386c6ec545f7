"""The processes of a cluster that a command has started, by what /proc says of them."""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path


class Family:
    """A process that leads a session, and all below it that were seen as long as it lived."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self.seen: set[int] = {leader}
        self._folders: set[str] = set()

    def look(self) -> None:
        """Notes who is there now: of the leader's session, or a child of one who was seen."""
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) not in self.seen:
                pid = int(name)
                with suppress(OSError):
                    if os.getsid(pid) == self._leader or _parent(pid) in self.seen:
                        self.seen.add(pid)
        if not self._folders:  # Of one who has died before the end as well.
            self._folders = {folder for pid in self.seen for folder in _folders(pid)}

    def find(self, word: str) -> int | None:
        """Returns one whose command line has the word."""
        return next((pid for pid in self.seen if word in _line(pid)), None)

    def clear(self) -> None:
        """Ends those of Ray that are left, by their ids, and removes their cluster's folder."""
        self.look()
        for pid in self.seen - {self._leader}:
            self._folders.update(_folders(pid))
            if "ray" in _line(pid):  # An id may be another's by now.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


def is_stopped(pid: int) -> bool:
    return _stat(pid)[0] == "T"


def _folders(pid: int) -> set[str]:
    """The cluster's own folder, /tmp/rd..., out of the line of one of its processes."""
    words = _line(pid).replace("=", " ").split()
    return {"/".join(word.split("/")[:3]) for word in words if word.startswith("/tmp/rd")}


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["", "0"]


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])
