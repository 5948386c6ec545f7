"""Settings of a comparison: which rows there are, at which epsilons, and by how many seeds.

A row is a method, or a variant of one: a name for settings that it changes. What makes rows
comparable is nobody's to change: the private data, the budget, the number of images, the seeds and
the whole evaluation are those of the recipe and of this section, for all rows alike.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rapid_dist.errors import ConfigError

Settings = dict[str, Any]  # Dotted setting -> its value.

# What all rows share; a variant that changed one of these would be measured by another yardstick.
SHARED = (
    "compare",
    "contamination",
    "data.private",
    "data.root",
    "evaluation",
    "name",
    "privacy.contamination_noise",
    "privacy.delta",
    "privacy.epsilon",
    "privacy.noise",
    "privacy.relation",
    "privacy.unit",
    "release",
    "runtime",
    "sampling.count",
    "sampling.seed",
    "seed",
    "sweep",
    "tracking",
)
AT = "at"  # Of a variant: what is changed at one epsilon only.
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What `rapid-dist compare` sets side by side; no other command reads it."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    methods: tuple[str, ...] = ("rapid", "dpdm")  # Rows: methods, or names of ``variants``.
    epsilons: tuple[float, ...] = ()  # None given = the recipe's own.
    seeds: int = 3  # Of samples and classifiers; private randomness is new in every piece anyway.
    first_seed: int = 0
    # name -> settings. Named after a method, what is changed in that method; else a row of its own,
    # whose method is its setting "method", or the recipe's. Its setting "at", epsilon -> settings,
    # is what it changes at one budget besides.
    variants: dict[str, Settings] = field(default_factory=dict)
    budgets: dict[float, Settings] = field(default_factory=dict)  # epsilon -> settings of all rows.
    validation_share: float = 0.1  # Of the samples: chooses each classifier's checkpoint.
    class_balance: bool = True
    controls: bool = False  # Of each run; the controls are methods, and rows, of their own here.

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(
                f"compare.methods must be at least one row, each once, got {list(self.methods)}."
            )
        for name in (*self.methods, *self.variants):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"compare has a row {name!r}. Name it in lower case: a-z, 0-9, '_', '-', '.'."
                )
        if self.seeds < 1 or self.first_seed < 0:
            raise ConfigError(
                "compare.seeds must be at least 1 and compare.first_seed at least 0, got "
                f"{self.seeds} and {self.first_seed}."
            )
        if any(not epsilon > 0 for epsilon in self.epsilons):
            raise ConfigError(f"compare.epsilons must be positive, got {list(self.epsilons)}.")
        for row, settings in self.variants.items():
            where = f"compare.variants.{row}"
            _check_shared(where, {name: one for name, one in settings.items() if name != AT})
            self._check_budgets(f"{where}.{AT}", self._by_epsilon(row))
        self._check_budgets("compare.budgets", self.budgets)

    def _check_budgets(self, where: str, budgets: Mapping[float, Settings]) -> None:
        for epsilon, settings in budgets.items():
            _check_shared(f"{where}.{epsilon:g}", settings)
            if "method" in settings:
                raise ConfigError(
                    f"{where}.{epsilon:g} sets method, which is one at all budgets. Name rows in "
                    "compare.methods."
                )
            if epsilon not in self.epsilons:
                raise ConfigError(
                    f"{where} has {epsilon:g}, which compare.epsilons="
                    f"{list(self.epsilons)} does not."
                )

    def at(self, epsilon: float) -> Settings:
        """Returns what all rows change at a budget."""
        return self.budgets.get(epsilon, {})

    def row(self, row: str, epsilon: float | None) -> Settings:
        """Returns what makes a row, "method" among it; ``epsilon`` is None where it has none."""
        settings = {name: one for name, one in self.variants.get(row, {}).items() if name != AT}
        return settings | ({} if epsilon is None else self._by_epsilon(row).get(epsilon, {}))

    def changes(self, row: str, epsilon: float | None) -> Settings:
        """Returns all that a row at a budget has otherwise than the recipe and its method."""
        return ({} if epsilon is None else self.at(epsilon)) | self.row(row, epsilon)

    def _by_epsilon(self, row: str) -> dict[float, Settings]:
        """Returns a row's setting "at"; its keys may be text, as JSON has them."""
        found = self.variants.get(row, {}).get(AT, {})
        try:
            return {float(epsilon): dict(settings) for epsilon, settings in found.items()}
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"compare.variants.{row}.{AT} must have settings for each epsilon, as in "
                f"{AT}: {{1: {{privacy.steps: 40}}}}, got {found!r}."
            ) from None


def is_shared(setting: str) -> bool:
    """Whether a setting, by its dotted name, is one that all rows of a comparison share."""
    return any(f"{setting}.".startswith(f"{one}.") for one in SHARED)


def _check_shared(where: str, settings: Mapping[str, Any]) -> None:
    for name in settings:
        if is_shared(name) or any(one.startswith(f"{name}.") for one in SHARED):
            raise ConfigError(
                f"{where} changes {name}, which all rows of a comparison share. Set it in the "
                "recipe, for all of them."
            )
