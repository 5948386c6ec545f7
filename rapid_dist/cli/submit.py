"""`rapid-dist submit`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapid_dist.cli.options import DebugOption
from rapid_dist.errors import ConfigError

if TYPE_CHECKING:
    from rapid_dist.runtime.submit import Client

SUBMIT = "Send a command to a cluster as a Ray job, follow its log, return its exit code."


def add_submit(app: typer.Typer) -> None:
    """Adds `submit`; what follows the command's name are that command's own options."""
    app.command("submit", help=SUBMIT, context_settings={"allow_interspersed_args": False})(submit)


def submit(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND [OPTIONS]", help="As for this machine.")
    ] = None,
    address: Annotated[
        str, typer.Option("--address", help="Of the jobs API, at this end of the tunnel.")
    ] = "",
    working_dir: Annotated[
        Path, typer.Option("--working-dir", help="Whose code and settings are sent.")
    ] = Path("."),
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Names to leave out; repeatable.")
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            "--env", metavar="NAME[=VALUE]", help="For the job; Ray shows it. Repeatable."
        ),
    ] = None,
    tracking_uri: Annotated[str, typer.Option("--tracking-uri", help="MLflow's server.")] = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Of the cluster; default Ray's own.")
    ] = None,
    submission_id: Annotated[str, typer.Option("--submission-id", help="A name of yours.")] = "",
    follow: Annotated[
        str, typer.Option("--follow", metavar="ID", help="Only follow a job that was sent before.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent.")] = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.runtime import submit as jobs

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", "") or jobs.ADDRESS
    token_file = token_file or jobs.default_token()
    if follow:
        follow_job(jobs.connect(address, token_file), follow, address)
        return
    passed = {name: os.environ[name] for name in jobs.PASSED_ON if name in os.environ}
    passed |= dict(_assigned(text) for text in environment or [])
    if tracking_uri:
        passed["MLFLOW_TRACKING_URI"] = tracking_uri
    job = jobs.prepare(
        words or [], working_dir=working_dir, excludes=exclude or [], environment=passed
    )
    print(f"sends      {len(job.package.names)} files, {job.package.num_bytes / 1024:.0f} KiB")
    print(f"runs       {job.entrypoint}")
    for name, value in sorted(job.metadata.items()):
        print(f"{name.removeprefix('rapid_dist.'):<10} {value}")
    print(f"passes on  {', '.join(sorted(job.environment))}")
    if dry_run:
        for name in job.package.names:
            print(f"  {name}")
        return
    client = jobs.connect(address, token_file)
    assert job.command.out is not None
    jobs.refuse_second(client, job.command.out)
    job_id = jobs.send(client, job, submission_id or None)
    print(f"job        {job_id}", flush=True)
    if wait:
        follow_job(client, job_id, address)


def follow_job(client: "Client", job_id: str, address: str) -> None:
    """Prints the job's log and exits with its code; Ctrl-C ends the printing and not the job."""
    from rapid_dist.runtime.submit import Follower

    try:
        code = Follower(client=client, job_id=job_id).follow()
    except KeyboardInterrupt:
        print(
            "\nThe job goes on. "
            f"Follow it: rapid-dist submit --address {address} --follow {job_id}\n"
            f"Stop it, to go on another time: ray job stop --address {address} {job_id}",
            file=sys.stderr,
        )
        code = 1
    raise typer.Exit(code)


def _assigned(text: str) -> tuple[str, str]:
    """Returns a name and its value: the one given, or that of this environment."""
    name, equals, value = text.partition("=")
    if not equals:
        if name not in os.environ:
            raise ConfigError(f"--env {name} is not set here. Set it, or give {name}=VALUE.")
        value = os.environ[name]
    return name, value
