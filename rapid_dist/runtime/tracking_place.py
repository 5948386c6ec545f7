"""Where runs are recorded: a server, or a file beside the run directory; internal figures apart."""

import os
from dataclasses import dataclass
from pathlib import Path

from rapid_dist.config import TrackingConfig
from rapid_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs are recorded."""

    uri: str
    artifacts: str | None  # None = the server's own choice.
    private: bool = False  # Files for their owner alone.


def server_of(tracking: TrackingConfig) -> str | None:
    """Returns the server's address, the setting's or the environment's, and signs in to it.

    MLflow takes the account from the environment, at every call; what is set there already stays,
    and processes that are started from here have it as well.
    """
    if tracking.username is not None:
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", tracking.username)
    if tracking.password is not None:
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", tracking.password.reveal())
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")


def tracking_place(uri: str | None, out: Path | str) -> Place:
    """Returns where a run that writes to ``out`` is recorded.

    Without a server it is a sqlite file and a folder beside the run directory, so that runs with
    one parent are compared in one place.
    """
    if uri is not None:
        return Place(uri=uri, artifacts=None)
    if "://" in str(out):
        raise ConfigError(
            f"A run in {out} needs a tracking server, but tracking.uri is not set. Set it, or "
            "MLFLOW_TRACKING_URI, or write to a local --out."
        )
    parent = Path(out).resolve().parent
    return Place(
        uri=f"sqlite:///{parent / 'mlflow.db'}", artifacts=(parent / "mlflow-artifacts").as_uri()
    )


def internal_place(place: Place) -> Place:
    """Returns where figures against private records go (P13).

    On a server they are an experiment of their own, with readers of its own. On a disk the public
    store is one file that may be handed out, so they have another, which only its owner can read.
    """
    if place.artifacts is None:
        return place
    return Place(
        uri=f"{place.uri.removesuffix('.db')}-internal.db",
        artifacts=f"{place.artifacts}-internal",
        private=True,
    )
