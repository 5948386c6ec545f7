"""The sections of the report that say what is promised and how it was counted."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rapid_dist.release.markup import Section, escape, facts, paragraph, table
from rapid_dist.release.plots import EpsilonCurve, epsilon_svg

ACCOUNTANTS = {
    "reported": ("claimed", "the larger of PLD and PRV"),
    "pld": ("PLD", "privacy loss distribution, pessimistic (dp_accounting)"),
    "prv": ("PRV", "privacy random variables (Opacus)"),
    "rdp": ("RDP", "Renyi differential privacy; looser, shown for comparison"),
}
RELATIONS = {
    "zero_out": "replace by nothing",
    "add_remove": "add or remove",
}
FALSE_ALARMS = (0.001, 0.01, 0.1)


def claim_section(summary: Mapping[str, Any], claim: Sequence[str]) -> Section:
    """Returns the claim in one sentence and its figures."""
    privacy = summary["privacy"]
    name = _unit_name(privacy)
    pairs = [
        ("epsilon, the claim", up(privacy["epsilon"])),
        ("delta", f"{privacy['delta']:g}"),
        ("unit", name if privacy["unit"] == "record" else f"{name}, with all its images"),
        ("relation", RELATIONS.get(privacy["relation"], str(privacy["relation"]))),
        ("epsilon of the data set, all runs", up(privacy["dataset_epsilon"])),
    ]
    # "1e-05" may break after its hyphen, and would read like two numbers.
    sentence = re.sub(r"\S*\de-\d\S*", r'<span class="whole">\g<0></span>', escape(claim[0]))
    body = f'<p class="sentence">{sentence}</p>{facts(pairs)}'
    if privacy.get("unit_note"):
        body += paragraph(privacy["unit_note"])
    return Section(key="claim", title="The claim", body=body, style="claim")


def meaning_section(summary: Mapping[str, Any]) -> Section:
    """Returns what the figures bound, in the terms of an attacker."""
    privacy = summary["privacy"]
    epsilon, delta, unit = privacy["epsilon"], privacy["delta"], _unit_name(privacy)
    rows = [
        [f"{alarm:.1%}", _at_most(true_positive_bound(alarm, epsilon, delta))]
        for alarm in FALSE_ALARMS
    ]
    body = (
        paragraph(
            f"Suppose somebody holds the released generator, knows every other {unit} and wants to "
            f"tell whether one particular {unit} was used. Whatever they compute, and whatever "
            "else they know, the table bounds how often they can be right."
        )
        + table(
            f"Bound that epsilon {up(epsilon)} and delta {delta:g} set on any such attacker",
            ["wrongly accused, at most", "rightly found, at most"],
            rows,
            kind="narrow",
        )
        + paragraph(_strength(epsilon), "note")
        + paragraph(
            f"The bound is for the worst {unit} and the best attacker; an actual attack usually "
            "does far worse. It does not promise that the generator reveals nothing about the data "
            "as a whole: what is common to many of them is what it was made to learn.",
            "note",
        )
    )
    return Section(key="meaning", title="What it means", body=body)


def accounting_section(summary: Mapping[str, Any], curve: EpsilonCurve | None) -> Section:
    """Returns epsilon by every accountant, its curve and the mechanism's constants."""
    privacy = summary["privacy"]
    rows = [
        [*ACCOUNTANTS.get(name, (name, "")), up(value, 4)]
        for name, value in privacy["accountants"].items()
    ]
    body = table(
        "Epsilon of everything that this run charged to the ledger, by accountant. The larger of "
        "PLD and PRV is claimed.",
        ["accountant", "what it is", "epsilon"],
        rows,
        numbers_from=2,
    )
    if curve is not None:
        body += '<h3>Epsilon over the releases of the run</h3><figure class="chart">'
        body += epsilon_svg(curve) + _legend(curve)
        body += (
            "<figcaption>One point a release: the noised counts of near-duplicates and the noised "
            "histogram of the prior, where they are asked for, then every step of training or "
            "round of answers. One that would take the claimed line past the budget is refused "
            "before it is taken; a looser accountant's line may pass it.</figcaption></figure>"
        )
    steps = "rounds of the private index" if privacy.get("neighbors") else "steps of DP-SGD"
    pairs = [
        (steps, f"{privacy['steps']:,}"),
        ("sample rate", privacy["sample_rate"]),
        ("noise multiplier", privacy["noise_multiplier"]),
        ("noise multiplier of the prior", privacy.get("prior_noise_multiplier")),
        ("noise multiplier of the second votes", privacy.get("candidates_noise_multiplier")),
        ("neighbors that an answer is divided by", privacy.get("neighbors")),
        (
            "noise multiplier of the counts of near-duplicates",
            privacy.get("contamination_noise_multiplier"),
        ),
        ("largest gradient norm", privacy["max_grad_norm"] if privacy["steps"] else None),
    ]
    # A run without DP-SGD, or without a prior, has no such constant.
    pairs = [
        (name, value if isinstance(value, str) else f"{value:.4g}")
        for name, value in pairs
        if value is not None
    ]
    body += "<h3>Constants of the mechanism</h3>" + paragraph(
        "All of them are declared in public and none is read off the private data.", "note"
    )
    return Section(key="accounting", title="How it was counted", body=body + facts(pairs, chief=0))


def origin_section(summary: Mapping[str, Any], claim: Sequence[str]) -> Section:
    """Returns what the claim rests on, where the model is and how to check the ledger."""
    privacy, registry = summary["privacy"], summary.get("registry") or {}
    body = "".join(paragraph(sentence) for sentence in claim[1:])
    body += "<h3>Check it</h3>" + paragraph("The ledger's last entry has this hash:")
    body += f"<pre><code>{escape(privacy['ledger_head'])}</code></pre>"
    body += paragraph(
        "In the run's directory, the first command recomputes the chain of hashes and looks for "
        "that entry: without it, entries cut off the end could not be noticed. The second "
        "recomputes epsilon from the ledger alone:"
    )
    # What the run was told is in its config.yaml: a recipe's name alone may mean another ledger.
    this = "--recipe config.yaml --out ."
    verify = f"rapid-dist ledger verify {this} --head {escape(privacy['ledger_head'])}"
    body += f"<pre><code>{verify}\nrapid-dist ledger show {this}</code></pre>"
    if registry:
        aliases = ", ".join(registry.get("aliases", [])) or "none"
        body += "<h3>The registered model</h3>" + facts(
            [
                ("name", str(registry["name"])),
                ("version", str(registry["version"])),
                ("aliases", aliases),
            ],
            chief=0,
        )
    versions = [[name, str(version)] for name, version in summary.get("versions", {}).items()]
    if versions:
        body += "<h3>Versions</h3>" + table("", ["part", "version"], versions, kind="narrow")
    return Section(key="origin", title="Check it, versions", body=body)


def _unit_name(privacy: Mapping[str, Any]) -> str:
    """Returns what one privacy unit is: a record, a patient."""
    return str(privacy.get("unit_name", privacy["unit"]))


def true_positive_bound(false_positive: float, epsilon: float, delta: float) -> float:
    """Returns the most an (epsilon, delta)-DP release lets any test find (Wasserman & Zhou 2010).

    With false negatives b and false positives a, b >= 1 - delta - e^epsilon a and
    b >= e^-epsilon (1 - delta - a).
    """
    missed = max(
        0.0,
        1 - delta - math.exp(min(epsilon, 700.0)) * false_positive,
        math.exp(-epsilon) * (1 - delta - false_positive),
    )
    return 1 - missed


def up(epsilon: float, digits: int = 2) -> str:
    """Returns epsilon rounded up: never towards a stronger claim than was counted."""
    scale = 10**digits
    return f"{math.ceil(epsilon * scale - 1e-9) / scale:.{digits}f}"


def _strength(epsilon: float) -> str:
    """Returns where epsilon stands among the tiers of Ponomareva et al. (2023), section 5.2."""
    if epsilon <= 1:
        return "Practice calls an epsilon of 1 or less a strong guarantee."
    if epsilon <= 10:
        return (
            "Practice calls an epsilon between 1 and 10 reasonable for models like this one, "
            "though the worst-case bound above grows weak towards 10."
        )
    return (
        "Practice calls an epsilon above 10 weak. It still excludes certainty and it still "
        "composes, but do not rest a release on it alone."
    )


def _at_most(share: float) -> str:
    """Returns a percentage rounded up, with digits until it is below 100% if it can be."""
    percent = share * 100
    for digits in (1, 2, 3, 4):
        rounded = math.ceil(percent * 10**digits) / 10**digits
        if rounded < 100:
            return f"{rounded:.{digits}f}%"
    return "100%"


def _legend(curve: EpsilonCurve) -> str:
    items = []
    for number, name in enumerate(curve.lines):
        line = (
            f'<svg viewBox="0 0 32 8" aria-hidden="true"><polyline class="line line-{number}" '
            'points="0,4 32,4"/></svg>'
        )
        items.append(f"<li>{line}{escape(ACCOUNTANTS.get(name, (name,))[0])}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'
