"""``report.html``: one page that a data-protection officer can read without asking anybody.

    page = render_report(ReportInputs(summary=summary, claim=claim.sentences, ...))

The page is self-contained: style in the page, pictures as data addresses, and a content policy
that forbids every request. It takes plain values and draws; it computes nothing about privacy
but the bound on an attacker that follows from epsilon and delta. With ``quality`` given, the page
holds figures measured against private records and says, at its top, that it is internal (P13).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.release import report_audit, report_duplicates, report_figures, report_privacy
from rapid_dist.release.markup import escape, page
from rapid_dist.release.plots import EpsilonCurve, ImageSet
from rapid_dist.release.report_style import STYLE


@dataclass(frozen=True, kw_only=True, eq=False)
class Strips:
    """From public queries to samples: three images uint8 [n, C, S, S] for each of n queries."""

    queries: UInt8Array  # Public states, or the public images that they were made from.
    surrogates: UInt8Array  # What was retrieved, from the knowledge base.
    samples: UInt8Array
    labels: Int64Array  # [n]
    neighbours: Mapping[str, Any] = field(default_factory=dict)  # As retrieval.stats.Diversity.


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportInputs:
    """Everything that is on the page."""

    summary: Mapping[str, Any]  # As summary.json.
    claim: Sequence[str]  # Sentences; the first is the claim, the others say what it rests on.
    created: str  # Date of the run, as the reader should see it.
    class_names: Sequence[str]  # Empty for images without classes.
    samples: ImageSet
    controls: Mapping[str, ImageSet] = field(default_factory=dict)
    strips: Strips | None = None
    curve: EpsilonCurve | None = None
    quality: Mapping[str, Any] | None = None  # As internal/quality.json; makes the page internal.
    audit: Mapping[str, Any] | None = None  # As audit.json.
    price_per_hour: float | None = None  # Of the whole cluster, in the reader's currency.


def render_report(inputs: ReportInputs) -> str:
    """Returns the whole page as HTML."""
    summary = inputs.summary
    sections = [
        report_privacy.claim_section(summary, inputs.claim),
        report_privacy.meaning_section(summary),
        report_privacy.accounting_section(summary, inputs.curve),
        report_figures.samples_section(inputs.class_names, inputs.samples, inputs.controls),
    ]
    if inputs.strips is not None:
        strips = inputs.strips
        sections.append(
            report_figures.strips_section(
                inputs.class_names,
                strips.queries,
                strips.surrogates,
                strips.samples,
                strips.labels,
                strips.neighbours,
            )
        )
    if inputs.quality is not None:
        sections.append(report_figures.quality_section(inputs.quality))
    told = summary.get("contamination")
    if told:
        near = (inputs.quality or {}).get("contamination")
        sections.append(report_duplicates.duplicates_section(told, near))
    sections.append(report_audit.audit_section(inputs.audit))
    sections.append(report_figures.stages_section(summary, inputs.price_per_hour))
    sections.append(report_privacy.origin_section(summary, inputs.claim))
    return page(
        title=f"Privacy report: {summary['dataset']}",
        lead=f"Method {summary['method']}, recipe {summary['recipe']}, {inputs.created}",
        banner=_banner(inputs.quality is not None),
        sections=sections,
        style=STYLE,
    )


def _banner(internal: bool) -> str:
    if not internal:
        return ""
    said = (
        "This page holds figures that were measured against private records without a privacy "
        "mechanism (quality and memorisation). Keep it where the private records may be kept. "
        "The privacy claim covers the generator and its samples, not this page."
    )
    return (
        '<aside class="banner" aria-label="Confidentiality"><p><strong>Internal document.</strong> '
        f"{escape(said)}</p></aside>"
    )
