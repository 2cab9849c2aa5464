"""{query: [gallery id, …]} ↔ text, in the formats that contests ask for. Knows no files.

Reading is strict: damaged text, a repeated key or NaN raises a DataError with the place. Whether
the lists are valid for a contest is not checked here.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.data.names import with_spaces, without_spaces
from vizsla.data.table_files import decode_text
from vizsla.errors import DataError

Lists = dict[str, list[str]]  # {query: [gallery id, …]}, best first
Scores = dict[str, list[float]] | None  # in step with Lists

NAMED = 3  # offenders that a message lists; the others are counted
ORDER_ONLY = "vizsla-order"  # TREC tag of a run without scores: its scores only count down


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def _write_json(lists: Lists, scores: Scores) -> str:
    return json.dumps(lists, indent=2, ensure_ascii=False) + "\n"


def _write_records(lists: Lists, scores: Scores) -> str:
    records = [{"filename": query, "gallery_images": row} for query, row in lists.items()]
    return json.dumps(records, indent=2, ensure_ascii=False) + "\n"


def _write_kaggle(lists: Lists, scores: Scores) -> str:
    lines = ["id,images\n"]
    for query, row in lists.items():
        lines.append(f"{_csv_cell(query)},{_csv_cell(' '.join(map(without_spaces, row)))}\n")
    return "".join(lines)


def _csv_cell(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if re.search(r'[",\r\n]', cell) else cell


def _write_trec(lists: Lists, scores: Scores) -> str:
    """Scores fall strictly in single precision, by one step if they are tied.

    trec_eval sorts by score only, in single precision, and breaks ties in its own way.
    """
    tag = ORDER_ONLY if scores is None else "vizsla"
    lines = []
    for query, row in lists.items():
        values: Iterable[Any] = range(len(row), 0, -1)
        if scores is not None:
            values = _falling(scores[query])
        for rank, (name, value) in enumerate(zip(row, values, strict=False), 1):
            if not math.isfinite(value):
                raise DataError(f"the score of {quoted(query)} at rank {rank} is {value}")
            start = f"{without_spaces(query)} Q0 {without_spaces(name)}"
            lines.append(f"{start} {rank} {value!s} {tag}\n")
    return "".join(lines)


def _falling(scores: Sequence[float]) -> Iterable[np.float32]:
    last = np.float32(np.inf)
    for score in scores:
        last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf)))
        yield last


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def parse_json(data: bytes | str) -> Any:
    """The content of the JSON. Raises DataError, also for NaN and for repeated keys."""
    text = text_of(data) if isinstance(data, bytes) else data
    try:
        return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except RecursionError:
        raise DataError("the JSON is nested too deeply: expected lists of names") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
            + (" (the file may have been cut off)" if error.pos >= len(text.rstrip()) else "")
        ) from error
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"not valid JSON: {error}") from error


def text_of(data: bytes) -> str:
    """The text of a submission, as `decode_text`. DataError: it is not text."""
    if data.startswith(b"PAR1"):
        raise DataError("this is a Parquet file, not a submission: it may be a ranking")
    return decode_text(data)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        raise DataError(
            list_offenders("keys that occur twice in one object", list(map(quoted, twice)))
        )
    return content


def _refuse_constant(word: str) -> None:
    raise DataError(f"not valid JSON: it holds {word}")


def _read_json(text: str) -> tuple[Lists, Scores]:
    return parse_json(text), None


_RECORD = '{"filename": …, "gallery_images": […]}'


def _read_records(text: str) -> tuple[Lists, Scores]:
    records = parse_json(text)
    if not isinstance(records, list):
        raise DataError(f"expected a list of records, got {kind_of(records)}")
    lists: Lists = {}
    for i, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"record {i} is {kind_of(record)}: expected {_RECORD}")
        if missing := [key for key in ("filename", "gallery_images") if key not in record]:
            raise DataError(f"record {i} has no {' and no '.join(missing)}: expected {_RECORD}")
        query = record["filename"]
        if not isinstance(query, str):
            raise DataError(f"record {i}: filename is {kind_of(query)}, expected a string")
        if query in lists:
            raise DataError(f"record {i}: the query {quoted(query)} occurs in two records")
        lists[query] = record["gallery_images"]
    return lists, None


# Two cells, either of which may be quoted. (The csv module refuses cells above 128 KiB.)
_CELL = r'("[^"]*(?:""[^"]*)*"|[^",\r\n]*)'
_CSV_LINE = re.compile(_CELL + "," + _CELL + r"(?:\r?\n|\Z)")
_BLANK_LINE = re.compile(r"[ \t]*(?:\r?\n|\Z)")
_ID_COLUMNS = {"id", "query", "query_id", "image", "image_id", "file", "filename"}
_LIST_COLUMNS = {"images", "gallery", "gallery_images", "predictions", "predicted", "results"}


def _read_kaggle(text: str) -> tuple[Lists, Scores]:
    rows = _csv_rows(text)
    _, first, second = next(rows, (1, "", ""))
    if first.lower() not in _ID_COLUMNS and second.strip().lower() not in _LIST_COLUMNS:
        raise DataError(
            "line 1: expected a header such as id,images: without one the first query would be lost"
        )
    lists: Lists = {}
    for at, query, names in rows:
        if query in lists:
            raise DataError(f"line {_line(text, at)}: the query {quoted(query)} occurs twice")
        lists[query] = names.split()
    return lists, None


def _csv_rows(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields (start of the row in the text, first cell, second cell)."""
    at = 0
    while at < len(text):
        if blank := _BLANK_LINE.match(text, at):
            at = blank.end()
            continue
        row = _CSV_LINE.match(text, at)
        if row is None:
            raise DataError(
                f"line {_line(text, at)}: expected two cells, a query and names separated by spaces"
            )
        yield at, _unquoted(row[1]), _unquoted(row[2])
        at = row.end()


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _read_trec(text: str) -> tuple[Lists, Scores]:
    """Sorted by falling score, as trec_eval does; equal scores keep the order of their ranks."""
    found: dict[str, list[tuple[float, int, str]]] = {}
    only_order = True
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        query, name, rank, score, tag = _trec_fields(fields, number)
        found.setdefault(query, []).append((-score, rank, name))
        only_order &= tag == ORDER_ONLY
    lists = {query: [name for _, _, name in sorted(rows)] for query, rows in found.items()}
    scores = {query: [-below for below, _, _ in sorted(rows)] for query, rows in found.items()}
    return lists, None if only_order else scores


def _trec_fields(fields: list[str], number: int) -> tuple[str, str, int, float, str]:
    if len(fields) != 6:
        raise DataError(
            f"line {number}: expected six fields (query Q0 image rank score tag), got {len(fields)}"
        )
    try:
        rank, score = int(fields[3]), float(fields[4])
    except ValueError:
        rank, score = 0, math.nan
    if not math.isfinite(score):
        raise DataError(
            f"line {number}: expected a whole number and a number as rank and score, "
            f"got {quoted(fields[3])} and {quoted(fields[4])}"
        )
    return fields[0], fields[2], rank, score, fields[5]


def detect_format(text: str) -> str:
    """The name of the format that the text has. DataError if it has none."""
    for name, form in FORMATS.items():
        if form.looks_like(text.lstrip()):
            return name
    if not text.strip():
        raise DataError("the file is empty")
    raise DataError(
        f"not a submission: it starts with {quoted(text.strip()[:30])}, "
        f"expected one of the formats {', '.join(FORMATS)}"
    )


def _looks_like_trec(text: str) -> bool:
    fields = text.partition("\n")[0].split()
    return len(fields) == 6 and fields[3].isdigit()


# ── the formats ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Format:
    """One file format: lists → text, text → lists, and whether a text looks like it.

    codes_queries, codes_images: whether white space in these names is percent-encoded.
    empty_lists: whether a query may have no image. new_label: whether a list may hold a name that
    is no image, for a query whose class is new.
    """

    suffix: str
    write: Callable[[Lists, Scores], str]
    read: Callable[[str], tuple[Lists, Scores]]
    looks_like: Callable[[str], bool]
    codes_queries: bool = False
    codes_images: bool = False
    empty_lists: bool = True
    new_label: bool = False

    def decoded(self, lists: Lists, scores: Scores, known: Collection[str]) -> tuple[Lists, Scores]:
        """What `read` gave without percent codes; names that are known as they are written stay."""
        if not self.codes_images:
            return lists, scores

        def name(written: str) -> str:
            return written if written in known else with_spaces(written)

        queries = {query: name(query) if self.codes_queries else query for query in lists}
        decoded = {queries[query]: list(map(name, row)) for query, row in lists.items()}
        return decoded, scores and {queries[query]: row for query, row in scores.items()}


FORMATS = {
    "json": Format(".json", _write_json, _read_json, lambda text: text.startswith("{")),
    "records": Format(".json", _write_records, _read_records, lambda text: text.startswith("[")),
    "trec": Format(
        ".trec", _write_trec, _read_trec, _looks_like_trec, True, True,
        empty_lists=False, new_label=True,
    ),
    "kaggle": Format(
        ".csv",
        _write_kaggle,
        _read_kaggle,
        lambda text: "," in text.partition("\n")[0],
        codes_images=True,
        new_label=True,
    ),
}  # fmt: skip


# ── parts of messages ───────────────────────────────────────────────────────────────────────────


def list_offenders(kind: str, offenders: Sequence[str]) -> str:
    """The first few offenders, and how many more there are."""
    rest = len(offenders) - NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"{kind}: {', '.join(offenders[:NAMED])}{more}"


def quoted(name: object) -> str:
    """The name in quotes, with unprintable characters escaped, and a long name shortened."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-15:]}"


def kind_of(value: object) -> str:
    """The type of a JSON value, for messages."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    kinds |= {str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)
