"""A noun → what `repr` and a notebook show of it. Knows no HTML: `vizsla.show` makes that."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vizsla.errors import MissingExtraError

WIDTH, LINES = 100, 3  # of a `repr`
SHOWN = 10  # rows of a table that has one for each class, query or image


@dataclass(frozen=True)
class Summary:
    """The few things that describe a noun.

    facts: short phrases, the most important first. columns, rows: a table, cells as values.
    bars: a share from 0 to 1 for each row. notes: sentences below the table.
    """

    title: str
    facts: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    bars: Sequence[float] | None = None
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Title and facts, in at most three lines."""
        text = f"{self.title}: {', '.join(self.facts)}" if self.facts else self.title
        return "\n".join(textwrap.wrap(text, WIDTH, max_lines=LINES, placeholder=" …"))


class Shown:
    """Gives a noun a short `repr`, and an HTML form for notebooks, of its `summary`."""

    def summary(self) -> Summary:
        """What is shown."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.summary().text()

    def _repr_html_(self) -> str:
        import vizsla  # a public name, loaded when a notebook asks: no room imports a later one

        return vizsla.show(self)._repr_html_()


def counted(n: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 image, 1,200 images."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def data_frame(columns: dict[str, Any]) -> Any:
    """A pandas DataFrame of these columns. MissingExtraError if pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("a table for pandas", "pandas") from None
    return pandas.DataFrame(columns)
