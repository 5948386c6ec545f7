"""What a comparison held equal and what each row has of its own, in words."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("row", "method", "settings of its own")
_NOTHING = "none"


def held_equal(result: Mapping[str, Any]) -> str:
    """Returns what all rows share, and at which budgets they do not train with as much."""
    return " ".join(
        [
            "All rows have the private data, privacy unit, delta, number of samples, seeds and "
            f"evaluation of recipe {result['recipe']!r}, as this comparison was given it. They "
            "have its public data, network, batch, steps and rates too, but for settings of their "
            "own.",
            *_unequal(result["rows"]),
        ]
    )


def differences(result: Mapping[str, Any]) -> list[list[str]]:
    """Returns a line a row: its name, its method, and every setting that is its own.

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
                at = "without a budget" if epsilon is None else f"at {epsilon:g}"
                said.append(f"{at}: {', '.join(_settings(own))}")
        lines.append([row, methods[row], "; ".join(said) or _NOTHING])
    return lines


def _settings(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={one}" for name, one in settings.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _unequal(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each epsilon at which charged rows train with unequal numbers."""
    sizes: dict[float, dict[str, float]] = {}
    for row in rows:
        size = row["mean"].get("private_rows")
        if row["promise"] == "charged" and size is not None:
            sizes.setdefault(row["epsilon"], {})[row["row"]] = size
    return [
        f"At epsilon {epsilon:g} the rows that train do not train with the same number of private "
        f"rows: {', '.join(f'{name} {size:,.0f}' for name, size in trained.items())} (steps, batch "
        "and draws of a record together)."
        for epsilon, trained in sizes.items()
        if len(set(trained.values())) > 1
    ]
