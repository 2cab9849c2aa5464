"""Conditions on ids and attributes → which gallery images may be found.

Text form, one condition each, all of which must hold: `label=shoe`, `label=shoe|hat` (one of),
`label!=shoe`, `price<10` (also <=, >, >=; numbers, days and times only), `label=null`,
`id=a.jpg|b.jpg`, `id=@names.txt` (one id a line, or a table that names images). Double quotes take
a value literally: `label="a|b"`, `label="null"`. As in SQL, a value that is unknown (null) meets no
condition except `=null`.
"""

import json
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vizsla.data.listing import few
from vizsla.data.names import match_names, nfc
from vizsla.data.tables import read_names
from vizsla.errors import DataError, UsageError
from vizsla.search.filter_hints import unmet_hint

log = logging.getLogger("vizsla.search")

ID = "id"
Value = str | float | bool | None
_FORM = re.compile(r"([^=!<>]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_PART = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^|]*?)\s*(?:\||$)')
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_MISSPELT = {"=<": "<=", "=>": ">=", "==": "=", "<>": "!="}  # → as it is written here
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

    @property
    def texts(self) -> list[str]:
        """The texts that it asks for."""
        return [v for v in self.values if isinstance(v, str) and self.operator == "="]

    def mask(self, column: pa.ChunkedArray) -> np.ndarray:
        """(N,) bool: the rows that meet it. DataError: a value is not of the column's type."""
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if self.operator in _COMPARE:
            self._require_order(column)
            value = typed(self.values[0], column.type, self)
            found = _COMPARE[self.operator](column.cast(value.type, safe=False), value)
        else:
            found = self._one_of(column)
        return np.asarray(found.fill_null(False).to_numpy(), bool)

    def _require_order(self, column: pa.ChunkedArray) -> None:
        """DataError if the column holds text or true and false."""
        known = column.drop_null()
        if column.type in (pa.string(), pa.large_string(), pa.bool_()) and len(known):
            values = (str(value) for value in known)
            raise no_order(self, next((v for v in values if not _NUMBER.fullmatch(v)), ""))

    def _one_of(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        known = [typed(value, column.type, self) for value in self.values if value is not None]
        types = [value.type for value in known]
        kind = next((t for t in types if t != column.type), column.type)  # 2001.5 for whole numbers
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
    def of(given: Any) -> "Filter | None":
        """A Filter as it is, None, or one of the text form: one condition or a list of them."""
        if given is None or isinstance(given, Filter):
            return given
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise UsageError(
                f"filter is of type {type(given).__name__}: expected a condition such as "
                "'label=shoe' or 'price<10', a list of them, or a Filter"
            )
        return Filter.parse(texts) if texts else None

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
                values = _values(rest)
                both = values if operator in _COMPARE else _in_both_forms(values)
                conditions.append(Condition(column, operator, tuple(both)))
        return Filter(tuple(conditions), ids)

    def __str__(self) -> str:
        parts = [str(condition) for condition in self.conditions]
        if self.ids is not None:
            parts.append("id=" + "|".join(_written(name) for name in sorted(self.ids)))
        return " and ".join(parts)

    def masks(self, attributes: pa.Table) -> list[np.ndarray]:
        """(N,) bool for each condition on attributes: the rows that meet it. DataError: no such
        attribute, or other values."""
        for condition in self.conditions:
            if condition.column not in attributes.column_names:
                raise no_attribute(condition.column, attributes.column_names)
        return [condition.mask(attributes[condition.column]) for condition in self.conditions]

    def mask(self, ids: Sequence[str], attributes: pa.Table) -> np.ndarray:
        """(N,) bool: the rows that may be found. DataError: no such attribute, or other values."""
        allowed = np.ones(len(ids), bool)
        for met in self.masks(attributes):
            allowed &= met
        if self.ids is not None:
            named, unknown = self.named(ids)
            if unknown:
                log.warning(
                    "the filter on id: the gallery does not hold %d of the %d ids: %s",
                    len(unknown), len(self.ids), few(unknown),
                )  # fmt: skip
            allowed &= np.fromiter((name in named for name in ids), bool, len(ids))
        if not allowed.any():
            for hint in self.unmet(attributes):
                log.warning("%s", hint)
        return allowed

    def unmet(self, attributes: pa.Table) -> list[str]:
        """A sentence for each condition that no image meets, with the nearest values."""
        return [
            unmet_hint(str(condition), condition.texts, attributes[condition.column])
            for condition, met in zip(self.conditions, self.masks(attributes), strict=True)
            if len(met) and not met.any()
        ]

    def named(self, known: Collection[str]) -> tuple[frozenset[str], list[str]]:
        """The gallery's ids that `ids` names, and those of `ids` that name none."""
        names = sorted(self.ids or ())
        found = match_names(names, known, roles=["gallery"] * len(names), origin="the filter on id")
        unknown = [name for name, there in zip(names, found, strict=True) if there is None]
        return frozenset(name for name in found if name is not None), unknown


def no_order(condition: Condition, value: str = "") -> DataError:
    """The error for < or > on a column of text. value: one that is not a number."""
    shown = f", such as {value!r}," if value else ","
    return DataError(
        f"{condition}: {condition.column} holds text{shown} which has no order: compare it with = "
        "or !=, or make all its values numbers, days or times"
    )


def no_attribute(column: str, known: Sequence[str]) -> DataError:
    """The error for a condition on a column that does not exist."""
    if known:
        return DataError(
            f"the gallery has no attribute {column!r}: it has {', '.join(known)} (and id)"
        )
    return DataError(
        f"the gallery has no attribute {column!r}, nor any other: its images were embedded without "
        "a table (`vizsla index FOLDER --table FILE` keeps its columns); filter by id only"
    )


def _split(text: str) -> tuple[str, str, str]:
    found = _FORM.fullmatch(text)
    if not found or not found[1].strip():
        raise UsageError(f"{text!r} is not a condition: write label=shoe, price<10 or id=a.jpg")
    column, operator, value = found[1].strip(), found[2], found[3].strip()
    if operator + value[:1] in _MISSPELT:
        meant = _MISSPELT[operator + value[:1]]
        raise UsageError(
            f"{text!r} is not a condition: write {column}{meant}{value[1:].strip()} (a value that "
            f"begins with {value[0]} stands in double quotes)"
        )
    return column, operator, value


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


def _in_both_forms(values: list[Value]) -> list[Value]:
    """The values, and texts also in Unicode's composed form, which attributes have."""
    forms = ((value, nfc(value) if isinstance(value, str) else value) for value in values)
    return list(dict.fromkeys(form for pair in forms for form in pair))


def _ids(text: str) -> list[str]:
    if text.startswith("@"):
        return read_names(text[1:])
    return ["null" if value is None else str(value) for value in _values(text)]


def _written(value: Value) -> str:
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    plain = text == text.strip() and text not in {"", "null"} and not set('|"@') & set(text)
    return text if plain or not isinstance(value, str) else json.dumps(text, ensure_ascii=False)


_KINDS = {
    pa.int64(): "whole numbers", pa.float64(): "numbers", pa.bool_(): "true and false",
    pa.date32(): "days such as 2026-05-28", pa.timestamp("us"): "times such as 2026-05-28T12:00",
}  # fmt: skip


def typed(value: Value, kind: pa.DataType, condition: Condition) -> pa.Scalar:
    """The value in the column's type; whole numbers are also compared with fractions, and days
    with times."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    kinds = [kind]
    kinds += [pa.float64()] * pa.types.is_integer(kind)
    kinds += [pa.timestamp("us")] * pa.types.is_date(kind)
    for wanted in kinds:
        try:
            return pa.scalar(text).cast(wanted)
        except (ValueError, pa.ArrowException):  # not a value of this type
            continue
    known = _KINDS.get(kind, str(kind))
    raise DataError(f"{condition}: {condition.column} holds {known}, and {text!r} is not one")
