"""A whole run, as small as it can be: every stage, what comes out, and running it again."""

import json
import re
import shutil
import stat
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient

from rapid_dist.config import Recipe, load_recipe
from rapid_dist.errors import ConfigError, LedgerError
from rapid_dist.privacy.keeper import totals
from rapid_dist.runtime import pipeline
from rapid_dist.runtime.lock import locked
from rapid_dist.runtime.run_directory import open_ledger

GRAFANA = Path(__file__).resolve().parents[2] / "cluster" / "grafana.json"
TINY = [
    "data.public.0.count=600",
    "network.widths=[16, 16]",
    "pretrain.steps=4",
    "contrast.steps=2",
    "knowledge_base.clusters=20",
    "adapt.steps=2",
    "privacy.steps=4",
    "privacy.expected_batch=512",
    "sampling.count=100",
    "sampling.late_intervals=3",
    "sampling.early_intervals=2",
    "evaluation.classifiers.steps=5",
    "evaluation.classifiers.logistic_iterations=5",
]
KEYS = {
    "method", "recipe", "dataset", "seconds", "privacy", "sampling", "quality", "controls",
    "registry", "versions",
}  # fmt: skip
PRIVACY_KEYS = {
    "epsilon", "delta", "relation", "unit", "accountants", "steps", "sample_rate",
    "noise_multiplier", "max_grad_norm", "ledger_head", "dataset_epsilon",
}  # fmt: skip


def _recipe(backend: str, *more: str) -> Recipe:
    return load_recipe("digits", [*TINY, f"runtime.backend={backend}", *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "digits"
    return out, pipeline.run(_recipe("process"), str(out))


def test_the_summary_has_every_key_that_is_promised(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = finished
    assert KEYS - summary.keys() == set()
    assert PRIVACY_KEYS - summary["privacy"].keys() == set()
    assert summary["privacy"]["accountants"].keys() == {"pld", "prv", "rdp"}
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["seconds"].keys() == {
        "pretrain", "contrast", "index", "contamination", "prior", "adapt", "train", "generate",
        "evaluate", "total",
    }  # fmt: skip


def test_epsilon_is_the_ledgers_and_within_the_budget(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = finished
    ledger = open_ledger(_recipe("process"), str(out))
    privacy = summary["privacy"]
    assert privacy["epsilon"] == totals(ledger, 1e-4).runs[privacy["run"]].reported
    assert 0 < privacy["epsilon"] <= 10
    assert privacy["ledger_head"] == ledger.head
    assert (privacy["steps"], privacy["queries"]) == (4, 1)


def test_a_run_leaves_what_is_promised_and_keeps_internal_figures_apart(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = finished
    for name in ("config.yaml", "metrics.jsonl", "samples.png", "report.html", "bundle/model.json"):
        assert (out / name).is_file(), name
    notice = json.loads((out / "internal" / "quality.json").read_text())["notice"]
    assert notice not in (out / "report.html").read_text()
    assert notice in (out / "internal" / "report.html").read_text()
    internal = ("quality.json", "contamination.json", "report.html")
    for name in ("summary.json", *(f"internal/{name}" for name in internal)):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600, name


def test_private_stages_leave_no_figure_but_how_far_they_were(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    stages = ("contamination", "prior", "train")
    private = [line for line in lines if line["stage"] in stages]
    assert {key for line in private for key in line} == {"stage", "step", "steps", "rows"}
    assert any("loss" in line for line in lines)
    for stage in stages:
        assert any(line["stage"] == stage and line["step"] == line["steps"] for line in lines)


def test_mlflow_holds_the_run_its_stages_and_the_model(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = finished
    client = MlflowClient(tracking_uri=f"sqlite:///{out.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("rapid-dist")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs.keys() == {"digits", *summary["seconds"]} - {"total"}
    parent = runs["digits"]
    assert parent.data.params["privacy.epsilon"] == "10.0"
    assert parent.data.metrics["privacy.epsilon"] == summary["privacy"]["epsilon"]
    spent = client.get_metric_history(parent.info.run_id, "privacy.epsilon")
    assert sorted(point.step for point in spent) == [1, 2, 3, 4, 5]  # The histogram, four steps.
    lines = [json.loads(line) for line in (out / "epsilon.jsonl").read_text().splitlines()]
    assert {line["release"]: line["epsilon"] for line in lines} == {
        point.step: point.value for point in spent
    }
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files >= {"config.yaml", "summary.json", "ledger.json", "samples.png", "report.html"}
    kept = Path(client.download_artifacts(parent.info.run_id, "summary.json")).read_text()
    assert json.loads(kept).keys() == summary.keys() - {"quality", "controls"}
    registry = summary["registry"]
    version = client.get_model_version_by_alias(registry["name"], "candidate")
    assert version.tags["dp.epsilon"] == str(summary["privacy"]["epsilon"])
    assert version.tags["dp.ledger_head"] == summary["privacy"]["ledger_head"]
    assert client.get_experiment_by_name("rapid-dist-internal") is None  # Not in this file.


def test_figures_against_private_records_are_in_a_store_for_its_owner_alone(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    place = finished[0].parent
    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow-internal.db")
    internal = client.get_experiment_by_name("rapid-dist-internal")
    assert internal is not None
    (run,) = client.search_runs([internal.experiment_id])
    assert run.data.metrics
    folder = place / "mlflow-artifacts-internal"
    assert any(folder.rglob("quality.json"))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "mlflow-internal.db").stat().st_mode) == 0o600
    assert not any((place / "mlflow-artifacts").rglob("quality.json"))


def test_the_same_command_again_does_nothing_and_says_the_same(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = finished
    entries = len(open_ledger(_recipe("process"), str(out)).entries())
    assert pipeline.run(_recipe("process"), str(out)) == summary
    assert len(open_ledger(_recipe("process"), str(out)).entries()) == entries


def test_a_directory_that_another_process_writes_is_refused(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    with locked(str(finished[0])), pytest.raises(ConfigError, match="in use by process"):
        pipeline.run(_recipe("process"), str(finished[0]))


def test_another_privacy_budget_in_the_same_directory_is_refused(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    with pytest.raises(ConfigError, match=r"begun with privacy\.epsilon"):
        pipeline.run(_recipe("process", "privacy.epsilon=5"), str(finished[0]))


def test_a_run_whose_ledger_was_left_behind_is_not_released(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "digits"
    shutil.copytree(finished[0], out)
    where = f"runtime.public_dir={finished[0].parent}/public"
    with pytest.raises(LedgerError, match="lacks the query"):  # A ledger beside it, and empty.
        pipeline.run(_recipe("process", where, "sampling.count=90"), str(out))
    assert not (out / "bundle" / "checksums.json").exists()
    assert not (out / "summary.json").exists()


def test_stages_can_be_run_one_by_one_and_a_skipped_one_is_named(tmp_path: Path) -> None:
    out = str(tmp_path / "a")
    with pytest.raises(ConfigError, match="Stage index needs pretrain, contrast"):
        pipeline.run(_recipe("process"), out, command="index")
    assert pipeline.run(_recipe("process"), out, command="pretrain") == {}
    assert pipeline.run(_recipe("process"), out, command="index") == {}
    assert not (tmp_path / "a" / "summary.json").exists()


def test_a_public_store_that_was_cleared_is_made_again(tmp_path: Path) -> None:
    recipe, out = _recipe("process"), str(tmp_path / "runs" / "digits")
    pipeline.run(recipe, out, command="pretrain")
    made = sorted(tmp_path.glob("runs/public/*/done.json"))
    assert len(made) == 2
    shutil.rmtree(tmp_path / "runs" / "public")
    with pytest.raises(ConfigError, match=r"Stage index needs pretrain, contrast, not yet done"):
        pipeline.run(recipe, out, command="index")
    pipeline.run(recipe, out, command="pretrain")
    assert sorted(tmp_path.glob("runs/public/*/done.json")) == made


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_whole_run_also_works_on_ray(
    tmp_path: Path,
) -> None:
    told, is_over = set[str](), threading.Event()

    def listen() -> None:  # All the while: Ray forgets what was not said for some seconds.
        while not is_over.wait(2.0):
            told.update(_exported())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    summary = pipeline.run(_recipe("ray"), str(tmp_path / "a"))
    assert 0 < summary["privacy"]["epsilon"] <= 10
    found = json.loads((tmp_path / "a" / "internal" / "contamination.json").read_text())
    assert (found["units"]["all"], found["train"]["sources"][0]["images"]) == (1432, 600)
    assert summary["registry"]["aliases"] == ["candidate"]
    shown = set(re.findall(r"ray_rapid_dist_\w+", GRAFANA.read_text()))
    assert len(shown) >= 8
    deadline = time.monotonic() + 60  # Ray hands numbers on every ten seconds.
    while not told >= shown and time.monotonic() < deadline:
        time.sleep(1)
    is_over.set()
    listener.join()
    assert told >= shown


def _exported() -> set[str]:
    """Returns the names of all our metrics that Ray's nodes tell Prometheus."""
    told: set[str] = set()
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(place, timeout=30) as answer:
            told |= set(re.findall(r"^(ray_rapid_dist_\w+)\{", answer.read().decode(), re.M))
    return told
