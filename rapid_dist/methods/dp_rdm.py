"""DP-RDM: generation from a private index, without private training (Lebensold et al., 2024).

A generator that is told embeddings learns on public data what noised neighbours look like. The
private records are an index: a fixed number of public questions is put to each class, and each
answer, the noised mean embedding of the nearest records in a secret sample, is charged before it
exists. All images are made from those answers.

    pretrain   D_pub on the pretrain split                                public
    contrast   the extractor h, whose features are the embeddings         public
    contamination  private images among the public ones                   internal, or charged
    condition  D_pub goes on, told noised means of public neighbours      public
    answers    every round of questions to the private index              charged a round
    generate   from pure noise, each sample told an answer of its class   post-processing
    evaluate   against private records                                    internal

Where this differs from the paper: embeddings are those of h and not MetaCLIP's, questions are
public images and not prompts, and a round puts one question to each class at the price of one,
because a record is in one class (``RetrievalConfig`` has the proof). Their released code counts no
query; here all are fixed in the plan, and the next one is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from rapid_dist.collective import Collective
from rapid_dist.data.sources import load_private
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.diffusion.conditioned import (
    EmbeddingDenoiser,
    load_conditioned,
    save_conditioned,
)
from rapid_dist.methods import (
    artifacts,
    contamination_stage,
    evaluation_stage,
    private_stages,
    public_stages,
    sampling_stages,
)
from rapid_dist.methods.checks import require_values
from rapid_dist.methods.context import Promise, Report, RunContext, Stage
from rapid_dist.methods.drawing import ImageSet
from rapid_dist.methods.seal import read_sealed
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.accounting import PrivacyPlan, plan_retrieval
from rapid_dist.privacy.mechanism import RetrievalConfig
from rapid_dist.private.rounds import ask_rounds, stored_answers, waiting_rounds
from rapid_dist.public.conditional import conditioned_rows, neighbor_means, public_questions
from rapid_dist.public.fit import fit_denoiser
from rapid_dist.release.answers import FILE, Answers
from rapid_dist.release.bundle import Bundle
from rapid_dist.storage import Storage, open_storage

NEVER_RELEASED = ""
ANSWERS = "answers"
_ROWS_AT_ONCE = 1024  # Images between two reports of progress.


def promise(settings: MethodSettings) -> Promise:
    """Everything private goes through the charged rounds."""
    return "charged"


def check(settings: MethodSettings) -> None:
    """Refuses settings that would not be DP-RDM.

    Raises:
      ConfigError: a setting asks for a prior, or for another start of a sample.
    """
    require_values(
        "Method dp_rdm spends its budget on answers of a private index",
        "Give --set method=dp_rdm, which sets it.",
        ("sampling.source", settings.sampling.source, "noise"),
        ("privacy.prior_share", settings.privacy.prior_share, 0.0),
        ("privacy.prior_noise", settings.privacy.prior_noise, None),
    )


def plan_of(settings: MethodSettings) -> PrivacyPlan:
    """Returns the plan: so many rounds, fixed here, at the noise that the budget asks for."""
    index, private = settings.private_index, settings.private
    return plan_retrieval(
        settings.privacy,
        private.num_groups or private.num_records,
        sample_rate=index.sample_rate,
        rounds=index.rounds,
        neighbors=index.neighbors,
    )


def mechanism_of(settings: MethodSettings) -> RetrievalConfig:
    """Returns the constants of a round."""
    mechanism = plan_of(settings).retrieval
    assert mechanism is not None, "It is what the plan is for."
    return mechanism


def conditioned_name(settings: MethodSettings) -> str:
    """Returns the folder of the generator in the public store.

    It is trained for one noise of the answers, so for one budget and number of rounds.
    """
    noise = f"{mechanism_of(settings).answer_stddev:.4g}"
    identity = artifacts.fingerprint(
        artifacts.extractor_name(settings),
        settings.conditional,
        settings.private_index.neighbors,
        noise,
        settings.seed,
    )
    return f"conditioned-{identity}"


@dataclass(frozen=True, kw_only=True)
class ConditionTask:
    """Trains the generator on public images and their public neighbours."""

    settings: MethodSettings
    public_uri: str
    name: str  # Of the folder that the generator goes to.
    noise: float  # Stddev of the noise on an answer.
    device: str = "cpu"

    def __call__(self, collective: Collective, report: Report) -> None:
        settings, public = self.settings, open_storage(self.public_uri)
        images, _ = artifacts.load_plain_split(settings)
        embeddings = public_stages.open_extractor(settings, self.public_uri)(images.images)
        place = public.child(artifacts.pretrain_name(settings))
        denoiser = EmbeddingDenoiser.begun_from(
            artifacts.get_denoiser(place.uri), embeddings.shape[1], seed=settings.seed
        ).to(self.device)
        fit_denoiser(
            denoiser,
            conditioned_rows(
                images,
                neighbor_means(embeddings, settings.private_index.neighbors),
                self.noise,
                settings.schedule,
                denoiser,
            ),
            settings.conditional,
            seed=settings.seed,
            collective=collective,
            checkpoints=Checkpoints(public.child(f"checkpoints/{self.name}"), of=self.name),
            on_step=report,
        )
        if collective.rank == 0:
            artifacts.put_folder(
                public.child(self.name), lambda folder: save_conditioned(denoiser, folder)
            )


def run_condition(context: RunContext) -> None:
    """Trains the generator, once for all runs with the same public stages and noise."""
    settings, name = context.settings, conditioned_name(context.settings)
    if artifacts.is_done(context.public.child(name)):
        return
    task = ConditionTask(
        settings=settings,
        public_uri=context.public.uri,
        name=name,
        noise=mechanism_of(settings).answer_stddev,
        device=context.device,
    )
    workers, count = context.backend.workers, context.backend.num_workers
    workers.run(task, name="condition", num_workers=count, private=False)


def run_answers(context: RunContext) -> None:
    """Puts every round of questions that has no answer yet; each is charged, then answered, once.

    An answer that was stored is never asked for again. One that a crash has lost after its charge
    is charged again, out of privacy.reserve_steps; a run whose budget does not pay for all that are
    left goes on with those that it pays for.

    Raises:
      BudgetError: the budget does not pay for a single round.
    """
    mechanism = context.plan.retrieval
    assert mechanism is not None, "The method's plan has rounds."
    storage = context.out.child(ANSWERS)
    if artifacts.is_done(storage):
        return
    if waiting_rounds(storage, mechanism.steps):
        _ask(context, mechanism, storage)
    answers = stored_answers(storage, mechanism.steps)
    rounds, classes, dim = answers.shape
    labels = np.tile(np.arange(classes, dtype=np.int64), rounds)
    whole = Answers(embeddings=answers.reshape(rounds * classes, dim), labels=labels)
    storage.write(FILE, whole.to_bytes())
    artifacts.mark_done(storage, of=context.run, names=(FILE,))


def _ask(context: RunContext, mechanism: RetrievalConfig, storage: Storage) -> None:
    settings = context.settings
    classes = private_stages.num_classes(settings)
    features_of = public_stages.open_extractor(settings, context.public.uri)
    _, references = artifacts.load_plain_split(settings)
    questions = public_questions(references, features_of, mechanism.steps, classes, settings.seed)
    images, _ = load_private(settings.private, settings.data_root)
    parts, count = [], settings.private.num_records
    for start in range(0, count, _ROWS_AT_ONCE):
        parts.append(features_of(images.images[start : start + _ROWS_AT_ONCE]))
        context.report("answers index", {"step": min(count, start + _ROWS_AT_ONCE), "steps": count})
    keeper = context.backend.keeper()
    ask_rounds(
        images,
        np.concatenate(parts),
        questions,
        mechanism,
        num_classes=classes,
        keeper=keeper,
        storage=storage,
        on_round=partial(context.report, "answers"),
    )
    if stopped := keeper.stopped():
        context.note(f"answers {stopped}")


def run_generate(context: RunContext) -> None:
    """Writes the bundle, with a row for each answer, and draws from it."""
    sampling_stages.release_and_draw(context, partial(_bundle, context))


def _bundle(context: RunContext) -> Bundle:
    settings = context.settings
    answers = Answers.from_bytes(read_sealed(context.out.child(ANSWERS), FILE))
    place = context.public.child(conditioned_name(settings))
    conditioned = artifacts.with_folder(place, load_conditioned, sealed=True)
    facts = sampling_stages.bundle_facts(settings, "noise", context.privacy(), context.versions)
    return Bundle(
        facts=replace(facts, source="answers"),
        denoiser=conditioned.for_embeddings(torch.from_numpy(answers.embeddings)),
        answers=answers,
    )


@dataclass(frozen=True, kw_only=True)
class UntoldSource:
    """The generator that is told nothing, put together on the worker that draws."""

    settings: MethodSettings
    public_uri: str
    name: str  # Of the generator's folder.

    def __call__(self) -> Bundle:
        settings, public = self.settings, open_storage(self.public_uri)
        place = public.child(self.name)
        conditioned = artifacts.with_folder(place, load_conditioned, sealed=True)
        silence = torch.zeros(private_stages.num_classes(settings), conditioned.embedding_dim)
        facts = sampling_stages.bundle_facts(settings, "noise", {}, {})
        return Bundle(facts=facts, denoiser=conditioned.for_embeddings(silence))


def controls_of(context: RunContext) -> dict[str, ImageSet]:
    """Returns what there is without an answer: the public model, and the generator told nothing."""
    settings, public_uri = context.settings, context.public.uri
    if not settings.evaluation.controls:
        return {}
    sources: dict[str, Callable[[], Bundle]] = {
        "public model": evaluation_stage.ControlSource(
            settings=settings, public_uri=public_uri, out_uri=context.out.uri, source="noise"
        ),
        "generator without answers": UntoldSource(
            settings=settings, public_uri=public_uri, name=conditioned_name(settings)
        ),
    }
    return {
        name: ImageSet(file=evaluation_stage.control_file(name), open_bundle=source)
        for name, source in sources.items()
    }


def run_evaluate(context: RunContext) -> None:
    """Scores samples and controls against private records: an internal result (P13)."""
    evaluation_stage.run_evaluate(context, controls_of)


def stages(settings: MethodSettings) -> tuple[Stage, ...]:
    """Returns the stages in order."""
    return (
        Stage(name="pretrain", run=public_stages.run_pretrain, artifact=artifacts.pretrain_name),
        Stage(name="contrast", run=public_stages.run_contrast, artifact=artifacts.extractor_name),
        Stage(name="contamination", run=contamination_stage.run_without_index),
        Stage(name="condition", run=run_condition, artifact=conditioned_name),
        Stage(name="answers", run=run_answers),
        Stage(name="generate", run=run_generate),
        Stage(name="evaluate", run=run_evaluate),
    )
