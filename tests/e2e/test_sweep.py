"""Whole sweeps, as small as they can be: what each promise opens, charges, leaves and resumes."""

import contextlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rapid_dist.config import Recipe, load_recipe
from rapid_dist.errors import ConfigError, LedgerError
from rapid_dist.methods.sweep_proxy import make_proxy
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.runtime import pipeline, releasing
from rapid_dist.runtime.run_directory import places
from rapid_dist.runtime.sweep import run_sweep
from rapid_dist.runtime.sweep_planner import Planner
from rapid_dist.storage import open_storage

TINY = [
    "data.public.0.count=800",
    "network.widths=[8]",
    "network.norm_groups=4",
    "network.attention=[false]",
    "network.head_width=8",
    "contrast.extractor.width=8",
    "contrast.extractor.dim=8",
    "pretrain.steps=2",
    "pretrain.batch_size=16",
    "contrast.steps=2",
    "contrast.batch_size=16",
    "knowledge_base.clusters=12",
    "adapt.steps=2",
    "adapt.batch_size=16",
    "privacy.expected_batch=512",
    "sampling.count=60",
    "sampling.late_intervals=2",
    "sampling.early_intervals=2",
    "evaluation.controls=false",
    "evaluation.classifiers.steps=3",
    "evaluation.classifiers.logistic_iterations=3",
    "runtime.backend=process",
    "sweep.solve=noise_multiplier",
    "sweep.search=grid",
    "sweep.space={split.split_step: [300, 600, 900], privacy.steps: [3]}",
]
NOWHERE = [  # A private source that cannot be opened: there is no such file.
    "data.private.source=npz",
    "data.private.path=/nowhere/scans.npz",
    "data.private.name=scans",
]
SECRET = ["sweep.promise=repeat_and_select", "sweep.search=random", "sweep.runs.mean=2"]


def _recipe(*more: str) -> Recipe:
    return load_recipe("digits", [*TINY, *more])


def _states(result: dict[str, Any]) -> list[str]:
    return [trial["state"] for trial in result["trials"]]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "sweep"
    return out, run_sweep(_recipe(*NOWHERE), str(out))


def test_a_sweep_on_public_images_opens_no_private_one_and_charges_nothing(
    public: tuple[Path, dict[str, Any]],
) -> None:
    out, result = public  # It ended at all: the private file does not exist.
    assert _states(result) == ["done", "done", "pruned"]
    assert not (out.parent / "ledger" / "scans").exists()
    assert result["price"]["epsilon"] == 10
    assert "Choosing cost nothing: all 2 trials" in result["price"]["sentence"]
    assert "classes A, B," in result["proxy"]


def test_features_that_are_not_there_are_missed_before_anything_has_started(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    with pytest.raises(ConfigError, match=r"mobilenet.*data\.root"):
        run_sweep(_recipe("evaluation.features=mobilenet"), str(out))
    with pytest.raises(ConfigError, match=r"mobilenet.*data\.root"):
        pipeline.run(_recipe("evaluation.features=mobilenet"), str(out))
    assert not out.exists()


def test_a_trial_on_public_images_keeps_the_folder_of_the_features(tmp_path: Path) -> None:
    recipe = _recipe("data.root=/weights")
    where = places(recipe, str(tmp_path / "sweep"))
    proxy = make_proxy(
        recipe.sweep.proxy,
        recipe.data.private,
        recipe.data.public,
        None,
        open_storage(tmp_path / "proxy"),
        seed=0,
    )
    planner = Planner(recipe=recipe, places=where, home=str(tmp_path), proxy=proxy)
    assert planner.job(0, {"split.split_step": 300}).recipe["data"]["root"] == "/weights"


def test_the_chosen_recipe_is_one_that_run_takes(public: tuple[Path, dict[str, Any]]) -> None:
    out, result = public
    chosen = load_recipe(out / "winner.yaml")
    assert chosen.data.private.path == "/nowhere/scans.npz"
    assert chosen.split.split_step == result["winner"]["point"]["split.split_step"]
    assert (chosen.privacy.steps, chosen.privacy.noise_multiplier) == (3, None)
    best = max(t["score"] for t in result["trials"] if t["score"] is not None)
    assert result["winner"]["score"] == best


def test_a_sweep_leaves_a_page_and_a_record_with_a_child_a_trial(
    public: tuple[Path, dict[str, Any]],
) -> None:
    out, result = public
    page = (out / "sweep.html").read_text()
    assert result["price"]["sentence"] in page
    assert page.count("<svg") == 4  # Two settings, all together, seconds.
    assert "split.split_step must lie between" in page  # Why a point was pruned.
    client = MlflowClient(tracking_uri=f"sqlite:///{out.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("rapid-dist-sweeps")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {result["name"], "trial 000", "trial 001", "trial 002"}
    parent = runs[result["name"]].info.run_id
    assert runs["trial 001"].data.tags["mlflow.parentRunId"] == parent
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_the_same_command_again_runs_nothing_and_another_sweep_is_refused(
    public: tuple[Path, dict[str, Any]],
) -> None:
    out, result = public
    assert run_sweep(_recipe(*NOWHERE), str(out)) == result
    elsewhere = _recipe(*NOWHERE, "runtime.workers=3", "sweep.concurrent=1")
    assert run_sweep(elsewhere, str(out)) == result
    with pytest.raises(ConfigError, match="begun by another sweep"):
        run_sweep(_recipe(*NOWHERE, "sweep.trials=1"), str(out))


def _killed_in_training(code: str, ledger: Path, runs: int) -> None:
    """Runs a sweep in a process of its own and kills it while its ``runs``-th trial trains."""
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    try:
        while process.poll() is None:
            entries = [json.loads(p.read_bytes()) for p in sorted(ledger.glob("*.json"))]
            if len({e["run"] for e in entries if e["kind"] == "step"}) == runs:
                break
            time.sleep(0.02)
        assert process.poll() is None, "It ended before it could be killed."
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_sweep_that_was_killed_twice_goes_on_and_charges_every_trial_once(
    tmp_path: Path,
) -> None:
    more = ["sweep.promise=per_trial", "privacy.reserve_steps=3"]
    out, ledger = tmp_path / "sweep", tmp_path / "ledger" / "digits"
    code = (
        "from rapid_dist.config import load_recipe\n"
        "from rapid_dist.runtime.sweep import run_sweep\n"
        f"run_sweep(load_recipe('digits', {[*TINY, *more]!r}), {str(out)!r})\n"
    )
    for runs in (1, 2):
        _killed_in_training(code, ledger, runs)
    result = run_sweep(_recipe(*more), str(out))
    assert _states(result) == ["done", "done", "pruned"]
    entries = Ledger.open(tmp_path / "ledger", "digits").entries()
    steps: dict[str, Counter[Any]] = {e.run: Counter() for e in entries if e.kind == "step"}
    for entry in entries:
        if entry.kind == "step":
            steps[entry.run][entry.step] += 1
    assert len(steps) == 2  # A trial that goes on is the run that it was.
    assert all(set(found) == {0, 1, 2} for found in steps.values())
    assert sum(found.total() for found in steps.values()) <= 6 + 2  # One step more a kill.
    assert Counter(e.note for e in entries if e.kind == "query")["prior histogram"] == 2


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "sweep"
    return out, run_sweep(_recipe("sweep.promise=per_trial"), str(out))


def test_the_price_of_trials_that_may_be_seen_is_all_that_they_charged(
    shown: tuple[Path, dict[str, Any]],
) -> None:
    out, result = shown
    ledger = Ledger.open(out.parent / "ledger", "digits")
    trained = [run for run in ledger.runs() if not run.endswith("-score")]
    assert len(trained) == 2
    charged = [event for run in trained for event in ledger.events(run)]
    assert result["price"]["epsilon"] == epsilons(charged, 1e-4).reported > 10
    for run in trained:
        assert epsilons(ledger.events(run), 1e-4).reported <= 10
        assert len(ledger.events(f"{run}-score")) == 1
    assert ledger.entries()[0].note == "sweep promise=per_trial"  # Before any trial.


def test_the_chosen_model_is_finished_by_run_with_the_price_of_the_choice(
    shown: tuple[Path, dict[str, Any]],
) -> None:
    out, result = shown
    entries = len(Ledger.open(out.parent / "ledger", "digits").entries())
    summary = pipeline.run(load_recipe(out / "winner.yaml"), result["winner"]["run"])
    privacy = summary["privacy"]
    assert privacy["epsilon"] == result["price"]["epsilon"]
    assert privacy["run_epsilon"] <= 10
    model = json.loads((out / "chosen" / "bundle" / "model.json").read_text())
    assert model["privacy"]["epsilon"] == result["price"]["epsilon"]
    assert result["price"]["sentence"] in (out / "chosen" / "report.html").read_text()
    assert len(Ledger.open(out.parent / "ledger", "digits").entries()) == entries


def _refused_as_trial(run: Path, said: str) -> None:
    recipe = load_recipe(run / "config.yaml")
    with pytest.raises(ConfigError, match=said):
        pipeline.run(recipe, str(run))
    with pytest.raises(releasing.Refused) as refusal:
        releasing.check(recipe, str(run), date.today())
    assert said in refusal.value.reasons["selection_priced"]
    assert not (run / "registry.json").exists()


def test_a_trial_that_was_not_chosen_is_neither_finished_nor_released(
    shown: tuple[Path, dict[str, Any]],
) -> None:
    out, result = shown
    best = result["winner"]["number"]
    _refused_as_trial(out / f"trials/{1 - best:03d}/run", "which has not chosen it")
    _refused_as_trial(out / f"trials/{best:03d}/run", "lacks selection.json")
    with pytest.raises(releasing.Refused) as refusal:  # For other reasons: it has no audit.
        releasing.check(load_recipe(out / "winner.yaml"), str(out / "chosen"), date.today())
    assert "Release the sweep's" not in refusal.value.reasons["selection_priced"]


def test_a_second_choice_is_refused_before_anybody_can_see_it(
    shown: tuple[Path, dict[str, Any]],
) -> None:
    out, result = shown
    loser = out / "trials" / f"{1 - result['winner']['number']:03d}.json"
    kept = {path: path.read_bytes() for path in (loser, out / "sweep.json")}
    chosen = (out / "winner.yaml").read_bytes()
    try:
        loser.write_text(json.dumps({**json.loads(kept[loser]), "score": 1e6}))
        (
            out / "sweep.json"
        ).unlink()  # As if the sweep had been cut off, and a trial's folder lost.
        with pytest.raises(LedgerError, match="and its price is that of one choice"):
            run_sweep(_recipe("sweep.promise=per_trial"), str(out))
        assert (out / "winner.yaml").read_bytes() == chosen
    finally:
        for path, data in kept.items():
            path.write_bytes(data)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A sweep whose number of runs is secret, and what it said on the way."""
    out, said = tmp_path_factory.mktemp("runs") / "sweep", io.StringIO()
    with contextlib.redirect_stderr(said):
        result = run_sweep(_recipe(*SECRET), str(out))
    return out, result, said.getvalue().splitlines()


def test_of_a_secret_number_of_runs_nothing_but_one_model_is_outside_internal(
    hidden: tuple[Path, dict[str, Any], list[str]],
) -> None:
    out, result, told = hidden
    assert [line for line in told if line.startswith("pretrain ")]
    # A line a run would tell their number.
    assert not [line for line in told if line.startswith(("train ", "generate "))]
    for run in (out / "internal" / "trials").glob("*/run"):
        _refused_as_trial(run, "Release the sweep's folder chosen/")
    assert (result["trials"], result["winner"]["number"]) == (None, None)
    assert {path.name for path in out.iterdir()} == {
        "chosen", "config.yaml", "internal", "name.json", "run.lock", "sweep.json", "winner.yaml",
    }  # fmt: skip
    assert stat.S_IMODE((out / "internal").stat().st_mode) == 0o700
    drawn = json.loads((out / "internal" / "drawn.json").read_text())["points"]
    assert len(list((out / "internal" / "trials").glob("*.json"))) == len(drawn)
    assert result["price"]["epsilon"] > 10
    assert load_recipe(out / "winner.yaml").name == "digits-chosen"
    client = MlflowClient(tracking_uri=f"sqlite:///{out.parent}/mlflow-internal.db")
    assert client.get_experiment_by_name("rapid-dist-sweeps-internal") is not None
    assert not (out.parent / "mlflow.db").exists()


def test_the_best_of_a_secret_number_says_nothing_of_the_others(
    hidden: tuple[Path, dict[str, Any], list[str]],
) -> None:
    out, result, _ = hidden
    summary = pipeline.run(load_recipe(out / "winner.yaml"), result["winner"]["run"])
    model = json.loads((out / "chosen" / "bundle" / "model.json").read_text())
    assert "dataset_epsilon" not in model["privacy"]
    # One mechanism, whatever the number of its runs: the total is the price, not a composition.
    price = result["price"]["epsilon"]
    assert summary["privacy"]["dataset_epsilon"] == pytest.approx(price)
    client = MlflowClient(tracking_uri=summary["registry"]["tracking_uri"])
    version = client.get_model_version_by_alias(summary["registry"]["name"], "candidate")
    assert float(version.tags["dp.dataset_epsilon"]) == pytest.approx(price)
    assert version.tags["dp.epsilon"] == str(result["price"]["epsilon"])
    kept = Path(client.download_artifacts(version.run_id, "ledger.json")).read_text()
    assert json.loads(kept) == []
