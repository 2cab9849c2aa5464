"""Rows and columns → text, Markdown, CSV and one HTML page. Knows nothing of what they mean."""

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #d0d0d5; --soft: #66666e; --band: #f4f4f6; --warn: #a33;
        --ground: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a3a40; --soft: #a0a0a8; --band: #222226; --warn: #f08a7a; --ground: #131316; }
}
body { background: var(--ground); font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto;
       padding: 0 1rem; max-width: 90rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: 2px solid var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: left;
         white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
td.number, th.number { text-align: right; }
td.long { white-space: normal; min-width: 9rem; max-width: 18rem; }
tbody tr:nth-child(even), tr:nth-child(even) td:first-child { background: var(--band); }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--ground); }
li { overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; padding: 0 .75rem; font-size: 13px; } ul { padding-left: 1.1rem; }
  td:first-child { white-space: normal; max-width: 8rem; }
}
.unknown { color: var(--soft); } .alarm { color: var(--warn); } li { margin: .2rem 0; }
"""
_LONG = 20  # characters from which words in a cell of a page may stand in several lines


@dataclass(frozen=True)
class Table:
    """columns: their names. rows: cells as values; None is unknown."""

    columns: list[str]
    rows: list[list[Any]]

    def texts(self) -> list[list[str]]:
        """The cells for people, without the header."""
        columns = [_column_texts([row[i] for row in self.rows]) for i in range(len(self.columns))]
        return [[column[j] for column in columns] for j in range(len(self.rows))]

    def lines(self) -> list[str]:
        """For a terminal: columns aligned, numbers to the right."""
        texts = [self.columns, *self.texts()]
        widths = [max(len(row[i]) for row in texts) for i in range(len(self.columns))]
        right = [self.is_number(i) for i in range(len(self.columns))]
        return [
            "  ".join(
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(row, widths, right, strict=True)
            ).rstrip()
            for row in texts
        ]

    def text(self) -> str:
        return "\n".join(self.lines())

    def records(self) -> list[dict[str, Any]]:
        """One dict a row, for JSON."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def is_number(self, column: int) -> bool:
        """Whether all known cells of this column are numbers."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(type(cell) in (int, float) for cell in cells)


@dataclass(frozen=True)
class Section:
    """A part of a page: a table, or a list of remarks (`alarm`: the grave ones)."""

    title: str
    table: Table | None = None
    alarms: Sequence[str] = ()
    remarks: Sequence[str] = ()


def _column_texts(cells: Sequence[Any]) -> list[str]:
    """Four digits of shares, two of larger numbers, `–` for unknown, yes and no."""
    numbers = [abs(cell) for cell in cells if isinstance(cell, float)]
    digits = 4 if max(numbers, default=0) < 10 else 2

    def text(cell: Any) -> str:
        if cell is None:
            return "–"
        if isinstance(cell, bool):
            return "yes" if cell else "no"
        return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)

    return [text(cell) for cell in cells]


def to_markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---:" if table.is_number(i) else "---" for i in range(len(table.columns))]
    rows = [line(row) for row in table.texts()]
    return "\n".join([line(table.columns), line(rule), *rows]) + "\n"


def to_csv(table: Table) -> str:
    """Values as they are; unknown is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(
        [str(cell).lower() if isinstance(cell, bool) else cell for cell in row]
        for row in table.rows
    )
    return out.getvalue()


def to_html(title: str, sections: Sequence[Section]) -> str:
    """One page that needs no other file and no network; light or dark as the reader has it."""
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.table is not None:
        parts.append(_html_table(section.table, section.title))
    items = [f'<li class="alarm">{html.escape(text)}</li>' for text in section.alarms]
    items += [f"<li>{html.escape(text)}</li>" for text in section.remarks]
    if items:
        parts.append("<ul>\n" + "\n".join(items) + "\n</ul>")
    return "\n".join(parts)


def _html_table(table: Table, title: str) -> str:
    numeric = [table.is_number(i) for i in range(len(table.columns))]

    def cell(value: Any, text: str, number: bool) -> str:
        marks = {
            "number": number,
            "unknown": value is None,
            "long": " " in text and len(text) > _LONG,
        }
        kind = " ".join(name for name, holds in marks.items() if holds)
        return f'<td class="{kind}">{html.escape(text)}</td>'

    head = "".join(
        f'<th scope="col" class="{"number" if number else ""}">{html.escape(name)}</th>'
        for name, number in zip(table.columns, numeric, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(map(cell, row, texts, numeric)) + "</tr>"
        for row, texts in zip(table.rows, table.texts(), strict=True)
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(title)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )
