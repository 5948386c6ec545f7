"""Every known way to break the promise, as a component that breaks it, and the check that sees it.

A fault is planted in a subject with ``build``. Each file of this folder lists its own in FAULTS;
``table`` is what docs/privacy.md shows of them all. To add one: write the class, list it, run the
test, and paste the table that the test's message prints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.audit.subject import Subject

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One faulty component."""

    name: str
    what_happened: str  # Where it was seen, or why somebody will do it.
    build: Callable[[Subject], Subject]
    caught_by: tuple[str, ...]  # Names of the checks that fail on it.


@dataclass(frozen=True, kw_only=True)
class IndexFault:
    """One faulty component of a private index."""

    name: str
    what_happened: str
    build: Callable[[IndexSubject], IndexSubject]
    caught_by: tuple[str, ...]


def faults() -> list[Fault | IndexFault]:
    """The FAULTS of every file of this folder that lists some."""
    here = Path(__file__).parent
    modules = [
        import_module(f"tests.faults.{path.stem}")
        for path in sorted(here.glob("*.py"))
        if not path.stem.startswith(("_", "test_"))
    ]
    found: list[Fault | IndexFault] = [
        fault for module in modules for fault in getattr(module, "FAULTS", [])
    ]
    assert len({fault.name for fault in found}) == len(found), "Two faults have one name."
    return found


def table() -> str:
    """The table of docs/privacy.md, a Markdown row a fault."""
    rows = [
        f"| {fault.name} | {fault.what_happened} | {', '.join(fault.caught_by)} |"
        for fault in faults()
    ]
    return "\n".join(
        [
            "| fault planted | where it was seen, or how it comes about | caught by |",
            "|---|---|---|",
            *rows,
        ]
    )
