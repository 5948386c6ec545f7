"""What MLflow is told: one run a run directory, one child a stage or trial, all of it public (P9).

Every call names its server and its run. MLflow's fluent API keeps both in the current thread and
the current directory, and on a cluster neither is where one thinks it is.

A run has a key. The command that goes on with a directory goes on with the run of that key, and
first closes what a killed process has left open below it. Figures go by an outbox, so that no step
waits for the server; settings, files and states are sent at once.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException

from rapid_dist.errors import RapidError
from rapid_dist.release.server import connect
from rapid_dist.runtime.outbox import Outbox
from rapid_dist.runtime.tracking_place import Place
from rapid_dist.secret import masked

MOST_METRICS = 1000  # MLflow's own limits of one batch.
MOST_PARAMS = 100
MOST_DIGEST = 36
MOST_CHARACTERS = 500  # Of a parameter; older servers take no more.
OUT_TAG = "rapid_dist.out"
KEY_TAG = "rapid_dist.key"
CHANGED_TAG = "rapid_dist.now."  # A setting that another command of the same run has changed.
PARENT_TAG = "mlflow.parentRunId"
FLUSH_SEC = 300.0  # For the figures of one run, when it is done.
LAST_WORDS_SEC = 5.0  # For those of a run that has failed.


@dataclass(frozen=True, kw_only=True)
class _Server:
    """A connection and the experiment that runs are made in."""

    uri: str
    client: MlflowClient
    experiment_id: str
    outbox: Outbox[Metric] = field(repr=False)

    @classmethod
    def of(cls, uri: str, client: MlflowClient, experiment_id: str) -> "_Server":
        def send(run_id: str, metrics: Sequence[Metric]) -> None:
            client.log_batch(run_id, metrics=list(metrics))

        return cls(
            uri=uri,
            client=client,
            experiment_id=experiment_id,
            outbox=Outbox(send, batch=MOST_METRICS),
        )

    def find(self, *tags: tuple[str, str], running: bool = False) -> list[Run]:
        """Returns the runs with all of these tags, the newest first."""
        wanted = [f"tags.`{name}` = {_quoted(value)}" for name, value in tags]
        if running:
            wanted.append("attributes.status = 'RUNNING'")
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                " and ".join(wanted),
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return found

    def close_below(self, run_id: str) -> None:
        """Marks as killed whatever below a run claims to be running."""
        for run in self.find((PARENT_TAG, run_id), running=True):
            self.close_below(run.info.run_id)
            self.client.set_terminated(run.info.run_id, "KILLED")


@dataclass(frozen=True, kw_only=True)
class DatasetUsed:
    """A data set as MLflow shows it beside a run."""

    name: str
    digest: str
    source: Mapping[str, Any]
    use: str  # public, private, knowledge base.


class Tracker:
    """One experiment on one server."""

    def __init__(self, place: Place, experiment: str) -> None:
        """Opens or makes the experiment; a server that does not answer is a ``RapidError``."""
        self.uri = place.uri
        if place.uri.startswith("sqlite:///"):
            Path(place.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        if place.private:
            _make_private(place)
        try:
            client = connect(place.uri)
            experiment_id = _open_experiment(client, experiment, place.artifacts)
        except RapidError:
            raise
        except Exception as error:  # A server's, a database's, a network's: each has its own.
            raise RapidError(
                f"MLflow at {masked(place.uri)} refused: {_first_line(error)}. Check tracking.uri."
            ) from error
        self._server = _Server.of(place.uri, client, experiment_id)

    @contextlib.contextmanager
    def run(
        self,
        name: str,
        *,
        out: str,
        key: str | None = None,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator["TrackedRun"]:
        """Records what happens inside; the run is closed however that ends.

        Runs of the same ``out`` that still claim to be running were killed with their process;
        they are marked so, and so is what they have below them.

        Args:
          key: what this is the record of; a run that has it already is gone on with.
          parent: the id of the run to be below.
        """
        server = self._server
        before = server.find((KEY_TAG, key), (OUT_TAG, out))[:1] if key is not None else []
        for left_open in [*before, *server.find((OUT_TAG, out), running=True)]:
            server.close_below(left_open.info.run_id)
            if left_open.info.status == "RUNNING":
                server.client.set_terminated(left_open.info.run_id, "KILLED")
        tags = {**(tags or {}), OUT_TAG: out}
        if key is not None:
            tags[KEY_TAG] = key
        if parent is not None:
            tags[PARENT_TAG] = parent
        try:
            with _recorded(server, name, tags, before[0] if before else None) as run:
                yield run
        finally:
            server.outbox.close()


class TrackedRun:
    """One open run of MLflow, by its id."""

    def __init__(self, server: _Server, run: Run) -> None:
        self.run_id: str = run.info.run_id
        self.uri = server.uri
        self._server = server
        self._out: str = run.data.tags[OUT_TAG]
        self._params: dict[str, str] = dict(run.data.params)

    @contextlib.contextmanager
    def child(self, name: str, *, tags: Mapping[str, str] | None = None) -> Iterator["TrackedRun"]:
        """Records a stage or a trial as a run of its own below this one.

        A child of that name that did not finish is gone on with; after a finished one a new one
        is begun.
        """
        with _child(self._server, self.run_id, self._out, name, tags) as run:
            yield run

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Records a tree of settings under dotted names.

        MLflow's parameters stay what they were first. A setting that a later command of the same
        run has changed (its number of workers, say) is told by a tag ``rapid_dist.now.<name>``.
        """
        told = {name: str(value)[:MOST_CHARACTERS] for name, value in _flattened(settings)}
        new = [Param(name, value) for name, value in told.items() if name not in self._params]
        client = self._server.client
        for start in range(0, len(new), MOST_PARAMS):
            client.log_batch(self.run_id, params=new[start : start + MOST_PARAMS])
        for name, value in told.items():
            if self._params.get(name, value) != value:
                client.set_tag(self.run_id, f"{CHANGED_TAG}{name}", value)
        self._params = {**told, **self._params}

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.log_series({name: [(step, value)] for name, value in metrics.items()})

    def log_series(self, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Records whole curves, each a list of (step, value); returns before they are sent."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, step)
            for name, points in series.items()
            for step, value in points
        ]
        if metrics:
            self._server.outbox.put(self.run_id, metrics)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._server.client.log_artifact(self.run_id, str(path), folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._server.client.set_tag(self.run_id, name, value)

    def log_datasets(self, used: Sequence[DatasetUsed]) -> None:
        """Records which data sets the run has used; nothing of their content is read."""
        inputs = [
            DatasetInput(
                Dataset(
                    name=one.name,
                    digest=one.digest[:MOST_DIGEST],
                    source_type=one.use,
                    source=json.dumps(one.source),
                ),
                tags=[InputTag("mlflow.data.context", one.use)],
            )
            for one in used
        ]
        self._server.client.log_inputs(self.run_id, inputs)

    def tag_model_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Tags a registered model version of this server."""
        for tag, value in tags.items():
            self._server.client.set_model_version_tag(name, version, tag, value)


@contextlib.contextmanager
def child_run(
    uri: str, parent: str, name: str, *, tags: Mapping[str, str] | None = None
) -> Iterator[TrackedRun]:
    """Records a trial below a run that another process has open; like ``TrackedRun.child``.

    Args:
      uri: the server, ``TrackedRun.uri``.
      parent: ``TrackedRun.run_id``.
    """
    client = connect(uri)
    above = client.get_run(parent)
    server = _Server.of(uri, client, above.info.experiment_id)
    try:
        with _child(server, parent, above.data.tags[OUT_TAG], name, tags) as run:
            yield run
    finally:
        server.outbox.close()


def _open_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # Another process was faster.
        if found is None:
            raise
        return str(found.experiment_id)


def _make_private(place: Place) -> None:
    """Makes a local store before anybody else does: the mode is set when a file is made."""
    assert place.artifacts is not None
    database = Path(place.uri.removeprefix("sqlite:///"))
    os.close(os.open(database, os.O_RDWR | os.O_CREAT, 0o600))  # Empty, it is an empty database.
    Path(url2pathname(urlsplit(place.artifacts).path)).mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def _child(
    server: _Server, parent: str, out: str, name: str, tags: Mapping[str, str] | None
) -> Iterator[TrackedRun]:
    newest = server.find((PARENT_TAG, parent), ("mlflow.runName", name))[:1]
    before = newest[0] if newest and newest[0].info.status != "FINISHED" else None
    if before is not None:
        server.close_below(before.info.run_id)
    with _recorded(server, name, {**(tags or {}), PARENT_TAG: parent, OUT_TAG: out}, before) as run:
        yield run


@contextlib.contextmanager
def _recorded(
    server: _Server, name: str, tags: dict[str, str], before: Run | None
) -> Iterator[TrackedRun]:
    client = server.client
    if before is None:
        run = client.create_run(server.experiment_id, run_name=name, tags=tags)
    else:
        run_id = before.info.run_id
        client.update_run(run_id, status="RUNNING")
        for tag, value in tags.items():
            if before.data.tags.get(tag) != value:
                client.set_tag(run_id, tag, value)
        run = client.get_run(run_id)
    tracked = TrackedRun(server, run)
    try:
        yield tracked
    except BaseException as error:
        # Ctrl-C and SIGTERM are no exceptions of ours. First the state: a second signal may follow.
        with contextlib.suppress(Exception):  # The error that is on its way says more.
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            client.set_terminated(tracked.run_id, status)
            server.outbox.flush(LAST_WORDS_SEC)
        raise
    try:
        server.outbox.flush(FLUSH_SEC)
        client.set_terminated(tracked.run_id, "FINISHED")
    except Exception as error:
        raise RapidError(
            f"MLflow at {masked(server.uri)} did not take all figures of {name}: "
            f"{_first_line(error)}. Run the same command again when it answers."
        ) from error


def _quoted(value: str) -> str:
    """Returns a value as MLflow's filters take it; they know no escape."""
    return f"'{value}'" if "'" not in value else f'"{value}"'


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _first_line(error: Exception) -> str:
    return masked((str(error).splitlines() or [type(error).__name__])[0])
