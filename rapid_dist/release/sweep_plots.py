"""Pictures of a sweep as inline SVG: quality against a setting, parallel coordinates, seconds.

Colours come from the page. Every picture shows all trials that were scored; the chosen one is
marked. Settings that are no numbers stand at even places, in the order of their names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rapid_dist.release.markup import escape

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 18, 46
_ASIDE = 150  # Right of the last of parallel axes, for its name and its values.
_HALO = 'style="paint-order: stroke; stroke: var(--card); stroke-width: 4px"'  # Over lines.
_DECADE = 8.0  # A setting whose values span this factor is drawn by its logarithm.


@dataclass(frozen=True, kw_only=True)
class ScoredTrial:
    """What is drawn of one trial."""

    number: int
    point: Mapping[str, Any]
    score: float
    seconds: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Where the values of one setting stand, between 0 and 1."""

    name: str
    places: Mapping[str, float]  # Of each value, as text.
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> "Axis":
        """Returns the axis of values that may be numbers or anything else."""
        different = sorted({str(value) for value in values})
        numbers = [value for value in values if _is_number(value)]
        if len(numbers) < len(values):
            step = 1 / max(1, len(different) - 1)
            places = {value: number * step for number, value in enumerate(different)}
            return cls(name=name, places=places, ticks=[(at, text) for text, at in places.items()])
        low, high = min(numbers), max(numbers)
        log = low > 0 and high / low >= _DECADE
        span = (math.log(high / low) if log else high - low) or 1.0

        def at(value: float) -> float:
            return (math.log(value / low) if log else value - low) / span

        shown = sorted(set(numbers)) if len(set(numbers)) <= 6 else [low, high]
        return cls(
            name=name,
            places={str(value): at(value) for value in values},
            ticks=[(at(value), f"{value:.4g}") for value in shown],
        )

    def __call__(self, value: Any) -> float:
        return self.places[str(value)]


def quality_svg(trials: Sequence[ScoredTrial], setting: str, score_name: str) -> str:
    """Returns the score of every trial against one setting."""
    across = Axis.of(setting, [trial.point[setting] for trial in trials])
    up = Axis.of(score_name, [trial.score for trial in trials])
    parts = _frame(across, up, f"{score_name} against {setting}")
    for trial in sorted(trials, key=lambda trial: trial.chosen):
        x, y = _x(across(trial.point[setting])), _y(up(trial.score))
        parts.append(_dot(trial, x, y, f"{setting} {trial.point[setting]}"))
    return "".join([*parts, "</svg>"])


def parallel_svg(trials: Sequence[ScoredTrial], score_name: str) -> str:
    """Returns a line a trial over all settings and the score; the chosen one on top."""
    names = [*trials[0].point]
    axes = [Axis.of(name, [trial.point[name] for trial in trials]) for name in names]
    axes.append(Axis.of(score_name, [trial.score for trial in trials]))
    step = (WIDTH - _LEFT - _ASIDE) / max(1, len(axes) - 1)
    parts = [_open("Settings and score of every trial, a line each")]
    labels = []
    for number, axis in enumerate(axes):
        x = round(_LEFT + number * step, 1)
        last = axis.name.rpartition(".")[2]
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        labels.append(f'<text x="{x}" y="{HEIGHT - 12}" text-anchor="middle">{escape(last)}</text>')
        for at, text in axis.ticks:
            labels.append(f'<text x="{x + 6}" y="{_y(at) + 4}" {_HALO}>{escape(text)}</text>')
    best = max(trial.score for trial in trials)
    worst = min(trial.score for trial in trials)
    for trial in sorted(trials, key=lambda trial: (trial.chosen, trial.score)):
        values = [*trial.point.values(), trial.score]
        points = " ".join(
            f"{_LEFT + number * step:.1f},{_y(axis(value))}"
            for number, (axis, value) in enumerate(zip(axes, values, strict=True))
        )
        style = "line line-1" if trial.chosen else "line line-0"
        share = (trial.score - worst) / ((best - worst) or 1.0)
        opacity = 1 if trial.chosen else round(0.15 + 0.6 * share, 2)
        parts.append(
            f'<polyline class="{style}" opacity="{opacity}" points="{points}">'
            f"<title>trial {trial.number}: {trial.score:.4g}</title></polyline>"
        )
    return "".join([*parts, *labels, "</svg>"])  # Labels last: lines would strike them out.


def seconds_svg(trials: Sequence[ScoredTrial]) -> str:
    """Returns the seconds that every trial took, in order."""
    most = max(trial.seconds for trial in trials) or 1.0
    up = Axis(name="seconds", places={}, ticks=[(0.0, "0"), (1.0, f"{most:.3g}")])
    across = Axis(
        name="trial",
        places={},
        ticks=[((n + 0.5) / len(trials), str(t.number)) for n, t in enumerate(trials)],
    )
    parts = _frame(across, up, "Seconds of every trial")
    wide = (WIDTH - _LEFT - _RIGHT) / len(trials)
    for number, trial in enumerate(trials):
        top = _y(trial.seconds / most)
        style = "line-1" if trial.chosen else "line-0"
        parts.append(
            f'<line class="line {style}" stroke-dasharray="none" '
            f'style="stroke-width:{max(2.0, wide * 0.6):.1f}" '
            f'x1="{_LEFT + (number + 0.5) * wide:.1f}" x2="{_LEFT + (number + 0.5) * wide:.1f}" '
            f'y1="{_y(0.0)}" y2="{top}"><title>trial {trial.number}: {trial.seconds:.1f} s</title>'
            "</line>"
        )
    return "".join([*parts, "</svg>"])


def _frame(across: Axis, up: Axis, title: str) -> list[str]:
    parts = [_open(title)]
    for at, text in up.ticks if len(up.ticks) <= 6 else [up.ticks[0], up.ticks[-1]]:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{_y(at)}" y2="{_y(at)}"/>'
            f'<text x="{_LEFT - 8}" y="{_y(at) + 4}" text-anchor="end">{escape(text)}</text>'
        )
    for at, text in across.ticks:
        parts.append(
            f'<text x="{_x(at)}" y="{HEIGHT - _BOTTOM + 20}" text-anchor="middle">'
            f"{escape(text)}</text>"
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across.name)}</text>'
    )
    return parts


def _dot(trial: ScoredTrial, x: float, y: float, at: str) -> str:
    colour, size = ("var(--warn)", 7) if trial.chosen else ("var(--line-0)", 5)
    chosen = ", chosen" if trial.chosen else ""
    return (
        f'<circle cx="{x}" cy="{y}" r="{size}" style="fill:{colour}" opacity="0.85">'
        f"<title>trial {trial.number}{chosen}: {trial.score:.4g} at {escape(at)}</title></circle>"
    )


def _open(title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'


def _x(share: float) -> float:
    return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (0.03 + 0.94 * share), 1)


def _y(share: float) -> float:
    return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (0.04 + 0.92 * share), 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
