"""Which loops of a run read private records: their processes serve no loop after them (P9)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapid_dist.collective import SingleProcess
from rapid_dist.errors import DataError
from rapid_dist.methods import (
    artifacts,
    contamination_stage,
    evaluation_stage,
    private_stages,
    public_stages,
    sampling_stages,
)
from rapid_dist.methods.context import RunContext, Task
from rapid_dist.storage import Storage
from tests.untrained import UntrainedRun

SHORT = [
    "pretrain.steps=1",
    "contrast.steps=1",
    "adapt.steps=1",
    "knowledge_base.clusters=3",
    "privacy.prior_share=0.15",
    "sampling.source=prior",
    "sampling.count=10",
]


class _Workers:
    """One process, that notes which loops were said to be private."""

    num_workers = 1

    def __init__(self) -> None:
        self.workers = self
        self.said: dict[str, bool] = {}

    def keeper(self) -> None:
        """Nothing is charged."""

    def private_searcher(self, storage: Storage) -> None:
        return None

    def run(self, task: Task, *, name: str, num_workers: int, private: bool = True) -> None:
        self.said[name] = private
        task(SingleProcess(), lambda figures, part="": None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> UntrainedRun:
    return UntrainedRun(tmp_path_factory.mktemp("run"), *SHORT)


def _without_records(run: UntrainedRun, workers: Any, public: Path) -> RunContext:
    """A run whose private records are not where they are said to be."""
    gone = replace(run.settings.private, source="npz", path=str(public / "gone.npz"))
    return replace(
        run.context([]),
        settings=replace(run.settings, private=gone),
        backend=workers,
    )


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (public_stages.run_pretrain, "pretrain"),
        (public_stages.run_contrast, "contrast"),
        (private_stages.run_adapt, "adapt"),
        (sampling_stages.run_generate, "generate"),
    ],
)
def test_a_loop_that_is_not_private_needs_no_private_record(
    run: UntrainedRun, tmp_path: Path, stage: Callable[[RunContext], None], name: str
) -> None:
    place = {
        "pretrain": run.public.child(artifacts.pretrain_name(run.settings)),
        "contrast": run.public.child(artifacts.extractor_name(run.settings)),
        "adapt": run.out.child(private_stages.ADAPTED),
        "generate": run.out.child(sampling_stages.SAMPLES),
    }[name]
    place.delete(artifacts.DONE)  # It is there, untrained.
    workers = _Workers()
    context = _without_records(run, workers, tmp_path)
    stage(context)
    assert workers.said == {name: False}


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (contamination_stage.run_contamination, "contamination"),
        (private_stages.run_train, "train"),
        (evaluation_stage.run_evaluate, "evaluate"),
    ],
)
def test_a_loop_that_reads_private_records_is_said_to_be_private(
    run: UntrainedRun, tmp_path: Path, stage: Callable[[RunContext], None], name: str
) -> None:
    workers = _Workers()
    context = _without_records(run, workers, tmp_path)
    if name == "train":
        run.out.child(private_stages.PRIVATE).delete(artifacts.DONE)
    with pytest.raises(DataError):
        stage(context)
    assert workers.said == {name: True}
