"""The attributes of a gallery → conditions, choices to filter by, and rows for added images.

A choice is offered only if its condition is valid and finds the value that it names.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vizsla.errors import DataError, StorageError, UsageError, VizslaError
from vizsla.search.filters import Filter

RESERVED = "id"
UNKNOWN = "null"  # the choice of images without a value
MAX_LISTED = 60  # values of an attribute that are all shown in a list
MAX_LISTED_NUMBERS = 5  # such as stars; of an attribute that can also be filtered by range
MAX_SUGGESTED = 50  # values at a time


# ── conditions ───────────────────────────────────────────────────────────────────────────────────


def parse_filter(texts: Sequence[str], attributes: pa.Table) -> Filter | None:
    """The filter of conditions such as `label=shoe`; None without any.

    UsageError for a condition on ids: `id=@FILE` would read a file of this machine. DataError for
    a column that is not there, and for a value that the column cannot hold.
    """
    if not texts:
        return None
    for text in texts:
        column = re.split("[=!<>]", text, maxsplit=1)[0].strip()
        is_attribute = column != RESERVED and column in attributes.column_names
        if column.lower() == RESERVED and not is_attribute:
            raise UsageError("filter by attributes, not by id: such as label=shoe")
    found = Filter.parse(list(texts))
    for condition in found.conditions:
        if condition.column not in attributes.column_names:
            names = ", ".join(attributes.column_names) or "none"
            raise DataError(f"the gallery has no attribute {condition.column!r}: it has {names}")
        condition.mask(attributes[condition.column].slice(0, 0))
    return found


def equals(column: str, given: str) -> str:
    """The condition of a choice."""
    return f"{column}={UNKNOWN if given == UNKNOWN else _quoted(_from_choice(given))}"


def at_least(column: str, value: str) -> str:
    """The condition of the lower end of a range."""
    return f"{column}>={_quoted(value)}"


def at_most(column: str, value: str) -> str:
    """The condition of the upper end of a range."""
    return f"{column}<={_quoted(value)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def as_choice(value: str) -> str:
    """A value as it stands in a page's address: in quotes if it would mean something else."""
    plain = value not in ("", UNKNOWN) and value == value.strip() and not set(value) & set("\r\n")
    return value if plain else _quoted(value)


def _from_choice(given: str) -> str:
    try:
        value = json.loads(given) if given.startswith('"') else given
    except ValueError:
        value = given
    return value if as_choice(value) == given else given


# ── choices ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Choice:
    """value: as the address has it. text: as people read it. count: how many images have it."""

    value: str
    text: str
    count: int


@dataclass(frozen=True, eq=False)
class Facet:
    """An attribute to filter by.

    kind: `list` shows all values, `text` has more values and suggests some; `number`, `date` and
    `datetime-local` are filtered by range, from `lowest` to `highest`.
    choices: sorted by value for a list; the most frequent first for a text; for a range at most
    UNKNOWN.
    """

    column: str
    kind: str
    choices: tuple[Choice, ...]
    lowest: str = ""
    highest: str = ""

    @property
    def is_range(self) -> bool:
        """Whether images are filtered by a lower and an upper end."""
        return self.kind not in ("list", "text")

    @cached_property
    def _folded(self) -> list[str]:
        return [choice.text.casefold() for choice in self.choices]

    def suggestions(self, text: str = "", limit: int = MAX_SUGGESTED) -> list[Choice]:
        """Choices that begin with the text, then those that contain it; case does not matter."""
        wanted, all_of = text.strip().casefold(), self._folded
        begins = (i for i, one in enumerate(all_of) if one.startswith(wanted))
        holds = (i for i, one in enumerate(all_of) if one.find(wanted) > 0)
        return [self.choices[i] for i in islice(chain(begins, holds), limit)]


def facets_of(attributes: pa.Table) -> list[Facet]:
    """The attributes in which images differ: the label, then lists; what is hardest to use last."""
    columns = [name for name in attributes.column_names if _is_usable(name, attributes)]
    found = [_facet(name, attributes[name]) for name in columns]

    def order(facet: Facet) -> tuple[Any, ...]:
        all_differ = facet.kind == "text" and facet.choices[0].count == 1
        return (facet.column != "label", all_differ, facet.kind != "list", facet.column)

    return sorted([facet for facet in found if facet is not None], key=order)


def _is_usable(name: str, attributes: pa.Table) -> bool:
    """Whether the condition of a choice would be valid, and would find the value that it names."""
    try:
        one = _known(attributes[name]).slice(0, 1)
        if len(one) == 0:
            return False
        filter = parse_filter([equals(name, as_choice(written(one[0].as_py())))], attributes)
        assert filter is not None
        (condition,) = filter.conditions
        return condition.column == name and bool(condition.mask(one).all())
    except (VizslaError, pa.ArrowException):
        return False


def _facet(name: str, column: pa.ChunkedArray) -> Facet | None:
    known = _known(column)
    counts = [(pair["values"], pair["counts"]) for pair in pc.value_counts(known).to_pylist()]
    unknown = Choice(UNKNOWN, "unknown", column.null_count)
    if len(counts) + (unknown.count > 0) < 2:
        return None
    more = (unknown,) if unknown.count else ()
    kind = None if name == "label" else _range_kind(known.type)
    if len(counts) > (MAX_LISTED_NUMBERS if kind else MAX_LISTED):
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
    texts = [(written(value), count) for value, count in counts]
    return [Choice(as_choice(text), text or "(empty)", count) for text, count in texts]


def _natural(value: Any) -> str:
    """A sort key by which "class 2" comes before "class 10"."""
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(20), str(value).casefold())


def _known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Its values without nulls and NaN, which no condition finds."""
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


def written(value: Any) -> str:
    """A value as a condition has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field(value: Any) -> str:
    """A value as a field of its range shows it."""
    return (
        np.format_float_positional(value, 4, trim="-") if isinstance(value, float) else str(value)
    )


# ── the table of attributes ──────────────────────────────────────────────────────────────────────

Columns = Callable[[Sequence[str]], pa.Table]  # of ids: the columns of the table given with them
REPLACED = "the index was replaced while it was read: try again"


@dataclass(frozen=True, eq=False)
class EvaluatedFilter(Filter):
    """A filter whose mask is known: it may come from other attributes than the index's own."""

    allowed: np.ndarray | None = None

    def mask(self, ids: Sequence[str], attributes: pa.Table) -> np.ndarray:
        """(G,) bool. StorageError if the gallery has another size."""
        if self.allowed is None or len(self.allowed) != len(ids):
            raise StorageError(REPLACED)
        return self.allowed


def with_columns(attributes: pa.Table, added: pa.Table) -> pa.Table:
    """The table with these columns added or replaced; where a new label is null, the old stays."""
    columns = {name: attributes[name] for name in attributes.column_names}
    new = {name: added[name] for name in added.column_names}
    if "label" in columns and "label" in new:
        new["label"] = pc.coalesce(new["label"], columns["label"].cast(pa.string()))
    return pa.table({**columns, **new})


def row_of(attributes: Mapping[str, str], known: pa.Table) -> pa.Table:
    """One row with the gallery's columns; DataError for other columns or unfit values."""
    unknown = [name for name in attributes if name not in known.column_names]
    if unknown:
        names = ", ".join(known.column_names) or "none"
        raise DataError(f"the gallery has no attribute {unknown[0][:60]!r}: it has {names}")
    columns = {}
    for column in known.column_names:
        kind = known[column].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        try:
            value = attributes.get(column)
            columns[column] = pa.array(
                [None if value is None else pa.scalar(value).cast(kind)], kind
            )
        except (ValueError, pa.ArrowException) as error:  # UnicodeEncodeError too
            raise DataError(f"{column} holds {kind}, not {attributes[column][:60]!r}") from error
    return pa.table(columns)
