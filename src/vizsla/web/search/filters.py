"""Attributes of a gallery → what can be filtered by: conditions as one writes them, and choices.

A choice is offered only if the condition that it means is taken and finds what it names.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vizsla.errors import DataError, UsageError, VizslaError
from vizsla.search.filters import Filter

RESERVED = "id"
UNKNOWN = "null"  # the choice of what has no value
LISTED = 60  # values of an attribute that are all shown in a list
LISTED_NUMBERS = 12  # the same of one that can also be asked for from and to
SUGGESTED = 50  # values that are suggested at a time


# ── conditions ───────────────────────────────────────────────────────────────────────────────────


def parse_filter(texts: Sequence[str], attributes: pa.Table) -> Filter | None:
    """Conditions such as `label=shoe`. On attributes alone: `id=@FILE` would read a file here.

    DataError for a column that is not there, and for a value that the column cannot hold.
    """
    if not texts:
        return None
    found = Filter.parse(list(_without_ids(texts, attributes.column_names)))
    for condition in found.conditions:
        if condition.column not in attributes.column_names:
            names = ", ".join(attributes.column_names) or "none"
            raise DataError(f"the gallery has no attribute {condition.column!r}: it has {names}")
        condition.mask(attributes[condition.column].slice(0, 0))
    return found


def _without_ids(texts: Sequence[str], columns: Sequence[str]) -> Sequence[str]:
    for text in texts:
        column = re.split("[=!<>]", text, maxsplit=1)[0].strip()
        if column == RESERVED or (column.lower() == RESERVED and column not in columns):
            raise UsageError("filter by attributes, not by id: such as label=shoe")
    return texts


def equals(column: str, given: str) -> str:
    """The condition that a choice means."""
    return f"{column}={UNKNOWN if given == UNKNOWN else _quoted(_taken(given))}"


def at_least(column: str, value: str) -> str:
    return f"{column}>={_quoted(value)}"


def at_most(column: str, value: str) -> str:
    return f"{column}<={_quoted(value)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def given_for(value: str) -> str:
    """How a value is chosen: as it is, in quotes where it would mean something else."""
    plain = value not in ("", UNKNOWN) and value == value.strip() and not set(value) & set("\r\n")
    return value if plain else _quoted(value)


def _taken(given: str) -> str:
    try:
        value = json.loads(given) if given.startswith('"') else given
    except ValueError:
        value = given
    return value if given_for(value) == given else given


# ── choices ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Choice:
    """given: as it stands in the address. shown: as one reads it. count: how many images."""

    given: str
    shown: str
    count: int


@dataclass(frozen=True, eq=False)
class Facet:
    """An attribute to filter by.

    kind: `list` shows all its values, `text` has more than that and suggests some; `number`, `date`
    and `datetime-local` are asked for from `lowest` to `highest`.
    choices: by value in a list; in a text the most frequent first; for a range what is unknown.
    """

    column: str
    kind: str
    choices: tuple[Choice, ...]
    lowest: str = ""
    highest: str = ""

    @property
    def is_range(self) -> bool:
        return self.kind not in ("list", "text")

    @cached_property
    def _folded(self) -> list[str]:
        return [choice.shown.casefold() for choice in self.choices]

    def suggestions(self, text: str = "", most: int = SUGGESTED) -> list[Choice]:
        """Choices that begin with the text, then those that hold it, whatever the case."""
        wanted, all_of = text.strip().casefold(), self._folded
        begins = (i for i, one in enumerate(all_of) if one.startswith(wanted))
        holds = (i for i, one in enumerate(all_of) if one.find(wanted) > 0)
        return [self.choices[i] for i in islice(chain(begins, holds), most)]


def facets_of(attributes: pa.Table) -> list[Facet]:
    """Of all attributes that tell images apart: the label, lists, what is hardest to use last."""
    columns = [name for name in attributes.column_names if _works(name, attributes)]
    found = [_facet(name, attributes[name]) for name in columns]

    def place(facet: Facet) -> tuple[Any, ...]:
        each_another = facet.kind == "text" and facet.choices[0].count == 1
        return (facet.column != "label", each_another, facet.kind != "list", facet.column)

    return sorted([facet for facet in found if facet is not None], key=place)


def _works(name: str, attributes: pa.Table) -> bool:
    """Whether a choice of the attribute would be taken, and would find what it names."""
    try:
        one = _known(attributes[name]).slice(0, 1)
        if len(one) == 0:
            return False
        asked = parse_filter([equals(name, given_for(_written(one[0].as_py())))], attributes)
        assert asked is not None
        (condition,) = asked.conditions
        return condition.column == name and bool(condition.mask(one).all())
    except (VizslaError, pa.ArrowException):
        return False


def _facet(name: str, column: pa.ChunkedArray) -> Facet | None:
    known = _known(column)
    counts = [(pair["values"], pair["counts"]) for pair in pc.value_counts(known).to_pylist()]
    unknown = Choice(UNKNOWN, "not known", column.null_count)
    if len(counts) + (unknown.count > 0) < 2:
        return None
    more = (unknown,) if unknown.count else ()
    kind = None if name == "label" else _range_kind(known.type)
    if len(counts) > (LISTED_NUMBERS if kind else LISTED):
        if kind:
            ends = pc.min_max(known).as_py()
            lowest, highest = (_field(ends[end]) for end in ("min", "max"))
            return Facet(name, kind, more, lowest, highest)
        by_count = sorted(counts, key=lambda pair: (-pair[1], _natural(pair[0])))
        return Facet(name, "text", (*_choices(by_count), *more))
    numbers = isinstance(counts[0][0], int | float)
    by_value = sorted(counts, key=lambda pair: pair[0] if numbers else _natural(pair[0]))
    return Facet(name, "list", (*_choices(by_value), *more))


def _choices(counts: Sequence[tuple[Any, int]]) -> list[Choice]:
    written = [(_written(value), count) for value, count in counts]
    return [Choice(given_for(text), text or "(empty)", count) for text, count in written]


def _natural(value: Any) -> str:
    """What to sort by so that "class 2" comes before "class 10"."""
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(20), str(value).casefold())


def _known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Its values without those that are unknown, or no number (which no condition finds)."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    floats = pa.types.is_floating(column.type)
    return column.filter(pc.is_finite(column) if floats else column.is_valid())


def _range_kind(kind: pa.DataType) -> str | None:
    """The kind of field that takes the ends of a range."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_date(kind):
        return "date"
    return "datetime-local" if pa.types.is_timestamp(kind) and kind.tz is None else None


def _written(value: Any) -> str:
    """As a condition takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field(value: Any) -> str:
    """As a field of its range shows it."""
    return (
        np.format_float_positional(value, 4, trim="-") if isinstance(value, float) else str(value)
    )
