"""Tables and result files of the benchmarks; imports nothing that a bare GPU machine may lack."""

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_VERSIONS = ("torch", "diffusers", "opacus", "numpy")


def machine() -> dict[str, Any]:
    """Returns what a reader needs to place a figure."""
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """Returns the command line, but for the folder that somebody's images lie in."""
    return re.sub(r"\bdata\.root=\S+", "data.root=DIR", " ".join(["python", *sys.argv]))


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures with machine, versions and command beside them."""
    facts = {
        "command": command(),
        "machine": machine(),
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, **figures}, indent=2, sort_keys=True) + "\n")
    print(f"written: {path}")


def merged(path: Path, rows: Sequence[dict[str, Any]], same: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a file's earlier rows and these; a new one takes the place of that of its name.

    Args:
      same: the columns that name a row.
    """
    found = {}
    earlier = json.loads(path.read_text())["rows"] if path.is_file() else []
    for row in [*earlier, *rows]:
        found[tuple(row.get(column) for column in same)] = row
    return list(found.values())


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Returns a Markdown table; numbers with three digits."""

    def cell(value: object) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def in_document(text: str, mark: str, lines: str) -> str:
    """Returns a document with these lines in the place of those between its two marks of a name.

    Raises:
      ValueError: the document has no such marks.
    """
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    if begin not in text or end not in text:
        raise ValueError(f"The document has no {begin} with an {end} behind it.")
    first, rest = text.split(begin, 1)
    return f"{first}{begin}\n\n{lines}\n\n{end}{rest.split(end, 1)[1]}"
