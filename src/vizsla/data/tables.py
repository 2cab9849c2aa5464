"""A table that names images → the labels and other columns of ids; lists of names.

Labels are always text: "007" stays "007". Knows names only: nothing here opens a folder.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vizsla.data.listing import few, is_image_name
from vizsla.data.names import match_names, nfc, normalized_name, path_below_role
from vizsla.data.table_files import (
    NAME_COLUMNS,
    has_header,
    lines_of,
    log_once,
    name_column,
    read_rows,
    read_text,
)
from vizsla.errors import DataError, UsageError

log = logging.getLogger("vizsla.tables")

ROLES = ("query", "gallery", "training")
ITEM_COLUMNS = ("group", "product", "product_id", "sku", "item", "item_id", "article", "individual")


def read_table(path: str | Path) -> pa.Table:
    """The columns of `table_files.read_rows`, the one that names the images as `file`.

    That is the first of NAME_COLUMNS that it has. DataError, with the line where there is one, for
    what is not a table or does not name images.
    """
    table = read_rows(path)
    names = table.column_names
    key = name_column(names)
    if not names:
        raise DataError(f"{path} is empty: expected one of {', '.join(NAME_COLUMNS)}, and label")
    if key is None:
        raise DataError(
            f"{path} has the columns {few(names, 8)}: expected one of {', '.join(NAME_COLUMNS)}, "
            "and `label` for the classes (in a CSV, the first line names the columns)"
        )
    without_name = [i for i, name in enumerate(table[key].to_pylist()) if not name]
    if without_name:
        raise DataError(f"{path}: row {without_name[0] + 1} below the header has no {key}")
    if others := [name for name in NAME_COLUMNS if name in names and name != key]:
        log_once(f"{path}: {key} names the images, not {' or '.join(others)}")
    table = table.rename_columns(["file" if name == key else name for name in names])
    return table.replace_schema_metadata({"origin": f"{path} (column {key})"})


def origin_of(table: pa.Table) -> str:
    """What a table was read from, and which of its columns names the images."""
    found = (table.schema.metadata or {}).get(b"origin", b"the table")
    return str(found.decode())


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


def read_labels(path: str | Path) -> pa.Table:
    """Columns file, [label], [role] and any others; empty is null.

    Files are as they are written. Without a role column, paths that all lead through test/query/,
    test/gallery/ or training/ give the role.
    """
    table = read_table(path)
    if "role" in table.column_names:
        roles = [role and role.lower() for role in texts(table, "role")]
        table = table.drop_columns(["role"])
    else:
        found = [_role_in(normalized_name(file)) for file in texts(table, "file")]
        roles = found if all(found) else []
    unknown = sorted({role for role in roles if role and role not in ROLES})
    if unknown:
        log.warning("%s: unknown roles %s (known: %s)", path, few(unknown), ", ".join(ROLES))
    return table.append_column("role", pa.array(roles, pa.string())) if any(roles) else table


def labels_for(ids: Sequence[str], table: pa.Table, role: str | None) -> list[str | None]:
    """The label of each id, None if `table` (see read_labels) has none.

    Rows of another role do not count, rows without a role count for all. role None: all rows.
    DataError if two rows give one image different labels.
    """
    labels: list[str | None] = labelled_rows(ids, table, role)["label"].to_pylist()
    return labels


def labelled_rows(ids: Sequence[str], table: pa.Table, role: str | None) -> pa.Table:
    """N rows of `label` and all other columns but file and role; see `labels_for`."""
    names = table.column_names
    if "label" not in names:
        raise DataError(
            f"{origin_of(table)} has the columns {', '.join(names)}: expected "
            "`label` (rename the column with the class, the product or the individual)"
        )
    columns = [name for name in names if name not in ("file", "role")]
    return attributes_for(ids, table, role, columns=columns)


def attributes_for(
    ids: Sequence[str], table: pa.Table, role: str | None, *, columns: Sequence[str] | None = None
) -> pa.Table:
    """N rows of `columns` (default: all but file, label and role), null if no row has one."""
    if role is not None and "role" in table.column_names:
        table = table.filter(pc.fill_null(pc.equal(table["role"], role), True))
    rows = row_of_each(names_of(table, ids, role), table, origin_of(table))
    if columns is None:
        columns = [name for name in table.column_names if name not in ("file", "label", "role")]
    return take_rows(table.select(columns), [rows.get(i) for i in ids])


def names_of(table: pa.Table, ids: Sequence[str], role: str | None = None) -> list[str | None]:
    """The image of each row: the one of `ids` that it means, see `names.match_names`. role: of rows
    without one."""
    roles = _roles_of(table, role)
    return match_names(texts(table, "file"), ids, roles=roles, origin=origin_of(table))


def names_below_roles(table: pa.Table) -> list[str]:
    """The name of each row if no ids are known: its path, cut to what is below the folder of its
    role if the paths of all rows of that role lead through it."""
    files, roles = [normalized_name(file) for file in texts(table, "file")], _roles_of(table, None)
    cut = [path_below_role(file, role) for file, role in zip(files, roles, strict=True)]
    uncut = {role for role, short in zip(roles, cut, strict=True) if short is None}
    return [
        short if short is not None and role not in uncut else file
        for file, role, short in zip(files, roles, cut, strict=True)
    ]


def _roles_of(table: pa.Table, role: str | None) -> list[str | None]:
    if "role" not in table.column_names:
        return [role] * len(table)
    return [found or role for found in texts(table, "role")]


def labels_from_pattern(ids: Sequence[str], pattern: str = "{label}_{n}") -> list[str | None]:
    """The label in each file name, None if the name does not fit.

    `{label}` is any text and `{n}` digits: with `{label}_{n}`, `big_cat_12.jpg` is a `big_cat`.
    Folders do not count, nor does the extension of an image; another one only if the name does not
    fit with it.
    """
    if pattern.count("{label}") != 1 or re.search(r"\{(?!label\}|n\})", pattern):
        raise UsageError(
            f"pattern {pattern!r}: expected one {{label}} and any number of {{n}}, "
            "such as '{label}_{n}'"
        )
    parts = (re.escape(part) for part in re.split(r"(\{label\}|\{n\})", pattern))
    named = {re.escape("{label}"): "(?P<label>.+)", re.escape("{n}"): "[0-9]+"}
    regex = re.compile("".join(named.get(part, part) for part in parts), re.DOTALL)
    labels: list[str | None] = []
    for name in ids:
        file = name.rpartition("/")[2]
        stem = file.rpartition(".")[0] or file
        found = (None if is_image_name(file) else regex.fullmatch(file)) or regex.fullmatch(stem)
        labels.append(nfc(found["label"]) if found else None)
    return labels


# ── lists ────────────────────────────────────────────────────────────────────────────────────────


def read_names(path: str | Path) -> list[str]:
    """Names, such as `query/a.jpg`: one a line, or a table that names images, with `role` or not.

    A line in double quotes is read as JSON (for names with line breaks). `# ` starts a remark;
    without a space, as in `#1.png`, it is a name.
    """
    text = "" if Path(path).suffix.lower() in (".parquet", ".pq") else read_text(path)
    if text and not has_header(text):
        return [_unquoted(line) for line in lines_of(text) if line.split()[0] != "#"]
    table = read_table(path)
    roles = texts(table, "role") if "role" in table.column_names else [None] * len(table)
    files = texts(table, "file")
    return [f"{role}/{f}" if role else f for role, f in zip(roles, files, strict=True)]


def _unquoted(line: str) -> str:
    try:
        return str(json.loads(line)) if line.startswith('"') else line
    except ValueError:
        return line


def item_column_in(columns: Iterable[str]) -> str | None:
    """The first of ITEM_COLUMNS that there is, in upper or lower case; None if there is none."""
    by_name = {name.lower(): name for name in sorted(columns)}
    return next((by_name[name] for name in ITEM_COLUMNS if name in by_name), None)


def require_columns(show: Iterable[str], known: Sequence[str]) -> None:
    """DataError: a column to show that no image has. known: those that there are."""
    unknown = next((name for name in show if name not in known), None)
    if unknown is not None:
        raise no_column(f"--show {unknown}", known)


def no_column(
    option: str,
    known: Sequence[str],
    of: str = "the images",
    give: str = "give `find`, `index`, `embed` or `serve` one with --table FILE (docs/tables.md)",
) -> DataError:
    """The error for an option with a column that is not `known`. give: what helps if there is no
    table at all."""
    if known:
        return DataError(f"{option}: {of} have the columns {few(known, 20)}")
    return DataError(f"{option}: no table says anything of {of}: {give}")


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def texts(table: pa.Table, name: str) -> list[Any]:
    """The strings of one column, None if it is null."""
    values: list[Any] = table[name].to_pylist()
    return values


def value_text(value: Any, decimal: str = ".10g") -> str:
    """A value of a column as people read it: no long fractions, true and false in small letters.

    decimal: the format of decimal numbers, see `number_format`.
    """
    if isinstance(value, bool):
        return str(value).lower()
    return format(value, decimal) if isinstance(value, float) else str(value)


def number_format(values: Iterable[Any]) -> str:
    """How people read the decimal numbers among the values of a column: with two places if these
    have two at most, as prices do, else with ten digits at most."""
    texts = [f"{value:.10g}" for value in values if isinstance(value, float) and isfinite(value)]
    places = [3 if "e" in text else len(text.partition(".")[2]) for text in texts]
    return ".2f" if max(places, default=0) == 2 else ".10g"


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


def row_of_each(names: Sequence[str | None], table: pa.Table, origin: str) -> dict[str, int]:
    """Name → its first row; DataError if another row of the name has another label."""
    labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(names)
    rows: dict[str, int] = {}
    conflicts, repeated = [], 0
    for row, name in enumerate(names):
        if name is None:
            continue
        first = rows.setdefault(name, row)
        repeated += first != row
        if labels[first] != labels[row]:
            conflicts.append(f"{name}: {labels[first]} and {labels[row]}")
    if conflicts:
        raise DataError(
            f"{origin} gives {len(conflicts)} images more than one label ({few(conflicts)}): "
            "keep one row each, or distinguish query and gallery in a column `role`"
        )
    if repeated:
        log.warning("%s names %d images more than once", origin, repeated)
    return rows


def _role_in(file: str) -> str | None:
    found = re.match(r"(?:.*/)??(?:test/(query|gallery)|(training))/.", file)
    return (found[1] or found[2]) if found else None
