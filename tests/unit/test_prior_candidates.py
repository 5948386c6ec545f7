"""The second round of votes, among candidates, and what votes compare images by."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dist.config import load_recipe, method_settings
from rapid_dist.data.images import PrivateImages
from rapid_dist.errors import BudgetError, ConfigError
from rapid_dist.methods import artifacts, candidates_stage, catalog, private_stages
from rapid_dist.methods.clusters import features_name, open_centroids, vote_features
from rapid_dist.methods.context import RunContext
from rapid_dist.privacy.accounting import epsilons, plan
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.privacy.settings import PrivacyConfig
from rapid_dist.private.votes import noised_histogram
from rapid_dist.public.activations import activation_features
from rapid_dist.release.generator import Generator
from rapid_dist.retrieval.arrays import unpack_arrays
from rapid_dist.retrieval.features import pixel_features
from rapid_dist.retrieval.jitter import JitterConfig
from rapid_dist.retrieval.prior import TrajectoryPrior, refined
from rapid_dist.storage import LocalStorage
from tests.models import CLASSES, KEY, Attempt, private_images, public_images, tiny_denoiser
from tests.untrained import UntrainedRun

QUERY = GaussianEvent(noise_multiplier=5.0)
EACH = 3  # Candidates of a class.


def _mass(prior: TrajectoryPrior) -> np.ndarray:
    """p(entry | class), float64 [Y, E]."""
    sizes = np.bincount(prior.cluster_of_entry, minlength=prior.probabilities.shape[1])
    mass: np.ndarray = (prior.probabilities / np.maximum(sizes, 1))[:, prior.cluster_of_entry]
    return mass


def _prior() -> TrajectoryPrior:
    votes = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]])
    return TrajectoryPrior(np.array([0, 0, 0, 1, 1, 2, 3, 3]), votes)


ENTRIES = np.array([[0, 3, 5], [6, 3, 3]])
VOTED = np.array([[0.8, 0.2, 0.0], [0.5, 0.3, 0.2]])


def test_a_second_round_of_no_weight_changes_nothing() -> None:
    np.testing.assert_allclose(
        _mass(refined(_prior(), ENTRIES, VOTED, np.zeros(2))), _mass(_prior())
    )


@pytest.mark.parametrize("weight", [[0.25, 0.25], [1.0, 1.0], [0.5, 0.0]])
def test_the_weight_goes_to_the_entries_behind_the_candidates(weight: list[float]) -> None:
    expected = (1 - np.array(weight)[:, None]) * _mass(_prior())
    for label in range(2):
        np.add.at(expected[label], ENTRIES[label], weight[label] * VOTED[label])
    found = _mass(refined(_prior(), ENTRIES, VOTED, np.array(weight)))
    np.testing.assert_allclose(found, expected)


def _config(**changes: Any) -> PrivacyConfig:
    settings = {
        "epsilon": 2.0, "delta": 1e-3, "prior_share": 0.2, "candidate_share": 0.25,
        "expected_batch": 50, "steps": 4,
    }  # fmt: skip
    return PrivacyConfig(**{**settings, **changes})


@pytest.mark.parametrize("prior_share", [0.2, 1.0])
def test_both_rounds_together_cost_what_the_prior_alone_would(prior_share: float) -> None:
    solved = plan(_config(prior_share=prior_share), 300)
    assert solved.prior is not None
    assert solved.candidates is not None
    assert solved.queries == (solved.prior, solved.candidates)
    assert solved.epsilons.reported <= 2.0
    whole = 2.0 * prior_share
    assert 0.95 * whole < epsilons(solved.queries, 1e-3).reported <= 1.01 * whole
    alone = epsilons([solved.candidates], 1e-3).reported
    assert 0.2 * whole < alone <= 0.255 * whole


@pytest.mark.parametrize("change", [{"prior_share": 0.0}, {"prior_noise": 5.0}])
def test_a_share_of_no_epsilon_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="is a share of the prior's epsilon"):
        _config(**change)


@pytest.mark.parametrize("change", [{"candidate_share": 1.0}, {"candidate_share": -0.1}])
def test_a_share_outside_its_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="candidate_share"):
        _config(**change)


def test_a_recipe_has_one_round_unless_it_pays_for_two() -> None:
    def stages(*changes: str) -> list[str]:
        settings = method_settings(load_recipe("digits", changes))
        return [stage.name for stage in catalog.stages_of(settings)]

    assert "candidates" not in stages()
    found = stages("privacy.candidate_share=0.3")
    assert found.index("adapt") < found.index("candidates") < found.index("train")


def test_a_method_without_a_second_round_refuses_to_pay_for_one() -> None:
    changes = ["method=references", "privacy.candidate_share=0.3"]
    settings = method_settings(load_recipe("digits", changes))
    with pytest.raises(ConfigError, match="has no second round of votes"):
        catalog.check_method(settings)


def _features(images: np.ndarray) -> np.ndarray:
    found = pixel_features(images)
    found[images.reshape(len(images), -1).max(axis=1) == 0] = np.nan  # The black image's.
    return found


def _candidates() -> tuple[np.ndarray, np.ndarray]:
    labels = np.tile(np.arange(CLASSES), EACH)
    return pixel_features(public_images().images[5 : 5 + len(labels)]), labels


def _votes(images: PrivateImages) -> np.ndarray:
    return candidates_stage.nearest_candidates(
        images, _features, *_candidates(), lambda figures: None
    )


def test_a_record_votes_for_the_nearest_candidate_of_its_own_class() -> None:
    images = private_images()
    features, labels = _candidates()
    own = pixel_features(images.images)
    for record, vote in enumerate(_votes(images).tolist()):
        if record == 0:
            assert vote == -1  # Its features are not finite.
            continue
        those = features[labels == images.labels[record]]
        assert vote == np.linalg.norm(those - own[record], axis=1).argmin()


def _histogram(images: PrivateImages, votes: np.ndarray) -> np.ndarray:
    return noised_histogram(
        images, votes, num_classes=CLASSES, num_clusters=EACH, noise_multiplier=1.0, key=KEY,
        attempt=1, purpose="candidates",
    )  # fmt: skip


def _moves(votes_of: Any) -> float:
    """What replacing one record's image by nothing moves the histogram by, at most."""
    images, largest = private_images(), 0.0
    whole = _histogram(images, votes_of(images))
    for record in range(1, len(images)):
        changed = images.images.copy()
        changed[record] = 0  # Black: it has no finite features, and so no vote.
        without = replace(images, images=changed)
        moved = np.linalg.norm(whole - _histogram(without, votes_of(without)))
        largest = max(largest, float(moved))
    return largest


def test_a_record_moves_the_second_histogram_by_one_vote() -> None:
    assert abs(_moves(_votes) - 1.0) < 1e-5


def test_the_test_of_the_vote_notices_one_that_depends_on_others() -> None:
    def relative(images: PrivateImages) -> np.ndarray:
        """The fault: votes by features that are centred over all records."""
        features, labels = _candidates()
        own = _features(images.images)
        own = own - np.nanmean(own, axis=0) + features.mean(axis=0)
        return np.array(
            [
                -1 if np.isnan(row).any()
                else np.linalg.norm(features[labels == label] - row, axis=1).argmin()
                for row, label in zip(own, images.labels, strict=True)
            ]
        )  # fmt: skip

    assert _moves(relative) > 1.2


@dataclass
class _Keeper:
    out: LocalStorage
    refuses: bool = False
    asked: list[tuple[GaussianEvent, str, list[str]]] = field(default_factory=list)

    def begin_attempt(self) -> Attempt:
        return Attempt(number=1, affordable_steps=0)

    def charge_query(self, event: GaussianEvent, purpose: str) -> None:
        self.asked.append((event, purpose, self.out.child(private_stages.REFINED).list()))
        if self.refuses:
            raise BudgetError("The query is not paid for.")


@dataclass
class _Backend:
    own: _Keeper
    workers: Any
    num_workers: int = 1

    def keeper(self) -> _Keeper:
        return self.own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> UntrainedRun:
    return UntrainedRun(
        tmp_path_factory.mktemp("run"), "sampling.source=prior", "privacy.prior_share=0.2",
        f"prior.candidates={EACH}", "knowledge_base.clusters=4", "prior.threshold=0",
    )  # fmt: skip


def _context(run: UntrainedRun, keeper: _Keeper) -> RunContext:
    context = run.context([])
    for folder in (private_stages.ADAPTED, private_stages.PRIOR):
        for name in run.out.child(folder).list():
            keeper.out.child(folder).write(name, run.out.child(folder).read(name))
    backend: Any = _Backend(keeper, context.backend.workers)
    return replace(
        context,
        plan=replace(context.plan, candidates=QUERY),
        out=keeper.out,
        backend=backend,
    )


def test_votes_for_candidates_are_charged_before_they_leave_and_asked_once(
    run: UntrainedRun, tmp_path: Path
) -> None:
    keeper = _Keeper(LocalStorage(tmp_path))
    context = _context(run, keeper)
    first = private_stages.open_prior(context.out.uri)
    for _ in range(2):
        candidates_stage.run_candidates(context)
    assert keeper.asked == [
        (QUERY, "votes among candidates", ["candidates.json", "candidates.npz"])
    ]
    name = f"{private_stages.REFINED}/histogram.npz"
    noised = unpack_arrays(keeper.out.read(name), name)["noised"]
    assert noised.shape == (10, EACH)
    assert not np.array_equal(noised, noised.round())
    better = private_stages.open_prior(context.out.uri)
    assert not np.allclose(_mass(better), _mass(first))
    assert np.array_equal(_mass(private_stages.first_prior(context.out.uri)), _mass(first))
    images, labels = artifacts.get_images(keeper.out, "refined/candidates.npz")
    assert np.bincount(labels).tolist() == [EACH] * 10
    assert len(images) == 10 * EACH


def test_the_entries_that_are_credited_are_those_the_candidates_come_from(
    run: UntrainedRun, tmp_path: Path
) -> None:
    context = _context(run, _Keeper(LocalStorage(tmp_path)))
    candidates_stage.run_candidates(context)
    drawn, labels = artifacts.get_images(context.out, "refined/candidates.npz")
    source = candidates_stage.CandidateSource(
        settings=context.settings, public_uri=context.public.uri, out_uri=context.out.uri
    )
    bundle, seed = source(), context.settings.seed + 2**32
    assert np.array_equal(Generator(bundle).generate(labels, seed=seed), drawn)
    plain = replace(bundle, facts=replace(bundle.facts, jitter=JitterConfig()))
    behind = Generator(plain).references(labels, seed=seed)
    references, prior = bundle.references, private_stages.first_prior(context.out.uri)
    assert references is not None
    for other, expected in ((0, True), (1, False)):
        settings = replace(context.settings, seed=context.settings.seed + other)
        credited = candidates_stage.entries_behind(prior, labels, settings)
        same = np.array_equal(references.images[references.image_of_entry[credited]], behind)
        assert same == expected


def test_a_class_of_which_the_second_round_says_nothing_keeps_the_first(
    run: UntrainedRun, tmp_path: Path
) -> None:
    context, said = _context(run, _Keeper(LocalStorage(tmp_path))), list[str]()
    config = replace(context.settings.prior, threshold=1e6)
    settings = replace(context.settings, prior=config)
    candidates_stage.run_candidates(replace(context, settings=settings, note=said.append))
    first = _mass(private_stages.first_prior(context.out.uri))
    np.testing.assert_allclose(_mass(private_stages.open_prior(context.out.uri)), first)
    assert "10 of 10 classes have none" in said[0]


def test_refused_votes_leave_no_histogram_and_the_prior_as_it_was(
    run: UntrainedRun, tmp_path: Path
) -> None:
    keeper = _Keeper(LocalStorage(tmp_path), refuses=True)
    context = _context(run, keeper)
    first = _mass(private_stages.open_prior(context.out.uri))
    with pytest.raises(BudgetError):
        candidates_stage.run_candidates(context)
    left = keeper.out.child(private_stages.REFINED).list()
    assert left == ["candidates.json", "candidates.npz"]  # Public: made of the first round.
    assert np.array_equal(_mass(private_stages.open_prior(context.out.uri)), first)


def _with_features(run: UntrainedRun, kind: str) -> Any:
    return replace(run.settings, prior=replace(run.settings.prior, features=kind))


def test_the_features_of_votes_are_the_knowledge_bases_unless_named(run: UntrainedRun) -> None:
    images = public_images().images
    usual = vote_features(run.settings, run.public.uri)(images)
    assert features_name(run.settings) == ""
    assert np.array_equal(usual, pixel_features(images))
    shapes = {
        kind: vote_features(_with_features(run, kind), run.public.uri)(images).shape
        for kind in ("pixels", "contrast", "denoiser")
    }
    assert shapes == {"pixels": (40, 64), "contrast": (40, 8), "denoiser": (40, 8)}


def test_clusters_of_other_features_have_a_name_of_their_own(run: UntrainedRun) -> None:
    base = run.knowledge_base()
    for kind, dim in (("knowledge_base", 64), ("contrast", 8), ("denoiser", 8)):
        found = open_centroids(_with_features(run, kind), run.public.uri, base)
        assert found.shape == (4, dim)
    stored = [name for name in run.public.list() if name.startswith("clusters/")]
    assert len(stored) == 5  # Three sets of centroids, two of features.


def test_an_activation_is_of_its_image_alone_and_of_the_declared_level() -> None:
    images = public_images().images
    of = activation_features(tiny_denoiser(), 1.0)
    together = of(images)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)
    changed = images.copy()
    changed[7] = 255 - changed[7]
    others = np.arange(40) != 7
    assert np.array_equal(of(changed)[others], together[others])
    assert not np.allclose(of(changed)[7], together[7])
    assert not np.allclose(activation_features(tiny_denoiser(), 4.0)(images), together)
