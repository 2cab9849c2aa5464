"""A CSV, TSV, JSONL or Parquet file that names images → a table of strings; labels for ids.

Strings always: the label "007" stays "007". Knows names only: nothing here opens a folder.
"""

import codecs
import csv
import io
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vizsla.data.listing import few
from vizsla.errors import DataError, UsageError

log = logging.getLogger("vizsla.tables")

FILE_COLUMNS = ("file", "path", "file_name")
ROLES = ("query", "gallery", "training")
OUR_COLUMNS = (*FILE_COLUMNS, "label", "role", "group", "domain")  # read in any case


def read_table(path: str | Path) -> pa.Table:
    """All columns as strings, the one with the file names as `file`; an empty cell is null.

    File names stay as they are written; all other cells are trimmed. DataError, with the line where
    there is one, for what is not a table or does not name files.
    """
    table = read_rows(path)
    names = table.column_names
    key = next((name for name in FILE_COLUMNS if name in names), None)
    if not names:
        raise DataError(f"{path} is empty: expected one of {', '.join(FILE_COLUMNS)}, and label")
    if key is None:
        raise DataError(
            f"{path} has the columns {few(names, 8)}: expected one of {', '.join(FILE_COLUMNS)}, "
            "and `label` for the classes (in a CSV, the first line names the columns)"
        )
    without_name = [i for i, name in enumerate(table[key].to_pylist()) if not name]
    if without_name:
        raise DataError(f"{path}: row {without_name[0] + 1} below the header has no {key}")
    return table.rename_columns(["file" if name == key else name for name in names])


def read_rows(path: str | Path) -> pa.Table:
    """All columns as strings, whether or not one of them names files; an empty cell is null."""
    path = Path(path)
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}, expected a CSV, TSV, JSONL or Parquet file")
    readers = {
        ".parquet": _read_parquet, ".pq": _read_parquet,
        ".jsonl": _read_jsonl, ".ndjson": _read_jsonl,
    }  # fmt: skip
    return readers.get(path.suffix.lower(), _read_csv)(path)


def read_text(path: str | Path) -> str:
    """UTF-8, with or without a byte order mark, or the UTF-16 of Excel's "Unicode text"."""
    try:
        content = Path(path).read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error


def names_files(text: str) -> bool:
    """Whether the first line is a CSV's header with a column of file names."""
    first = _first_line(text)
    return any(name in FILE_COLUMNS for name in _header(first, _delimiter(first)))


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


def read_labels(path: str | Path) -> pa.Table:
    """Columns file, [label], [role] and any others, all strings; empty is null.

    Files are posix paths. If all of a role's files start with `…/query/` (or gallery, training)
    they are cut to what follows; without a role column, such paths give the role.
    """
    table = read_table(path)
    names = table.column_names
    files = [name.strip().replace("\\", "/").removeprefix("./") for name in texts(table, "file")]
    roles = [role and role.lower() for role in texts(table, "role")] if "role" in names else None
    if roles is None and files:
        found = [_role_in(file) for file in files]
        roles = found if all(found) else None
    if roles is not None:
        unknown = sorted({role for role in roles if role and role not in ROLES})
        if unknown:
            log.warning("%s: unknown roles %s (known: %s)", path, few(unknown), ", ".join(ROLES))
        files = _cut_to_role(files, roles)
    columns: dict[str, Any] = {"file": pa.array(files, pa.string())}
    columns |= {name: table[name] for name in names if name not in ("file", "role")}
    if roles is not None and any(roles):
        columns["role"] = pa.array(roles, pa.string())
    return pa.table(columns)


def labels_for(ids: Sequence[str], table: pa.Table, role: str | None) -> list[str | None]:
    """The label of each id, None if `table` (see read_labels) has none.

    Rows of another role do not count, rows without a role count for all. role None: all rows.
    DataError if two rows give one image different labels.
    """
    if "label" not in table.column_names:
        raise DataError(
            f"the labels file has the columns {', '.join(table.column_names)}: expected `label`"
        )
    labels: list[str | None] = attributes_for(ids, table, role, columns=["label"])[
        "label"
    ].to_pylist()
    return labels


def attributes_for(
    ids: Sequence[str], table: pa.Table, role: str | None, *, columns: Sequence[str] | None = None
) -> pa.Table:
    """N rows of `columns` (default: all but file, label and role), null if no row has one."""
    if role is not None and "role" in table.column_names:
        table = table.filter(pc.fill_null(pc.equal(table["role"], role), True))
    rows = row_of_each(texts(table, "file"), table, "the labels file")
    indices = [next((rows[name] for name in _spellings(i) if name in rows), None) for i in ids]
    if columns is None:
        columns = [name for name in table.column_names if name not in ("file", "label", "role")]
    return take_rows(table.select(columns), indices)


def labels_from_pattern(ids: Sequence[str], pattern: str = "{label}_{n}") -> list[str | None]:
    """The label in each file name, None if the name does not fit.

    `{label}` is any text and `{n}` digits: with `{label}_{n}`, `big_cat_12.jpg` is a `big_cat`.
    Folders and extension do not count.
    """
    if pattern.count("{label}") != 1 or re.search(r"\{(?!label\}|n\})", pattern):
        raise UsageError(
            f"pattern {pattern!r}: expected one {{label}} and any number of {{n}}, "
            "such as '{label}_{n}'"
        )
    parts = (re.escape(part) for part in re.split(r"(\{label\}|\{n\})", pattern))
    named = {re.escape("{label}"): "(?P<label>.+)", re.escape("{n}"): "[0-9]+"}
    regex = re.compile("".join(named.get(part, part) for part in parts), re.DOTALL)
    stems = (name.rpartition("/")[2] for name in ids)
    matches = (regex.fullmatch(stem.rpartition(".")[0] or stem) for stem in stems)
    return [match and match["label"] for match in matches]


def read_exclude(path: str | Path) -> set[str]:
    """Ids such as `query/a.jpg` to leave out: one a line, or a table with `file` and `role`.

    A line in double quotes is read as JSON (for names with line breaks); `#` starts a remark.
    """
    text = read_text(path)
    if names_files(text):
        table = read_table(path)
        roles = texts(table, "role") if "role" in table.column_names else [None] * len(table)
        files = texts(table, "file")
        return {f"{role}/{f}" if role else f for role, f in zip(roles, files, strict=True)}
    lines = (line.rstrip("\r") for line in text.split("\n"))
    return {_unquoted(line) for line in lines if line.strip() and not line.startswith("#")}


def _unquoted(line: str) -> str:
    try:
        return str(json.loads(line)) if line.startswith('"') else line
    except ValueError:
        return line


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def texts(table: pa.Table, name: str) -> list[Any]:
    """The strings of one column, None if it is null."""
    values: list[Any] = table[name].to_pylist()
    return values


def take_rows(table: pa.Table, rows: Sequence[int | None]) -> pa.Table:
    """These rows as attributes; null if the row is None.

    Embeddings keep their own columns `id` and `vector`, so an attribute cannot have these names.
    """
    names = [name for name in table.column_names if name not in ("file", "id", "vector")]
    return table.select(names).take(pa.array(rows, pa.int64())) if names else pa.table({})


def rows_of_role(table: pa.Table, role: str, path: str | Path) -> pa.Table:
    """The rows with this role or none; DataError if there are none. path: for the message."""
    if "role" not in table.column_names:
        return table
    roles = pc.utf8_lower(table["role"])
    kept = table.filter(pc.fill_null(pc.equal(roles, role), True)).drop_columns(["role"])
    if len(kept) == 0:
        known = sorted({value for value in roles.to_pylist() if value})
        raise DataError(f"{path} has no rows with the role {role}, only {few(known)}")
    return kept


def row_of_each(names: Sequence[str], table: pa.Table, origin: str) -> dict[str, int]:
    """Name → its first row; DataError if another row of the name has another label."""
    labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(names)
    rows: dict[str, int] = {}
    conflicts = []
    for row, name in enumerate(names):
        first = rows.setdefault(name, row)
        if labels[first] != labels[row]:
            conflicts.append(f"{name}: {labels[first]} and {labels[row]}")
    if conflicts:
        raise DataError(
            f"{origin} gives {len(conflicts)} images more than one label ({few(conflicts)}): "
            "keep one row each, or distinguish query and gallery in a column `role`"
        )
    if len(rows) < len(names):
        log.warning("%s names %d images more than once", origin, len(names) - len(rows))
    return rows


def _spellings(name: str) -> tuple[str, ...]:
    """How a table may write this id: as it is, trimmed, with slashes for backslashes."""
    return name, name.strip(), name.replace("\\", "/")


def _role_in(file: str) -> str | None:
    found = re.match(r"(?:.*/)??(?:test/(query|gallery)|(training))/.", file)
    return (found[1] or found[2]) if found else None


def _cut_to_role(files: list[str], roles: Sequence[str | None]) -> list[str]:
    """`data/test/query/a.jpg` → `a.jpg`, for a role whose files all have its folder in them."""
    cut = list(files)
    for role in set(roles) & set(ROLES):
        at = [i for i, value in enumerate(roles) if value == role]
        rests = [f"/{files[i]}".partition(f"/{role}/")[2] for i in at]
        if all(rests):
            for i, rest in zip(at, rests, strict=True):
                cut[i] = rest
    return cut


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


def _first_line(text: str) -> str:
    return text.partition("\n")[0].rstrip("\r")


def _delimiter(line: str) -> str:
    """The one that splits the first line into columns that we know."""
    return max(",;\t|", key=lambda mark: sum(n in OUR_COLUMNS for n in _header(line, mark)))


def _header(line: str, delimiter: str) -> list[str]:
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # no CSV at all
        return [line[:40]]
    return [name.lower() if name.lower() in OUR_COLUMNS else name for name in names]


def _read_csv(path: Path) -> pa.Table:
    text = read_text(path)
    first = _first_line(text)
    delimiter = _delimiter(first)
    names = _header(first, delimiter)
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    if twice:
        raise DataError(f"{path} has the column {twice[0]} twice: keep one")
    columns: list[list[str | None]] = [[] for _ in names]
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
                for name, column, value in zip(names, columns, row, strict=False):
                    column.append((value if name in FILE_COLUMNS else value.strip()) or None)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error
    pairs = zip(names, columns, strict=True)  # a column without a name is pandas's row number
    return pa.table({name: pa.array(values, pa.string()) for name, values in pairs if name})


def _read_jsonl(path: Path) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object in braces")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [_as_text(row.get(name)) for row in rows] for name in names}
    try:
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    except UnicodeEncodeError as error:
        raise DataError(f"{path} holds half a character: {ascii(error.object)[:60]}") from error


def _as_text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ── Parquet ──────────────────────────────────────────────────────────────────────────────────────


def _read_parquet(path: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read ({error})") from error
    columns = {}
    for name in table.column_names:
        try:
            columns[name] = _as_strings(table[name])
        except pa.ArrowException:
            log.warning("%s: column %s is left out (%s)", path, name, table[name].type)
    return pa.table(columns)


def _as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
        if pc.all(pc.equal(column, pc.round(column))).as_py():
            column = column.cast(pa.int64())  # pandas makes floats of whole numbers with gaps
    texts = column.cast(pa.string())
    return pc.if_else(pc.equal(texts, ""), None, texts)
