"""Controls and figures on Ray's workers: those of one process, and nothing private on the way."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import cloudpickle

from rapid_dist.data.sources import load_private
from rapid_dist.methods import artifacts, evaluation_stage, sampling_stages
from rapid_dist.methods.context import RunContext
from rapid_dist.runtime.train_workers import RayWorkers
from tests.untrained import UntrainedRun

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

OnReport = Callable[[str, dict[str, float]], None]


class _OnRay:
    """A backend whose workers are Ray's, for what needs no ledger."""

    num_workers = 2

    def __init__(self, on_report: OnReport) -> None:
        self.workers: Any = RayWorkers(threads=1, max_failures=0, on_report=on_report)


def _stored_bytes() -> int:
    """What has ever been put into the object stores of the cluster."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    stored: int = get_memory_info_reply(state).store_stats.cumulative_created_bytes
    return stored


def _found(run: UntrainedRun, context: RunContext) -> tuple[dict[str, np.ndarray], str]:
    """Evaluates anew; returns all controls, and quality.json."""
    for name in run.out.list("internal/"):
        run.out.delete(name)
    evaluation_stage.run_evaluate(context)
    names = json.loads(context.internal.read("quality.json"))["controls"]
    files = {name: evaluation_stage.control_file(name) for name in names}
    controls = {name: artifacts.get_images(run.out, file)[0] for name, file in files.items()}
    return controls, context.internal.read("quality.json").decode()


def test_evaluation_on_ray_finds_what_one_process_finds_and_stores_nothing_private(
    tmp_path: Path,
) -> None:
    run = UntrainedRun(tmp_path, "privacy.prior_share=0.15")
    reports: list[tuple[str, dict[str, float]]] = []
    context = run.context([])
    sampling_stages.run_generate(context)
    alone = _found(run, context)
    assert len(alone[0]) == 7
    before = _stored_bytes()
    backend: Any = _OnRay(lambda name, figures: reports.append((name, figures)))
    on_ray = _found(run, replace(context, backend=backend))
    stored = _stored_bytes() - before  # By the group of workers, not of any image.
    train, _ = load_private(run.settings.private)
    ray.put(train.images)
    assert _stored_bytes() - before > stored + train.images.nbytes
    assert stored < train.images.nbytes / 2
    assert json.loads(on_ray[1]) == json.loads(alone[1])
    for name, images in alone[0].items():
        np.testing.assert_array_equal(on_ray[0][name], images, err_msg=name)
    assert {stage for stage, _ in reports} == {"evaluate", "evaluate controls"}
    assert {key for _, figures in reports for key in figures} == {"step", "steps", "rows"}


def test_what_is_sent_to_the_workers_holds_no_image(tmp_path: Path) -> None:
    task = evaluation_stage.evaluation_of(UntrainedRun(tmp_path).context([]))
    assert len(cloudpickle.dumps(task)) < 20_000  # 1,797 digits of 64 pixels are 115,008 bytes.
