"""Which methods there are: one line a method, and what the rest of the program asks of them.

What a method needs of public data is read off its stages:
one without ``pretrain`` has no public network, one without ``index`` no knowledge base.
"""

from dataclasses import replace
from typing import Protocol

from rapid_dist.errors import ConfigError
from rapid_dist.methods import controls, dp_ldm, dp_rdm, dpdm, nonprivate, rapid
from rapid_dist.methods.checks import check_settings
from rapid_dist.methods.context import Promise, Stage
from rapid_dist.methods.public_stages import autoencode_stage
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.accounting import PrivacyPlan, epsilons, plan


class Method(Protocol):
    """What a method's file holds."""

    @property
    def NEVER_RELEASED(self) -> str:
        """Why no run of the method is ever released; nothing where one may be."""

    def stages(self, settings: MethodSettings) -> tuple[Stage, ...]:
        """Returns the stages in order."""

    def check(self, settings: MethodSettings) -> None:
        """Refuses settings that would not be this method."""

    def promise(self, settings: MethodSettings) -> Promise:
        """Returns what a run may say of privacy."""


METHODS: dict[str, Method] = {
    "rapid": rapid,
    "dpdm": dpdm,
    "dp_rdm": dp_rdm,
    "dp_ldm": dp_ldm,
    "public": controls,
    "references": controls,
    "public_from_references": controls,
    "nonprivate": nonprivate,
}


def method_of(settings: MethodSettings) -> Method:
    return METHODS[settings.method]


def stages_of(settings: MethodSettings) -> tuple[Stage, ...]:
    """Returns the stages of the settings' method, in order; a public autoencoder comes first."""
    stages = method_of(settings).stages(settings)
    if settings.autoencoder is None or not any(stage.name == "pretrain" for stage in stages):
        return stages
    return (autoencode_stage(), *stages)


def has_stage(settings: MethodSettings, name: str) -> bool:
    """Whether the settings' method has a stage of that name."""
    return any(stage.name == name for stage in stages_of(settings))


def check_method(settings: MethodSettings) -> None:
    """Refuses, before anything has started, what does not go together or is another method.

    Raises:
      ConfigError: names the setting, its value and the remedy.
    """
    method_of(settings).check(settings)  # First: what it says is nearer to what was meant.
    if settings.autoencoder is not None and not has_stage(settings, "pretrain"):
        raise ConfigError(
            f"Method {settings.method} sees no public data here, and an autoencoder is made of "
            "some. Set autoencoder to null, or begin from public weights (train.start=public)."
        )
    if settings.autoencoder is not None and has_stage(settings, "condition"):
        raise ConfigError(
            f"Method {settings.method} works on pixels so far. Set autoencoder to null."
        )
    check_settings(settings)
    asked_without_label = has_stage(settings, "contrast") or settings.method == "public"
    if asked_without_label and settings.network.label_drop == 0:
        raise ConfigError(
            f"Method {settings.method} asks the public network without a label, which it never "
            "learns with network.label_drop=0. Set it to 0.1."
        )
    if settings.privacy.candidate_share and not has_stage(settings, "candidates"):
        raise ConfigError(
            f"Method {settings.method} has no second round of votes, got privacy.candidate_share="
            f"{settings.privacy.candidate_share}. Set it to 0."
        )


def require_releasable(settings: MethodSettings, what: str) -> None:
    """Refuses ``what`` of a method of which no run is ever released.

    Raises:
      ConfigError: says why.
    """
    kept = method_of(settings).NEVER_RELEASED
    if kept:
        raise ConfigError(f"There is no {what} of method {settings.method}. {kept}")


def require_training(settings: MethodSettings, what: str) -> None:
    """Refuses ``what``, which is about steps of DP-SGD, of a method that takes none.

    Raises:
      ConfigError: names the method.
    """
    if not has_stage(settings, "train"):
        raise ConfigError(
            f"Method {settings.method} takes no step of DP-SGD, and {what} is of those. Use a "
            "method that trains on private data."
        )


def promise_of(settings: MethodSettings) -> Promise:
    """Returns what a run may say of privacy."""
    return method_of(settings).promise(settings)


def plan_of(settings: MethodSettings) -> PrivacyPlan:
    """Returns all that a run may release: nothing without a charge, no step without training."""
    privacy = settings.privacy
    if promise_of(settings) != "charged":
        return PrivacyPlan(
            budget=privacy.budget,
            prior=None,
            dp_sgd=None,
            reserve_steps=0,
            epsilons=epsilons((), privacy.delta),
        )
    if has_stage(settings, "answers"):
        return dp_rdm.plan_of(settings)
    solved = plan(privacy, settings.private.num_groups or settings.private.num_records)
    if has_stage(settings, "train"):
        return solved
    spent = epsilons(solved.queries, privacy.delta)
    return replace(solved, dp_sgd=None, reserve_steps=0, epsilons=spent)
