"""Parquet shards of images, and the sealed manifest that names them with their SHA-256.

A shard is a table with the column `id`, the attributes and, in embeddings, the column `vector`
and perhaps `tile_vectors`, those of an image's tiles after the first, which is the whole image.
Embeddings and the gallery of an index are both written and read here: every shard whole or not at
all, and never read before its hash was checked. Knows nothing of how vectors are made or searched.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vizsla import storage
from vizsla.data.table_files import as_text
from vizsla.errors import DataError

MANIFEST = "manifest.json"
VECTOR, TILE_VECTORS = "vector", "tile_vectors"
STORES: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}


def has_manifest(folder: str | Path, form: str) -> bool:
    """Whether the folder has a manifest of this form. Its seal is not checked."""
    path = Path(folder) / MANIFEST
    return path.is_file() and f'"{form}"' in path.read_text(errors="replace")[:200]


def read_manifest(folder: str | Path, form: str, *, what: str, command: str) -> dict[str, Any]:
    """The manifest, after its seal was checked. StorageError: damaged; DataError: none, or another.

    what, command: what the folder should hold and what makes it, for the messages.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no {what}: it has no {MANIFEST} (see `{command}`)")
    manifest = storage.read_sealed_json(path)
    if manifest.get("form") != form:
        raise DataError(f"{folder} holds no {what} but {manifest.get('form')!r}")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replaces the manifest in one step. It must hold the key `form`, and holds it first."""
    storage.write_sealed_json(folder / MANIFEST, {"form": manifest["form"], **manifest})


def shard_table(
    ids: Sequence[str] | pa.Array,
    attributes: pa.Table,
    vectors: np.ndarray | None = None,
    store: str = "fp32",
    dim: int | None = None,
) -> pa.Table:
    """The N rows of a shard: `id`, the attributes and, if given, the vectors in `store`.

    vectors: (N, D), or (N, T·D) of T tiles; dim: D. DataError if an attribute is called as one of
    the other columns.
    """
    columns = {name: attributes[name] for name in attributes.column_names}
    if reserved := {"id", VECTOR, TILE_VECTORS} & columns.keys():
        raise DataError(f"attributes cannot be called {' or '.join(sorted(reserved))}")
    table = {"id": ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string()), **columns}
    if vectors is not None:
        stored = vectors.astype(STORES[store])
        table[VECTOR] = list_column(stored[:, :dim])
        if dim is not None and stored.shape[1] > dim:
            table[TILE_VECTORS] = list_column(stored[:, dim:])
    return pa.table(table)


def write_shard(folder: Path, name: str, table: pa.Table) -> dict[str, Any]:
    """Writes the file and returns its entry for the manifest: file, rows and sha256."""
    sha256 = storage.write_table(folder / name, table)
    return {"file": name, "rows": len(table), "sha256": sha256}


def read_shard(folder: str | Path, entry: dict[str, Any]) -> pa.Table:
    """The table of a manifest's entry, memory-mapped. StorageError if its hash is another."""
    return storage.read_table(Path(folder) / entry["file"], entry["sha256"])


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all shards. An attribute that only some of them have is null in the others, and
    one without any value goes with every type.

    Text takes values of every type, and a time takes days. DataError for other types that differ.
    """
    columns: dict[str, list[pa.ChunkedArray]] = {}
    for table in tables:
        for name in table.column_names:
            if table[name].null_count < len(table):
                columns.setdefault(name, []).append(table[name])
    types = {name: _common_type(name, found) for name, found in columns.items()}
    fitting = []
    for table in tables:
        for i, field in enumerate(table.schema):
            kind = types.get(field.name, field.type)
            if kind == field.type:
                continue
            column = table[field.name]
            column = as_text(column) if pa.types.is_string(kind) else column.cast(kind)
            table = table.set_column(i, field.name, column)
        fitting.append(table)
    return pa.concat_tables(fitting, promote_options="permissive")


def _common_type(name: str, columns: Sequence[pa.ChunkedArray]) -> pa.DataType:
    """The type of the first column, or the wider one of numbers or of days and times."""
    first = columns[0].type
    wider = [  # (narrow, wide)
        (pa.types.is_integer, pa.types.is_floating),
        (pa.types.is_date, pa.types.is_timestamp),
    ]
    for column in columns:
        kind = column.type
        if any(narrow(first) and wide(kind) for narrow, wide in wider):
            first = kind
        elif not (
            kind == first
            or pa.types.is_string(first)
            or any(narrow(kind) and wide(first) for narrow, wide in wider)
        ):
            value = column.drop_null()[0].as_py()
            raise DataError(
                f"the attributes do not fit together: {name} is {first} at first and {kind} later, "
                f"such as {value!r}. Give it one type, or embed all images again to have it as text"
            )
    return first


def vectors_of(table: pa.Table) -> np.ndarray:
    """(N, D) float32 unit rows of a shard's `vector` column; float16 ones get length 1 again."""
    return _unit_rows(matrix_of(table[VECTOR]))


def all_vectors_of(table: pa.Table) -> np.ndarray:
    """(N, T, D) float32 unit rows of the tiles of a shard's images; T is 1 without tiles."""
    whole = matrix_of(table[VECTOR])
    if TILE_VECTORS not in table.column_names:
        return _unit_rows(whole)[:, None]
    dim, others = whole.shape[1], matrix_of(table[TILE_VECTORS])
    rows = np.concatenate([whole, others], axis=1).reshape(-1, dim)
    return _unit_rows(rows).reshape(len(table), 1 + others.shape[1] // dim, dim)


def attributes_in(table: pa.Table) -> pa.Table:
    """The columns of a shard that are neither ids nor vectors."""
    others = {"id", VECTOR, TILE_VECTORS} & {*table.column_names}
    return table.drop_columns(sorted(others))


def labels_in(attributes: pa.Table) -> list[str | None] | None:
    """The attribute `label`, N values; None without such an attribute."""
    if "label" not in attributes.column_names:
        return None
    labels: list[str | None] = attributes["label"].to_pylist()
    return labels


def _unit_rows(stored: np.ndarray) -> np.ndarray:
    vectors: np.ndarray = stored.astype(np.float32, copy=False)
    if stored.dtype == np.float16:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def list_column(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix (N, D) as a Parquet column of N lists."""
    numbers = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(numbers, matrix.shape[1])


def matrix_of(column: pa.ChunkedArray) -> np.ndarray:
    """(N, D) from a column that `list_column` made; read-only if Arrow holds the numbers."""
    whole = column.combine_chunks()
    flat: np.ndarray = whole.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(whole), whole.type.list_size)
