"""Runs recorded over HTTP: MLflow's server, its files and the run directory on an S3 server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from rapid_dist.config import load_recipe
from rapid_dist.runtime import pipeline
from rapid_dist.runtime.services import Services
from rapid_dist.runtime.tracking import Tracker
from rapid_dist.runtime.tracking_place import Place
from rapid_dist.storage import open_storage, sha256_hex
from tests.servers import client_of, on_services, services

__all__ = ["on_services", "services"]  # Fixtures.
# One stack for all of them. Slow: whole runs, killed and resumed, over HTTP.
pytestmark = pytest.mark.slow

TINY = [
    "data.public.0.count=300",
    "network.widths=[16, 16]",
    "pretrain.steps=3",
    "contrast.steps=2",
    "knowledge_base.clusters=20",
    "adapt.steps=2",
    "privacy.steps=3",
    "privacy.expected_batch=512",
    "sampling.count=40",
    "sampling.late_intervals=2",
    "sampling.early_intervals=2",
    "evaluation.controls=false",
    "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2",
    "runtime.backend=process",
]
PATIENCE_SEC = 900.0  # A machine may be busy; a right run takes seconds.


def _runs(client: MlflowClient, experiment: str) -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    return list(client.search_runs([found.experiment_id]))


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run on the servers."""

    out: str
    summary: dict[str, Any]
    client: MlflowClient


@pytest.fixture(scope="module")
def finished(services: Services) -> Iterator[Finished]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in services.environment.items():
            patch.setenv(name, value)
        out = "s3://rapid/runs/digits"
        recipe = load_recipe("digits", [*TINY, "tracking.experiment=whole"])
        summary = pipeline.run(recipe, out)
        yield Finished(out=out, summary=summary, client=client_of(services))


def test_a_whole_run_is_recorded_over_http_with_nothing_left_open(finished: Finished) -> None:
    runs = {run.info.run_name: run for run in _runs(finished.client, "whole")}
    assert runs.keys() == {"digits", *finished.summary["seconds"]} - {"total"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs.pop("digits").info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}


def test_files_go_through_the_server_to_its_bucket(finished: Finished, services: Services) -> None:
    (parent,) = [r for r in _runs(finished.client, "whole") if r.info.run_name == "digits"]
    assert parent.info.artifact_uri.startswith("mlflow-artifacts:/")
    files = {file.path for file in finished.client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "summary.json", "ledger.json", "lineage.json"} <= files
    stored = services.s3().list_objects_v2(Bucket="mlflow")["Contents"]
    assert any(
        item["Key"].endswith(f"{parent.info.run_id}/artifacts/report.html") for item in stored
    )


def test_internal_figures_are_in_an_experiment_of_their_own(finished: Finished) -> None:
    (internal,) = _runs(finished.client, "whole-internal")
    assert internal.data.metrics
    public = [
        finished.client.list_artifacts(r.info.run_id) for r in _runs(finished.client, "whole")
    ]
    assert not [file.path for files in public for file in files if "quality" in file.path]


def test_from_a_model_version_one_comes_back_to_the_public_shards(finished: Finished) -> None:
    client, registry = finished.client, finished.summary["registry"]
    version = client.get_model_version_by_alias(registry["name"], "candidate")
    path = Path(client.download_artifacts(version.run_id, "lineage.json"))
    lineage = json.loads(path.read_text())
    assert version.tags["lineage.sha256"] == sha256_hex(path.read_bytes())
    assert lineage["artifacts"]["bundle"]["sha256"] == version.tags["bundle.sha256"]
    assert lineage["ledger"]["head"] == version.tags["dp.ledger_head"]
    public = open_storage("s3://rapid/runs/public")
    base = lineage["knowledge_base"]
    manifest = public.read(f"{base['folder']}/manifest.json")
    assert sha256_hex(manifest) == base["manifest"] == version.tags["lineage.knowledge_base"]
    assert len(base["shards"]) == 4
    for shard in base["shards"]:
        assert sha256_hex(public.read(f"{shard['folder']}/{shard['name']}")) == shard["sha256"]
    parts = lineage["artifacts"].keys()
    assert parts >= {"public denoiser", "extractor", "prior", "adapted", "private"}


def test_mlflow_shows_the_data_sets_and_of_the_private_one_the_name_alone(
    finished: Finished,
) -> None:
    (run,) = [r for r in _runs(finished.client, "whole") if r.info.run_name == "digits"]
    assert run.inputs is not None
    used = {one.dataset.source_type: one.dataset for one in run.inputs.dataset_inputs}
    assert used.keys() == {"public", "private", "knowledge base"}
    assert (used["private"].name, used["private"].digest) == ("digits", "none")
    assert (used["private"].source, used["private"].profile) == ("{}", None)


def test_hundreds_of_figures_a_step_all_arrive_and_before_the_run_is_called_finished(
    services: Services,
) -> None:
    place = Place(uri=services.tracking_uri, artifacts=None)
    with Tracker(place, "figures").run("many", out="o") as run:
        for step in range(20):
            run.log_series({f"figure.{number}": [(step, step / 3)] for number in range(300)})
    client = client_of(services)
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert len(found.data.metrics) == 300
    assert set(found.data.metrics.values()) == {19 / 3}
    assert len(client.get_metric_history(run.run_id, "figure.299")) == 20


class Command:
    """`rapid-dist pretrain` in a process of its own, recorded in an experiment of its own."""

    def __init__(self, services: Services, folder: Path) -> None:
        self.client = client_of(services)
        self._log = folder / "log.txt"
        changes = [*TINY, "pretrain.steps=1000000", "tracking.experiment=killed"]
        options = [word for change in changes for word in ("--set", change)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "rapid_dist.cli", "pretrain", "--recipe", "digits"),
                    *(*options, "--out", str(folder / "digits")),
                ],
                env={**os.environ, **services.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def statuses(self) -> dict[str, tuple[str, str]]:
        """Returns id and status of every run, by name."""
        found = _runs(self.client, "killed")
        assert len({run.info.run_name for run in found}) == len(found), "A stray run."
        return {run.info.run_name: (run.info.run_id, run.info.status) for run in found}

    def wait_for(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SEC
        while not seen():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)

    def is_training(self) -> bool:
        return {status for _, status in self.statuses().values()} == {"RUNNING"} and len(
            self.statuses()
        ) == 2


def test_a_killed_command_is_gone_on_with_and_one_that_is_told_to_stop_closes_its_runs(
    services: Services, tmp_path: Path
) -> None:
    first = Command(services, tmp_path)
    first.wait_for(first.is_training)
    began_with = first.statuses()
    first.process.kill()  # No chance to say anything.
    first.process.wait()
    assert {status for _, status in first.statuses().values()} == {"RUNNING"}

    second = Command(services, tmp_path)
    seen: set[str] = set()

    def is_gone_on_with() -> bool:
        now = second.statuses()
        seen.update(status for _, status in now.values())
        end = second.client.get_run(now["pretrain"][0]).info.end_time
        return second.is_training() and end is not None  # It was closed, and opened again.

    second.wait_for(is_gone_on_with)
    assert second.statuses() == began_with  # The same ids: no run beside them.

    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(PATIENCE_SEC) == 1
    assert {status for _, status in second.statuses().values()} == {"KILLED"}
    assert "Run the same command again to go on" in (tmp_path / "log.txt").read_text()
