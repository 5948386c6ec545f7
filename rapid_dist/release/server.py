"""A connection to an MLflow server, that is refused at once where nobody answers."""

import contextlib
import logging
import os
import urllib.error
import urllib.request

from mlflow import MlflowClient

ANSWER_SEC = 20.0  # For a server's first word.


def connect(uri: str) -> MlflowClient:
    """Returns a client of one server, told by address and never by the environment.

    Raises:
      OSError: nobody answers at an http(s) address. MLflow's own client would try for minutes.
    """
    for name in ("mlflow", "alembic"):  # They tell of every table of a new database.
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # Stdout is ours.
    if uri.startswith(("http://", "https://")):
        # An error by HTTP is an answer too; what it thinks of us is seen at the first question.
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SEC).close()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
