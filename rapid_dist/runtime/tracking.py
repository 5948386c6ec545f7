"""What MLflow is told: one run a command, one child a stage, all of it public (P9).

Every call names its server and its run. MLflow's fluent API keeps both in the current thread and
the current directory, and on a cluster neither is where one thinks it is.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from rapid_dist.errors import ConfigError, RapidError

MOST_METRICS = 1000  # MLflow's own limits of one batch.
MOST_PARAMS = 100
MOST_CHARACTERS = 500  # Of a parameter; older servers take no more.
OUT_TAG = "rapid_dist.out"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs are recorded."""

    uri: str
    artifacts: str | None  # None = the server's own choice.
    private: bool = False  # Files for their owner alone.


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


class Tracker:
    """One experiment on one server."""

    def __init__(self, place: Place, experiment: str) -> None:
        """Opens or makes the experiment; a server that does not answer is a ``RapidError``."""
        for name in ("mlflow", "alembic"):  # They tell of every table of a new database.
            logging.getLogger(name).setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        self.uri = place.uri
        if place.uri.startswith("sqlite:///"):
            Path(place.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        if place.private:
            _make_private(place)
        try:
            self._client = MlflowClient(tracking_uri=place.uri, registry_uri=place.uri)
            self._experiment_id = self._open(experiment, place.artifacts)
        except Exception as error:  # A server's, a database's, a network's: each has its own.
            raise RapidError(
                f"MLflow at {place.uri} refused: {_first_line(error)}. Check tracking.uri."
            ) from error

    @contextlib.contextmanager
    def run(
        self, name: str, *, out: str, tags: Mapping[str, str] | None = None
    ) -> Iterator["TrackedRun"]:
        """Records what happens inside; the run is closed however that ends.

        Runs of the same ``out`` that still claim to be running were killed with their process;
        they are marked so.
        """
        stale = self._client.search_runs(
            [self._experiment_id],
            f"attributes.status = 'RUNNING' and tags.`{OUT_TAG}` = '{out}'",
        )
        for left_open in stale:
            self._client.set_terminated(left_open.info.run_id, "KILLED")
        tags = {**(tags or {}), OUT_TAG: out}
        with _started(self._client, self._experiment_id, name, tags) as run:
            yield run

    def _open(self, experiment: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(experiment)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(experiment, artifact_location=artifacts))
        except MlflowException:
            found = self._client.get_experiment_by_name(experiment)  # Another process was faster.
            if found is None:
                raise
            return str(found.experiment_id)


class TrackedRun:
    """One open run of MLflow, by its id."""

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str, out: str) -> None:
        self.run_id = run_id
        self._client = client
        self._experiment_id = experiment_id
        self._out = out

    @contextlib.contextmanager
    def child(self, name: str) -> Iterator["TrackedRun"]:
        """Records a stage as a run of its own below this one."""
        tags = {"mlflow.parentRunId": self.run_id, OUT_TAG: self._out}
        with _started(self._client, self._experiment_id, name, tags) as run:
            yield run

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Records a tree of settings under dotted names."""
        params = [Param(name, str(value)[:MOST_CHARACTERS]) for name, value in _flattened(settings)]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + MOST_PARAMS])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.log_series({name: [(step, value)] for name, value in metrics.items()})

    def log_series(self, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Records whole curves, each a list of (step, value), in as few calls as can be."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, step)
            for name, points in series.items()
            for step, value in points
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + MOST_METRICS])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._client.log_artifact(self.run_id, str(path), folder)


def _make_private(place: Place) -> None:
    """Makes a local store before anybody else does: the mode is set when a file is made."""
    assert place.artifacts is not None
    database = Path(place.uri.removeprefix("sqlite:///"))
    os.close(os.open(database, os.O_RDWR | os.O_CREAT, 0o600))  # Empty, it is an empty database.
    Path(url2pathname(urlsplit(place.artifacts).path)).mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def _started(
    client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str]
) -> Iterator[TrackedRun]:
    run = client.create_run(experiment_id, run_name=name, tags=tags)
    run_id = run.info.run_id
    status = "KILLED"  # Unless something better is heard of: Ctrl-C is no exception of ours.
    try:
        yield TrackedRun(client, run_id, experiment_id, tags[OUT_TAG])
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        client.set_terminated(run_id, status)


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
