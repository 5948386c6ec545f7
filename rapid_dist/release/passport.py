"""The privacy passport: one JSON that says of a released generator all that may be said of it.

    passport.json           checked against passport.schema.json, in this package
    passport.html           the same for readers, see passport_page.py

Everything in it is declared, counted from the ledger or measured on public stand-ins. What was
measured against private records has no field here (P13): not even whether it was good. This file
is what a verifier needs; passport_content.py makes one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]

FORMAT = 1
PASSPORT, PAGE = "passport.json", "passport.html"
SCHEMA = Path(__file__).parent / "passport.schema.json"
MEMORISATION = (
    "Distances of samples to private records are measured against private records without a "
    "privacy mechanism. Neither figures nor a verdict leave with the model: both would be releases "
    "that the ledger does not hold. The claim above bounds memorisation of any one unit."
)
_EMPIRICAL = "empirical epsilon"  # The check of audit/ whose value is a lower bound of epsilon.


def schema_faults(content: Any) -> list[str]:
    """Returns what the schema has against a passport, each with its place."""
    validator = jsonschema.Draft202012Validator(read_schema())
    return [
        f"{error.json_path} {error.message[:160]}"
        for error in sorted(validator.iter_errors(content), key=lambda error: error.json_path)
    ]


def read_schema() -> dict[str, Any]:
    """Returns the JSON schema that every passport meets."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return schema


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Returns the passport as it is stored."""
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"


def lower_bound(audit: Mapping[str, Any]) -> float | None:
    """Returns the epsilon that the audit's canaries have shown; None if it has none to show.

    An audit.json that is older than the field ``value`` shows none; it is of other code than any
    that can be released.
    """
    for line in audit.get("results", ()):
        if line["check"] == _EMPIRICAL and line.get("value") is not None:
            return float(line["value"])
    return None
