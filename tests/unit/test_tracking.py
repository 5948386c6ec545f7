"""MLflow is told everything under explicit ids, and no run is left open."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.runtime.tracking import MOST_METRICS, Tracker, child_run
from rapid_dist.runtime.tracking_place import Place, tracking_place


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


def _runs(place: Place) -> list[Run]:
    client = MlflowClient(tracking_uri=place.uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_a_command_that_goes_on_goes_on_with_its_run_and_with_its_unfinished_stage(
    place: Place,
) -> None:
    with Tracker(place, "demo").run("digits", out="here", key="digits-1") as run:
        with run.child("pretrain"):
            pass
        with pytest.raises(KeyboardInterrupt), run.child("train") as train:
            raise KeyboardInterrupt
    with Tracker(place, "demo").run("digits", out="here", key="digits-1") as again:
        assert again.run_id == run.run_id
        with again.child("train") as once_more:
            assert once_more.run_id == train.run_id
        with again.child("pretrain"):  # That one had finished: this is another.
            pass
    found = [(run.info.run_name, run.info.status) for run in _runs(place)]
    assert sorted(found) == [
        ("digits", "FINISHED"),
        ("pretrain", "FINISHED"),
        ("pretrain", "FINISHED"),
        ("train", "FINISHED"),
    ]


def test_another_key_or_another_directory_is_another_run(place: Place) -> None:
    ids = set()
    for out, key in [("here", "a"), ("here", "b"), ("there", "a"), ("it's here", "a")]:
        for _ in range(2):
            with Tracker(place, "demo").run("digits", out=out, key=key) as run:
                ids.add(run.run_id)
    assert len(ids) == 4


def test_a_setting_that_changed_on_the_way_is_told_and_the_first_one_stays(place: Place) -> None:
    for workers in (2, 2, 4):
        with Tracker(place, "demo").run("digits", out="here", key="a") as run:
            run.log_params({"runtime": {"workers": workers}, "seed": 0})
    (found,) = _runs(place)
    assert found.data.params == {"runtime.workers": "2", "seed": "0"}
    assert found.data.tags["rapid_dist.now.runtime.workers"] == "4"
    assert "rapid_dist.now.seed" not in found.data.tags


def test_what_a_killed_trial_left_below_its_sweep_is_closed_with_it(place: Place) -> None:
    sweep = Tracker(place, "demo").run("sweep", out="sweep", key="s")
    opened = sweep.__enter__()
    trial = child_run(opened.uri, opened.run_id, "trial-3", tags={"split": "400"})
    stage = trial.__enter__().child("train")
    stage.__enter__()  # And all of their processes are gone.
    assert _statuses(place) == dict.fromkeys(["sweep", "trial-3", "train"], "RUNNING")
    with Tracker(place, "demo").run("sweep", out="sweep", key="s") as again:
        assert _statuses(place) == {"sweep": "RUNNING", "trial-3": "KILLED", "train": "KILLED"}
        with child_run(again.uri, again.run_id, "trial-3") as same:
            same.log_metrics({"score": 0.5})
    found = {run.info.run_name: run for run in _runs(place)}
    assert found["trial-3"].info.status == "FINISHED"
    assert found["trial-3"].data.metrics == {"score": 0.5}
    assert found["trial-3"].data.tags["split"] == "400"
    assert found["trial-3"].data.tags["mlflow.parentRunId"] == found["sweep"].info.run_id
    assert len(found) == 3
