"""DPDM: a differentially private diffusion model (Dockhorn et al., TMLR 2023).

No retrieval: DP-SGD with noise multiplicity on the whole schedule, sampling from pure noise. From
scratch (``train.start``) it sees no public data, and is what a private generator costs without any.
From public weights it is their method after public pretraining, the class table made anew.

    pretrain   D_pub on the pretrain split                 public          from public weights
    contrast   the extractor that contamination looks by   public          from public weights
    contamination  private images among the public ones    internal, or charged      likewise
    initial    where training starts                       public
    train      DP-SGD on all steps                         charged
    generate   from pure noise, by a deterministic solver or with churn    post-processing
    evaluate   against private records                     internal
"""

import torch

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError
from rapid_dist.methods import (
    artifacts,
    contamination_stage,
    evaluation_stage,
    private_stages,
    public_stages,
    sampling_stages,
)
from rapid_dist.methods.checks import require_values, retrieves_nothing
from rapid_dist.methods.context import Promise, RunContext, Stage
from rapid_dist.methods.settings import MethodSettings

NEVER_RELEASED = ""


def promise(settings: MethodSettings) -> Promise:
    """Every private record goes through charged steps, or a charged count."""
    return "charged"


def is_from_public(settings: MethodSettings) -> bool:
    """Whether training starts from public weights; by default it does not."""
    return settings.train.start == "public"


def check(settings: MethodSettings) -> None:
    """Refuses settings that would not be DPDM.

    Raises:
      ConfigError: a setting asks for retrieval or a prior, or, from scratch, for public data.
    """
    require_values(
        "Method dpdm retrieves nothing",
        "Use method rapid for the other.",
        *retrieves_nothing(settings),
    )
    policy = settings.contamination.policy
    if policy != "accept" and not is_from_public(settings):
        raise ConfigError(
            f"Method dpdm from scratch sees no public data: contamination.policy must be 'accept', "
            f"got {policy!r}. Or set train.start to 'public'."
        )


def run_initial(context: RunContext) -> None:
    """Writes the denoiser where training looks for its start: untrained, or D_pub's weights."""
    storage = context.out.child(private_stages.ADAPTED)
    if not artifacts.is_done(storage):
        from_public = is_from_public(context.settings)
        start = start_of(context.settings, context.public.uri, from_public=from_public)
        artifacts.put_denoiser(storage, start, of=context.run)


def start_of(settings: MethodSettings, public_uri: str, *, from_public: bool) -> Denoiser:
    """Returns a denoiser of the private classes before any private training."""
    if from_public:
        return private_stages.start_denoiser(settings, public_uri)
    torch.manual_seed(settings.seed)
    return Denoiser(
        settings.network,
        channels=settings.private.channels,
        size=settings.private.size,
        num_classes=private_stages.num_classes(settings),
        data_std=settings.schedule.data_std,
    )


def run_evaluate(context: RunContext) -> None:
    """Scores samples against private records: an internal result (P13)."""
    evaluation_stage.run_evaluate(context, evaluation_stage.no_controls)


def stages(settings: MethodSettings) -> tuple[Stage, ...]:
    """Returns the stages in order."""
    public = (
        Stage(name="pretrain", run=public_stages.run_pretrain, artifact=artifacts.pretrain_name),
        Stage(name="contrast", run=public_stages.run_contrast, artifact=artifacts.extractor_name),
        Stage(name="contamination", run=contamination_stage.run_without_index),
    )
    private = (
        Stage(name="initial", run=run_initial),
        Stage(name="train", run=private_stages.run_train),
        Stage(name="generate", run=sampling_stages.run_generate),
        Stage(name="evaluate", run=run_evaluate),
    )
    return (*public, *private) if is_from_public(settings) else private
