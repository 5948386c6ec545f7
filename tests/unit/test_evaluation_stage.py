"""Controls and figures of a run: drawn and measured on workers, as one process alone would."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from rapid_dist.collective import SingleProcess
from rapid_dist.data.sources import load_private
from rapid_dist.evaluation.suite import evaluate
from rapid_dist.methods import artifacts, evaluation_stage, private_stages, sampling_stages
from rapid_dist.methods.drawing import drawing_of, facts_file
from rapid_dist.methods.evaluation_stage import control_file, controls_of
from rapid_dist.release.bundle import Bundle
from rapid_dist.release.generator import Generator
from rapid_dist.storage import open_storage
from tests.untrained import UntrainedRun

FREE = ["public model", "references, uniform", "public model from uniform references"]
OF_THE_PRIOR = [
    "references from the prior",
    "references from the prior, jittered",
    "public model from the prior",
    "adapted model from the prior",
]
COUNT = 70  # One whole block of 64 rows and a part.


class Turn(SingleProcess):
    """A worker whose turn it is: the others have ended, or wait for it to end."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> UntrainedRun:
    """A run with a prior, and with samples."""
    run = UntrainedRun(tmp_path_factory.mktemp("run"), "privacy.prior_share=0.15")
    sampling_stages.run_generate(run.context([]))
    return run


def _drawn(run: UntrainedRun, world_size: int) -> dict[str, np.ndarray]:
    """Draws all controls anew with so many workers."""
    for name in run.out.list("internal/"):
        run.out.delete(name)
    context = run.context([])
    controls = controls_of(context)
    task = drawing_of(context, tuple(controls.values()))
    for rank in reversed(range(world_size)):  # Rank 0 puts the others' parts together.
        task(Turn(rank, world_size), lambda *said: None)
    return {name: artifacts.get_images(run.out, one.file)[0] for name, one in controls.items()}


def test_controls_are_what_one_process_would_draw_for_any_number_of_workers(
    run: UntrainedRun,
) -> None:
    alone = _drawn(run, 1)
    assert list(alone) == [*FREE, *OF_THE_PRIOR]
    for world_size in (2, 3):  # With 3, one worker has nothing to draw.
        for name, images in _drawn(run, world_size).items():
            np.testing.assert_array_equal(images, alone[name], err_msg=name)
    settings, base = run.settings, run.knowledge_base()
    labels, seed, ids = np.arange(COUNT) % 10, settings.sampling.seed, np.arange(COUNT)
    for name, prior in (
        ("references, uniform", private_stages.uniform_prior(settings, base)),
        ("references from the prior", private_stages.open_prior(run.out.uri)),
    ):
        expected = base.images(prior.draw(labels, seed, ids))
        np.testing.assert_array_equal(alone[name], expected, err_msg=name)
    place = run.public.child(artifacts.pretrain_name(settings))
    public = artifacts.get_denoiser(place.uri).without_labels(10)
    facts = sampling_stages.bundle_facts(settings, "noise", {}, {})
    expected = Generator(Bundle(facts=facts, denoiser=public)).generate(labels, seed=seed)
    np.testing.assert_array_equal(alone["public model"], expected)


def test_every_control_is_another_set_of_images(run: UntrainedRun) -> None:
    sets = list(_drawn(run, 1).values())
    for place, images in enumerate(sets):
        for other in sets[:place]:
            assert (images != other).any(axis=(1, 2, 3)).mean() > 0.5


def test_without_a_prior_the_controls_are_those_that_cost_no_budget(tmp_path: Path) -> None:
    context = UntrainedRun(tmp_path).context([])
    assert list(controls_of(context)) == FREE


def _quality(run: UntrainedRun, world_size: int) -> str:
    """Draws the controls, then has so many workers measure, the last rank first."""
    _drawn(run, world_size)
    context = run.context([])
    task = evaluation_stage.evaluation_of(context)
    for rank in reversed(range(world_size)):
        task(Turn(rank, world_size), lambda *said: None)
    return context.internal.read("quality.json").decode()


def test_figures_are_what_one_process_would_measure_for_any_number_of_workers(
    run: UntrainedRun,
) -> None:
    settings, files = run.settings, {name: control_file(name) for name in [*FREE, *OF_THE_PRIOR]}
    found = [_quality(run, world_size) for world_size in (1, 2, 9)]  # Of 9, one has no set.
    images = artifacts.get_images(run.out, sampling_stages.SAMPLES_FILE)
    controls = {name: artifacts.get_images(run.out, file) for name, file in files.items()}
    expected = evaluate(
        *images,
        controls,
        *load_private(settings.private, settings.data_root),
        settings.evaluation,
        settings.seed,
    )
    assert found == [json.dumps(expected.to_json(), indent=2)] * 3
    assert list(json.loads(found[0])["controls"]) == list(files)


def test_a_set_that_was_measured_before_a_worker_died_is_not_measured_again(
    run: UntrainedRun,
) -> None:
    whole = json.loads(_quality(run, 1))
    context = run.context([])
    internal = open_storage(context.internal.uri, private=True)
    internal.delete("quality.json")
    marked = whole["controls"]["public model"]
    marked["classifiers"]["cnn"] = 0.75
    internal.write("quality/public-model.json", json.dumps(marked).encode())
    evaluation_stage.run_evaluate(context)
    again = json.loads(internal.read("quality.json"))
    assert again["controls"]["public model"]["classifiers"]["cnn"] == 0.75
    del again["controls"]["public model"], whole["controls"]["public model"]
    assert again["controls"] == whole["controls"]


def test_evaluation_says_how_far_it_is_and_nothing_else(run: UntrainedRun) -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    for name in run.out.list("internal/"):
        run.out.delete(name)
    evaluation_stage.run_evaluate(run.context(reports))
    assert {key for _, figures in reports for key in figures} == {"step", "steps", "rows"}
    drawing = [figures for stage, figures in reports if stage == "evaluate controls"]
    assert drawing[-1]["step"] == drawing[-1]["steps"] == 7 * COUNT
    steps = [figures["step"] for figures in drawing]
    assert steps == sorted(steps)
    measuring = [figures for stage, figures in reports if stage == "evaluate"]
    assert measuring == [{"step": step, "steps": 8} for step in range(1, 9)]


def test_evaluation_leaves_its_figures_to_the_owner_and_what_the_report_shows(
    run: UntrainedRun,
) -> None:
    _quality(run, 2)
    folder = Path(run.out.uri) / "internal"
    assert stat.S_IMODE((folder / "quality.json").stat().st_mode) == 0o600
    shown = [control_file(name) for name in [*FREE, *OF_THE_PRIOR]]
    facts = [facts_file(file) for file in shown]
    assert run.out.list("internal/") == sorted([*shown, *facts, "internal/quality.json"])
