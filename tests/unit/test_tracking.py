"""MLflow is told everything under explicit ids, and no run is left open."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.runtime.tracking import MOST_METRICS, Place, Tracker, tracking_place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return tracking_place(None, tmp_path / "runs" / "digits")


def _statuses(place: Place) -> dict[str, str]:
    client = MlflowClient(tracking_uri=place.uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return {run.info.run_name: run.info.status for run in runs}


def test_the_default_place_is_beside_the_run_directory(place: Place, tmp_path: Path) -> None:
    assert place.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert place.artifacts == f"file://{tmp_path}/runs/mlflow-artifacts"


def test_a_named_server_keeps_its_own_artifacts() -> None:
    assert tracking_place("http://mlflow:5000", "s3://b/run") == Place(
        uri="http://mlflow:5000", artifacts=None
    )


def test_a_run_in_a_bucket_needs_a_server() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri is not set"):
        tracking_place(None, "s3://bucket/run")


def test_a_run_its_stages_and_what_they_log_can_be_read_back(place: Place, tmp_path: Path) -> None:
    tracker = Tracker(place, "demo")
    report = tmp_path / "report.html"
    report.write_text("<p>")
    curve = [(step, step / 7) for step in range(MOST_METRICS + 5)]  # More than one batch.
    with tracker.run("run", out="o") as run:
        run.log_params({"privacy": {"epsilon": 10.0, "delta": 1e-4}, "name": "x" * 9_000})
        run.log_artifact(report)
        with run.child("train") as child:
            child.log_series({"epsilon": curve})
            child.log_metrics({"images_per_second": 3.0})
    client = MlflowClient(tracking_uri=place.uri)
    found = client.get_run(run.run_id)
    assert found.data.params["privacy.epsilon"] == "10.0"
    assert [f.path for f in client.list_artifacts(run.run_id)] == ["report.html"]
    stage = client.get_run(child.run_id)
    assert stage.data.tags["mlflow.parentRunId"] == run.run_id
    history = client.get_metric_history(child.run_id, "epsilon")
    assert sorted((m.step, m.value) for m in history) == curve
    assert (tmp_path / "runs" / "mlflow-artifacts").is_dir()
    assert not os.path.exists("mlruns")


def test_every_run_is_closed_with_how_it_ended(place: Place) -> None:
    tracker = Tracker(place, "demo")
    with tracker.run("good", out="a"):
        pass
    with pytest.raises(RapidError), tracker.run("bad", out="b") as run, run.child("stage"):
        raise RapidError("no")
    with pytest.raises(KeyboardInterrupt), tracker.run("stopped", out="c"):
        raise KeyboardInterrupt
    assert _statuses(place) == {
        "good": "FINISHED",
        "bad": "FAILED",
        "stage": "FAILED",
        "stopped": "KILLED",
    }


def test_a_run_left_open_by_a_killed_process_is_closed_by_the_next(place: Place) -> None:
    tracker = Tracker(place, "demo")
    open_runs = [tracker.run("mine", out="here"), tracker.run("another's", out="there")]
    for run in open_runs:
        run.__enter__()  # And the process is gone.
    with Tracker(place, "demo").run("next", out="here"):
        assert _statuses(place) == {"mine": "KILLED", "another's": "RUNNING", "next": "RUNNING"}


def test_a_server_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database at all" * 100)
    with pytest.raises(RapidError, match=r"Check tracking\.uri") as caught:
        Tracker(Place(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=None), "demo")
    assert "\n" not in str(caught.value)
