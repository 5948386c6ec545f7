"""Settings of a sweep: what is tried, how the next trial is found, and which promise is made.

Epsilon is fixed. A trial sets the settings that ``space`` names and leaves one of the mechanism's
constants open, which its plan solves; so every trial meets the same budget. What would void the
promise is refused here, before anything has started.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.selection import Promise, RunsConfig

Search = Literal["random", "grid", "optuna"]
Scheduler = Literal["none", "asha", "pbt"]
Solve = Literal["steps", "noise_multiplier", "expected_batch"]
Point = dict[str, Any]  # Dotted setting -> its value in one trial.

# What a run charges depends on these and on nothing else that a sweep may change.
MECHANISM = (
    "privacy.noise_multiplier",
    "privacy.steps",
    "privacy.expected_batch",
    "privacy.prior_share",
    "privacy.prior_noise",
    "privacy.candidate_share",
)
# Sections, and one setting, that shape public stages: made before the trials, so a list of values.
PUBLIC = (
    "network", "schedule", "autoencoder", "pretrain", "contrast", "knowledge_base",
    "split.query_step",
)  # fmt: skip
_FIXED = {  # Why a sweep may not change it.
    "privacy.epsilon": "is what a sweep holds fixed",
    "privacy.delta": "is what a sweep holds fixed",
    "privacy.relation": "says what the claim is for",
    "privacy.unit": "says what the claim is for",
    "privacy.noise": "says what the claim is for",
    "privacy.contamination_noise": "belongs to contamination.policy, which the owner decides",
    "privacy.reserve_steps": "pays for crashes and changes no quality",
    "contamination": "is a policy, which the owner decides",
    "data": "says what the claim is for",
    "evaluation": "is the yardstick that all trials share",
    "method": "would need other settings beside it; sweep each method by itself",
    "name": "is no choice",
    "seed": "is no choice: a lucky seed is not better",
    "runtime": "changes no result",
    "tracking": "changes no result",
    "sweep": "is this section itself",
    "compare": "is of another command",
}
# Shape what trials leave in the public store on their way, where secret ones could be counted.
_LEFT_IN_PUBLIC = ("prior.features", "prior.feature_step", "train.start")
_GRID_MOST = 100_000


@dataclass(frozen=True, kw_only=True)
class Range:
    """All numbers between two; ``log``: evenly over their logarithms, ``whole``: integers alone."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"A range must ascend, got low={self.low} and high={self.high}.")
        if self.log and self.low <= 0:
            raise ConfigError(f"A range with log: true must be positive, got low={self.low}.")
        if self.whole and (self.low % 1 or self.high % 1):
            raise ConfigError(
                f"A range with whole: true must end at integers, got {self.low} and {self.high}."
            )

    def draw(self, uniform: float) -> float | int:
        """Returns the value at a share in [0, 1) of the range."""
        low, high = self.low, self.high + (1 if self.whole else 0)
        if self.log:
            value = math.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
        else:
            value = low + uniform * (high - low)
        return min(int(value), int(self.high)) if self.whole else float(value)


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """Which public images play the private part, in promise ``public_proxy``."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: int = 0  # Place in data.public.
    # Its classes that play the private part and leave the public one; none named = the whole
    # source does both. Choose what is as far from the rest as the private images are.
    classes: tuple[str, ...] = ()
    held_out_share: float = 0.2  # By each image's content; scores are measured on these.

    def __post_init__(self) -> None:
        if self.source < 0:
            raise ConfigError(f"sweep.proxy.source must not be negative, got {self.source}.")
        if not 0 < self.held_out_share < 1:
            raise ConfigError(
                f"sweep.proxy.held_out_share must lie in (0, 1), got {self.held_out_share}."
            )
        if len(set(self.classes)) < len(self.classes) or len(self.classes) == 1:
            raise ConfigError(
                f"sweep.proxy.classes={list(self.classes)} must be at least two different ones."
            )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What ``rapid-dist sweep`` tries, and what it promises of the model that it chooses."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    promise: Promise = "public_proxy"
    # Dotted setting -> its values, or the ends of a range. None named = the split step and the
    # noise multiplier around the recipe's own.
    space: dict[str, Range | list[Any]] = field(default_factory=dict)
    solve: Solve = "steps"  # What each trial's plan solves for the budget.
    most_steps: int = 5_000  # Of DP-SGD: a trial that would take more is not started.
    search: Search = "random"
    scheduler: Scheduler = "none"
    trials: int | None = None  # None = 16; in repeat_and_select their number is secret.
    runs: RunsConfig = field(default_factory=RunsConfig)  # Of repeat_and_select.
    score_noise: float = 10.0  # Stddev of the noise on a private score, in held-out units.
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    concurrent: int | None = None  # Trials at once; None = as many as the cluster holds.
    runner: Literal["train", "process"] = "train"  # A trial: Ray Train's workers, or one process.
    rungs: int = 3  # Of asha: full training, a part of it, a part of that.
    reduction: int = 3  # Of asha: which part goes on, and how much longer each rung trains.

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.scheduler == "pbt":
            raise ConfigError(
                "sweep.scheduler=pbt copies weights from trial to trial and changes the noise in "
                "mid-run, so no trial has an epsilon of its own. Use asha or none."
            )
        if self.scheduler not in ("none", "asha"):
            raise ConfigError(f"sweep.scheduler must be none or asha, got {self.scheduler!r}.")
        if self.scheduler == "asha" and self.promise != "public_proxy":
            raise ConfigError(
                f"sweep.scheduler=asha scores trials while they run, and in sweep.promise="
                f"{self.promise} every score is a release that no plan pays for. Set it to none, "
                "or sweep on public_proxy."
            )
        if self.promise == "repeat_and_select":
            self._check_repeat_and_select()
        for name, values in self.space.items():
            self._check_setting(name, values)

    @property
    def num_trials(self) -> int:
        """Trials of a sweep whose number is public."""
        assert self.promise != "repeat_and_select", "Their number is drawn."
        return 16 if self.trials is None else self.trials

    @property
    def fractions(self) -> tuple[float, ...]:
        """How much of its training a trial has had at each rung; the last is all of it."""
        if self.scheduler != "asha":
            return (1.0,)
        return tuple(self.reduction**-rung for rung in reversed(range(self.rungs)))

    def _check_numbers(self) -> None:
        for name in ("most_steps", "trials", "concurrent", "rungs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"sweep.{name} must be at least 1, got {value}.")
        if self.reduction < 2:
            raise ConfigError(f"sweep.reduction must be at least 2, got {self.reduction}.")
        if not 0 < self.score_noise < math.inf:
            raise ConfigError(
                f"sweep.score_noise must be positive and finite, got {self.score_noise}. A private "
                "score without noise has no epsilon."
            )

    def _check_repeat_and_select(self) -> None:
        if self.search != "random":
            raise ConfigError(
                f"sweep.promise=repeat_and_select covers runs that are drawn alike and apart, and "
                f"sweep.search={self.search} picks each by the others. Use random."
            )
        if self.trials is not None:
            raise ConfigError(
                f"sweep.promise=repeat_and_select draws the number of runs in secret, so "
                f"sweep.trials={self.trials} would void it. Leave it out, and set sweep.runs.mean."
            )

    def _check_setting(self, name: str, values: "Range | list[Any]") -> None:
        for fixed, reason in _FIXED.items():
            if name == fixed or name.startswith(f"{fixed}."):
                raise ConfigError(f"sweep.space names {name}, which {reason}. Take it out.")
        for whole in (*_FIXED, *MECHANISM, *PUBLIC):
            if whole.startswith(f"{name}."):
                raise ConfigError(
                    f"sweep.space names the whole section {name}, of which {whole} counts apart. "
                    "Name the settings one by one."
                )
        if self.promise == "repeat_and_select" and (
            _shapes_public(name) or name.startswith(_LEFT_IN_PUBLIC)
        ):
            raise ConfigError(
                f"sweep.space names {name}, which leaves public files that tell how many runs of "
                "promise repeat_and_select there were. Choose it in a sweep on public_proxy."
            )
        if name == f"privacy.{self.solve}":
            raise ConfigError(
                f"sweep.space names {name}, but sweep.solve={self.solve} leaves it to the plan. "
                "Take one of them out."
            )
        if isinstance(values, list):
            if not values or any(values.count(value) > 1 for value in values):
                raise ConfigError(f"sweep.space.{name}={values} must be different values.")
            return
        adaptive = self.promise == "per_trial" and self.search == "optuna"
        needs_list = {
            "sweep.search=grid tries lists": self.search == "grid",
            "it shapes public stages, which are made before the trials": _shapes_public(name),
            f"in sweep.promise={self.promise} the price covers a list of mechanisms": (
                name in MECHANISM and (self.promise == "repeat_and_select" or adaptive)
            ),
        }
        for reason, applies in needs_list.items():
            if applies:
                raise ConfigError(f"sweep.space.{name} is a range, but {reason}. Give its values.")


def _shapes_public(name: str) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in PUBLIC)


def default_space(query_step: int, noise_multiplier: float) -> dict[str, Range | list[Any]]:
    """Returns the space of a recipe that names none: around what it does by itself."""
    return {
        "split.split_step": [round(query_step * share) for share in (0.35, 0.5, 0.65, 0.8)],
        "privacy.noise_multiplier": [
            float(f"{noise_multiplier * factor:.3g}") for factor in (0.6, 0.8, 1.0, 1.3, 1.7)
        ],
    }


def random_point(space: Mapping[str, Range | list[Any]], generator: np.random.Generator) -> Point:
    """Returns one point, each setting drawn by itself."""
    return {
        name: values[int(generator.integers(len(values)))]
        if isinstance(values, list)
        else values.draw(float(generator.random()))
        for name, values in space.items()
    }


def grid_points(space: Mapping[str, Range | list[Any]]) -> list[Point]:
    """Returns every point of a space of lists, the last setting changing fastest."""
    number = math.prod(len(values) for values in space.values() if isinstance(values, list))
    if number > _GRID_MOST:
        raise ConfigError(f"sweep.space has {number:,} points. Name fewer values, or use random.")
    return list(_products(space))


def variants(
    space: Mapping[str, Range | list[Any]], *, mechanism: bool = False, public: bool = False
) -> list[Point]:
    """Returns every combination of the listed settings that shape the one or the other."""
    chosen = {
        name: values
        for name, values in space.items()
        if isinstance(values, list)
        and ((mechanism and name in MECHANISM) or (public and _shapes_public(name)))
    }
    return list(_products(chosen))


def _products(space: Mapping[str, Range | list[Any]]) -> Iterator[Point]:
    lists = [values if isinstance(values, list) else [] for values in space.values()]
    for values in itertools.product(*lists):
        yield dict(zip(space, values, strict=True))
