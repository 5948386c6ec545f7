"""A stack for trying things out: an MLflow server whose files lie in an S3 server, on this machine.

    python -m rapid_dist.runtime.services            # until Ctrl-C
    python -m rapid_dist.runtime.services --stop     # from another shell

Both servers listen on localhost alone (unless --host says where), on ports that were free, and ask
for no password. The S3 server is moto's, which keeps objects in memory; they are copied to the
folder while it runs and put back at the next start, so that a stack goes on where it was stopped.
For anything but trying out, docs/operations.md says how to use a real bucket and a server with
authentication.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.runtime.signals import stop_on_sigterm
from rapid_dist.storage import LocalStorage, s3_client

BUCKETS = ("rapid", "mlflow")  # For run directories, and for MLflow's files.
STATE, SHELL = "services.json", "environment.sh"
MIRROR_SEC = 10.0
START_SEC = 600.0
STOP_SEC = 20.0
KEY = "trying-out"  # Access key and secret: the server asks for some, and for none in particular.


@dataclass(frozen=True, kw_only=True)
class Services:
    """Where a running stack answers."""

    tracking_uri: str
    s3_endpoint: str
    folder: str
    owner: int  # The process that started them and ends them.
    pids: dict[str, int]  # Of each server, the leader of a process group.

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be told to use both."""
        return {
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def s3(self) -> Any:
        """Returns a client of the S3 server."""
        return s3_client(
            endpoint_url=self.s3_endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
        )


@contextlib.contextmanager
def running(
    folder: Path, *, mirror_sec: float = MIRROR_SEC, host: str = "127.0.0.1"
) -> Iterator[Services]:
    """Holds a stack whose data lies in ``folder``; servers that a killed process left are ended.

    Args:
      host: this machine's address to listen to; another than localhost for a test's own network.

    Raises:
      ConfigError: a stack of this folder runs already.
      RapidError: a server ended, or did not answer in time; says where its log is.
    """
    folder = folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    before = state_of(folder)
    if _is_ours(before.get("owner", 0)) or before.get("owner") == os.getpid():
        raise ConfigError(
            f"{folder} is in use by process {before['owner']}. Stop it with --stop, or use another "
            "--folder."
        )
    _end_servers(before)
    with contextlib.ExitStack() as undo:
        undo.callback((folder / STATE).unlink, missing_ok=True)
        ports = undo.enter_context(_held_ports(2, host))
        s3_endpoint, tracking_uri = (f"http://{host}:{port}" for port in ports)
        pids: dict[str, int] = {}
        services = Services(
            tracking_uri=tracking_uri,
            s3_endpoint=s3_endpoint,
            folder=str(folder),
            owner=os.getpid(),
            pids=pids,
        )
        environment = {**os.environ, **_SERVERS_OWN, **services.environment}
        environment["MLFLOW_S3_ENDPOINT_URL"] = s3_endpoint
        commands = {
            "s3": ["moto.server", "-H", host, "-p", str(ports[0])],
            "mlflow": [
                *("mlflow", "server", "--host", host, "--port", str(ports[1])),
                *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
                *("--artifacts-destination", "s3://mlflow", "--workers", "1"),
            ],
        }
        for name, words in commands.items():
            log = folder / f"{name}.log"
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", *words],
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for us; and its children end with it.
                )
            undo.callback(_end, process.pid, process.wait)
            pids[name] = process.pid
            (folder / STATE).write_text(json.dumps(asdict(services), indent=2))
            _await(process, s3_endpoint if name == "s3" else f"{tracking_uri}/health", log)
            if name == "s3":
                mirror = BucketMirror(services.s3(), folder / "s3")
                mirror.restore()
                undo.callback(mirror.follow(mirror_sec))
        lines = [f"export {key}={value}" for key, value in services.environment.items()]
        (folder / SHELL).write_text("\n".join(lines) + "\n")
        yield services


def stop(folder: Path) -> bool:
    """Ends the stack of a folder, by its owner if that still runs; says whether there was one."""
    folder = folder.expanduser().resolve()
    found = state_of(folder)
    owner = found.get("owner", 0)
    if not _is_ours(owner):
        return _end_servers(found)
    os.kill(owner, signal.SIGTERM)
    while _is_ours(owner) and (folder / STATE).exists():
        time.sleep(0.1)
    return True


class BucketMirror:
    """Copies the objects of a server that forgets to a folder, and back."""

    def __init__(self, client: Any, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._known: dict[tuple[str, str], str] = {}  # What the folder holds, by its ETag.
        self._lock = threading.Lock()

    def restore(self) -> None:
        """Makes the buckets, and puts into them what the folder holds."""
        for bucket in BUCKETS:
            self._client.create_bucket(Bucket=bucket)
            kept = LocalStorage(self._folder / bucket)
            for name in kept.list():
                put = self._client.put_object(Bucket=bucket, Key=name, Body=kept.read(name))
                self._known[bucket, name] = put["ETag"]

    def copy(self) -> None:
        """Makes the folder what the buckets are now."""
        with self._lock:
            found: dict[tuple[str, str], str] = {}
            for bucket in BUCKETS:
                pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
                for item in (one for page in pages for one in page.get("Contents", [])):
                    found[bucket, item["Key"]] = item["ETag"]
            for (bucket, name), etag in found.items():
                if self._known.get((bucket, name)) != etag:
                    body = self._client.get_object(Bucket=bucket, Key=name)["Body"].read()
                    LocalStorage(self._folder / bucket).write(name, body)
            for bucket, name in self._known.keys() - found.keys():
                LocalStorage(self._folder / bucket).delete(name)
            self._known = found

    def follow(self, seconds: float) -> Callable[[], None]:
        """Copies every so often until the function that is returned is called; it copies last."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(seconds):
                with contextlib.suppress(Exception):  # Of a server that is busy; the next will do.
                    self.copy()

        thread = threading.Thread(target=work, name="bucket mirror", daemon=True)
        thread.start()

        def end() -> None:
            ended.set()
            thread.join()
            self.copy()

        return end


_SERVERS_OWN = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # A process more, for what we do not use.
}


@contextlib.contextmanager
def _held_ports(count: int, host: str) -> Iterator[list[int]]:
    """Ports that were free, and that nobody else is given: a server takes seconds to listen.

    They are bound and not listened to, which leaves them to who asks for them by number, as servers
    do that set SO_REUSEADDR. Until then whoever calls is refused. Only Linux shares a port so: on
    other systems it is let go before a server asks for it.
    """
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, 0))
        ports = [int(one.getsockname()[1]) for one in sockets]
        if sys.platform != "linux":
            held.close()
        yield ports


def _await(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SEC
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RapidError(f"The server at {address} did not start. Its log is {log}.")
        time.sleep(0.25)


def state_of(folder: Path) -> dict[str, Any]:
    """Returns what is written down of the stack that runs in a folder, empty if none does."""
    try:
        content: dict[str, Any] = json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return {}
    return content


def _end_servers(state: dict[str, Any]) -> bool:
    found = [pid for pid in state.get("pids", {}).values() if _is_ours(pid)]
    for pid in found:
        _end(pid, lambda timeout: None)
    return bool(found)


def _is_ours(pid: int) -> bool:
    """Whether a process that was written down is still what it was: numbers are given again."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return bool({b"moto.server", b"mlflow", b"rapid_dist.runtime.services"} & set(words))


def _end(pid: int, wait: Callable[[float], object]) -> None:
    """Asks a process group to end, and then ends it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                wait(STOP_SEC)
            deadline = time.monotonic() + STOP_SEC
            while time.monotonic() < deadline:
                os.killpg(pid, 0)
                time.sleep(0.1)
        except (ProcessLookupError, PermissionError):
            return


def main() -> int:
    """Runs a stack until it is told to stop."""
    parser = argparse.ArgumentParser(prog="services", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("services"), help="of its data")
    parser.add_argument("--host", default="127.0.0.1", help="to listen to; asks for no password")
    parser.add_argument("--stop", action="store_true", help="end the stack of that folder")
    asked = parser.parse_args()
    if asked.stop:
        print("stopped" if stop(asked.folder) else f"nothing runs in {asked.folder}")
        return 0
    try:
        _hold(asked.folder, asked.host)
    except RapidError as error:
        print(f"services: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _hold(folder: Path, host: str) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        stop_on_sigterm(),
        running(folder, host=host) as found,
    ):
        print(f"MLflow   {found.tracking_uri}")
        print(f"S3       {found.s3_endpoint}, buckets {', '.join(BUCKETS)}")
        print(f"data     {found.folder}")
        print(f"\nIn another shell:\n  . {found.folder}/{SHELL}")
        print("  .venv/bin/rapid-dist run --recipe digits --out s3://rapid/runs/digits\n")
        print("Ctrl-C, or `make services-stop`, ends both.", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
