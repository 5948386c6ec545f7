"""RAPID: retrieval-augmented private diffusion (Jiang, Li, Ma, Wang, ICLR 2025).

Public data teaches the early, coarse steps and holds the trajectories; the privacy budget is spent
on one noised histogram (the private prior over trajectories, ours) and on the late steps (DP-SGD).

    pretrain   D_pub on the pretrain split                                  public
    contrast   the extractor h on two noised views                          public
    index      trajectories of the reference split, sharded                 public
    contamination  private images among the public ones                     internal, or charged
    prior      one vote a record, noised                                    charged
    adapt      D_pub to the private classes, by the prior alone             post-processing
    candidates a second round of votes, among images made so far, noised    charged, if asked for
    train      DP-SGD on the late steps                                     charged
    generate   reference -> state at v -> private model to 0                post-processing
    evaluate   against private records                                      internal
"""

from rapid_dist.errors import ConfigError
from rapid_dist.methods import (
    artifacts,
    candidates_stage,
    contamination_stage,
    evaluation_stage,
    private_stages,
    public_stages,
    sampling_stages,
)
from rapid_dist.methods.context import Promise, Stage
from rapid_dist.methods.settings import MethodSettings

NEVER_RELEASED = ""


def promise(settings: MethodSettings) -> Promise:
    """Every private record goes through charged queries and steps."""
    return "charged"


def check(settings: MethodSettings) -> None:
    """Refuses settings that would not be RAPID.

    Raises:
      ConfigError: training would not start from public weights, or votes would be paid for that
        nothing is made of.
    """
    if settings.train.start == "scratch":
        raise ConfigError(
            "Method rapid starts from the public weights: train.start must be 'auto' or 'public', "
            "got 'scratch'. Use method dpdm for the other."
        )
    _check_votes(settings)


def _check_votes(settings: MethodSettings) -> None:
    """Refuses a prior, or its second round, that neither samples nor adaptation would heed."""
    privacy, source = settings.privacy, settings.sampling.source
    has_prior = privacy.prior_share > 0 or privacy.prior_noise is not None
    if has_prior and source != "prior" and settings.adapt.steps == 0:
        raise ConfigError(
            f"privacy.prior_share={privacy.prior_share} and privacy.prior_noise="
            f"{privacy.prior_noise} pay for a prior, but with sampling.source={source!r} and "
            "adapt.steps=0 nothing is made of it. Set prior_share to 0 and prior_noise to null, or "
            "adapt.steps above 0."
        )
    weight = settings.prior.candidate_weight
    if privacy.candidate_share and (source != "prior" or weight == 0):
        raise ConfigError(
            f"privacy.candidate_share={privacy.candidate_share} pays for a second round of votes, "
            f"but with sampling.source={source!r} and prior.candidate_weight={weight} nothing is "
            "made of it. Set candidate_share to 0, or sample from 'prior' with a weight above 0."
        )


def _candidates(settings: MethodSettings) -> tuple[Stage, ...]:
    if not settings.privacy.candidate_share:
        return ()
    return (Stage(name="candidates", run=candidates_stage.run_candidates),)


def stages(settings: MethodSettings) -> tuple[Stage, ...]:
    """Returns the stages in order."""
    return (
        Stage(name="pretrain", run=public_stages.run_pretrain, artifact=artifacts.pretrain_name),
        Stage(name="contrast", run=public_stages.run_contrast, artifact=artifacts.extractor_name),
        Stage(name="index", run=public_stages.run_index, artifact=artifacts.knowledge_base_name),
        Stage(name="contamination", run=contamination_stage.run_contamination),
        Stage(name="prior", run=private_stages.run_prior),
        Stage(name="adapt", run=private_stages.run_adapt),
        *_candidates(settings),
        Stage(name="train", run=private_stages.run_train),
        Stage(name="generate", run=sampling_stages.run_generate),
        Stage(name="evaluate", run=evaluation_stage.run_evaluate),
    )
