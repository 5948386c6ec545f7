"""DPDM: a differentially private diffusion model from scratch (Dockhorn et al., TMLR 2023).

No public data and no retrieval: DP-SGD with noise multiplicity on the whole schedule, sampling
from pure noise. It is what a private generator costs without anything public.
"""

import torch

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError
from rapid_dist.methods import artifacts, evaluation_stage, private_stages, sampling_stages
from rapid_dist.methods.context import RunContext, Stage
from rapid_dist.methods.settings import MethodSettings


def check(settings: MethodSettings) -> None:
    """Refuses settings that would not be DPDM.

    Raises:
      ConfigError: a setting asks for public data or for a prior.
    """
    for name, value, wanted in (
        ("train.mode", settings.train.mode, "full"),
        ("sampling.source", settings.sampling.source, "noise"),
        ("privacy.prior_share", settings.privacy.prior_share, 0.0),
        ("privacy.prior_noise", settings.privacy.prior_noise, None),
        ("contamination.policy", settings.contamination.policy, "accept"),
    ):
        if value != wanted:
            raise ConfigError(
                f"Method dpdm sees no public data: {name} must be {wanted!r}, got {value!r}. "
                "Use method rapid for the other."
            )


def run_initial(context: RunContext) -> None:
    """Writes an untrained denoiser where training looks for its start."""
    settings = context.settings
    storage = context.out.child(private_stages.ADAPTED)
    if artifacts.is_done(storage):
        return
    torch.manual_seed(settings.seed)
    denoiser = Denoiser(
        settings.network,
        channels=settings.private.channels,
        size=settings.private.size,
        num_classes=private_stages.num_classes(settings),
        data_std=settings.schedule.data_std,
    )
    artifacts.put_denoiser(storage, denoiser)


def stages() -> tuple[Stage, ...]:
    """Returns the stages in order."""
    return (
        Stage(name="initial", run=run_initial),
        Stage(name="train", run=private_stages.run_train),
        Stage(name="generate", run=sampling_stages.run_generate),
        Stage(name="evaluate", run=evaluation_stage.run_evaluate),
    )
