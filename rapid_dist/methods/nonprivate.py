"""Training without privacy: the ceiling that a private method on the same network can be held to.

The private training's draws, batches, steps and optimizer, without clip and noise. There is no
epsilon, no charge and no claim. Its weights and samples are as private as the records, so all of it
is internal (P13): it works in ``internal/nonprivate/`` as if that were the run directory, makes no
bundle and registers nothing, and the gate refuses it by name.

    pretrain   D_pub on the pretrain split                 public          from public weights
    initial    where training starts                       public
    train      on all steps, without privacy               internal
    generate   from pure noise, without a bundle           internal
    evaluate   against private records                     internal
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from rapid_dist.collective import Collective
from rapid_dist.data.sources import load_private
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.methods import (
    artifacts,
    dpdm,
    evaluation_stage,
    private_stages,
    public_stages,
    sampling_stages,
)
from rapid_dist.methods.checks import require_values, retrieves_nothing
from rapid_dist.methods.context import Promise, Report, RunContext, Stage
from rapid_dist.methods.drawing import ImageSet, drawing_of, facts_file
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.accounting import plan
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.unprotected import train_unprotected
from rapid_dist.release.bundle import Bundle
from rapid_dist.storage import open_storage

FOLDER = "nonprivate"  # Of the run's internal results.
NEVER_RELEASED = (
    "Method nonprivate trains on private records without clip and noise: there is no epsilon, and "
    "neither its model nor a sample of it may ever leave. Train with another method."
)


def promise(settings: MethodSettings) -> Promise:
    """There is none."""
    return "none"


def is_from_public(settings: MethodSettings) -> bool:
    """Whether training starts from public weights; by default it does."""
    return settings.train.start != "scratch"


def check(settings: MethodSettings) -> None:
    """Refuses settings that ask for what this method does not do.

    Raises:
      ConfigError: a setting asks for retrieval, a prior or a decision, all of which are charged.
    """
    require_values(
        "Method nonprivate charges nothing",
        "Give --set method=nonprivate, which sets it, or use a method with a promise.",
        *retrieves_nothing(settings),
        ("contamination.policy", settings.contamination.policy, "accept"),
    )


def inside(context: RunContext) -> RunContext:
    """Returns the context in which everything that is written is internal."""
    return replace(context, out=context.internal.child(FOLDER))


def _internal(run: Callable[[RunContext], None]) -> Callable[[RunContext], None]:
    return lambda context: run(inside(context))


@dataclass(frozen=True, kw_only=True)
class UnprotectedTask:
    """Trains without privacy on one worker of a group."""

    settings: MethodSettings
    steps: int
    expected_batch: float
    out_uri: str  # Below the run's internal results.
    device: str = "cpu"
    memory_gb: float = 1.0
    run: str = ""  # Whose checkpoints and weights these are.

    def __call__(self, collective: Collective, report: Report) -> None:
        settings, out = self.settings, open_storage(self.out_uri, private=True)
        images, _ = load_private(settings.private, settings.data_root)
        denoiser = artifacts.get_denoiser(out.child(private_stages.ADAPTED).uri).to(self.device)
        config = private_stages.with_micro_batch(
            settings.train,
            denoiser,
            images,
            memory_gb=self.memory_gb,
            share=self.expected_batch / collective.world_size,
        )
        train_unprotected(
            denoiser,
            DrawMaker(
                images=images,
                config=config,
                schedule=settings.schedule,
                split_step=settings.split.split_step,
                no_label=denoiser.no_label,
                label_drop=settings.network.label_drop,
                find_references=None,
                autoencoder=denoiser.autoencoder,
            ),
            steps=self.steps,
            expected_batch=self.expected_batch,
            collective=collective,
            checkpoints=Checkpoints(out.child(f"{private_stages.CHECKPOINTS}/train"), of=self.run),
            on_step=report,
        )
        if collective.rank == 0:
            artifacts.put_denoiser(out.child(private_stages.PRIVATE), denoiser, of=self.run)


def run_initial(context: RunContext) -> None:
    """Writes the denoiser where training looks for its start."""
    storage = context.out.child(private_stages.ADAPTED)
    if not artifacts.is_done(storage):
        from_public = is_from_public(context.settings)
        start = dpdm.start_of(context.settings, context.public.uri, from_public=from_public)
        artifacts.put_denoiser(storage, start, of=context.run)


def run_train(context: RunContext) -> None:
    """Trains for as many steps on as large batches as the recipe's plan would give DP-SGD."""
    if artifacts.is_done(context.out.child(private_stages.PRIVATE)):
        return
    settings = context.settings
    units = settings.private.num_groups or settings.private.num_records
    shape = plan(settings.privacy, units).dp_sgd
    assert shape is not None, "The settings leave the whole budget to training."
    task = UnprotectedTask(
        settings=settings,
        steps=shape.steps,
        expected_batch=shape.expected_batch,
        out_uri=context.out.uri,
        device=context.device,
        memory_gb=context.memory_gb,
        run=context.run,
    )
    context.backend.workers.run(task, name="train", num_workers=context.backend.num_workers)


def run_generate(context: RunContext) -> None:
    """Draws samples from the weights as they lie; a bundle would look like one to hand on."""
    storage = context.out.child(sampling_stages.SAMPLES)
    if artifacts.is_done(storage):
        return
    samples = ImageSet(
        file=sampling_stages.SAMPLES_FILE,
        open_bundle=partial(_generator_of, context.settings, context.out.uri),
    )
    task = replace(drawing_of(context, (samples,)), private=True)
    context.backend.workers.run(task, name="generate", num_workers=context.backend.num_workers)
    facts = json.loads(context.out.read(facts_file(samples.file)))
    name = sampling_stages.SAMPLES_FILE.rpartition("/")[2]
    artifacts.mark_done(storage, facts, of=context.run, names=(name,))


def _generator_of(settings: MethodSettings, out_uri: str) -> Bundle:
    """Returns, in memory alone, what draws the samples."""
    denoiser = artifacts.get_denoiser(open_storage(out_uri).child(private_stages.PRIVATE).uri)
    facts = sampling_stages.bundle_facts(settings, "noise", {"promise": "none"}, {})
    return Bundle(facts=facts, denoiser=denoiser)


def run_evaluate(context: RunContext) -> None:
    """Scores samples against private records, inside."""
    evaluation_stage.run_evaluate(inside(context), evaluation_stage.no_controls)


def stages(settings: MethodSettings) -> tuple[Stage, ...]:
    """Returns the stages in order; all but the public one write among internal results."""
    public = Stage(
        name="pretrain", run=public_stages.run_pretrain, artifact=artifacts.pretrain_name
    )
    own = (
        Stage(name="initial", run=_internal(run_initial)),
        Stage(name="train", run=_internal(run_train)),
        Stage(name="generate", run=_internal(run_generate)),
        Stage(name="evaluate", run=run_evaluate),
    )
    return (public, *own) if is_from_public(settings) else own
