"""The report's section on the audit: what the installed code was asked, and what it answered."""

import re
from collections.abc import Mapping
from typing import Any

from rapid_dist.release.markup import Cell, Raw, Section, card, escape, facts, paragraph, table

KEY = "audit"
_SECTION = re.compile(rf'<section id="{KEY}".*?</section>\n?', re.DOTALL)
_EXACT = "exact"


def audit_section(audit: Mapping[str, Any] | None) -> Section:
    """Returns the verdicts of audit.json, or that there is none."""
    return Section(
        key=KEY, title="Audit of the code", body=_none() if audit is None else _body(audit)
    )


def with_audit(page: str, audit: Mapping[str, Any]) -> str:
    """Returns a finished page with the audit's section in the place of the one it has."""
    return _SECTION.sub(lambda _: card(audit_section(audit)), page, count=1)


def _none() -> str:
    return paragraph(
        "No audit of the installed code was made for this run. `rapid-dist audit` tries every "
        "part of the mechanism on public stand-ins, and adds its verdicts here."
    )


def _body(audit: Mapping[str, Any]) -> str:
    results = audit["results"]
    said = (
        f"All {len(results)} questions were answered as they must be."
        if audit["passed"]
        else f"These checks failed: {', '.join(audit['failed'])}. Do not rely on the claim."
    )
    rows: list[list[Cell]] = [
        [
            Raw(markup=f"<small>{escape(one['check'])}</small>{escape(one['question'])}"),
            one["statistic"],
            one["bound"],
            f"{one['false_alarm']:.1g}" if one["false_alarm"] else _EXACT,
            "passed" if one["passed"] else Raw(markup="FAILED", style="failed"),
        ]
        for one in results
    ]
    pairs = [
        ("verdict", "passed" if audit["passed"] else "FAILED"),
        ("profile", str(audit["profile"])),
        ("date", str(audit["created"])),
        ("code", str(audit["code"])),
    ]
    return (
        paragraph(said, "" if audit["passed"] else "verdict bad")
        + facts(pairs)
        + _tried(audit["mechanism"])
        + table(
            "What was asked of the installed code, on public stand-ins for the private images",
            ["question", "measured", "bound", "false alarm", "verdict"],
            rows,
            numbers_from=5,
            kind="audit",
        )
        + paragraph(
            "A false alarm is the chance that right code fails the question; an exact one has "
            "none. An audit finds faults and proves no absence of them: the empirical epsilon, "
            "above all, finds gross ones only.",
            "note",
        )
    )


def _tried(mechanism: Mapping[str, Any]) -> str:
    """The constants that were audited: an audit of others says less about this run."""
    if "neighbors" in mechanism:
        what, rate = "rounds of questions to a private index", mechanism["sample_rate"]
    else:
        what, rate = "steps of DP-SGD", mechanism["expected_batch"] / mechanism["num_records"]
    return paragraph(
        f"It was made with {mechanism['steps']:,} {what}, sample rate {rate:.4g}, noise multiplier "
        f"{mechanism['noise_multiplier']:.4g} and {mechanism['noise']} noise. Compare that with "
        "the constants of the mechanism above: an audit of others is one of the same code, "
        "but not of this run.",
        "note",
    )
