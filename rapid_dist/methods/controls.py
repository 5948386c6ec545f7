"""What there is without private training, each as a method of its own.

    public                  the public model alone, from pure noise: no budget
    references              retrieved references as they are, drawn from the prior or uniformly
    public_from_references  the public model from the references' state at the split step

From the prior (``sampling.source``) the one noised histogram is charged and nothing else; drawn
uniformly, no private record is read before the evaluation. They are there to be compared with: a
method that does not beat them has earned nothing by its training. None is released.
"""

import json

from rapid_dist.errors import ConfigError
from rapid_dist.methods import (
    artifacts,
    evaluation_stage,
    private_stages,
    public_stages,
    sampling_stages,
)
from rapid_dist.methods.context import Promise, RunContext, Stage
from rapid_dist.methods.drawing import ImageSet, drawing_of, facts_file
from rapid_dist.methods.settings import MethodSettings

NEVER_RELEASED = (
    "A control is there to be compared with: it has no model of its own to release. Use a method "
    "that trains one."
)


def promise(settings: MethodSettings) -> Promise:
    """Charged where the references come from the noised histogram, else nothing private is read."""
    return "charged" if settings.sampling.source == "prior" else "public"


def check(settings: MethodSettings) -> None:
    """Refuses settings that would not be this control.

    Raises:
      ConfigError: the source is none of the control's, its prior is priced beside training that is
        not there, or public sources would be judged, which is charged as well.
    """
    sources = ("noise",) if settings.method == "public" else ("prior", "uniform")
    source, share = settings.sampling.source, settings.privacy.prior_share
    if source not in sources:
        wanted = " or ".join(repr(one) for one in sources)
        raise ConfigError(
            f"Method {settings.method} draws from {wanted}, got sampling.source={source!r}. Give "
            f"--set method={settings.method}, which sets it."
        )
    if settings.privacy.prior_noise is not None:
        raise ConfigError(
            f"Method {settings.method} has its prior priced by privacy.prior_share, got "
            f"privacy.prior_noise={settings.privacy.prior_noise}. Set it to null."
        )
    if (share > 0) != (source == "prior"):
        wanted = "above 0, 1 for the whole budget" if source == "prior" else "0"
        raise ConfigError(
            f"Method {settings.method} with sampling.source={source!r} needs privacy.prior_share "
            f"{wanted}, got {share:g}."
        )
    if settings.contamination.policy != "accept":
        raise ConfigError(
            f"Method {settings.method} is never released and judges no public source: "
            f"contamination.policy must be 'accept', got {settings.contamination.policy!r}."
        )


def run_generate(context: RunContext) -> None:
    """Draws the control as the evaluation of another run would draw it."""
    settings, storage = context.settings, context.out.child(sampling_stages.SAMPLES)
    if artifacts.is_done(storage):
        return
    source = settings.sampling.source
    assert source != "query", "The settings have been checked."
    samples = ImageSet(
        file=sampling_stages.SAMPLES_FILE,
        open_bundle=evaluation_stage.ControlSource(
            settings=settings,
            public_uri=context.public.uri,
            out_uri=context.out.uri,
            source=source,
        ),
        references=settings.method == "references",
    )
    task = drawing_of(context, (samples,))
    workers, count = context.backend.workers, context.backend.num_workers
    workers.run(task, name="generate", num_workers=count, private=False)
    facts = json.loads(context.out.read(facts_file(samples.file)))
    name = sampling_stages.SAMPLES_FILE.rpartition("/")[2]
    artifacts.mark_done(storage, facts, of=context.run, names=(name,))


def run_evaluate(context: RunContext) -> None:
    """Scores samples against private records: an internal result (P13)."""
    evaluation_stage.run_evaluate(context, evaluation_stage.no_controls)


def stages(settings: MethodSettings) -> tuple[Stage, ...]:
    """Returns the stages in order; the prior is asked only where samples come from it."""
    public = [
        Stage(name="pretrain", run=public_stages.run_pretrain, artifact=artifacts.pretrain_name)
    ]
    if settings.method != "public":
        public += [
            Stage(
                name="contrast", run=public_stages.run_contrast, artifact=artifacts.extractor_name
            ),
            Stage(
                name="index", run=public_stages.run_index, artifact=artifacts.knowledge_base_name
            ),
        ]
    if promise(settings) == "charged":
        public.append(Stage(name="prior", run=private_stages.run_prior))
    return (
        *public,
        Stage(name="generate", run=run_generate),
        Stage(name="evaluate", run=run_evaluate),
    )
