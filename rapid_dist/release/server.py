"""A connection to an MLflow server, that is refused at once where nobody answers."""

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client

from rapid_dist.environment import settle_environment
from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.secret import MASK, masked

P = ParamSpec("P")
T = TypeVar("T")

ANSWER_SEC = 20.0  # For a server's first word.


def connect(uri: str, *, existing: bool = False) -> MlflowClient:
    """Returns a client of one server, told by address and never by the environment.

    An address that was stored has no credentials; they are those of MLFLOW_TRACKING_URI, if that
    is the same address with them.

    Args:
      existing: refuse a sqlite file that is not there; MLflow would make one.

    Raises:
      ConfigError: there is no such file, or no credentials for an address that had some.
      RapidError: nobody answers at an http(s) address. MLflow's own client would try for minutes.
    """
    settle_environment()
    if os.environ["MLFLOW_DISABLE_TELEMETRY"].lower() in ("true", "1"):
        # It has looked at the environment when it was imported: again.
        set_telemetry_client()  # type: ignore[no-untyped-call]
    uri = _with_credentials(uri)
    for name in ("mlflow", "alembic"):  # They tell of every table of a new database.
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # Stdout is ours.
    path = uri.removeprefix("sqlite:///")
    if existing and path != uri and not Path(path).is_file():
        raise ConfigError(
            f"There is no registry at {masked(uri)}. Name another with --tracking-uri."
        )
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{_without_user(uri)}/health", timeout=ANSWER_SEC).close()
        except urllib.error.HTTPError:
            pass  # An answer too; what it thinks of us is seen at the first question.
        except OSError as error:
            raise RapidError(
                f"MLflow at {masked(uri)} does not answer ({masked(str(error))}). Check "
                "--tracking-uri, tracking.uri or MLFLOW_TRACKING_URI."
            ) from error
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _with_credentials(uri: str) -> str:
    if f"://{MASK}@" not in uri and f"={MASK}" not in uri:
        return uri
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if masked(named) != uri:
        raise ConfigError(
            f"{uri} was written down without its credentials. Set MLFLOW_TRACKING_URI to the "
            "whole of that address."
        )
    return named


def _without_user(uri: str) -> str:
    """Returns an http(s) address without user and password, which urllib does not take."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def in_one_line(ask: Callable[P, T]) -> Callable[P, T]:
    """Has a server's refusal (a wrong password, no permission) raised as one line."""

    @wraps(ask)
    def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return ask(*args, **kwargs)
        except MlflowException as error:
            said = masked((str(error).splitlines() or [error.error_code])[0])
            raise RapidError(
                f"MLflow refused: {said} Is the account right (MLFLOW_TRACKING_USERNAME, "
                "MLFLOW_TRACKING_PASSWORD), and allowed to do that?"
            ) from error

    return asked
