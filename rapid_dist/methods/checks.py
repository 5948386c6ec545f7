"""What of a method's settings can be refused before any stage has cost time or privacy."""

from typing import Any

import torch

from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.private.subset import apply_subset


def check_settings(settings: MethodSettings) -> None:
    """Refuses settings of several rooms that do not go together.

    Raises:
      ConfigError: samples from a prior that is not made, steps of which none is trained on, fresh
        noise or guidance that nothing would come of, a network that does not fit the images, or a
        subset of parameters that is none of the network's.
    """
    privacy = settings.privacy
    if settings.sampling.source == "prior" and not (privacy.prior_share or privacy.prior_noise):
        raise ConfigError(
            "sampling.source is 'prior', but privacy.prior_share is 0 and so there is no prior. "
            "Give it a share, or sample from 'uniform', 'query' or 'noise'."
        )
    prior, top = settings.prior, settings.schedule.num_steps
    if prior.features == "denoiser" and prior.feature_step > top:
        raise ConfigError(
            f"prior.feature_step is {prior.feature_step}, but schedule.num_steps is {top}. Choose "
            "a step of the schedule."
        )
    train = settings.train
    last = top if train.mode == "full" else settings.split.split_step
    settings.schedule.step_law(
        last, train.log_level_mean, train.log_level_std, train.level_law
    )  # Refuses a law without weight on any of them.
    _check_sampling(settings)
    apply_subset(shape_of(settings), train)


def _check_sampling(settings: MethodSettings) -> None:
    """Refuses what is asked of sampling and would come to nothing, without a word.

    Raises:
      ConfigError: guidance away from a label that was never learnt, or churn at no level.
    """
    sampling, schedule, split = settings.sampling, settings.schedule, settings.split
    if sampling.guidance != 1 and settings.network.label_drop == 0:
        raise ConfigError(
            f"sampling.guidance is {sampling.guidance}, but with network.label_drop=0 the network "
            "never learns what an image without a label is. Set network.label_drop to 0.1, or "
            "sampling.guidance to 1."
        )
    start = schedule.num_steps if sampling.source == "noise" else split.split_step
    intervals = sampling.late_intervals
    if sampling.source == "noise":
        intervals += sampling.early_intervals
    levels = schedule.path(start, 0, intervals)[:-1]
    churn = sampling.churn
    if churn.amount and all(churn.raised(level, len(levels)) == level for level in levels):
        raise ConfigError(
            f"sampling.churn.amount is {churn.amount}, but none of the noise levels "
            f"{levels[0]:.3g} to {levels[-1]:.3g} lies between sampling.churn.least_level="
            f"{churn.least_level} and most_level={churn.most_level}. Widen them, or set the amount "
            "to 0."
        )


def require_values(why: str, remedy: str, *wanted: tuple[str, Any, Any]) -> None:
    """Refuses the first setting of (dotted name, value, the value that it must have) that differs.

    Raises:
      ConfigError: says why, the setting, its value, and the remedy.
    """
    for name, value, must in wanted:
        if value != must:
            raise ConfigError(f"{why}: {name} must be {must!r}, got {value!r}. {remedy}")


def retrieves_nothing(settings: MethodSettings) -> tuple[tuple[str, Any, Any], ...]:
    """Returns what the settings of a method on the whole schedule must be, for require_values."""
    return (
        ("train.mode", settings.train.mode, "full"),
        ("sampling.source", settings.sampling.source, "noise"),
        ("privacy.prior_share", settings.privacy.prior_share, 0.0),
        ("privacy.prior_noise", settings.privacy.prior_noise, None),
    )


def shape_of(settings: MethodSettings) -> Denoiser:
    """Returns the private network without its numbers: shapes alone.

    Raises:
      ConfigError: it does not fit the images, or the autoencoder's latents.
    """
    channels, size = settings.private.channels, settings.private.size
    if settings.autoencoder is not None:
        channels, size = settings.autoencoder.latent_shape(size)
    with torch.device("meta"):  # No number is drawn.
        return Denoiser(
            settings.network,
            channels=channels,
            size=size,
            num_classes=max(1, settings.private.num_classes),
        )
