"""The little HTML that the report is made of. Whatever comes in as text is escaped here."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

# The page may show its own pictures and style and may request nothing at all.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One card of the page; ``body`` is HTML, made of parts that were escaped."""

    key: str
    title: str
    body: str
    style: str = ""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """HTML that is put into a cell as it is; ``style`` is a class of the cell."""

    markup: str
    style: str = ""


Cell = str | Raw


def escape(text: object) -> str:
    """Returns text as it may stand in an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def paragraph(text: str, style: str = "") -> str:
    """Returns one escaped paragraph."""
    return f"<p{_class(style)}>{escape(text)}</p>"


def table(
    caption: str,
    header: Sequence[Cell],
    rows: Sequence[Sequence[Cell]],
    *,
    numbers_from: int = 1,
    styles: Sequence[str] = (),
    kind: str = "",
) -> str:
    """Returns a table whose first column names its rows.

    Args:
      numbers_from: the first column that holds numbers, set flush right.
      styles: a class for each row, or nothing.
    """

    def style(cell: Cell, column: int) -> str:
        if isinstance(cell, Raw):
            return _class(cell.style)
        return ' class="num"' if column >= numbers_from else ""

    head = "".join(
        f'<th scope="col"{style(cell, column)}>{_cell(cell)}</th>'
        for column, cell in enumerate(header)
    )
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(
            f"<td{style(cell, column)}>{_cell(cell)}</td>"
            for column, cell in enumerate(row)
            if column
        )
        kind_of_row = _class(styles[index] if styles else "")
        lines.append(f'<tr{kind_of_row}><th scope="row">{_cell(row[0])}</th>{cells}</tr>')
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption or "Table")}">'
        f"<table{_class(kind)}>{said}<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]], *, chief: int = 1) -> str:
    """Returns figures with their names; the first ``chief`` of them stand out."""
    parts = []
    for index, (name, value) in enumerate(pairs):
        style = _class("chief" if index < chief else "")
        parts.append(f"<div{style}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>")
    return f'<dl class="facts">{"".join(parts)}</dl>'


def image(address: str, alt: str, width: int, height: int) -> str:
    """Returns an image with the size it is shown at, so that the page does not jump."""
    return f'<img src="{escape(address)}" alt="{escape(alt)}" width="{width}" height="{height}">'


def card(section: Section) -> str:
    """Returns one card of the page."""
    key = section.key
    return (
        f'<section id="{key}" aria-labelledby="{key}-title"{_class(section.style)}>'
        f'<h2 id="{key}-title">{escape(section.title)}</h2>{section.body}</section>\n'
    )


def page(*, title: str, lead: str, banner: str, sections: Sequence[Section], style: str) -> str:
    """Returns the whole document."""
    links = "".join(f'<li><a href="#{s.key}">{escape(s.title)}</a></li>' for s in sections)
    cards = "".join(card(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header class="top"><h1>{escape(title)}</h1>{paragraph(lead, "lead")}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>{banner}\n{cards}</main>\n"
        "<footer>Made by rapid-dist. The page is one file and requests nothing from anywhere."
        "</footer>\n</body>\n</html>\n"
    )


def _cell(cell: Cell) -> str:
    return cell.markup if isinstance(cell, Raw) else escape(cell)


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
