"""What a comparison held equal and what each row has of its own, in words."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("row", "method", "what it has otherwise than the recipe")
_NOTHING = "nothing"


def held_equal(result: Mapping[str, Any]) -> str:
    """Returns what all rows share, and at which budgets their private training is not one size."""
    return " ".join(
        [
            "All rows have the private data, privacy unit, delta, number of samples, seeds and "
            f"evaluation of recipe {result['recipe']!r}. They have its public data, network, "
            "batch, steps and rates too, but for what is said of each.",
            *_compute(result["rows"]),
        ]
    )


def differences(result: Mapping[str, Any]) -> list[list[str]]:
    """Returns a line a row: its name, its method, and every setting that it has otherwise.

    A setting is shown as the row's runs had it, whether its method, its variant or its budget
    brought it; last come those that are not the same at all epsilons.
    """
    found: dict[str, dict[float | None, dict[str, str]]] = {}
    methods: dict[str, str] = {}
    for piece in result["pieces"]:
        settings = {name: _text(one) for name, one in piece["otherwise"].items()}
        found.setdefault(piece["row"], {})[piece["epsilon"]] = settings
        methods[piece["row"]] = piece["method"]
    lines = []
    for row, by_epsilon in found.items():
        first = next(iter(by_epsilon.values()))
        shared = {
            name: one
            for name, one in first.items()
            if all(other.get(name) == one for other in by_epsilon.values())
        }
        said = _settings(shared)
        for epsilon, settings in by_epsilon.items():
            own = {name: one for name, one in settings.items() if name not in shared}
            if own:
                said.append(f"at {epsilon:g}: {', '.join(_settings(own))}")
        lines.append([row, methods[row], "; ".join(said) or _NOTHING])
    return lines


def _settings(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={one}" for name, one in settings.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _compute(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each epsilon at which charged rows train with unequal numbers."""
    sentences = []
    for epsilon in dict.fromkeys(row["epsilon"] for row in rows if row["promise"] == "charged"):
        sizes = {
            row["row"]: row["mean"].get("private_rows")
            for row in rows
            if row["epsilon"] == epsilon and row["promise"] == "charged"
        }
        trained = {name: size for name, size in sizes.items() if size is not None}
        if len(set(trained.values())) > 1:
            listed = ", ".join(f"{name} {size:,.0f}" for name, size in trained.items())
            sentences.append(
                f"At epsilon {epsilon:g} those that train do not with the same compute: private "
                f"rows are {listed} (train.multiplicity, privacy.expected_batch and privacy.steps "
                "together)."
            )
    return sentences
