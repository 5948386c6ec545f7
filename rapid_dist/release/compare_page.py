"""``compare.html`` and the table of a comparison: internal, for whoever owns the data."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from rapid_dist.release.compare_rows import HEAD, differences, held_equal
from rapid_dist.release.markup import Raw, Section, escape, image, page, paragraph, table
from rapid_dist.release.report_style import STYLE

_WIDER = (
    "main, header.top, footer { max-width: 84rem; } table { font-size: .86rem; } "
    "th, td { padding-top: .3rem; padding-bottom: .3rem; } td.num, th.num { padding-left: .4rem; } "
    "svg.compare { max-width: 60rem; } .sheet { overflow-x: auto; }"
)
# Columns of the table: name in the results, heading, how it is shown.
USEFUL = (
    ("mean", "mean", "{:.1%}"),
    ("picked", "picked", "{:.1%}"),
    ("best", "best*", "{:.1%}"),
    ("logistic", "logistic", "{:.1%}"),
    ("mlp", "MLP", "{:.1%}"),
    ("cnn", "CNN", "{:.1%}"),
)
FAITHFUL = (
    ("frechet", "distance", "{:.2f}"),
    ("kernel_distance", "kernel", "{:.4f}"),
    ("precision", "precision", "{:.2f}"),
    ("recall", "recall", "{:.2f}"),
    ("density", "density", "{:.2f}"),
    ("coverage", "coverage", "{:.2f}"),
    ("total_variation", "class TV", "{:.3f}"),
    ("agreement", "agreement", "{:.1%}"),
    ("nearest_ratio", "nearest", "{:.2f}"),
    ("copies", "copies", "{:.0f}"),
)
COSTS = (
    ("epsilon_spent", "spent", "{:.3f}"),
    ("private_rows", "private rows", "{:,.0f}"),
    ("nfe", "NFE", "{:.0f}"),
    ("seconds", "seconds", "{:.0f}"),
    ("public_seconds", "public seconds", "{:.0f}"),
    ("rss_gb", "peak GB", "{:.2f}"),
    ("cuda_gb", "CUDA GB", "{:.2f}"),
)
Columns = Sequence[tuple[str, str, str]]


def markdown_table(result: Mapping[str, Any]) -> str:
    """Returns the table as Markdown, with what has to be said of it."""
    columns = _present(result["rows"], (*USEFUL, *FAITHFUL, *COSTS))
    header = ["row", "epsilon", "seeds", *(heading for _, heading, _ in columns)]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(cells)} |" for cells in table_rows(result["rows"], columns)]
    said = [f"**{result['notice']}**", "", *lines, ""]
    said += [f"- {line}" for line in (*_notes(result), result["cost"]["sentence"])]
    said += [f"- {row} ({method}): {own}" for row, method, own in differences(result)]
    failed = [one for one in result["pieces"] if one["state"] == "failed"]
    said += [f"- Failed: {one['piece']}: {one['reason']}" for one in failed]
    return "\n".join(said) + "\n"


def table_rows(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[list[str]]:
    """Returns the cells of a table: row, epsilon, seeds, then each figure and its spread."""
    return [
        [
            row["row"],
            "-" if row["epsilon"] is None else f"{row['epsilon']:g}",
            str(row["seeds"]) if row["seeds"] == row["of"] else f"{row['seeds']} of {row['of']}",
            *(_cell(row, name, shape) for name, _, shape in columns),
        ]
        for row in rows
    ]


def render_compare(result: Mapping[str, Any], figure: str, sheet: bytes) -> str:
    """Returns the page; ``figure`` is SVG, ``sheet`` a PNG or nothing."""
    rows = result["rows"]
    cost = Section(
        key="cost",
        title="What all of it cost",
        style="claim",
        body=paragraph(result["cost"]["sentence"], "sentence"),
    )
    sections = [cost]
    if rows:
        sections.append(
            Section(
                key="figure",
                title="Quality against epsilon",
                body=figure + paragraph(_MARKS, "note"),
            )
        )
        useful = _present(rows, USEFUL)
        if useful:
            sections.append(
                Section(
                    key="usefulness",
                    title="Usefulness",
                    body=_table("Accuracy on held-out real images", rows, useful)
                    + paragraph(_BEST, "note"),
                )
            )
        sections.append(
            Section(
                key="fidelity",
                title="Fidelity, classes and nearness",
                body=_table(_fidelity_note(result), rows, _present(rows, FAITHFUL))
                + paragraph(_READING, "note"),
            )
        )
        sections.append(
            Section(
                key="costs",
                title="Time and memory",
                body=_table("Beside quality, per piece", rows, _present(rows, COSTS))
                + paragraph(_SECONDS, "note"),
            )
        )
    if sheet:
        sections.append(
            Section(
                key="samples",
                title="Samples",
                body=paragraph(
                    "A row a method: the first images of each class in turn, by the first seed. "
                    "None was selected.",
                    "note",
                )
                + _sheet(sheet),
            )
        )
    sections.append(
        Section(
            key="equal",
            title="What was held equal",
            body=paragraph(held_equal(result))
            + table("", HEAD, differences(result), numbers_from=9),
        )
    )
    sections.append(Section(key="pieces", title="Pieces", body=_pieces(result)))
    return page(
        title=f"Comparison on {result['dataset']}",
        lead=f"{', '.join(result['methods'])}; {result['num_units']:,} private units, "
        f"{result['images']:,} samples and {_counted(result['seeds'])} each.",
        banner=f'<div class="banner" role="note"><p>{_notice(result)}</p></div>',
        sections=sections,
        style=STYLE + _WIDER,
    )


_BEST = (
    "Every classifier learnt from samples alone, and met the held-out real images once. mean: of "
    "all three, what methods are compared by. picked: of the one that a synthetic validation part "
    "chose. best*: the best of the three by this very score, a choice made on private records."
)
_MARKS = (
    "Means over seeds; bars are one standard deviation each way. Dashed: rows without a budget, "
    "run once for all epsilons."
)
_READING = (
    "class TV: total variation between the classes asked for and those that a classifier of real "
    "images sees; agreement: how often it sees the one asked for. nearest: median distance to the "
    "nearest training record over that of held-out records, far below 1 is suspicious."
)
_SECONDS = (
    "private rows: steps, expected batch and draws a record together, what a method trains with on "
    "private records; - where it trains on none. seconds: without public stages and without "
    "evaluation. public seconds: of the stages on public data alone, made once and shared: those "
    "of all that a row uses, whoever made it; - where an earlier version did, unnoted. peak GB: "
    "resident memory of all processes of a piece on this machine, shared pages counted in each."
)


def _counted(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def _notice(result: Mapping[str, Any]) -> str:
    first, _, rest = result["notice"].partition(": ")
    return f"<strong>{escape(first)}.</strong> {escape(rest[:1].upper() + rest[1:])}"


def _notes(result: Mapping[str, Any]) -> list[str]:
    return [_BEST, _fidelity_note(result), _READING, _SECONDS, held_equal(result)]


def _fidelity_note(result: Mapping[str, Any]) -> str:
    features = ", ".join(result["extractors"]) or "none yet"
    images = ", ".join(f"{count:,}" for count in result["fidelity_images"])
    end = "." if result["fidelity_label"] == "FID" else ": it stands beside no published figure."
    return (
        f"Features: {features}; {images} images of each set. The distance is "
        f"{result['fidelity_label']}{end}"
    )


def _present(rows: Sequence[Mapping[str, Any]], columns: Columns) -> Columns:
    """Returns the columns of which at least one row has a figure."""
    return [one for one in columns if any(row["mean"].get(one[0]) is not None for row in rows)]


def _cell(row: Mapping[str, Any], name: str, shape: str) -> str:
    value, spread = row["mean"].get(name), row["spread"].get(name)
    if value is None:
        return "-"
    return shape.format(value) + (f" ± {shape.format(spread).rstrip('%')}" if spread else "")


def _table(caption: str, rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    header = ["row", "epsilon", "seeds", *(heading for _, heading, _ in columns)]
    return table(caption, header, table_rows(rows, columns))


def _pieces(result: Mapping[str, Any]) -> str:
    rows = [
        [one["piece"], one["method"], one["state"], Raw(markup=escape(one["reason"]))]
        for one in result["pieces"]
    ]
    styles = ["own" if one["state"] == "failed" else "" for one in result["pieces"]]
    head = ["piece", "method", "state", "reason"]
    return table("", head, rows, numbers_from=9, styles=styles)


def _sheet(sheet: bytes) -> str:
    with Image.open(io.BytesIO(sheet)) as picture:
        width, height = picture.width // 2, picture.height // 2
    address = f"data:image/png;base64,{base64.b64encode(sheet).decode()}"
    return f'<div class="sheet">{image(address, "Samples, a row a method", width, height)}</div>'
