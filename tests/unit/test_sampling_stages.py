"""Samples and queries: what they depend on, what they cost and how far they are."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dist.collective import SingleProcess
from rapid_dist.config import load_recipe, method_settings
from rapid_dist.diffusion.denoiser import Denoiser, NetworkConfig
from rapid_dist.methods import artifacts, private_stages, sampling_stages
from rapid_dist.methods.drawing import GenerateTask, ImageSet, facts_file, open_stored
from rapid_dist.methods.sampling_stages import QueryPath
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.recipe_files import recipe_names
from rapid_dist.release.bundle import write_bundle
from rapid_dist.release.generator import Generator
from rapid_dist.release.query import one_of
from rapid_dist.storage import LocalStorage
from tests.bundles import tiny_bundle
from tests.fakes import ThreadWorkers
from tests.untrained import UntrainedRun

COUNT = 150  # Two whole blocks of 64 rows and a part.


def _drawn(folder: Path, world_size: int, **changes: Any) -> dict[str, np.ndarray]:
    """Draws samples, and the references they start from, with so many workers, in a new folder."""
    out = LocalStorage(folder / f"{world_size}-{'-'.join(map(str, changes.values()))}")
    bundle = partial(open_stored, str(folder / "bundle"))
    sets = (
        ImageSet(file="samples/samples.npz", open_bundle=bundle),
        ImageSet(file="references.npz", open_bundle=bundle, references=True),
    )
    task = GenerateTask(
        **{
            "sets": sets,
            "out_uri": out.uri,
            "count": COUNT,
            "num_labels": 2,
            "seed": 3,
            "batch_size": 50,
            **changes,
        }
    )
    ThreadWorkers(world_size).run(lambda collective: task(collective, lambda *said: None))
    found = {}
    for one in sets:
        found[one.file], labels = artifacts.get_images(out, one.file)
        np.testing.assert_array_equal(labels, np.arange(COUNT) % 2)
    assert out.list() == sorted(name for f in found for name in (f, facts_file(f)))  # No parts.
    return found


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    write_bundle(tiny_bundle(), folder / "bundle")
    return folder


def test_a_set_of_images_does_not_depend_on_workers_or_batch_size(bundled: Path) -> None:
    alone = _drawn(bundled, 1)
    generator = Generator.open(bundled / "bundle")
    labels = np.arange(COUNT) % 2
    np.testing.assert_array_equal(alone["samples/samples.npz"], generator.generate(labels, seed=3))
    np.testing.assert_array_equal(alone["references.npz"], generator.references(labels, seed=3))
    others = [_drawn(bundled, 2), _drawn(bundled, 2, batch_size=7)]
    others.append(_drawn(bundled, 5))  # Two of five workers have nothing to draw.
    for other in others:
        for file, images in alone.items():
            np.testing.assert_array_equal(other[file], images)


def test_the_workers_comparison_would_notice_a_worker_with_a_seed_of_its_own(bundled: Path) -> None:
    other, alone = _drawn(bundled, 1, seed=4), _drawn(bundled, 1)
    samples = "samples/samples.npz"
    assert (other[samples] != alone[samples]).any(axis=(1, 2, 3)).all()
    assert (other["references.npz"] != alone["references.npz"]).any()


def test_a_set_that_was_drawn_before_a_worker_died_is_not_drawn_again(bundled: Path) -> None:
    out = LocalStorage(bundled / "died")
    sets = tuple(
        ImageSet(file=f"{name}.npz", open_bundle=partial(open_stored, str(bundled / "bundle")))
        for name in ("whole", "torn")
    )
    task = GenerateTask(
        sets=sets, out_uri=out.uri, count=COUNT, num_labels=2, seed=3, batch_size=50
    )
    marked = np.zeros((COUNT, 1, 8, 8), np.uint8)
    for one in sets:
        artifacts.put_images(out, one.file, marked, np.arange(COUNT) % 2)
    out.write(facts_file("whole.npz"), b"{}")  # The other has none: its file may be half a set.
    said: list[dict[str, float]] = []
    task(SingleProcess(), lambda figures, part="": said.append(figures))
    np.testing.assert_array_equal(artifacts.get_images(out, "whole.npz")[0], marked)
    assert (artifacts.get_images(out, "torn.npz")[0] != marked).any()
    assert [one["step"] for one in said] == [50, 100, 150]
    assert {one["steps"] for one in said} == {COUNT}


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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> UntrainedRun:
    return UntrainedRun(tmp_path_factory.mktemp("run"))


def _by_query(
    place: UntrainedRun, labels: np.ndarray, on_batch: Callable[[int], None] | None = None
) -> QueryPath:
    return sampling_stages.sample_by_query(
        place.settings,
        place.public.uri,
        place.knowledge_base(),
        artifacts.get_denoiser(place.out.child(private_stages.PRIVATE).uri),
        labels,
        seed=1,
        on_batch=on_batch,
    )


def test_a_sample_by_query_depends_on_its_own_seed_and_id_alone(place: UntrainedRun) -> None:
    labels = np.arange(70) % 10
    done: list[int] = []
    many = _by_query(place, labels, done.append)
    few = _by_query(place, labels[:5])
    for column in ("query", "reference", "surrogate", "sample"):
        np.testing.assert_array_equal(getattr(few, column), getattr(many, column)[:5])
    assert len(np.unique(many.query, axis=0)) == 70
    assert done == [64, 70]


def test_two_samples_that_retrieve_one_trajectory_are_two_pictures(place: UntrainedRun) -> None:
    path = _by_query(place, np.zeros(200, np.int64))
    _, first, counts = np.unique(path.reference, axis=0, return_index=True, return_counts=True)
    assert counts.max() > 1  # One trajectory was retrieved more than once.
    assert len(first) < 200
    for column in (path.surrogate, path.sample):
        assert len(np.unique(column, axis=0)) == 200


def test_an_entrys_own_noise_would_have_given_one_picture_twice(place: UntrainedRun) -> None:
    twice = place.knowledge_base().state(np.array([3, 3]), 2.0)
    np.testing.assert_array_equal(twice[0], twice[1])


def test_a_sample_enters_at_one_of_the_m_nearest_by_its_own_seed_alone() -> None:
    found = np.arange(4_000).reshape(1_000, 4)
    ids = np.arange(1_000)
    drawn = one_of(found, 3, ids)
    counts = np.bincount(drawn - found[:, 0], minlength=4)
    assert counts.sum() == 1_000
    assert counts.min() > 180  # Binomial(1,000, 1/4): below 180 with chance 1e-7.
    np.testing.assert_array_equal(one_of(found[7:9], 3, ids[7:9]), drawn[7:9])
    assert (one_of(found, 4, ids) != drawn).any()
    np.testing.assert_array_equal(one_of(found[:, :1], 3, ids), found[:, 0])
    few = np.array([[5, 6, -1, -1]] * 50)
    assert set(one_of(few, 3, ids[:50])) == {5, 6}


def test_sampling_among_the_m_nearest_enters_elsewhere_for_the_same_queries(
    place: UntrainedRun,
) -> None:
    labels = np.zeros(128, np.int64)
    nearest = _by_query(place, labels)
    sampling = replace(place.settings.sampling, top_m=20)
    several = sampling_stages.sample_by_query(
        replace(place.settings, sampling=sampling),
        place.public.uri,
        place.knowledge_base(),
        artifacts.get_denoiser(place.out.child(private_stages.PRIVATE).uri),
        labels,
        seed=1,
    )
    np.testing.assert_array_equal(several.query, nearest.query)
    assert (several.neighbours != nearest.neighbours).mean() > 0.5
    assert (several.sample != nearest.sample).any(axis=(1, 2, 3)).mean() > 0.5


def test_declared_class_names_reach_the_bundle_and_numbers_stand_in_for_them() -> None:
    names = tuple("abcdefghij")
    for changes, expected in (
        ([f"data.private.class_names={list(names)}"], names),
        ([], tuple("0123456789")),
        (["data.private.num_classes=0"], ()),
    ):
        settings = method_settings(load_recipe("digits", changes))
        assert sampling_stages.bundle_facts(settings, "prior", {}, {}).class_names == expected


def test_images_without_classes_have_a_bundle_too() -> None:
    settings = method_settings(load_recipe("digits", ["data.private.num_classes=0"]))
    facts = sampling_stages.bundle_facts(settings, "noise", {}, {})
    denoiser = Denoiser(
        NetworkConfig(widths=[8], attention=[False], head_width=8, norm_groups=4),
        channels=1,
        size=8,
        num_classes=private_stages.num_classes(settings),
    )
    bundle = sampling_stages.make_bundle(settings, denoiser, facts, None, None)
    assert Generator(bundle).generate(np.zeros(2, np.int64), seed=0).shape == (2, 1, 8, 8)


def test_the_evaluations_of_a_query_are_counted_with_the_public_models(place: UntrainedRun) -> None:
    # Two public intervals to k, one clean estimate as the query, two private intervals from v.
    assert _by_query(place, np.zeros(3, np.int64)).nfe == 5
    assert _evaluations(place.settings, "query") == 5


@pytest.mark.parametrize("keys", ["contrast", "pixels"])
def test_a_run_by_query_leaves_a_bundle_that_draws_its_samples_again(
    keys: str, tmp_path: Path
) -> None:
    run = UntrainedRun(tmp_path, f"knowledge_base.keys={keys}", "sampling.top_m=3")
    reports: list[tuple[str, dict[str, float]]] = []
    sampling_stages.run_generate(run.context(reports))
    images, labels = artifacts.get_images(run.out.child("samples"), "samples.npz")
    assert images.shape == (70, 1, 8, 8)
    np.testing.assert_array_equal(labels, np.arange(70) % 10)
    done = artifacts.read_done(run.out.child("samples"))
    assert done["nfe"] == 5
    assert done["neighbours"]["queries"] == 70
    assert [figures["step"] for _, figures in reports] == [70]
    folder = Path(run.out.child("bundle").uri)
    assert (folder / "public" / "extractor.json").exists() == (keys == "contrast")
    generator = Generator.open(folder)
    seed = run.settings.sampling.seed
    entered = np.full(70, -1)
    again = generator.generate(labels, seed=seed, batch_size=9, entered=entered)
    np.testing.assert_array_equal(again, images)
    # FAISS, asked for the same queries, finds the same entries, and so does the way that is shown.
    way = sampling_stages.sample_by_query(
        run.settings,
        run.public.uri,
        run.knowledge_base(),
        artifacts.get_denoiser(run.out.child(private_stages.PRIVATE).uri),
        labels,
        seed=seed,
    )
    np.testing.assert_array_equal(way.sample, images)
    np.testing.assert_array_equal(way.neighbours, entered)
    assert len(np.unique(entered)) > 10
    references = generator.references(labels[5:], seed=seed, first_id=5)
    np.testing.assert_array_equal(references, way.reference[5:])
    # Any worker's part is the same, and another seed is not.
    part = generator.generate(labels[60:], seed=seed, first_id=60)
    np.testing.assert_array_equal(part, images[60:])
    assert (generator.generate(labels[60:], seed=seed + 1, first_id=60) != part).any()
