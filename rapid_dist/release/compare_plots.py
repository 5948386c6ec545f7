"""The figure of a comparison as SVG: quality against epsilon, a line a row, a level without budget.

It brings its colours along, so it can be a file of its own, and follows light and dark. Lines end
in their names, whose order is that of their last points; bars are one standard deviation each way.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Place = Callable[[float], float]  # A value -> where it stands.
WIDTH, HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 190, 20, 52
_LABEL = 15.0  # Pixels between two names at least.
_COLOURS = ("0b6b57", "3465a8", "b3471d", "7b4ba0", "957000", "b03568", "1c7f9c", "5b6b73")
_LIGHT = ("6fd0b3", "8db6f0", "f09a74", "c3a0e6", "e0c060", "f08fb8", "7fd0e6", "a9b6bc")
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")
_AXES = {
    "mean": "mean accuracy of three classifiers on held-out real images",
    "frechet": "Frechet distance to held-out real images (smaller is better)",
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One row: its values with their spreads over epsilons, or the one of a row without budget."""

    name: str
    points: tuple[tuple[float, float, float], ...]  # (epsilon, value, spread), ascending.
    level: float | None = None


def quality_svg(rows: Sequence[Series], chief: str) -> str:
    """Returns the figure; ``chief`` names what is drawn upwards."""
    values = [v + sign * s for row in rows for _, v, s in row.points for sign in (-1, 1)]
    values += [row.level for row in rows if row.level is not None]
    budgets = sorted({epsilon for row in rows for epsilon, _, _ in row.points})
    title = f"{_AXES.get(chief, chief)} against epsilon"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'class="compare"><title>{html.escape(title)}</title>{_style(len(rows))}'
    ]
    if not values:
        return f'{parts[0]}<text x="{_LEFT}" y="{HEIGHT / 2}">No piece is done yet.</text></svg>'
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low), 1)

    first, last = (budgets[0], budgets[-1]) if budgets else (1.0, 1.0)

    def x(epsilon: float) -> float:
        share = 0.5 if first == last else math.log(epsilon / first) / math.log(last / first)
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (0.04 + 0.92 * share), 1)

    for tick in ticks:
        shown = f"{100 * tick:.4g}%" if chief == "mean" else f"{tick:.4g}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
            f'<text x="{_LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{shown}</text>'
        )
    for epsilon in budgets:
        parts.append(
            f'<text x="{x(epsilon)}" y="{HEIGHT - _BOTTOM + 20}" text-anchor="middle">'
            f"{epsilon:g}</text>"
        )
    parts.append(
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">epsilon '
        f"(logarithmic)</text>"
        f'<text transform="rotate(-90)" x="{-(_TOP + HEIGHT - _BOTTOM) / 2}" y="14" '
        f'text-anchor="middle">{html.escape(_AXES.get(chief, chief))}</text>'
    )
    ends = {}
    for number, row in enumerate(rows):
        parts.append(_drawn(row, number, x, y))
        ends[number] = y(row.points[-1][1] if row.points else row.level or 0.0)
    for number, at in _apart(ends).items():
        row = rows[number]
        start = x(row.points[-1][0]) if row.points else WIDTH - _RIGHT
        told = row.name if row.points else f"{row.name} (no budget)"
        edge = WIDTH - _RIGHT + 10
        parts.append(
            f'<line class="lead s{number}" x1="{start + 6}" x2="{edge - 2}" y1="{ends[number]}" '
            f'y2="{at}"/><text class="s{number}" x="{edge}" y="{at + 4}">{html.escape(told)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _drawn(row: Series, number: int, x: Place, y: Place) -> str:
    parts = []
    if row.level is not None:
        parts.append(
            f'<line class="line level s{number}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" '
            f'y1="{y(row.level)}" y2="{y(row.level)}"/>'
        )
    line = " ".join(f"{x(epsilon)},{y(value)}" for epsilon, value, _ in row.points)
    if len(row.points) > 1:
        parts.append(f'<polyline class="line s{number}" points="{line}"/>')
    for epsilon, value, spread in row.points:
        if spread:
            parts.append(
                f'<line class="bar s{number}" x1="{x(epsilon)}" x2="{x(epsilon)}" '
                f'y1="{y(value - spread)}" y2="{y(value + spread)}"/>'
            )
        parts.append(
            f'<circle class="dot s{number}" cx="{x(epsilon)}" cy="{y(value)}" r="4">'
            f"<title>{html.escape(row.name)} at {epsilon:g}: {value:.4g}</title></circle>"
        )
    return "".join(parts)


def _apart(ends: dict[int, float]) -> dict[int, float]:
    """Returns where names stand: beside their lines, pushed apart where they would overlap."""
    order = sorted(ends, key=lambda number: ends[number])
    placed: dict[int, float] = {}
    for place, number in enumerate(order):
        least = placed[order[place - 1]] + _LABEL if place else _TOP
        placed[number] = max(ends[number], least)
    over = max(placed.values(), default=0.0) - (HEIGHT - _BOTTOM)
    if over > 0:  # All move up by what the lowest is too low; from below, as far as they must.
        bound = float(HEIGHT - _BOTTOM)
        for number in reversed(order):
            placed[number] = min(placed[number], bound)
            bound = placed[number] - _LABEL
    return {number: round(at, 1) for number, at in placed.items()}


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers from at or below ``low`` to at or above ``high``."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= span / 5)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(start, max(end, start + 1) + 1)]


def _style(rows: int) -> str:
    def colours(palette: Sequence[str]) -> str:
        return "".join(
            f".compare .s{n}{{--c:#{palette[n % len(palette)]};"
            f"--d:{_DASHES[n // len(palette) % len(_DASHES)]}}}"
            for n in range(rows)
        )

    return (
        "<style>.compare{font:12px system-ui,'Liberation Sans',sans-serif}"
        ".compare text{fill:#55615b}.compare .grid{stroke:#dde2de}"
        ".compare .line{fill:none;stroke:var(--c);stroke-width:2.25;stroke-dasharray:var(--d)}"
        ".compare .level{stroke-width:1.5;stroke-dasharray:5 4}"
        ".compare .lead{stroke:var(--c);stroke-width:.75;opacity:.6}"
        ".compare .bar{stroke:var(--c);stroke-width:1.5}.compare .dot{fill:var(--c)}"
        f".compare text[class]{{fill:var(--c);font-weight:600}}{colours(_COLOURS)}"
        "@media (prefers-color-scheme: dark){.compare text{fill:#a3afa9}"
        f".compare .grid{{stroke:#2e3733}}{colours(_LIGHT)}}}</style>"
    )
