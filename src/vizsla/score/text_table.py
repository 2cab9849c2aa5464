"""Rows and columns → text, Markdown and CSV. Knows nothing of what they mean."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

WIDTH = 80  # of tables that are to fit any terminal
GAP, FEWEST_LETTERS = 2, 8  # between columns; of a column of text


@dataclass(frozen=True)
class Table:
    """columns: their names. rows: cells as values; None means unknown.

    digits: after the point of shares, as people read them; larger numbers have two fewer.
    """

    columns: list[str]
    rows: list[list[Any]]
    digits: int = 4

    def texts(self) -> list[list[str]]:
        """The cells as people read them, without the header."""
        columns = [
            _column_texts([row[i] for row in self.rows], self.digits)
            for i in range(len(self.columns))
        ]
        return [[column[j] for column in columns] for j in range(len(self.rows))]

    def lines(
        self, width: int | None = None, *, keep: Sequence[str] = (), whole: Sequence[str] = ()
    ) -> list[str]:
        """For people: columns aligned, numbers to the right; folded by Rich to fit `width`.

        If the table is wider than `width`, columns with one value are first stated above it,
        except those in `keep`. width: None leaves it as wide as it is. whole: columns of text whose
        cells are not folded.
        """
        lines = self._drawn(self.columns)
        if width is None or max(map(cell_len, lines)) <= width:
            return lines
        same, table = self.without_constant_columns(keep=keep)
        stated = ", ".join(f"{name} {text}" for name, text in same.items())
        above = textwrap.wrap(f"The same in every row: {stated}", width) if same else []
        # headings fold between words and before a bracket
        headers = [re.sub(r"_|(?<=\w)(?=\()", " ", name) for name in table.columns]
        return [*above, *table._drawn(headers, width, whole=whole)]

    def _drawn(
        self, headers: Sequence[str], width: int | None = None, *, whole: Sequence[str] = ()
    ) -> list[str]:
        texts = self.texts()
        if width is not None:
            headers = self._folded(headers, width, whole)
        grid = Grid(box=None, pad_edge=False, padding=(0, GAP, 0, 0), collapse_padding=True)
        for i, name in enumerate(headers):
            number = self.is_number(i)
            fixed = number or self.columns[i] in whole  # else Rich cuts the last column
            grid.add_column(
                Text(name),
                justify="right" if number else "left",
                vertical="top",
                overflow="fold",
                no_wrap=fixed,
                min_width=max(len(row[i]) for row in texts) if fixed else None,
            )
        for row in texts:
            grid.add_row(*map(Text, row))
        out = io.StringIO()
        console = Console(
            file=out, width=width or 1_000_000, color_system=None, legacy_windows=False,
            force_jupyter=False,
        )  # fmt: skip
        console.print(grid, soft_wrap=False)
        return [line.rstrip() for line in out.getvalue().splitlines()]

    def _folded(self, headers: Sequence[str], width: int, whole: Sequence[str]) -> list[str]:
        """The headings, those of numbers in lines: between words if all columns then fit."""
        least = [max(cell_len(row[i]) for row in self.texts()) for i in range(len(headers))]
        words = [max([n, *map(cell_len, h.split())]) for n, h in zip(least, headers, strict=True)]
        number = [self.is_number(i) for i in range(len(headers))]
        taken = GAP * (len(headers) - 1)
        for i, name in enumerate(self.columns):
            taken += words[i] if number[i] or name in whole else min(words[i], FEWEST_LETTERS)
        widths = words if taken <= width else least
        return [
            "\n".join(textwrap.wrap(name, widths[i])) if number[i] else name
            for i, name in enumerate(headers)
        ]

    def text(
        self, width: int | None = None, *, keep: Sequence[str] = (), whole: Sequence[str] = ()
    ) -> str:
        """The lines as one text."""
        return "\n".join(self.lines(width, keep=keep, whole=whole))

    def select(self, columns: Sequence[str]) -> "Table":
        """The same rows with only these columns, in this order."""
        at = [self.columns.index(name) for name in columns]
        return Table(list(columns), [[row[i] for i in at] for row in self.rows], self.digits)

    def without_constant_columns(
        self, *, keep: Sequence[str] = ()
    ) -> tuple[dict[str, str], "Table"]:
        """({column: its one text}, the table of the other columns), if there are several rows.

        keep: columns that stay in any case.
        """
        if len(self.rows) < 2:
            return {}, self
        cells = dict(zip(self.columns, zip(*self.texts(), strict=True), strict=True))
        same = {n: c[0] for n, c in cells.items() if n not in keep and len(set(c)) == 1}
        if len(same) == len(self.columns):
            return {}, self
        return same, self.select([name for name in self.columns if name not in same])

    def records(self) -> list[dict[str, Any]]:
        """One dict a row, for JSON."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def is_number(self, column: int) -> bool:
        """Whether all known cells of this column are numbers."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(type(cell) in (int, float) for cell in cells)


def _column_texts(cells: Sequence[Any], digits: int) -> list[str]:
    """So many digits of shares, two fewer of larger numbers, `–` for unknown, yes and no."""
    numbers = [abs(cell) for cell in cells if isinstance(cell, float)]
    digits = digits if max(numbers, default=0) < 10 else digits - 2

    def text(cell: Any) -> str:
        if cell is None:
            return "–"
        if isinstance(cell, bool):
            return "yes" if cell else "no"
        return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)

    return [text(cell) for cell in cells]


def to_markdown(table: Table) -> str:
    """The table as GitHub Markdown, numbers to the right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---:" if table.is_number(i) else "---" for i in range(len(table.columns))]
    rows = [line(row) for row in table.texts()]
    return "\n".join([line(table.columns), line(rule), *rows]) + "\n"


def to_csv(table: Table) -> str:
    """The table as CSV: values unrounded; an unknown value is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(
        [str(cell).lower() if isinstance(cell, bool) else cell for cell in row]
        for row in table.rows
    )
    return out.getvalue()
