"""The table of a killer's results: one row for every kind of fault, and what they come to."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tests.cluster.chaos.killer import RANDOM, STARTS, Result
from tests.cluster.chaos.points import ON_S3, POINTS

COLUMNS = (
    "where", "fault", "tried", "survived", "stopped in one line", "failed", "repeated",
    "under-counted",
)  # fmt: skip


def rows_of(results: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """Returns a row a kind: tried, survived, stopped in one line, failed, steps repeated and more.

    Args:
      results: by where they ran. A fault that came when the run was done is not counted as tried.
    """
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for where, of_one in results.items():
        for result in of_one:
            if result.happened:
                found[where, result.fault.kind].append(result)
    return [
        {
            "where": where,
            "fault": kind,
            "tried": len(group),
            "survived": sum(one.survived for one in group),
            "stopped in one line": sum(one.stopped for one in group),
            "failed": sum(not (one.survived or one.stopped) for one in group),
            "repeated": sum(one.finding.repeated for one in group),
            "under-counted": sum(one.finding.under_counted for one in group),
        }
        for (where, kind), group in found.items()
    ]


def figures_of(rows: Sequence[dict[str, Any]], results: Sequence[Result]) -> dict[str, Any]:
    """Returns what the rows of one place come to, and its longest restart, in seconds."""
    restarts = [one.finding.restart_sec for one in results if one.finding.restart_sec is not None]
    return {
        "faults tried": sum(row["tried"] for row in rows),
        "faults survived": sum(row["survived"] for row in rows),
        "faults stopped in one line": sum(row["stopped in one line"] for row in rows),
        "faults failed": sum(row["failed"] for row in rows),
        "noised updates made": sum(one.finding.made for one in results),
        "steps charged": sum(one.finding.charged for one in results),
        "steps repeated": sum(one.finding.repeated for one in results),
        "steps under-counted": sum(one.finding.under_counted for one in results),
        "restart seconds, longest": max(restarts, default=0.0),
    }


def added(earlier: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Returns rows and figures of two goes together; of all else the later one's."""
    rows = {(row["where"], row["fault"]): dict(row) for row in earlier["rows"]}
    for row in found["rows"]:
        kept = rows.setdefault((row["where"], row["fault"]), {})
        for name, value in row.items():
            kept[name] = kept[name] + value if isinstance(kept.get(name), int) else value
    figures = dict(earlier["figures"])
    for where, of_one in found["figures"].items():
        before = figures.get(where, {})
        figures[where] = {
            name: max(before.get(name, 0.0), value)
            if isinstance(value, float)
            else before.get(name, 0) + value
            for name, value in of_one.items()
        }
    seeds = [*earlier.get("seeds", []), *found.get("seeds", [])]
    together = {"rows": list(rows.values()), "figures": figures, "seeds": seeds}
    return {**earlier, **found, **together}


def by_signal(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows with all moments of one signal to one process added up."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        fault = next(
            row["fault"].removesuffix(f", {moment}")
            for moment in (*POINTS, *ON_S3, RANDOM, STARTS)
            if row["fault"].endswith(f", {moment}")
        )
        kept = found.setdefault((row["where"], fault), {})
        for name, value in row.items():
            kept[name] = kept.get(name, 0) + value if isinstance(value, int) else value
        kept["fault"] = fault
    return sorted(found.values(), key=lambda row: (row["where"], row["fault"]))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table as text."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[column]) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)
