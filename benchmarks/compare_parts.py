"""The parts of the comparison: recipes, rows, what is changed in each, budgets and seeds.

`dpdm-public` starts from the public network; `references-jittered` and `adapted` are `rapid`
without its private training, all of the budget in the prior.

What is cut, so that two cores end within a night: K of dpdm and of nonprivate is not 32 but
4 on digits, 1 on mnist and 2 on pneumonia, which pretrains for 1,000 steps and not 3,000; ablations
have one seed, at epsilon 10 on digits and at 1 on mnist-10k, which has 60 steps and no K above 4;
those of the prior are at 0.2, 1 and 10 on digits.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from rapid_dist.config import load_recipe, to_tree

Settings = dict[str, Any]
EVERY = (
    "rapid", "dpdm", "dpdm-public", "dp_ldm", "dp_rdm", "public", "references",
    "references-jittered", "public_from_references", "adapted", "nonprivate",
)  # fmt: skip
_DPDM: Settings = {"train.multiplicity": 4, "train.ema_decay": 0.98}
CUT: dict[str, Settings] = {
    "dpdm": _DPDM,
    # From the public network, not adapted: what is left of a lead is not the public images' alone.
    "dpdm-public": {"method": "dpdm", "train.start": "public", **_DPDM},
    "nonprivate": {"train.multiplicity": 4},
    # It trains little but attention, and so few parameters want larger steps: on digits at epsilon
    # 10 0.003 gave 0.54, 0.01 0.88 and 0.03 0.84; the others have the recipe's (docs/results.md).
    "dp_ldm": {"network.attention": [True, True], "train.learning_rate": 0.01},
}
# A small budget leaves training little to add: most of it, or all, goes to the prior, and on mnist
# a sample then enters at a lower noise level (docs/results.md).
DIGITS_BUDGETS: dict[float, Settings] = {
    0.2: {"privacy.prior_share": 1},
    1: {"privacy.prior_share": 0.4},
}
MNIST_BUDGETS: dict[float, Settings] = {
    0.2: {
        "privacy.prior_share": 1, "knowledge_base.clusters": 5000, "prior.threshold": 3.4,
        "split.split_step": 250,
    },
    1: {
        "privacy.prior_share": 0.7, "train.learning_rate": 0.002, "train.log_level_mean": None,
        "split.split_step": 450,
    },
}  # fmt: skip
# Those are for who begins at low levels; who draws the whole has the recipe's own rate and levels.
_WHOLE: Settings = {"train.learning_rate": 0.003, "train.log_level_mean": -0.3}
MNIST_CUT: dict[str, Settings] = {
    row: {**_WHOLE, **changes, "train.multiplicity": 1, "train.ema_decay": 0.98}
    for row, changes in CUT.items()
}
SMALL_MNIST = (
    "data.private.name=mnist-10k-14",
    "data.private.limit=10000",
    "data.private.num_records=10000",
    "data.private.size=14",
    "network.patch=1",
    "network.widths=[32, 64]",
    "pretrain.steps=1000",
    "knowledge_base.clusters=5000",
    "privacy.steps=60",
    "train.ema_decay=0.95",
    "sampling.count=5000",
)
PUBLIC: dict[str, list[dict[str, Any]]] = {
    "letters": [{"source": "letters", "count": 20000}],
    "omniglot": [{"source": "omniglot"}],
    "kannada": [{"source": "kannada"}],
    "all": [
        {"source": "letters", "count": 20000}, {"source": "omniglot"}, {"source": "kannada"},
        {"source": "kmnist"}, {"source": "notmnist"},
    ],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """One comparison: a recipe, what is changed in it, its rows, budgets and seeds."""

    recipe: str
    rows: tuple[str, ...]
    variants: dict[str, Settings] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    epsilons: tuple[float, ...] = (0.2, 1, 10)
    budgets: dict[float, Settings] = field(default_factory=dict)  # What else holds at an epsilon.
    seeds: int = 3


def _untrained(recipe: str) -> dict[str, Settings]:
    """Returns the strongest rivals of `rapid` that train nothing on private records.

    The prior has all of the budget: its references jittered as `rapid` has them, and the adapted
    public model, with which `rapid` begins, from there on. DP-RDM has no reserve, because no round
    is ever asked again; its neighbours are about the units that a round is likely to hold of a
    class, were all as large: fewer leave more noise on their mean, more are not there.
    """
    own = load_recipe(recipe)
    jitter = to_tree(own)["prior"]["jitter"]
    units = own.num_units / own.data.private.num_classes * own.private_index.sample_rate
    return {
        "references-jittered": {"method": "references", "prior.jitter": jitter},
        "adapted": {"method": "rapid", "privacy.prior_share": 1},
        "dp_rdm": {
            "privacy.reserve_steps": 0,
            "private_index.neighbors": round(units),
            "private_index.rounds": 4,
        },
    }


def _varied(name: str, *values: Any) -> dict[str, Settings]:
    """Returns a variant for each value of one setting, named after both."""
    last = name.rpartition(".")[2].replace("_", "-")
    return {f"{last}-{value}": {name: value} for value in values}


def ablations(
    base: str,
    recipe: str,
    *,
    epsilons: tuple[float, ...],
    overrides: tuple[str, ...],
    splits: tuple[int, ...],
    multiplicities: tuple[int, ...],
    batches: tuple[tuple[int, int], ...],
    clusters: tuple[int, ...],
    budgets: dict[float, Settings],
) -> dict[str, Part]:
    """Returns the ablations on one data set: each row is the recipe, ``base``, but for one thing.

    Args:
      epsilons: of those of the prior; the others are at the last of them.
      splits: the split steps beside the recipe's own; as the other values.
      batches: expected batches, with the steps of which the recipe's number of draws is made.
      budgets: what else holds at an epsilon, where the prior is what is changed.
    """
    own = load_recipe(recipe, list(overrides))
    # Where a record's own query decides its surrogate, k and the keys matter; else they do not.
    queried = {
        "train.mode": "surrogate", "train.surrogate": "query", "sampling.source": "query",
        "split.split_step": 450,
    }  # fmt: skip
    modes: dict[str, Settings] = {
        mode: {"train.mode": mode} for mode in ("late", "surrogate", "full")
    }
    del modes[own.train.mode]
    prior: dict[str, Settings] = {
        "base": {},
        **_varied("privacy.prior_share", 0.05, 0.5, 0.9, 1),
        **_varied("knowledge_base.clusters", *clusters),
        **_varied("prior.features", "contrast", "denoiser"),
        **_varied("prior.threshold", 2, 4),
        **_varied("prior.nearest", 1, 8),
        **_varied("privacy.candidate_share", 0.3),  # A second round of votes.
    }
    rows: dict[str, Settings] = {
        "base": {},
        **modes,
        **_varied("split.split_step", *splits),
        **_varied("train.multiplicity", *multiplicities),
        **{
            f"batch-{batch}": {"privacy.expected_batch": batch, "privacy.steps": steps}
            for batch, steps in batches
        },
        **_varied("train.ema_decay", 0.9, 0.995),
        **_varied("train.trainable", "last_blocks", "lora_all"),
        # What is no reference pretrains: told beside the figures.
        **_varied("data.reference_share", 0.05, 0.2, 0.8),
        **{
            f"public-{name}": {"data.public": one}
            for name, one in PUBLIC.items()
            if (name, recipe) != ("letters", "digits")  # Which is the recipe.
        },
        "no-public": {
            "method": "dpdm",
            "train.start": "scratch",
            "train.multiplicity": own.train.multiplicity,
            "train.ema_decay": own.train.ema_decay,
        },
        "queried": queried,
        **{
            name: {**queried, **one}
            for name, one in (
                _varied("split.query_step", 500, 850)
                | _varied("sampling.top_m", 4, 16)
                | _varied("knowledge_base.keys", "pixels")
            ).items()
        },
    }
    part = Part(
        recipe=recipe, rows=tuple(rows), variants=rows, overrides=overrides,
        epsilons=epsilons[-1:], seeds=1,
    )  # fmt: skip
    return {
        f"{base}-ablations": part,
        f"{base}-prior": replace(
            part, rows=tuple(prior), variants=prior, epsilons=epsilons, budgets=budgets
        ),
    }


def parts() -> dict[str, Part]:
    """Returns all parts by name."""
    return {
        "digits": Part(
            recipe="digits",
            rows=EVERY,
            # As many draws of a record for all that train: the same compute.
            overrides=("pretrain.steps=1000", "train.multiplicity=4"),
            variants={**CUT, **_untrained("digits"), "rapid": {"train.mode": "surrogate"}},
            budgets=DIGITS_BUDGETS,
        ),
        "mnist": Part(
            recipe="mnist",
            rows=EVERY,
            variants={**MNIST_CUT, **_untrained("mnist")},
            epsilons=(1,),
            budgets=MNIST_BUDGETS,
            seeds=1,
        ),
        "pneumonia": Part(
            recipe="pneumonia",
            rows=EVERY,
            # As many draws of a scan for all that train, the recipe's own: the same compute.
            variants={
                **{row: {**changes, "train.multiplicity": 2} for row, changes in CUT.items()},
                **_untrained("pneumonia"),
            },
            epsilons=(10,),
            seeds=1,
            overrides=("pretrain.steps=1000",),
        ),
        **ablations(
            "digits",
            "digits",
            epsilons=(0.2, 1, 10),
            overrides=("pretrain.steps=1000",),
            splits=(250, 450, 690),
            multiplicities=(4, 8),
            batches=((128, 560), (1024, 70)),
            clusters=(100, 1600),
            budgets=DIGITS_BUDGETS,
        ),
        **ablations(
            "mnist-10k",
            "mnist",
            epsilons=(1,),
            overrides=SMALL_MNIST,
            splits=(250, 450, 680),
            multiplicities=(4,),
            batches=((256, 240), (4096, 15)),
            clusters=(1000, 20000),
            budgets={},
        ),
    }
