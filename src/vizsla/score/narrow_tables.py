"""A table → lines that fit a terminal. Nothing is lost where the table fits as it is."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vizsla.score.tables import Table
from vizsla.workspace import RUN_ID

_WORD = re.compile(r"[^_. ]+[_. ]?|[_. ]")  # of a header, with what ends it
GAP = 2  # spaces between columns
CUT = 8  # characters that a name keeps at least where even folding does not help


@dataclass
class _Column:
    """header, cells: as they are shown. number: stands to the right and is never folded."""

    name: str
    header: str
    cells: list[str]
    number: bool

    def widest(self) -> int:
        return max(len(self.header), *map(len, self.cells), 0)

    def folded(self) -> int:
        """The least width at which no word is cut."""
        cells = self.cells if self.number else [w for cell in self.cells for w in cell.split(" ")]
        return max(len(word) for word in [*_header_words(self.header), *cells])


def fitted_lines(
    table: Table,
    width: int,
    *,
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
    short: Mapping[str, str] | None = None,
) -> list[str]:
    """The table's lines, none wider than `width` where that can be had.

    keep: columns that are never told above the table, though all rows agree. drop: those that may
    be left out, in this order. short: shorter headers and cells, by their texts.
    """
    lines = table.lines()
    if not table.rows or max(map(len, lines)) <= width:
        return lines
    columns = [
        _Column(name, name, list(cells), table.is_number(i))
        for i, (name, cells) in enumerate(
            zip(table.columns, zip(*table.texts(), strict=True), strict=True)
        )
    ]
    said = _shortened(columns, short or {})
    shared = [c for c in columns if c.name not in keep and len(set(c.cells)) == 1]
    columns = [c for c in columns if c not in shared] or columns
    if shared:
        said.insert(0, "in every row: " + ", ".join(f"{c.header} {c.cells[0]}" for c in shared))
    gone = []
    for name in drop:
        if _total([c.folded() for c in columns]) > width:
            gone += [c.name for c in columns if c.name == name]
            columns = [c for c in columns if c.name != name]
    if gone:
        said.append(f"left out for want of width: {', '.join(gone)}")
    above = [line for text in said for line in textwrap.wrap(text, width, break_on_hyphens=False)]
    return [*above, *_laid_out(columns, width)]


def _shortened(columns: Sequence[_Column], short: Mapping[str, str]) -> list[str]:
    """In place: shorter texts, and run ids by their last digits where those tell them apart."""
    for column in columns:
        column.header = short.get(column.header, column.header)
        column.cells = [short.get(cell, cell) for cell in column.cells]
    ids = {found for c in columns for cell in c.cells for found in RUN_ID.findall(cell)}
    if not ids or len({found[-4:] for found in ids}) < len(ids):
        return []
    for column in columns:
        column.cells = [RUN_ID.sub(lambda found: found[0][-4:], cell) for cell in column.cells]
    return ["runs are named by the last four digits of their ids"]


def _laid_out(columns: Sequence[_Column], width: int) -> list[str]:
    widths = _widths(columns, width)
    rows = [[_folded_header(c.header, w) for c, w in zip(columns, widths, strict=True)]]
    for i in range(len(columns[0].cells)):
        rows.append([_folded(c.cells[i], w) for c, w in zip(columns, widths, strict=True)])
    lines = []
    for n, row in enumerate(rows):
        height = max(map(len, row))
        for j in range(height):
            # headers stand on the ground, cells hang from the top
            at = [j - (height - len(cell)) if n == 0 else j for cell in row]
            parts = [cell[k] if 0 <= k < len(cell) else "" for cell, k in zip(row, at, strict=True)]
            lines.append(_joined(parts, widths, [c.number for c in columns]))
    return lines


def _joined(parts: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = zip(parts, widths, right, strict=True)
    return (" " * GAP).join(p.rjust(w) if r else p.ljust(w) for p, w, r in cells).rstrip()


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """Of each column: as wide as it likes, then the widest ones less, down to their words."""
    widths, least = [c.widest() for c in columns], [c.folded() for c in columns]
    heads = [max(map(len, _header_words(c.header))) for c in columns]
    cut = [
        low if c.number else max(CUT, head)
        for c, low, head in zip(columns, least, heads, strict=True)
    ]
    for floor in (least, cut):
        while _total(widths) > width:
            able = [i for i in range(len(widths)) if widths[i] > floor[i]]
            if not able:
                break
            widths[max(able, key=lambda i: widths[i])] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _folded(text: str, width: int) -> list[str]:
    """Lines of whole words; a word that is wider is cut."""
    words = [word if len(word) <= width else word[: width - 1] + "…" for word in text.split(" ")]
    return textwrap.wrap(" ".join(words), width, break_on_hyphens=False) or [""]


def _folded_header(header: str, width: int) -> list[str]:
    """Lines that also end behind an underscore or a dot."""
    lines = [""]
    for word in _WORD.findall(header):
        if lines[-1] and len((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return [line.rstrip()[:width] for line in lines]


def _header_words(header: str) -> list[str]:
    return [word.rstrip() for word in _WORD.findall(header)] or [""]
