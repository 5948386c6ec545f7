"""A sweep on Ray Tune: trials in processes of Tune and on Train's workers, failed and stopped."""

from pathlib import Path
from typing import Any

import pytest

from rapid_dist.config import load_recipe
from rapid_dist.runtime.sweep import run_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

TINY = [
    "data.public.0.count=800", "network.widths=[8]", "network.attention=[false]",
    "network.head_width=8", "network.norm_groups=4",
    "contrast.extractor.width=8", "contrast.extractor.dim=8",
    "pretrain.steps=2", "pretrain.batch_size=16", "contrast.steps=2", "contrast.batch_size=16",
    "knowledge_base.clusters=12", "adapt.steps=2", "adapt.batch_size=16",
    "privacy.expected_batch=32", "sampling.count=60", "sampling.late_intervals=2",
    "sampling.early_intervals=2", "evaluation.classifiers.steps=3",
    "evaluation.classifiers.logistic_iterations=3", "runtime.workers=1",
    "sweep.solve=noise_multiplier",
]  # fmt: skip


def _swept(out: Path, *more: str) -> dict[str, Any]:
    return run_sweep(load_recipe("digits", [*TINY, *more]), str(out))


def test_a_failed_trial_does_not_end_the_sweep_and_an_impossible_one_never_starts(
    tmp_path: Path,
) -> None:
    result = _swept(
        tmp_path / "sweep",
        "sweep.runner=process",
        "sweep.search=grid",
        # One sample is of one class, from which no classifier can learn; 900 is above the query.
        "sweep.space={sampling.count: [60, 1], split.split_step: [300, 900], privacy.steps: [3]}",
    )
    states = [trial["state"] for trial in result["trials"]]
    assert states == ["done", "pruned", "failed", "pruned"]
    assert "at least 2 of the classes" in result["trials"][2]["reason"]
    assert result["winner"]["number"] == 0


def test_asha_trains_some_for_a_part_alone_and_chooses_among_whole_trainings(
    tmp_path: Path,
) -> None:
    result = _swept(
        tmp_path / "sweep",
        "sweep.runner=process",
        "sweep.concurrent=1",
        "sweep.scheduler=asha",
        "sweep.search=optuna",
        "sweep.trials=5",
        "sweep.rungs=2",
        "sweep.space={split.split_step: {low: 200, high: 600, whole: true}, privacy.steps: [6]}",
    )
    by_state = {trial["state"]: trial for trial in result["trials"]}
    assert by_state.keys() == {"done", "stopped"}
    assert by_state["stopped"]["fraction"] == pytest.approx(1 / 3)
    assert result["trials"][result["winner"]["number"]]["fraction"] == 1.0


def test_a_trial_can_be_a_group_of_trains_workers(tmp_path: Path) -> None:
    result = _swept(
        tmp_path / "sweep",
        "sweep.search=grid",
        "sweep.concurrent=1",
        "sweep.space={split.split_step: [300], privacy.steps: [3]}",
    )
    assert [trial["state"] for trial in result["trials"]] == ["done"]
