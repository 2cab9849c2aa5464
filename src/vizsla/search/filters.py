"""Conditions on ids and attributes → which gallery images may be found.

Text form, one condition each, all of which must hold: `label=shoe`, `label=shoe|hat` (one of),
`label!=shoe`, `price<10` (also <=, >, >=), `label=null`, `id=a.jpg|b.jpg`, `id=@names.txt` (one id
a line). Double quotes take a value literally: `label="a|b"`, `label="null"`. As in SQL, a value
that is unknown (null) meets no condition except `=null`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vizsla import storage
from vizsla.errors import DataError, UsageError

ID = "id"
Value = str | float | bool | None
_FORM = re.compile(r"([^=!<>]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_PART = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^|]*?)\s*(?:\||$)')
_COMPARE = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


@dataclass(frozen=True)
class Condition:
    """`column operator values`; several values, with = and != only, mean one of or none of them."""

    column: str
    operator: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if self.operator not in {"=", "!=", *_COMPARE}:
            raise UsageError(f"{self.operator!r} is not an operator: use = != < <= > >=")
        if self.operator in _COMPARE and (len(self.values) != 1 or None in self.values):
            raise UsageError(f"{self}: {self.operator} takes exactly one value")
        if not self.values:
            raise UsageError(f"the condition on {self.column} lists no value")

    def __str__(self) -> str:
        return self.column + self.operator + "|".join(map(_written, self.values))

    def mask(self, column: pa.ChunkedArray) -> np.ndarray:
        """(N,) bool: the rows that meet it. DataError: a value is not of the column's type."""
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if self.operator in _COMPARE:
            value = typed(self.values[0], column.type, self)
            found = _COMPARE[self.operator](column.cast(value.type, safe=False), value)
        else:
            found = self._one_of(column)
        return np.asarray(found.fill_null(False).to_numpy(), bool)

    def _one_of(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        known = [typed(value, column.type, self) for value in self.values if value is not None]
        types = [value.type for value in known]
        kind = pa.float64() if pa.float64() in types else column.type  # 2001.5 among whole numbers
        column = column.cast(kind, safe=False)
        values = pa.array([value.as_py() for value in known], kind)
        found = pc.is_in(column, value_set=values)
        if None in self.values:
            found = pc.or_(found, column.is_null())
        if self.operator == "=":
            return found
        found = pc.invert(found)
        return found if None in self.values else pc.and_(found, column.is_valid())


@dataclass(frozen=True)
class Filter:
    """All conditions must hold; `ids`, if given, are the only ids that may be found."""

    conditions: tuple[Condition, ...] = ()
    ids: frozenset[str] | None = None

    @staticmethod
    def parse(texts: str | Sequence[str]) -> "Filter":
        """From the text form, one condition each. UsageError: not understood."""
        conditions: list[Condition] = []
        ids: frozenset[str] | None = None
        for text in [texts] if isinstance(texts, str) else texts:
            column, operator, rest = _split(text)
            if column == ID and operator == "=":
                named = frozenset(_ids(rest))
                ids = named if ids is None else ids & named
            elif column == ID:
                raise UsageError(f"{text!r}: ids can only be listed, as in id=a.jpg|b.jpg")
            else:
                conditions.append(Condition(column, operator, tuple(_values(rest))))
        return Filter(tuple(conditions), ids)

    def __str__(self) -> str:
        parts = [str(condition) for condition in self.conditions]
        if self.ids is not None:
            parts.append("id=" + "|".join(_written(name) for name in sorted(self.ids)))
        return " and ".join(parts)

    def mask(self, ids: Sequence[str], attributes: pa.Table) -> np.ndarray:
        """(N,) bool: the rows that may be found. DataError: no such attribute, or other values."""
        allowed = np.ones(len(ids), bool)
        for condition in self.conditions:
            if condition.column not in attributes.column_names:
                raise no_attribute(condition.column, attributes.column_names)
            allowed &= condition.mask(attributes[condition.column])
        if self.ids is not None:
            allowed &= np.fromiter((name in self.ids for name in ids), bool, len(ids))
        return allowed


def no_attribute(column: str, known: Sequence[str]) -> DataError:
    """The error for a condition on a column that does not exist."""
    if known:
        return DataError(
            f"the gallery has no attribute {column!r}: it has {', '.join(known)} (and id)"
        )
    return DataError(
        f"the gallery has no attribute {column!r}, nor any other: its images were embedded without "
        "labels (`vizsla embed --labels FILE` adds the columns of a table); filter by id only"
    )


def _split(text: str) -> tuple[str, str, str]:
    found = _FORM.fullmatch(text)
    if not found or not found[1].strip():
        raise UsageError(f"{text!r} is not a condition: write label=shoe, price<10 or id=a.jpg")
    return found[1].strip(), found[2], found[3].strip()


def _values(text: str) -> list[Value]:
    parts = []
    at = 0
    while True:
        found = _PART.match(text, at)
        if not found:
            raise UsageError(f"{text!r}: a quoted value must end at its closing quote or before |")
        parts.append(_value(found[1]))
        at = found.end()
        if at == len(text) and not found[0].endswith("|"):
            return parts


def _value(text: str) -> Value:
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise UsageError(f"{text} is not quoted correctly") from error
    return None if text == "null" else text


def _ids(text: str) -> list[str]:
    if text.startswith("@"):
        lines = storage.read_bytes(Path(text[1:])).decode(errors="replace").splitlines()
        return [line for line in lines if line]
    return ["null" if value is None else str(value) for value in _values(text)]


def _written(value: Value) -> str:
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    plain = text == text.strip() and text not in {"", "null"} and not set('|"@') & set(text)
    return text if plain or not isinstance(value, str) else json.dumps(text, ensure_ascii=False)


def typed(value: Value, kind: pa.DataType, condition: Condition) -> pa.Scalar:
    """The value in the column's type; whole-number columns are also compared with fractions."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    for wanted in (kind, pa.float64()) if pa.types.is_integer(kind) else (kind,):
        try:
            return pa.scalar(text).cast(wanted)
        except (ValueError, pa.ArrowException):  # not a value of this type
            continue
    raise DataError(f"{condition}: {condition.column} holds {kind}, and {text!r} is not one")
