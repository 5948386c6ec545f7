"""Sends a command to a cluster as a Ray job, follows its log, and returns its exit code.

It is what ``ray job submit --working-dir . -- python jobs/train.py ...`` does, and looks first:
a recipe that is wrong is refused here, data are not sent along by accident (submit_package.py), a
run directory that only one node could see is refused, and so is one that another job writes.
"""

import asyncio
import os
import shlex
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ray.job_submission import JobStatus, JobSubmissionClient

from rapid_dist.config import load_recipe, recipe_hash
from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.installed import SHORT, hash_of
from rapid_dist.runtime.ray_address import is_own
from rapid_dist.runtime.submit_command import Command
from rapid_dist.runtime.submit_package import Package, package_of
from rapid_dist.secret import SECRET_VARIABLES, has_credentials, require_plain, secrets_of
from rapid_dist.storage import SSE, SSE_KEY

ADDRESS = "http://127.0.0.1:8265"  # Of the tunnel that `ray dashboard` or ssh -L opens.
TOKEN = "~/.ray/auth_token"
STOP_SEC = 120  # For a job that is stopped to close what it has open; Ray's own patience is 3.
PASSED_ON = (  # From this environment to the job's, where set. Nothing secret: Ray shows them.
    "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION",
    "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG", SSE, SSE_KEY,
)  # fmt: skip
_LOOK_SEC = 1.0
_LOST_SEC, _TRIES = 5.0, 36  # Three minutes for a head, or a tunnel, to be back.
_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


class Client(Protocol):
    """What is asked of the cluster; Ray's ``JobSubmissionClient``."""

    def submit_job(self, *, entrypoint: str, **options: Any) -> str: ...

    def get_job_info(self, job_id: str) -> Any: ...

    def list_jobs(self) -> list[Any]: ...

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is sent, looked at as far as that can be done here."""

    command: Command
    package: Package
    environment: Mapping[str, str]
    metadata: Mapping[str, str]
    recipe_file: Path | None = None  # A recipe that the package does not hold as it is named.

    @property
    def entrypoint(self) -> str:
        words = self.command.words
        if self.recipe_file is not None:
            words = self.command.with_recipe(self.recipe_file.name)
        return shlex.join(["python", "-m", "rapid_dist.cli", *words])


def prepare(
    words: Sequence[str],
    *,
    working_dir: Path,
    excludes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Job:
    """Returns the job of a command line, or refuses what could not work on a cluster.

    Raises:
      ConfigError: the recipe is wrong, or the run directory is one node's own.
    """
    for name, value in (environment or {}).items():
        if has_credentials(value):
            raise ConfigError(
                f"{name} holds credentials, and Ray shows a job's environment to whoever has its "
                "token. Set it on the nodes instead, or pass on an address without them."
            )
        if name in SECRET_VARIABLES or any(one in value for one in secrets_of()):
            raise ConfigError(
                f"--env {name} is a secret, and Ray shows a job's environment to whoever has its "
                "token. Set it on the nodes instead."
            )
    for word in words:
        require_plain(word, "The command")
        if any(one in word for one in secrets_of()):
            raise ConfigError(
                "The command holds a secret of this environment, and Ray shows a job's command to "
                "whoever has its token. Set it on the nodes instead."
            )
    command = Command(words=tuple(words))
    if command.out is None or not ("://" in command.out or command.out.startswith("/")):
        given = f"--out {command.out}" if command.out else "no --out"
        raise ConfigError(
            f"A job with {given} would write into a folder that Ray removes. Give an address that "
            "all nodes share, such as --out s3://bucket/runs/mnist."
        )
    package = package_of(working_dir, excludes)
    code = hash_of(working_dir / "rapid_dist") if "rapid_dist/__init__.py" in package.names else ""
    told = {"command": command.name, "out": command.out, "code": code[:SHORT] or "installed"}
    recipe_file = None
    if command.recipe is not None:
        recipe = load_recipe(command.recipe, command.overrides)
        told |= {"recipe": recipe.name, "recipe_hash": recipe_hash(recipe)}
        path = Path(command.recipe)
        if path.suffix:
            recipe_file = path.resolve()
    return Job(
        command=command,
        package=package,
        environment={"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SEC), **(environment or {})},
        metadata={f"rapid_dist.{name}": value for name, value in told.items()},
        recipe_file=recipe_file,
    )


def connect(address: str, token_file: Path | None) -> Client:
    """Returns a client of the cluster's jobs API, with the token if there is one.

    Raises:
      ConfigError: the token can be read by others, or nobody answers, or not to us.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise ConfigError(
            f"--address {address} is not where jobs are sent to. Give http://127.0.0.1:8265 with a "
            "tunnel to the head node's port 8265."
        )
    if token_file is not None:
        _require_own(token_file)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
    has_token = token_file is not None or "RAY_AUTH_TOKEN" in os.environ
    if not has_token and not is_own(urlsplit(address).hostname or ""):
        raise ConfigError(
            f"{address} is reached over a network, and no token is named: whoever reaches it could "
            "run anything there. Start the cluster with RAY_AUTH_MODE=token, name the token with "
            "--token-file, and come by a tunnel."
        )
    os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token else "disabled")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets the environment win over arguments.
    try:
        client: Any = JobSubmissionClient(address)
        return client  # type: ignore[no-any-return]
    except Exception as error:  # Its own, of requests, of the network: all mean the same here.
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"No jobs API answers at {address} ({reason}). Open the tunnel (`ray dashboard`, or "
            "ssh -L 8265:127.0.0.1:8265 HEAD), and name the cluster's token with --token-file."
        ) from None


def default_token() -> Path | None:
    """Returns the file that Ray itself would read the token from, if it is there."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN)).expanduser()
    return path if path.exists() else None


def _require_own(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"--token-file {path} cannot be read ({error.strerror}). Name the cluster's token, or "
            "leave it out for Ray's own."
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} can be read by others, and is the cluster's key. chmod 600 it.")


def refuse_second(client: Client, out: str) -> None:
    """Refuses a run directory that a living job of this cluster writes: a bucket has no lock."""
    for job in client.list_jobs():
        mine = (job.metadata or {}).get("rapid_dist.out") == out
        if mine and job.status not in _ENDED and job.submission_id:
            raise ConfigError(
                f"Job {job.submission_id} writes {out} already. Follow it with `rapid-dist submit "
                f"--follow {job.submission_id}`, or use another --out."
            )


def send(client: Client, job: Job, submission_id: str | None = None) -> str:
    """Sends a job and returns its id."""
    with tempfile.TemporaryDirectory(prefix="rapid-job-") as folder:
        job.package.copy_to(Path(folder))
        if job.recipe_file is not None:
            (Path(folder) / job.recipe_file.name).write_bytes(job.recipe_file.read_bytes())
        try:
            return client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=submission_id,
                runtime_env={"working_dir": folder, "env_vars": dict(job.environment)},
                metadata=dict(job.metadata),
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise RapidError(f"The cluster took no job: {reason}") from None


@dataclass(kw_only=True)
class Follower:
    """Prints the log of a job as it is written, through lost connections, until the job ends."""

    client: Client
    job_id: str
    write: Callable[[str], object] = sys.stdout.write
    sleep: Callable[[float], None] = time.sleep
    _printed: int = field(default=0, init=False)  # Characters; a new connection starts from none.

    def follow(self) -> int:
        """Returns the exit code of the job: its own, or 1 where it was stopped or never began."""
        while True:
            asyncio.run(self._print())
            info = self._info()
            if info.status in _ENDED:
                return self._ended(info)
            self.sleep(_LOOK_SEC)

    async def _print(self) -> None:
        seen = 0
        try:
            async for text in self.client.tail_job_logs(self.job_id):
                new = text[max(0, self._printed - seen) :]
                seen += len(text)
                self._printed = max(self._printed, seen)
                self.write(new)
                sys.stdout.flush()
        except Exception:  # Ray's, aiohttp's, the network's: all mean a lost connection.
            return  # Whether the job is lost as well, is asked next.

    def _info(self) -> Any:
        """Returns what the cluster says of the job; a head that is away is waited for."""
        reason = ""
        for _ in range(_TRIES):
            try:
                return self.client.get_job_info(self.job_id)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                self.sleep(_LOST_SEC)
        raise RapidError(
            f"The cluster answers no more ({reason}). Job {self.job_id} may go on: ask again with "
            f"`rapid-dist submit --follow {self.job_id}`, or submit it again if the head is gone."
        )

    def _ended(self, info: Any) -> int:
        if info.status == JobStatus.SUCCEEDED:
            return 0
        if info.status == JobStatus.STOPPED:
            print(f"Job {self.job_id} was stopped. Submit it again to go on.", file=sys.stderr)
            return 1
        if info.driver_exit_code is None:  # It never ran, or died with its node.
            lines = (info.message or "without a word").strip().splitlines()
            print(f"Job {self.job_id} failed: {lines[-1]}", file=sys.stderr)
            return 1
        return int(info.driver_exit_code)
