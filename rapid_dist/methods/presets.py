"""The settings that a method changes in any recipe: what makes a recipe of RAPID one of another.

A recipe is written for one method. Where an override names another (``--set method=dpdm``), these
come first and the user's own overrides after them, so a user may still change every one. A recipe
that names the method itself, the config.yaml of a run among them, is taken as it is.

Only what the method *is* stands here, with the values of its paper: data, network, budget, batch
and steps are the recipe's, so that methods are compared on the same.
"""

_NO_PRIOR = (
    "privacy.prior_share=0", "privacy.prior_noise=null", "privacy.candidate_share=0"
)  # fmt: skip
# Nothing is trained beside it, so the prior may have the whole budget.
_FROM_PRIOR = (
    "sampling.source=prior", "privacy.prior_share=1", "privacy.prior_noise=null",
    "privacy.candidate_share=0",
)  # fmt: skip
_NOT_DECIDED = ("contamination.policy=accept", "privacy.contamination_noise=null")
_WHOLE_SCHEDULE = ("train.mode=full", "sampling.source=noise", *_NO_PRIOR)

PRESETS: dict[str, tuple[str, ...]] = {
    "rapid": (
        "train.mode=late",
        "train.start=auto",
        "sampling.source=prior",
        "privacy.prior_share=0.1",
    ),
    "dp_ldm": (
        *_WHOLE_SCHEDULE,
        "autoencoder.posterior=mean",  # An autoencoder; the recipe's own, if it has one.
        "network.patch=1",  # In place of patches: latents are folded already.
        "train.trainable=attention",
        "train.micro_batch=null",
    ),
    "dpdm": (
        *_WHOLE_SCHEDULE,
        *_NOT_DECIDED,
        "train.multiplicity=32",
        "train.micro_batch=null",  # So many rows a record need another one than one row does.
        "train.ema_decay=0.999",
    ),
    "dp_rdm": ("sampling.source=noise", *_NO_PRIOR),
    "public": ("sampling.source=noise", *_NO_PRIOR, *_NOT_DECIDED),
    "references": (*_FROM_PRIOR, *_NOT_DECIDED, "prior.jitter={}"),  # As they are.
    "public_from_references": (*_FROM_PRIOR, *_NOT_DECIDED),
    "nonprivate": (*_WHOLE_SCHEDULE, *_NOT_DECIDED),
}


def presets_of(method: str) -> tuple[str, ...]:
    """Returns the overrides that make a recipe one of ``method``; none for one that is unknown."""
    return PRESETS.get(method, ())
