"""Samples, controls and queries: what they depend on, what they cost and how far they are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rapid_dist.config import load_recipe, method_settings, recipe_names
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.methods import (
    artifacts,
    evaluation_stage,
    private_stages,
    public_stages,
    sampling_stages,
)
from rapid_dist.methods.context import RunContext
from rapid_dist.methods.sampling_stages import GenerateTask, QueryPath
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.accounting import plan
from rapid_dist.public.build import build_knowledge_base, knowledge_base_spec
from rapid_dist.release.bundle import write_bundle
from rapid_dist.retrieval.features import ContrastExtractor
from rapid_dist.storage import LocalStorage
from tests.bundles import tiny_bundle
from tests.fakes import ThreadWorkers

COUNT = 150  # Two whole blocks of 64 rows and a part.
TINY = [
    "data.public.0.count=60",
    "network.widths=[8]",
    "network.attention=[false]",
    "network.head_width=8",
    "contrast.extractor.width=8",
    "contrast.extractor.dim=8",
    "sampling.late_intervals=2",
    "sampling.early_intervals=2",
    "privacy.prior_share=0",
    "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2",
]


def _samples(folder: Path, world_size: int, **changes: Any) -> np.ndarray:
    """Draws with so many workers and puts the parts together, as the stage does."""
    task = GenerateTask(
        **{
            "bundle_uri": str(folder / "bundle"),
            "samples_uri": str(folder / f"samples-{world_size}-{len(changes)}"),
            "count": COUNT,
            "num_labels": 2,
            "seed": 3,
            "batch_size": 50,
            **changes,
        }
    )
    ThreadWorkers(world_size).run(lambda collective: task(collective, lambda figures: None))
    storage = LocalStorage(Path(task.samples_uri))
    parts = [artifacts.get_images(storage, name) for name in storage.list("part-")]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    np.testing.assert_array_equal(labels, np.arange(COUNT) % 2)
    return images


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    write_bundle(tiny_bundle(), folder / "bundle")
    return folder


def test_the_samples_of_a_run_do_not_depend_on_workers_or_batch_size(bundled: Path) -> None:
    alone = _samples(bundled, 1)
    for world_size in (2, 5):  # With 5, two workers have nothing to draw.
        np.testing.assert_array_equal(_samples(bundled, world_size), alone)
    np.testing.assert_array_equal(_samples(bundled, 2, batch_size=7), alone)


def test_the_workers_comparison_would_notice_a_worker_with_a_seed_of_its_own(bundled: Path) -> None:
    other = _samples(bundled, 1, seed=4)
    assert (other != _samples(bundled, 1)).any(axis=(1, 2, 3)).all()


def _evaluations(settings: MethodSettings, source: str) -> int:
    """What one sample of a recipe costs, by the intervals that its settings ask for."""
    sampling, schedule = settings.sampling, settings.schedule
    facts = sampling_stages.bundle_facts(settings, source, {}, {})
    private = len(facts.levels()) - 1
    public = 0
    if source == "query":  # The public model down to k, and one clean estimate to ask with.
        early = schedule.path(
            schedule.num_steps, settings.split.query_step, sampling.early_intervals
        )
        private = sampling.late_intervals
        public = len(early) - 1 + 1
    return private * (2 if sampling.guidance != 1 else 1) + public


@pytest.mark.parametrize("source", ["prior", "uniform", "query", "noise"])
@pytest.mark.parametrize("name", recipe_names())
def test_no_recipe_takes_more_than_fifty_evaluations_a_sample(name: str, source: str) -> None:
    settings = method_settings(load_recipe(name))
    assert settings.sampling.solver in ("ddim", "dpmpp")  # One evaluation an interval.
    assert _evaluations(settings, source) <= 50


class _Place:
    """A run whose public stages are there, untrained: enough to draw from."""

    def __init__(self, root: Path) -> None:
        self.settings = method_settings(load_recipe("digits", TINY))
        self.public, self.out = LocalStorage(root / "public"), LocalStorage(root / "out")
        settings = self.settings
        _, reference = artifacts.load_public_split(settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            own = _denoiser(settings, private_stages.num_classes(settings))
            public = _denoiser(settings, reference.spec.num_classes)
            extractor = ContrastExtractor(settings.contrast.extractor, 1, 8).freeze()
        name = artifacts.pretrain_name(settings)
        artifacts.put_denoiser(self.public.child(name), public)
        artifacts.put_extractor(self.public.child(artifacts.extractor_name(settings)), extractor)
        artifacts.put_denoiser(self.out.child(private_stages.PRIVATE), own)
        spec = knowledge_base_spec(
            settings.knowledge_base,
            reference,
            query_level=settings.schedule.level(settings.split.query_step),
            embedder="test",
        )
        build_knowledge_base(
            reference,
            spec,
            public_stages.open_embedder(settings, self.public.uri),
            self.public.child(artifacts.knowledge_base_name(settings)),
        )

    def by_query(self, labels: np.ndarray, on_batch: Callable[[int], None] | None) -> QueryPath:
        return sampling_stages.sample_by_query(
            self.settings,
            self.public.uri,
            private_stages.open_knowledge_base(self.settings, self.public.uri),
            artifacts.get_denoiser(self.out.child(private_stages.PRIVATE).uri),
            labels,
            seed=1,
            on_batch=on_batch,
        )


def _denoiser(settings: MethodSettings, num_classes: int) -> Denoiser:
    denoiser = Denoiser(settings.network, channels=1, size=8, num_classes=num_classes)
    torch.nn.init.normal_(denoiser.unet.conv_out.weight, std=0.3)  # Else all but nothing is drawn.
    return denoiser


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> _Place:
    return _Place(tmp_path_factory.mktemp("run"))


def test_a_sample_by_query_depends_on_its_own_seed_and_id_alone(place: _Place) -> None:
    labels, done = np.arange(70) % 10, []
    many = place.by_query(labels, done.append)
    few = place.by_query(labels[:5], None)
    for column in ("query", "reference", "surrogate", "sample"):
        np.testing.assert_array_equal(getattr(few, column), getattr(many, column)[:5])
    assert len(np.unique(many.query, axis=0)) == 70
    assert done == [64, 70]


def test_the_evaluations_of_a_query_are_counted_with_the_public_models(place: _Place) -> None:
    # Two public intervals to k, one clean estimate as the query, two private intervals from v.
    assert place.by_query(np.zeros(3, np.int64), None).nfe == 5
    assert _evaluations(place.settings, "query") == 5


def _context(place: _Place, reports: list[tuple[str, dict[str, float]]]) -> RunContext:
    return RunContext(
        settings=replace(
            place.settings, sampling=replace(place.settings.sampling, source="query", count=70)
        ),
        plan=plan(place.settings.privacy, 1432),
        out=place.out,
        internal=place.out.child("internal"),
        public=place.public,
        backend=_OneProcess(place),
        privacy=dict,
        versions={},
        report=lambda stage, figures: reports.append((stage, figures)),
    )


class _OneProcess:
    """A backend that only searches."""

    workers: Any = None
    num_workers = 1

    def __init__(self, place: _Place) -> None:
        self._place = place

    def searcher(self, storage: LocalStorage) -> Any:
        return private_stages.open_knowledge_base(self._place.settings, self._place.public.uri)


def test_a_run_by_query_leaves_samples_and_no_bundle_and_says_how_far_it_is(place: _Place) -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    sampling_stages.run_generate(_context(place, reports))
    images, labels = artifacts.get_images(place.out.child("samples"), "samples.npz")
    assert images.shape == (70, 1, 8, 8)
    np.testing.assert_array_equal(labels, np.arange(70) % 10)
    assert artifacts.read_done(place.out.child("samples"))["nfe"] == 5
    assert place.out.list("bundle/") == []
    assert reports == [
        ("generate", {"step": 64, "steps": 70}),
        ("generate", {"step": 70, "steps": 70}),
    ]


def test_without_a_prior_the_controls_are_those_that_cost_no_budget(place: _Place) -> None:
    labels = np.arange(20) % 10
    controls = evaluation_stage.controls_of(_context(place, []), labels)
    assert list(controls) == [
        "public model",
        "references, uniform",
        "public model from uniform references",
    ]
    for draw in controls.values():
        assert draw().shape == (20, 1, 8, 8)
        np.testing.assert_array_equal(draw(), draw())


def test_evaluation_says_how_far_it_is_and_keeps_what_the_report_will_show(place: _Place) -> None:
    reports: list[tuple[str, dict[str, float]]] = []
    context = _context(place, reports)
    sampling_stages.run_generate(context)
    reports.clear()
    evaluation_stage.run_evaluate(context)
    # Three controls are drawn, and measured as the samples are.
    assert reports == [("evaluate", {"step": step, "steps": 7}) for step in range(1, 8)]
    quality = json.loads(context.internal.read("quality.json"))
    assert len(quality["controls"]) == 3
    for name in quality["controls"]:
        images, _ = artifacts.get_images(place.out, evaluation_stage.control_file(name))
        assert len(images) == 70
