"""A text file → its text or lines; a CSV, TSV, JSON, JSONL or Parquet file → a table with types.

Every list and every table that a user hands in is read here. Knows nothing of images.

One rule gives a column its type, whatever the form of the file: all values are whole numbers, or
numbers, or true and false, or days (2026-05-28), or times (2026-05-28T12:00); else it is text. So
is a number with a leading zero, as in a code. An empty cell is null, and so is a number that is
not finite. Times with a zone are kept in UTC. File names, labels, roles, groups and domains are
always text; a list of labels is one text, see label_sets.py.
"""

import codecs
import csv
import functools
import io
import json
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vizsla.data.label_sets import join_labels
from vizsla.data.listing import few
from vizsla.errors import DataError

log = logging.getLogger("vizsla.tables")

# The first of these that a table has names the images, or the classes; in any case.
NAME_COLUMNS = (
    "file", "path", "file_name", "filename", "image", "image_name", "image_path", "filepath", "img",
    "id",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name")
USUAL_COLUMNS = ("file", "path", "file_name", "id")  # names of images that go without saying
TEXT_COLUMNS = (*NAME_COLUMNS, *LABEL_COLUMNS, "role", "group", "domain")
TABLES = (".csv", ".tsv", ".parquet", ".pq", ".json", ".jsonl", ".ndjson")


def name_column(names: Collection[str]) -> str | None:
    """The column that names the images: the first of NAME_COLUMNS that is there."""
    return next((name for name in NAME_COLUMNS if name in names), None)


def label_column(names: Collection[str]) -> str | None:
    """The column with the classes: the first of LABEL_COLUMNS that is there; `id` in a table of
    only `Image,Id`, as on Kaggle."""
    found = next((name for name in LABEL_COLUMNS if name in names), None)
    return found or ("id" if set(names) - {"role"} == {"image", "id"} else None)


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


def decode_text(content: bytes) -> str:
    """UTF-8, with or without a byte order mark, or UTF-16 with one, as Excel and PowerShell write.

    The line ends of old Macs become new ones. DataError: it is neither.
    """
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = content.decode("utf-16")
        else:
            text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"not valid UTF-8: byte 0x{content[error.start]:02x} in line {line}"
        ) from error
    return text if "\n" in text else text.replace("\r", "\n")


def read_text(path: str | Path) -> str:
    """The text of a file, as `decode_text`. DataError: it cannot be read, or is not text."""
    try:
        return decode_text(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{path} is {error}") from error


def lines_of(text: str) -> list[str]:
    """The lines that are not empty, without their ends; other white space stays."""
    lines = (line.rstrip("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip()]


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def read_rows(path: str | Path) -> pa.Table:
    """All columns, with types by the rule above, the classes as `label`; an empty cell is null.

    File names stay as they are written; other cells are trimmed, and composed (Unicode's NFC).
    DataError, with the line where there is one, for what is not a table.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}, expected a CSV, TSV, JSONL or Parquet file")
    readers = {
        ".parquet": _read_parquet, ".pq": _read_parquet,
        ".json": _read_json, ".jsonl": _read_json, ".ndjson": _read_json,
    }  # fmt: skip
    columns = _with_label(path, readers.get(path.suffix.lower(), _read_csv)(path))
    return pa.table({name: typed_column(name, column) for name, column in columns.items()})


def _with_label(path: Path, columns: dict[str, Any]) -> dict[str, Any]:
    """The columns, the one with the classes as `label`; says so if that name is unusual."""
    key, label = name_column(columns), label_column(columns)
    said = [] if key in (None, *USUAL_COLUMNS) else [f"{key} names the images"]
    said += [] if label in (None, "label") else [f"{label} is the label"]
    if said:
        log_once(f"{path}: {', '.join(said)}")
    return {"label" if name == label else name: column for name, column in columns.items()}


@functools.cache
def log_once(message: str) -> None:
    """Logs it the first time: a command may read its table several times."""
    log.info("%s", message)


def has_header(text: str) -> bool:
    """Whether the first line is a CSV's header with a column that names images."""
    first = text.partition("\n")[0].rstrip("\r")
    return name_column(_header(first, _delimiter(first))) is not None


def _delimiter(line: str) -> str:
    """The one that splits the first line into columns that we know, else into the most columns."""

    def fit(mark: str) -> tuple[int, int]:
        names = _header(line, mark)
        return sum(name in TEXT_COLUMNS for name in names), len(names)

    return max(",;\t|", key=fit)


def _header(line: str, delimiter: str) -> list[str]:
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # no CSV at all
        return [line[:40]]
    return [_column_name(name) for name in names]


def _column_name(name: str) -> str:
    return name.lower() if name.lower() in TEXT_COLUMNS else name


def _refuse_repeats(path: Path, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has the column {twice[0]} twice: keep one")


def _read_csv(path: Path) -> dict[str, pa.Array]:
    text = read_text(path)
    if text.lstrip().startswith(("{", "[{")):
        return _read_json(path)
    first = text.partition("\n")[0].rstrip("\r")
    delimiter = _delimiter(first)
    names = _header(first, delimiter)
    _refuse_repeats(path, names)
    columns: list[list[str]] = [[] for _ in names]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        next(reader, None)
        for row in reader:
            if any(row[len(names) :]):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, but the header has "
                    f"{len(names)}: put values with {delimiter!r} in them in double quotes"
                )
            if any(row):
                row += [""] * (len(names) - len(row))
                for column, value in zip(columns, row, strict=False):
                    column.append(value)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error
    pairs = zip(names, columns, strict=True)  # a column without a name is pandas's row number
    return {name: pa.array(values, pa.string()) for name, values in pairs if name}


def _read_json(path: Path) -> dict[str, pa.Array]:
    """One object a line, or one list of objects."""
    text = read_text(path)
    rows: list[dict[str, Any]] = []
    whole = [(1, text)] if text.lstrip().startswith("[") else enumerate(text.split("\n"), 1)
    for number, line in whole:
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            _refuse_one_object(path, text)
            raise DataError(f"{path}, line {number}: not valid JSON ({error})") from error
        found = found if isinstance(found, list) else [found]
        if not found or not all(isinstance(row, dict) for row in found):
            raise DataError(f"{path}, line {number}: expected an object in braces")
        rows += found
    if len(rows) == 1 and any(isinstance(value, list | dict) for value in rows[0].values()):
        _refuse_one_object(path, text)
    keys = list(dict.fromkeys(name for row in rows for name in row))
    _refuse_repeats(path, [_column_name(key) for key in keys])
    try:
        return {
            _column_name(key): pa.array(
                [_as_text(row.get(key), _column_name(key) == "label") for row in rows], pa.string()
            )
            for key in keys
        }
    except UnicodeEncodeError as error:
        raise DataError(f"{path} holds half a character: {ascii(error.object)[:60]}") from error


def _refuse_one_object(path: Path, text: str) -> None:
    """DataError if all of the file is one object, such as a COCO file."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return
    coco = isinstance(whole, dict) and {"images", "annotations"} <= whole.keys()
    raise DataError(
        f"{path} is one JSON object with the keys {few(list(whole), 8)}"
        f"{' (a COCO file)' if coco else ''}, not a table: expected a CSV, TSV, JSONL or Parquet "
        "file with a row for each image"
    )


def _several(labels: list[Any] | None) -> str | None:
    """A list of labels as the one text that stands for them."""
    return join_labels(None if label is None else str(label) for label in labels or [])


def _as_text(value: Any, is_label: bool) -> str | None:
    if is_label and isinstance(value, list):
        return _several(value)
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _read_parquet(path: Path) -> dict[str, pa.ChunkedArray]:
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read ({error})") from error
    _refuse_repeats(path, [_column_name(name) for name in table.column_names])
    columns = {}
    for name in table.column_names:
        try:
            column = table[name]
            if _column_name(name) == "label" and pa.types.is_list(column.type):
                column = pa.chunked_array(
                    [pa.array(map(_several, column.to_pylist()), pa.string())]
                )
            columns[_column_name(name)] = as_text(column)
        except pa.ArrowException:
            log.warning("%s: column %s is left out (%s)", path, name, table[name].type)
    return columns


# ── types ────────────────────────────────────────────────────────────────────────────────────────


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values as a CSV has them; pa.ArrowException for lists and the like."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
        whole = pc.and_(pc.equal(column, pc.round(column)), pc.less(pc.abs(column), 2.0**53))
        if pc.all(whole).as_py():
            column = column.cast(pa.int64(), safe=False)  # pandas: whole numbers with gaps
    if pa.types.is_timestamp(column.type) and column.type.tz:
        column = column.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.timestamp("us"))
    return column.cast(pa.string())


def typed_column(name: str, column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A column of text with the type of its values, by the rule at the top."""
    if name not in NAME_COLUMNS:
        column = pc.utf8_normalize(pc.utf8_trim_whitespace(column), form="NFC")
    column = pc.if_else(pc.equal(column, ""), None, column)
    known = column.drop_null()
    if name in TEXT_COLUMNS or not len(known):
        return column
    for pattern, converted in _TYPES:
        if pc.all(pc.match_substring_regex(known, pattern, ignore_case=True)).as_py():
            try:
                return converted(column)
            except pa.ArrowException:  # the 31st of February, an article number of thirty digits
                return column
    return column


def _numbers(column: pa.Array) -> pa.Array:
    numbers = column.cast(pa.float64())
    finite = pc.if_else(pc.is_finite(numbers), numbers, None)
    return finite if finite.null_count < len(finite) else column


def _times(column: pa.Array) -> pa.Array:
    """Times that are all midnight are days."""
    has_zone = pc.match_substring_regex(column, "(Z|[+-][0-9]{2}:?[0-9]{2})$").drop_null()
    column = pc.replace_substring_regex(column, r"(\.[0-9]{6})[0-9]+", r"\1")
    kind = pa.timestamp("us", "UTC" if pc.all(has_zone).as_py() else None)
    times = column.cast(kind).cast(pa.timestamp("us"))
    midnight = pc.all(pc.equal(times, pc.floor_temporal(times, unit="day"))).as_py()
    return times.cast(pa.date32()) if midnight else times


_WHOLE = r"^-?(0|[1-9][0-9]*)"
_DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TYPES: tuple[tuple[str, Callable[[pa.Array], pa.Array]], ...] = (
    ("^(true|false)$", lambda c: pc.utf8_lower(c).cast(pa.bool_())),
    (_WHOLE + r"(\.0+)?$",
     lambda c: pc.replace_substring_regex(c, r"\.0+$", "").cast(pa.int64())),
    (_WHOLE + r"(\.[0-9]+)?(e[+-]?[0-9]+)?$|^(nan|[+-]?inf)$", _numbers),
    (_DAY + r"$", lambda c: c.cast(pa.date32())),
    (_DAY + r"[T ][0-9:]{5,8}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:?[0-9]{2})?$", _times),
)  # fmt: skip
