"""A connection to an MLflow server, that is refused at once where nobody answers."""

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from rapid_dist.errors import ConfigError, RapidError

P = ParamSpec("P")
T = TypeVar("T")

ANSWER_SEC = 20.0  # For a server's first word.


def connect(uri: str, *, existing: bool = False) -> MlflowClient:
    """Returns a client of one server, told by address and never by the environment.

    Args:
      existing: refuse a sqlite file that is not there; MLflow would make one.

    Raises:
      ConfigError: there is no such file.
      RapidError: nobody answers at an http(s) address. MLflow's own client would try for minutes.
    """
    for name in ("mlflow", "alembic"):  # They tell of every table of a new database.
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # Stdout is ours.
    path = uri.removeprefix("sqlite:///")
    if existing and path != uri and not Path(path).is_file():
        raise ConfigError(f"There is no registry at {uri}. Name another with --tracking-uri.")
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SEC).close()
        except urllib.error.HTTPError:
            pass  # An answer too; what it thinks of us is seen at the first question.
        except OSError as error:
            raise RapidError(
                f"MLflow at {uri} does not answer ({error}). Check --tracking-uri, tracking.uri or "
                "MLFLOW_TRACKING_URI."
            ) from error
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def in_one_line(ask: Callable[P, T]) -> Callable[P, T]:
    """Has a server's refusal (a wrong password, no permission) raised as one line."""

    @wraps(ask)
    def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return ask(*args, **kwargs)
        except MlflowException as error:
            said = (str(error).splitlines() or [error.error_code])[0]
            raise RapidError(
                f"MLflow refused: {said} Is the account right (MLFLOW_TRACKING_USERNAME, "
                "MLFLOW_TRACKING_PASSWORD), and allowed to do that?"
            ) from error

    return asked
