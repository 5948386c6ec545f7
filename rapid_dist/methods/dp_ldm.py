"""DP-LDM: a latent diffusion model, fine-tuned in part (Liu, Lyu, Vinaroz, Park, TMLR 2024).

Autoencoder and denoiser of its latents are public. DP-SGD moves the attention modules and the
embedder of the condition alone, in the U-Net's last blocks if ``train.blocks`` says so, over the
whole schedule; no retrieval, sampling from pure noise, decoded at the end. With
``train.trainable=lora`` it is the recipe of DP-LoRA (Tsai et al. 2025), with one clip a record.

    autoencode the public autoencoder, and the scale of its latents         public
    pretrain   D_pub in latents, on the pretrain split                      public
    contrast   the extractor that contamination looks by                    public
    contamination  private images among the public ones                     internal, or charged
    initial    D_pub with a table for the private classes                   public
    train      DP-SGD on a part of the network, all steps                   charged
    generate   from pure noise, then the decoder                            post-processing
    evaluate   against private records                                      internal
"""

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


def check(settings: MethodSettings) -> None:
    """Refuses settings that would not be DP-LDM.

    Raises:
      ConfigError: pixels are diffused, all of the network is trained, or something is retrieved.
    """
    if settings.autoencoder is None:
        raise ConfigError(
            "Method dp_ldm diffuses latents, and autoencoder is null. Give it settings, or use "
            "method dpdm with train.start=public for pixels."
        )
    if settings.train.trainable == "all":
        raise ConfigError(
            "Method dp_ldm trains a part of the network, and train.trainable is 'all'. Say "
            "attention, as its paper does, or lora."
        )
    if settings.train.start == "scratch":
        raise ConfigError(
            "Method dp_ldm starts from the public weights: train.start must be 'auto' or 'public', "
            "got 'scratch'. Use method dpdm for the other."
        )
    require_values(
        "Method dp_ldm retrieves nothing",
        "Use method rapid for the other; it runs in latents too.",
        *retrieves_nothing(settings),
    )


def run_evaluate(context: RunContext) -> None:
    """Scores samples against private records: an internal result (P13)."""
    evaluation_stage.run_evaluate(context, evaluation_stage.public_control)


def stages(settings: MethodSettings) -> tuple[Stage, ...]:
    """Returns the stages in order."""
    return (
        Stage(name="pretrain", run=public_stages.run_pretrain, artifact=artifacts.pretrain_name),
        Stage(name="contrast", run=public_stages.run_contrast, artifact=artifacts.extractor_name),
        Stage(name="contamination", run=contamination_stage.run_without_index),
        Stage(name="initial", run=private_stages.run_adapt),  # Without a prior: new classes alone.
        Stage(name="train", run=private_stages.run_train),
        Stage(name="generate", run=sampling_stages.run_generate),
        Stage(name="evaluate", run=run_evaluate),
    )
