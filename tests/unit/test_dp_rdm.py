"""DP-RDM: answers are charged, asked once and kept; the rest is public or made of them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from rapid_dist.config import load_recipe, method_settings
from rapid_dist.diffusion.conditioned import EmbeddingDenoiser, load_conditioned, save_conditioned
from rapid_dist.errors import BudgetError, CheckpointError, ConfigError
from rapid_dist.methods import artifacts, catalog, dp_rdm
from rapid_dist.methods.audit_subject import audit_subject
from rapid_dist.methods.context import RunContext
from rapid_dist.public.conditional import conditioned_rows, neighbor_means
from rapid_dist.release.answers import Answers
from rapid_dist.release.bundle import open_bundle
from rapid_dist.release.generator import Generator
from rapid_dist.runtime.sweep_planner import check_sweep
from rapid_dist.storage import LocalStorage
from tests.models import SCHEDULE, Attempt, public_images, tiny_denoiser
from tests.untrained import UntrainedRun

ROUNDS, DIM = 2, 8
OWN = ["method=dp_rdm", "sampling.source=noise", f"private_index.rounds={ROUNDS}"]


@dataclass
class _Keeper:
    """Notes which files lie there when a round is charged."""

    out: LocalStorage
    affordable: int = ROUNDS
    refuses_from: int = 1_000
    attempts: int = 0
    charged: list[tuple[int, int, list[str]]] = field(default_factory=list)
    ended: int | None = None  # The round before which it was.

    def begin_attempt(self) -> Attempt:
        self.attempts += 1
        return Attempt(number=self.attempts, affordable_steps=self.affordable)

    def charge(self, step: int, attempt: int | None = None) -> None:
        if len(self.charged) >= self.refuses_from:
            raise BudgetError("The round is not paid for.")
        self.charged.append((attempt or 0, step, [Path(one).name for one in self.out.list()]))

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        self.ended = step

    def stopped(self) -> str:
        return "" if self.ended is None else f"stopped after step {self.ended}"


@dataclass
class _Backend:
    own: _Keeper
    workers: Any
    num_workers: int = 1

    def keeper(self) -> _Keeper:
        return self.own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> UntrainedRun:
    return UntrainedRun(tmp_path_factory.mktemp("run"), *OWN)


@pytest.fixture(scope="module")
def plan(run: UntrainedRun) -> Any:
    return catalog.plan_of(run.settings)


def _context(run: UntrainedRun, plan: Any, keeper: _Keeper) -> RunContext:
    context = run.context([])
    backend: Any = _Backend(keeper, context.backend.workers)
    return replace(context, plan=plan, out=keeper.out, backend=backend)


def test_every_round_is_charged_before_its_answer_exists(
    run: UntrainedRun, plan: Any, tmp_path: Path
) -> None:
    keeper = _Keeper(LocalStorage(tmp_path))
    dp_rdm.run_answers(_context(run, plan, keeper))
    assert keeper.charged == [
        (1, 0, []),
        (1, 1, ["round-000000.npz"]),
    ]
    stored = Answers.from_bytes(keeper.out.child(dp_rdm.ANSWERS).read("answers.npz"))
    assert stored.embeddings.shape == (ROUNDS * 10, DIM)
    assert stored.labels.tolist() == list(range(10)) * ROUNDS


def test_a_refused_round_leaves_no_answer_and_an_answered_one_is_not_asked_again(
    run: UntrainedRun, plan: Any, tmp_path: Path
) -> None:
    keeper = _Keeper(LocalStorage(tmp_path), refuses_from=1)
    with pytest.raises(BudgetError):
        dp_rdm.run_answers(_context(run, plan, keeper))
    answers = keeper.out.child(dp_rdm.ANSWERS)
    assert answers.list() == ["round-000000.npz"]
    first = answers.read("round-000000.npz")
    keeper.refuses_from = 1_000
    for _ in range(2):
        dp_rdm.run_answers(_context(run, plan, keeper))
    assert [(attempt, step) for attempt, step, _ in keeper.charged] == [(1, 0), (2, 1)]
    assert answers.read("round-000000.npz") == first


def test_a_run_ends_with_the_last_round_that_its_budget_pays_for(
    run: UntrainedRun, plan: Any, tmp_path: Path
) -> None:
    keeper = _Keeper(LocalStorage(tmp_path), affordable=ROUNDS - 1)
    dp_rdm.run_answers(_context(run, plan, keeper))
    assert [step for _, step, _ in keeper.charged] == [0]
    assert keeper.ended == ROUNDS - 1
    answers = Answers.from_bytes(keeper.out.child(dp_rdm.ANSWERS).read("answers.npz"))
    assert len(answers.embeddings) == (ROUNDS - 1) * 10


def test_a_run_whose_budget_pays_for_no_round_is_refused(
    run: UntrainedRun, plan: Any, tmp_path: Path
) -> None:
    keeper = _Keeper(LocalStorage(tmp_path), affordable=0)
    with pytest.raises(BudgetError, match="pays for none of the run's 2 rounds"):
        dp_rdm.run_answers(_context(run, plan, keeper))
    assert keeper.charged == []


def test_the_plan_is_of_rounds_and_of_nothing_else(run: UntrainedRun, plan: Any) -> None:
    assert plan.dp_sgd is None
    assert plan.queries == ()
    assert plan.retrieval.steps == ROUNDS
    assert plan.retrieval.num_records == run.settings.private.num_records
    assert plan.epsilons.reported <= run.settings.privacy.epsilon


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("sampling.source=prior", r"sampling\.source must be 'noise'"),
        ("privacy.prior_share=0.1", r"privacy\.prior_share must be 0\.0"),
    ],
)
def test_settings_of_another_method_are_refused(change: str, says: str) -> None:
    settings = method_settings(load_recipe("digits", [*OWN, change]))
    with pytest.raises(ConfigError, match=says):
        dp_rdm.check(settings)


def test_an_audit_of_dp_sgd_does_not_stand_for_one_of_rounds(run: UntrainedRun, plan: Any) -> None:
    refused = pytest.raises(ConfigError, match="dp_rdm takes no step of DP-SGD, and an audit")
    with refused, audit_subject(run.settings, plan):
        pass


def test_a_sweep_does_not_price_rounds_as_steps() -> None:
    recipe = load_recipe("digits", OWN)
    with pytest.raises(ConfigError, match="dp_rdm takes no step of DP-SGD, and a sweep"):
        check_sweep(recipe, {})


def test_the_generator_is_trained_and_named_for_the_noise_of_its_answers() -> None:
    def name(*changes: str) -> str:
        return dp_rdm.conditioned_name(method_settings(load_recipe("digits", [*OWN, *changes])))

    assert name() == name("sampling.count=5")
    assert name() != name("privacy.epsilon=1")
    assert name() != name("private_index.neighbors=31")


def _conditioned(seed: int = 0) -> EmbeddingDenoiser:
    denoiser = EmbeddingDenoiser.begun_from(tiny_denoiser(), DIM, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(denoiser.conditioner[2].weight, std=1.0, generator=generator)
    return denoiser


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_images_come_from_the_bundle_alone_each_from_an_answer_of_its_class(
    run: UntrainedRun, plan: Any, tmp_path: Path
) -> None:
    keeper = _Keeper(LocalStorage(tmp_path / "out"))
    settings = run.settings
    begun = EmbeddingDenoiser.begun_from(
        artifacts.get_denoiser(run.public.child(artifacts.pretrain_name(settings)).uri),
        DIM,
        seed=0,
    )
    # Untrained, what is new hardly speaks, and diffusers' output layer is nearly zero.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.nn.init.normal_(begun.conditioner[2].weight, std=1.0)
        torch.nn.init.normal_(begun.unet.conv_out.weight, std=0.3)
    place = run.public.child(dp_rdm.conditioned_name(settings))
    artifacts.put_folder(place, lambda folder: save_conditioned(begun, folder))
    context = _context(run, plan, keeper)
    dp_rdm.run_answers(context)
    charged = len(keeper.charged)
    dp_rdm.run_generate(context)
    assert len(keeper.charged) == charged  # Any number of images costs nothing.
    folder = tmp_path / "out" / "bundle"
    bundle = open_bundle(folder)
    assert bundle.answers is not None
    answers = Answers.from_bytes(keeper.out.child(dp_rdm.ANSWERS).read("answers.npz"))
    assert np.array_equal(bundle.answers.embeddings, answers.embeddings)
    assert bundle.denoiser.num_classes == ROUNDS * 10
    labels = np.arange(20) % 10
    told = bundle.answers.draw(labels, 0, np.arange(20))
    assert np.array_equal(answers.labels[told], labels)
    generator = Generator(bundle)
    images = generator.generate(labels, seed=0)
    again = Generator.open(folder).generate(labels[7:], seed=0, first_id=7, batch_size=3)
    assert np.array_equal(images[7:], again)
    stored, _ = artifacts.get_images(keeper.out, "samples/samples.npz")
    assert np.array_equal(stored[:20], images)
    UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)
    controls = dp_rdm.controls_of(context)
    assert list(controls) == ["public model", "generator without answers"]
    untold = controls["generator without answers"].open_bundle()
    assert not np.array_equal(Generator(untold).generate(labels, seed=0), images)


def test_a_class_without_an_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="Every class needs an answer"):
        Answers(embeddings=np.zeros((2, DIM), np.float32), labels=np.array([0, 2]))


def test_the_plain_denoiser_of_embeddings_is_the_one_that_is_told_them() -> None:
    denoiser = _conditioned().eval()
    told = _normal(4, DIM)
    told[3] = 0.0  # Says nothing: what guidance compares with.
    state, level = _normal(4, 1, 8, 8), torch.full((4,), 2.0)
    plain = denoiser.for_embeddings(told[:3]).eval()
    with torch.no_grad():
        expected = denoiser(state, level, told)
        found = plain(state, level, torch.tensor([0, 1, 2, plain.no_label]))
        other = denoiser(state, level, told.roll(1, 0))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(other, expected)


def test_a_conditioned_denoiser_is_stored_for_diffusers_and_read_back(tmp_path: Path) -> None:
    denoiser = _conditioned().eval()
    save_conditioned(denoiser, tmp_path)
    again = load_conditioned(tmp_path).eval()
    state, level, told = _normal(2, 1, 8, 8), torch.ones(2), _normal(2, DIM)
    with torch.no_grad():
        assert torch.equal(again(state, level, told), denoiser(state, level, told))
    assert UNet2DModel.from_pretrained(tmp_path / "unet").config["class_embed_type"] == "identity"
    (tmp_path / "conditioner.safetensors").unlink()
    with pytest.raises(CheckpointError, match="does not hold a whole denoiser"):
        load_conditioned(tmp_path)


def test_it_begins_as_the_public_denoiser_without_a_label() -> None:
    public = tiny_denoiser().eval()
    begun = EmbeddingDenoiser.begun_from(public, DIM, seed=0).eval()
    state, level = _normal(2, 1, 8, 8), torch.ones(2)
    with torch.no_grad():
        expected = public(state, level, torch.full((2,), public.no_label))
        assert torch.equal(begun(state, level, torch.zeros(2, DIM)), expected)


def test_an_images_neighbours_are_others_and_their_sum_is_divided_by_k() -> None:
    embeddings = np.random.default_rng(0).standard_normal((7, DIM)).astype(np.float32)
    found = neighbor_means(embeddings, 3)
    for row in range(7):
        distances = np.linalg.norm(embeddings - embeddings[row], axis=1)
        near = np.argsort(distances)[1:4]
        np.testing.assert_allclose(found[row], embeddings[near].sum(axis=0) / 3, rtol=1e-5)
    np.testing.assert_allclose(neighbor_means(embeddings[:2], 3), embeddings[[1, 0]] / 3, rtol=1e-5)


def test_training_is_told_means_under_the_noise_that_answers_will_have() -> None:
    images = public_images()
    means = np.zeros((len(images), DIM), np.float32)
    draw = conditioned_rows(images, means + 5, 0.25, SCHEDULE, _conditioned())
    rows = draw(torch.Generator().manual_seed(0), 4000)
    silent = (rows.labels == 0).all(dim=1)
    assert 0.05 < float(silent.float().mean()) < 0.15  # network.label_drop of them.
    told = rows.labels[~silent]
    assert abs(float(told.std()) - 0.25) < 0.01
    assert abs(float(told.mean()) - 5) < 0.01
