"""The private prior's query: charged first, and nothing at all where the charge is refused."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dist.data.sources import load_private
from rapid_dist.errors import BudgetError
from rapid_dist.methods import private_stages
from rapid_dist.methods.clusters import assign_clusters, open_centroids
from rapid_dist.methods.context import RunContext
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.retrieval.arrays import unpack_arrays
from rapid_dist.retrieval.prior import TrajectoryPrior, estimate
from rapid_dist.storage import LocalStorage
from tests.models import Attempt
from tests.untrained import UntrainedRun

QUERY = GaussianEvent(noise_multiplier=20.0)
HISTOGRAM = f"{private_stages.PRIOR}/histogram.npz"


@dataclass
class _Keeper:
    """Notes what is stored when it is asked to charge; refuses if it ``refuses``."""

    out: LocalStorage
    refuses: bool = False
    asked: list[tuple[GaussianEvent, list[str]]] = field(default_factory=list)

    def begin_attempt(self) -> Attempt:
        return Attempt(number=1, affordable_steps=0)

    def charge_query(self, event: GaussianEvent, purpose: str) -> None:
        self.asked.append((event, self.out.list()))
        if self.refuses:
            raise BudgetError("The query is not paid for.")


@dataclass
class _Backend:
    own: _Keeper

    def keeper(self) -> _Keeper:
        return self.own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> UntrainedRun:
    return UntrainedRun(tmp_path_factory.mktemp("run"))


def _context(run: UntrainedRun, keeper: _Keeper) -> RunContext:
    context = run.context([])
    base = replace(run.settings.knowledge_base, clusters=4)
    backend: Any = _Backend(keeper)
    return replace(
        context,
        settings=replace(run.settings, knowledge_base=base),
        plan=replace(context.plan, prior=QUERY),
        out=keeper.out,
        backend=backend,
    )


def test_the_histogram_is_charged_before_it_leaves(run: UntrainedRun, tmp_path: Path) -> None:
    keeper = _Keeper(LocalStorage(tmp_path))
    private_stages.run_prior(_context(run, keeper))
    assert keeper.asked == [(QUERY, [])]
    noised = unpack_arrays(keeper.out.read(HISTOGRAM), HISTOGRAM)["noised"]
    assert noised.shape == (10, 4)
    assert not np.array_equal(noised, noised.round())


def test_making_the_clusters_says_how_far_it_is_iteration_by_iteration(
    run: UntrainedRun, tmp_path: Path
) -> None:
    said: list[dict[str, float]] = []
    context = _context(run, _Keeper(LocalStorage(tmp_path / "out")))
    base = replace(context.settings.knowledge_base, kmeans_iterations=3)
    context = replace(
        context,
        settings=replace(context.settings, knowledge_base=base),
        report=lambda part, figures: said.append(figures) if part == "clusters" else None,
    )
    private_stages.run_prior(context)
    assert said == [{"step": done, "steps": 3} for done in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["pixels", "contrast", "denoiser"])
@pytest.mark.parametrize("threshold", [0.0, 1.0, 1e6])
def test_the_prior_is_read_off_its_noised_histogram_alone_whatever_votes_compare_by(
    run: UntrainedRun, tmp_path: Path, kind: Any, threshold: float
) -> None:
    keeper = _Keeper(LocalStorage(tmp_path))
    context = _context(run, keeper)
    config = replace(context.settings.prior, features=kind, threshold=threshold)
    context = replace(context, settings=replace(context.settings, prior=config))
    private_stages.run_prior(context)
    found = private_stages.open_prior(context.out.uri)
    noised = unpack_arrays(keeper.out.read(HISTOGRAM), HISTOGRAM)["noised"]
    expected = estimate(noised, QUERY.noise_multiplier, config)
    read = TrajectoryPrior(found.cluster_of_entry, expected)
    # Stored and read back it was normalised twice.
    np.testing.assert_allclose(found.probabilities, read.probabilities, rtol=1e-12)
    sizes = np.bincount(found.cluster_of_entry, minlength=4)
    if threshold == 1e6:  # Nothing passes it, so every class is alike, over what can be drawn.
        alike = np.tile((sizes > 0) / (sizes > 0).sum(), (10, 1))
        np.testing.assert_allclose(found.probabilities, alike, rtol=1e-12)
    else:
        assert len(np.unique(found.probabilities, axis=0)) > 1


@pytest.mark.parametrize("nearest", [None, 1, 2])
def test_only_the_nearest_of_a_cluster_are_drawn_where_the_recipe_says_so(
    run: UntrainedRun, tmp_path: Path, nearest: int | None
) -> None:
    """Chance of a false alarm: below 1e-30, that noise leaves one cluster or none. At the recipe's
    threshold, three times the noise, it leaves so few once in 9,000 times.
    """
    context = _context(run, _Keeper(LocalStorage(tmp_path)))
    config = replace(context.settings.prior, nearest=nearest, threshold=0.0)
    settings = replace(context.settings, prior=config)
    private_stages.run_prior(replace(context, settings=settings))
    prior, base = private_stages.open_prior(context.out.uri), run.knowledge_base()
    centroids = open_centroids(settings, context.public.uri, base)
    apart = np.square(base.features[:, None] - centroids[None]).sum(axis=2)
    own, distance = apart.argmin(axis=1), apart.min(axis=1)
    drawn = prior.probabilities[:, prior.cluster_of_entry].sum(axis=0) > 0
    met = [c for c in range(4) if drawn[own == c].any()]
    assert len(met) > 1  # By their noise some clusters have no mass in any class.
    for cluster in met:
        inside = np.sort(distance[own == cluster])
        np.testing.assert_allclose(np.sort(distance[drawn & (own == cluster)]), inside[:nearest])
    assert max(np.bincount(own)) > 2


def test_training_from_surrogates_meets_the_same_entries_as_sampling(
    run: UntrainedRun, tmp_path: Path
) -> None:
    context = _context(run, _Keeper(LocalStorage(tmp_path)))
    config = replace(context.settings.prior, nearest=1)
    images, _ = load_private(context.settings.private, context.settings.data_root)
    of_record, of_entry = assign_clusters(
        replace(context.settings, prior=config),
        context.public.uri,
        images,
        run.knowledge_base(),
        lambda figures: None,
    )
    assert set(of_record) <= {0, 1, 2, 3}
    assert np.bincount(of_entry, minlength=5)[:4].tolist() == [1, 1, 1, 1]


def test_it_is_told_where_the_votes_say_nothing(run: UntrainedRun, tmp_path: Path) -> None:
    said: list[str] = []
    context = _context(run, _Keeper(LocalStorage(tmp_path)))
    config = replace(context.settings.prior, threshold=1e6)
    settings = replace(context.settings, prior=config)
    private_stages.run_prior(replace(context, settings=settings, note=said.append))
    assert len(said) == 1
    assert "10 of 10 classes have none" in said[0]


def test_the_order_test_would_notice_a_histogram_that_is_stored_first(
    run: UntrainedRun, tmp_path: Path
) -> None:
    keeper = _Keeper(LocalStorage(tmp_path))
    keeper.out.write(HISTOGRAM, b"")
    private_stages.run_prior(_context(run, keeper))
    assert keeper.asked == [(QUERY, [HISTOGRAM])]


def test_a_refused_query_leaves_nothing(run: UntrainedRun, tmp_path: Path) -> None:
    keeper = _Keeper(LocalStorage(tmp_path), refuses=True)
    with pytest.raises(BudgetError):
        private_stages.run_prior(_context(run, keeper))
    assert keeper.out.list() == []


def test_a_prior_that_is_done_is_not_asked_again(run: UntrainedRun, tmp_path: Path) -> None:
    keeper = _Keeper(LocalStorage(tmp_path))
    for _ in range(2):
        private_stages.run_prior(_context(run, keeper))
    assert len(keeper.asked) == 1
