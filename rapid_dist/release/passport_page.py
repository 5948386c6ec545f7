"""``passport.html``: the privacy passport as one self-contained page.

It says what passport.json says and nothing more, and prints the SHA-256 of that file, so that a
page and a passport which do not belong together are told apart.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rapid_dist.release.markup import Cell, Raw, Section, escape, facts, page, paragraph, table
from rapid_dist.release.passport import MEMORISATION
from rapid_dist.release.report_privacy import (
    accounting_section,
    claim_section,
    meaning_section,
    up,
)
from rapid_dist.release.report_style import STYLE

_TOTAL = re.compile(r"(<dt>epsilon of the data set, all runs</dt><dd>)[^<]*(</dd>)")
_ORDER = ("python", "platform", "rapid-dist", "torch", "numpy")  # The first rows of the versions.


def render_passport(passport: Mapping[str, Any], sha256: str) -> str:
    """Returns the whole page as HTML.

    Args:
      passport: the content of passport.json.
      sha256: of passport.json as it is stored.
    """
    summary = _as_summary(passport)
    sections = [
        _claim_section(passport, summary),
        meaning_section(summary),
        accounting_section(summary, None),
        _rests_on_section(passport),
        _audit_section(passport["audit"]),
        _not_here_section(passport),
        _data_section(passport),
        _code_section(passport),
        _signature_section(passport, sha256),
    ]
    model = passport["model"]
    return page(
        title=f"Privacy passport: {model['name']}",
        lead=(
            f"Generator of {model['size']}x{model['size']} images after {claim_of(passport)}, "
            f"released {passport['created']} by {passport['signer']['name']}"
        ),
        banner="",
        sections=sections,
        style=STYLE,
    )


def claim_of(passport: Mapping[str, Any]) -> str:
    """Returns the data set that the claim is about, as a reader would call it."""
    return f"the private data set {passport['ledger']['dataset']!r}"


def _as_summary(passport: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the report's sections take: summary.json, as far as they read it."""
    claim, mechanism = passport["claim"], passport["mechanism"]
    accountants = {name: claim["accountants"][name] for name in ("pld", "prv", "rdp")}
    return {
        "privacy": {
            **claim,
            **mechanism,
            "accountants": accountants,
            "dataset_epsilon": passport["ledger"]["dataset_epsilon"] or 0.0,
        }
    }


def _claim_section(passport: Mapping[str, Any], summary: Mapping[str, Any]) -> Section:
    section = claim_section(summary, passport["claim"]["sentences"])
    if passport["ledger"]["dataset_epsilon"] is not None:
        return section
    # The report knows no secret totals: in the place of this one stands that it is secret.
    body, count = _TOTAL.subn(r"\g<1>secret\g<2>", section.body)
    assert count == 1, "The claim states the data set's epsilon once."
    return replace(section, body=body)


def _rests_on_section(passport: Mapping[str, Any]) -> Section:
    ledger, selection = passport["ledger"], passport["selection"]
    body = "".join(paragraph(sentence) for sentence in passport["claim"]["sentences"][1:])
    body += "<h3>Chosen by a sweep</h3>" + paragraph(
        selection["sentence"]
        if selection
        else "No sweep chose this model; nothing is added to epsilon for having been chosen."
    )
    body += "<h3>Ledger</h3>" + facts(
        [
            ("data set", ledger["dataset"]),
            ("entries at the release", _or_secret(ledger["entries"])),
            (
                "epsilon of the data set, all runs",
                up(ledger["dataset_epsilon"]) if ledger["dataset_epsilon"] else "secret",
            ),
            ("allowed for the data set", f"{ledger['dataset_budget']:g}"),
        ],
        chief=0,
    )
    body += paragraph(
        f"The run is {ledger['run']!r}; its name ends in the hash of its recipe.", "note"
    )
    body += paragraph(
        "The head below is the hash of the ledger's last entry when this was released. The owner's "
        "ledger must hold it for ever; if it does not, entries were cut off:"
    )
    body += f"<pre><code>{escape(ledger['head'])}</code></pre>"
    verify = f"rapid-dist ledger verify --recipe config.yaml --out . --head {ledger['head']}"
    body += f"<pre><code>{escape(verify)}</code></pre>"
    return Section(key="rests", title="What the claim rests on", body=body)


def _audit_section(audit: Mapping[str, Any]) -> Section:
    bound = audit["epsilon_lower_bound"]
    pairs = [
        ("verdict", "passed" if audit["passed"] else "FAILED"),
        ("questions", str(audit["questions"])),
        ("profile", audit["profile"]),
        ("date", audit["created"]),
        ("epsilon that canaries have shown", "none" if bound is None else f"above {bound:g}"),
    ]
    body = facts(pairs) + paragraph(
        "The code of this release was tried with this recipe on public stand-ins: "
        f"{', '.join(audit['checks'])}. The bound is what a guesser could prove of planted "
        "canaries; it lies below the claim in a right mechanism, often far below, and is no "
        "proof of the claim.",
        "note",
    )
    return Section(key="audit", title="Audit of the code", body=body)


def _not_here_section(passport: Mapping[str, Any]) -> Section:
    """What a reader may look for, and where it is instead."""
    told = passport["contamination"]
    looked = "This method uses no public data." if not passport["public_data"] else _looked(told)
    body = (
        "<h3>Memorisation</h3>"
        + paragraph(MEMORISATION)
        + "<h3>Private images in public data</h3>"
        + paragraph(looked)
    )
    return Section(key="internal", title="Memorisation and near-duplicates", body=body)


def _looked(told: Mapping[str, Any]) -> str:
    looked = (
        "Before private training the public images were searched for near-duplicates of private "
        f"ones, with policy {told['policy']}. "
    )
    if "noised" in told:
        counts = ", ".join(
            f"{name} {count:.1f}"
            for name, count in zip(told["sources"], told["noised"], strict=True)
        )
        gone = ", ".join(told["sources"][number] for number in told["condemned"])
        looked += (
            f"One noised count a public source was released and charged: {counts}. Above "
            f"{told['most_units']:g}, and left out: {gone or 'none'}."
        )
    else:
        looked += "What was found is internal, and nothing was decided by it."
    return looked


def _data_section(passport: Mapping[str, Any]) -> Section:
    rows = [
        [
            one["source"],
            one["used_for"],
            "all" if one["images"] is None else f"{one['images']:,}",
            one["licence"],
        ]
        for one in passport["public_data"]
    ]
    body = (
        table(
            "Public data that the model was trained on or carries. Differential privacy says "
            "nothing of its owners' rights.",
            ["source", "used for", "images", "licence"],
            rows,
            numbers_from=9,
        )
        if rows
        else paragraph("This method uses no public data.")
    )
    if passport["model"]["starts_from"] == "query":
        body += paragraph(
            "A sample asks the public images in the bundle for the one that is nearest to what the "
            "public network makes of noise, and goes on from there. The bundle carries that "
            "network and all of those images."
        )
    synthetic = passport["synthetic"]
    if synthetic:
        body += "<h3>Synthetic data set</h3>" + paragraph(
            f"{synthetic['images']:,} images drawn from the model with seed {synthetic['seed']} "
            f"lie in {synthetic['folder']}/ of the bundle. Drawing costs no privacy: the claim "
            "covers them and any further image."
        )
    return Section(key="data", title="Public and synthetic data", body=body)


def _code_section(passport: Mapping[str, Any]) -> Section:
    code, recipe = passport["code"], passport["recipe"]
    versions = dict(passport["environment"])
    first = {name: versions.pop(name) for name in _ORDER if name in versions}
    hashes: list[list[Cell]] = [
        [f"code ({code['package']} {code['version']})", _hash(code["sha256"])],
        [f"recipe ({recipe['name']})", _hash(recipe["sha256"])],
    ]
    body = (
        table("", ["what", "SHA-256"], hashes, numbers_from=9)
        + paragraph(
            "The code is in code/ of the bundle, what shaped the model in passport.json. "
            "Training, audit and release were made by the same code; a ledger's entry names it.",
            "note",
        )
        + "<h3>Environment</h3>"
        + table(
            "",
            ["part", "version"],
            [[name, str(version)] for name, version in {**first, **versions}.items()],
            kind="narrow",
        )
    )
    return Section(key="code", title="Code, recipe, environment", body=body)


def _signature_section(passport: Mapping[str, Any], sha256: str) -> Section:
    signer = passport["signer"]
    rows: list[list[Cell]] = [
        ["signed by", Raw(markup=escape(signer["name"]))],
        ["key, SHA-256 of the public half", _hash(signer["key"])],
        ["passport.json, SHA-256", _hash(sha256)],
    ]
    body = (
        table("", ["what", "value"], rows, numbers_from=9)
        + paragraph(
            "signature.json signs the checksums of every file of the bundle, this page among them. "
            "Check it anywhere, without a network, with the public key that the signer gave you "
            "by another way:"
        )
        + "<pre><code>rapid-dist release verify BUNDLE --key signer.pub</code></pre>"
        + paragraph("Gate passed before the release: " + ", ".join(passport["gate"]) + ".", "note")
    )
    return Section(key="signature", title="Who signed, and how to check", body=body)


def _or_secret(count: int | None) -> str:
    """The number of runs of some sweeps may not be known, nor what would tell it."""
    return "secret" if count is None else f"{count:,}"


def _hash(value: str) -> Raw:
    return Raw(markup=f"<code>{escape(value)}</code>")
