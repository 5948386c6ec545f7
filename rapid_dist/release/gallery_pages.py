"""The gallery's pages: plain values in, HTML out. Every text of the registry is escaped here.

Only tags that this package writes are shown. A registry may hold others, and nobody has said that
those may be seen by whoever looks at the gallery.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from rapid_dist.release.markup import Cell, Raw, Section, card, escape, facts, paragraph, table
from rapid_dist.release.report_style import STYLE

# The page may show pictures of its own server and send forms to it, and may run nothing at all.
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SHOWN_TAGS = ("dp.", "lineage.", "release.", "withdrawn.", "bundle.", "audit.", "passport.")
SHOWN_EXACTLY = ("method", "recipe")
RELATIONS = {"zero_out": "replaced by nothing", "add_remove": "added or removed"}
MOST_IMAGES = 64  # What one request draws: one block of the generator.

_MORE_STYLE = """
.badge { display: inline-block; padding: .05rem .55rem; margin-right: .35rem; border-radius: 1rem;
  background: var(--accent-soft); color: var(--accent); font-size: .82rem; font-weight: 600; }
.badge.bad { background: var(--warn-soft); color: var(--warn); }
form.ask { display: flex; flex-wrap: wrap; gap: .75rem 1rem; align-items: end; margin: 0 0 1rem; }
form.ask label { display: flex; flex-direction: column; font-size: .85rem; color: var(--soft); }
form.ask input, form.ask select, form.ask button { font: inherit; height: 2.4rem; padding: 0 .7rem;
  border: 1px solid var(--rule); border-radius: 6px; background: var(--card); color: var(--ink); }
form.ask button { background: var(--accent); border-color: var(--accent); color: var(--card);
  font-weight: 600; cursor: pointer; }
form.ask input[type=number] { width: 7rem; }
img.samples { max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 6px;
  background: var(--rule); min-height: 3rem; }
iframe.passport { width: 100%; height: 34rem; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--page); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1.5rem; }
.pair h3 { margin-top: 0; }
tr.differs > * { background: var(--warn-soft); }
td.long { overflow-wrap: anywhere; font: .85em ui-monospace, "Liberation Mono", monospace; }
.trail { font-size: .92rem; margin: 0 0 .75rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One version as a page shows it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    description: str
    created_ms: int  # Since 1970.
    # Of the bundle, once it is fetched and whole; ``fault`` says why it is not.
    class_names: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # model.json
    has_passport: bool = False
    fault: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}, version {self.version}"

    @property
    def address(self) -> str:
        return f"/models/{quote(self.name, safe='')}/{self.version}"

    @property
    def key(self) -> str:
        """How a form names it."""
        return f"{self.name}/{self.version}"

    @property
    def withdrawn(self) -> bool:
        return self.tags.get("release.status") == "withdrawn"


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Which samples are to be shown."""

    label: str = ""  # Number of a class; empty = some of every class.
    seed: int = 0
    count: int = 40

    def query(self) -> str:
        return urlencode({"class": self.label, "seed": self.seed, "count": self.count})


def index_page(models: Mapping[str, Sequence[Shown]], registry: str) -> str:
    """Returns the list of all models with their versions, the newest first."""
    sections = []
    for number, (name, versions) in enumerate(models.items()):
        rows: list[list[Cell]] = [
            [
                Raw(markup=f'<a href="{escape(one.address)}">version {one.version}</a>'),
                Raw(markup=_badges(one)),
                _epsilon(one),
                one.tags.get("dp.delta", "not stated"),
                one.tags.get("dp.unit_name", one.tags.get("dp.unit", "not stated")),
                one.tags.get("method", ""),
                _date(one),
            ]
            for one in versions
        ]
        header = ["", "state", "epsilon", "delta", "for one", "method", "registered"]
        body = table("", header, rows, numbers_from=9)
        if len(versions) > 1:
            body += _compare_form(versions, versions[1].key, versions[0].key)
        sections.append(Section(key=f"model-{number}", title=name, body=body))
    if not sections:
        empty = paragraph(
            "The registry holds no model that states its privacy. A run registers one when its "
            "last stage is done."
        )
        sections.append(Section(key="empty", title="No models yet", body=empty))
    return _page("Gallery of private generators", f"Models of the registry at {registry}", sections)


def version_page(one: Shown, others: Sequence[Shown], ask: Ask) -> str:
    """Returns the page of one version: its claim, its passport, samples, and all it states."""
    sections = [_claim_section(one), _samples_section(one, ask), _passport_section(one)]
    if others:
        body = _compare_form([one, *others], one.key, others[0].key)
        sections.append(Section(key="compare", title="Compare", body=body))
    rows: list[list[Cell]] = [
        [name, Raw(markup=escape(value), style="long")] for name, value in _shown_tags(one).items()
    ]
    sections.append(
        Section(key="tags", title="What the registry states", body=table("", ["tag", ""], rows))
    )
    return _page(one.title, one.description, sections, trail=True)


def compare_page(left: Shown, right: Shown, ask: Ask) -> str:
    """Returns two versions side by side: what they state, and samples of the same seed."""
    said = [_said(left), _said(right)]
    rows: list[list[Cell]] = []
    styles = []
    for name in dict.fromkeys([*said[0], *said[1]]):
        values = [one.get(name, "") for one in said]
        rows.append([name, *(Raw(markup=escape(v or "not stated"), style="long") for v in values)])
        styles.append("differs" if values[0] != values[1] else "")
    header: list[Cell] = [
        "",
        *(
            Raw(markup=f'<a href="{escape(v.address)}">{escape(v.title)}</a>')
            for v in (left, right)
        ),
    ]
    body = paragraph("Marked rows differ.", "note") + table("", header, rows, styles=styles)
    pair = "".join(
        f"<div><h3>{escape(one.title)}</h3>{_samples(one, ask)}</div>" for one in (left, right)
    )
    hidden = {"a": left.key, "b": right.key}
    shared = left if len(left.class_names) <= len(right.class_names) else right
    samples = _ask_form("/compare", shared, ask, hidden) + f'<div class="pair">{pair}</div>'
    sections = [
        Section(key="stated", title="What they state", body=body),
        Section(key="samples", title="Samples of the same seed", body=samples),
    ]
    return _page("Two versions", f"{left.title} beside {right.title}", sections, trail=True)


def error_page(title: str, line: str) -> str:
    """Returns a page that says in one line what is wrong."""
    section = Section(key="error", title=title, body=paragraph(line))
    return _page(title, "", [section], trail=True)


def _claim_section(one: Shown) -> Section:
    tags = one.tags
    unit = tags.get("dp.unit_name", tags.get("dp.unit", "unit"))
    relation = RELATIONS.get(tags.get("dp.relation", ""), tags.get("dp.relation", "not stated"))
    sentence = (
        f"({_epsilon(one)}, {tags.get('dp.delta', 'not stated')})-differentially private, for one "
        f"{unit} {relation}."
    )
    pairs = [
        ("epsilon", _epsilon(one)),
        ("delta", tags.get("dp.delta", "not stated")),
        ("for one", unit),
        ("all runs on the data set", _up(tags.get("dp.dataset_epsilon"))),
        ("registered", _date(one)),
    ]
    body = f'<p>{_badges(one)}</p><p class="sentence">{escape(sentence)}</p>' + facts(pairs)
    if one.withdrawn:
        body += (
            '<p class="verdict bad">Withdrawn '
            f"{escape(tags.get('withdrawn.date', ''))}: "
            f"{escape(tags.get('withdrawn.reason', 'no reason is stated'))}</p>"
        )
    return Section(key="claim", title="The claim", body=body, style="claim")


def _passport_section(one: Shown) -> Section:
    if not one.has_passport:
        said = one.fault or "This version was registered without a passport; its tags are below."
        return Section(key="passport", title="Privacy passport", body=paragraph(said))
    where = escape(f"{one.address}/passport")
    body = (
        f'<p><a href="{where}.html">As a page of its own</a>, '
        f'<a href="{where}.json">as JSON</a>. It is the bundle\'s, whose files are whole; who '
        "signed it, <code>rapid-dist release verify</code> tells.</p>"
        f'<iframe class="passport" sandbox title="Privacy passport of {escape(one.title)}" '
        f'src="{where}.html"></iframe>'
    )
    return Section(key="passport", title="Privacy passport", body=body)


def _samples_section(one: Shown, ask: Ask) -> Section:
    note = paragraph(
        "Drawn when you ask, from the bundle alone: post-processing, which costs no privacy. The "
        "same seed gives the same images.",
        "note",
    )
    body = note + _ask_form(one.address, one, ask, {}) + _samples(one, ask)
    return Section(key="samples", title="Samples", body=body)


def _samples(one: Shown, ask: Ask) -> str:
    if one.fault:
        return f'<p class="verdict bad">{escape(one.fault)}</p>'
    said = f"class {_class_name(one, ask.label)}" if ask.label else "every class, a row each"
    alt = f"{ask.count} samples of {one.title}, {said}, seed {ask.seed}"
    source = escape(f"{one.address}/samples.png?{ask.query()}")
    return f'<img class="samples" src="{source}" alt="{escape(alt)}">'


def _ask_form(action: str, one: Shown, ask: Ask, hidden: Mapping[str, str]) -> str:
    if one.fault:
        return ""
    kept = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in hidden.items()
    )
    choices = [("", "every class"), *((str(n), name) for n, name in enumerate(one.class_names))]
    options = "".join(_option(value, name, value == ask.label) for value, name in choices)
    return (
        f'<form class="ask" method="get" action="{escape(action)}#samples">{kept}'
        f'<label>class<select name="class">{options}</select></label>'
        f'<label>seed<input type="number" name="seed" min="0" value="{ask.seed}"></label>'
        f'<label>images<input type="number" name="count" min="1" max="{MOST_IMAGES}" '
        f'value="{ask.count}"></label><button>Draw</button></form>'
    )


def _compare_form(versions: Sequence[Shown], left: str, right: str) -> str:
    selects = ""
    for name, chosen in (("a", left), ("b", right)):
        options = "".join(_option(one.key, one.title, one.key == chosen) for one in versions)
        label = "this" if name == "a" else "with"
        selects += f'<label>{label}<select name="{name}">{options}</select></label>'
    return (
        f'<form class="ask" method="get" action="/compare">{selects}<button>Compare</button></form>'
    )


def _option(value: str, text: str, selected: bool) -> str:
    chosen = " selected" if selected else ""
    return f'<option value="{escape(value)}"{chosen}>{escape(text)}</option>'


def _said(one: Shown) -> dict[str, str]:
    """What is compared: the claim, how images are drawn, and all tags."""
    drawn = {
        "method": one.facts.get("method"),
        "starts from": one.facts.get("source"),
        "from step": one.facts.get("from_step"),
        "intervals": one.facts.get("intervals"),
        "guidance": one.facts.get("guidance"),
        "classes": ", ".join(one.class_names),
    }
    stated = {name: str(value) for name, value in drawn.items() if value not in (None, "")}
    return {"epsilon": _epsilon(one), **stated, **_shown_tags(one), "registered": _date(one)}


def _shown_tags(one: Shown) -> dict[str, str]:
    return {
        name: value
        for name, value in sorted(one.tags.items())
        if name.startswith(SHOWN_TAGS) or name in SHOWN_EXACTLY
    }


def _badges(one: Shown) -> str:
    status = one.tags.get("release.status", "")
    names = dict.fromkeys([*one.aliases, *([status] if status else [])])
    return "".join(
        f'<span class="badge{" bad" if name in ("withdrawn", "superseded") else ""}">'
        f"{escape(name)}</span>"
        for name in names
    )


def _class_name(one: Shown, label: str) -> str:
    return one.class_names[int(label)] if int(label) < len(one.class_names) else label


def _epsilon(one: Shown) -> str:
    return _up(one.tags.get("dp.epsilon"))


def _up(text: str | None) -> str:
    """Returns an epsilon with four decimals, never rounded towards a stronger claim."""
    try:
        return f"{math.ceil(float(text or '') * 1e4) / 1e4:.4f}"
    except (ValueError, OverflowError):
        return text or "not stated"


def _date(one: Shown) -> str:
    return datetime.fromtimestamp(one.created_ms / 1000, UTC).strftime("%Y-%m-%d")


def _page(title: str, lead: str, sections: Sequence[Section], *, trail: bool = False) -> str:
    back = '<p class="trail"><a href="/">All models</a></p>' if trail else ""
    cards = "".join(card(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_MORE_STYLE}</style>\n</head>\n<body>\n"
        f'<header class="top">{back}<h1>{escape(title)}</h1>{paragraph(lead, "lead")}</header>\n'
        f"<main>{cards}</main>\n<footer>Made by rapid-dist from the registry and from bundles that "
        "were registered. No private data is behind this page.</footer>\n</body>\n</html>\n"
    )
