"""Your own vectors and labels, as arrays or files → Embeddings. Knows no model.

Reads NumPy arrays, torch tensors and anything else that supports DLPack, .npy, .npz, .safetensors
and Parquet files, and embeddings folders. Never loads a pickle.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vizsla.data.listing import few
from vizsla.data.names import match_names, nfc
from vizsla.data.table_files import (
    NAME_COLUMNS,
    TABLES,
    as_text,
    name_column,
    read_rows,
    read_text,
    typed_column,
)
from vizsla.embed.embeddings import Embeddings, is_embeddings
from vizsla.errors import DataError

log = logging.getLogger("vizsla.tables")

VECTOR_NAMES = ("vector", "vectors", "embedding", "embeddings", "features")
ID_NAMES = (*NAME_COLUMNS, "ids")
LABEL_NAMES = ("label", "labels")
OWN = "own"  # the model_id of vectors whose model is unknown


def own_embeddings(vectors: Any, labels: Any = None, *, role: str = "query") -> Embeddings:
    """Embeddings of `vectors` (N, D), with normalised rows and `labels` as the attribute `label`.

    vectors: an array, a tensor, nested lists, a file or an embeddings folder. labels: N of them
    (array, list), or a file: .npy, a table with a column `label`, or text with one label a line;
    None: those in the vectors' file or folder. A table whose rows name images is matched by name,
    unless the vectors have no names: then row by row, and its names become the ids. Without any
    names, ids are the row numbers from 0. role: for messages. DataError: they cannot be read, or
    do not fit together.
    """
    if isinstance(vectors, Embeddings):
        found: Embeddings | _Raw = vectors
    else:
        found = _read(Path(vectors), role) if isinstance(vectors, str | Path) else _Raw(vectors)
    made = found if isinstance(found, Embeddings) else _embeddings(found, role)
    if labels is None:
        return made
    named = isinstance(found, Embeddings) or found.ids is not None
    return _labelled(made, _read_labels(labels, role), role, named=named)


@dataclasses.dataclass(frozen=True)
class _Raw:
    """The content of a file of vectors, before any check."""

    vectors: Any
    ids: Sequence[Any] | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_id: str = OWN


@dataclasses.dataclass(frozen=True)
class _Labels:
    """columns: `label` and any others. names: the image of each row, if the file has a column
    that names it; origin: the file and that column."""

    columns: Mapping[str, Any]
    names: list[str] | None = None
    origin: str = "the labels"


def _embeddings(raw: _Raw, role: str) -> Embeddings:
    array = _matrix(raw.vectors, role)
    ids = [str(i) for i in (range(len(array)) if raw.ids is None else raw.ids)]
    if len(ids) != len(array):
        raise DataError(f"{len(ids)} ids for {len(array)} {role} vectors: expected one each")
    for name, values in raw.columns.items():
        if len(values) != len(array):
            raise DataError(f"{len(values)} {name}s for {len(array)} {role} vectors")
    unit = array / np.linalg.norm(array, axis=1, keepdims=True)
    columns = {name: _column(values) for name, values in raw.columns.items()}
    return Embeddings(ids, unit.astype(np.float32), pa.table(columns), raw.model_id)


def _column(values: Any) -> pa.Array | pa.ChunkedArray:
    """Arrow's own as they are, others as labels."""
    own = isinstance(values, pa.Array | pa.ChunkedArray)
    return values if own else pa.array(_texts(values), pa.string())


def _labelled(found: Embeddings, given: _Labels, role: str, *, named: bool) -> Embeddings:
    """The embeddings with these columns: by name if both name their images, else row by row."""
    columns = pa.table({name: _column(values) for name, values in given.columns.items()})
    ids, names = found.ids, given.names
    numbers = [str(i) for i in range(len(found))]  # of a folder that was made of unnamed vectors
    if named and names is not None and (ids != numbers or {*names} == {*ids}):
        columns = columns.take(pa.array(_rows_by_name(ids, given, columns, role), pa.int64()))
    elif len(columns) != len(found):
        raise DataError(
            f"{len(columns)} labels for {len(found)} {role} vectors: expected one each, in the "
            "same order"
        )
    elif names is not None and len({*names}) == len(found):
        if names != numbers and {*names} == {*numbers}:
            log.warning(
                "%s holds the row numbers in another order, but the %s vectors have no names: "
                "labels are taken row by row", given.origin, role
            )  # fmt: skip
        ids = names
    table = found.attributes
    kept = {n: table[n] for n in table.column_names if n not in columns.column_names}
    added = {name: columns[name] for name in columns.column_names}
    return dataclasses.replace(found, ids=ids, attributes=pa.table({**kept, **added}))


def _rows_by_name(ids: list[str], given: _Labels, columns: pa.Table, role: str) -> list[int | None]:
    """The row of each id; DataError if no row names one, or two with different labels do."""
    assert given.names is not None
    labels = columns["label"].to_pylist()
    row_of: dict[str | None, int] = {}
    found = match_names(given.names, ids, roles=[role] * len(given.names), origin=given.origin)
    for i, name in enumerate(found):
        if name is not None and labels[row_of.setdefault(name, i)] != labels[i]:
            raise DataError(f"{given.origin} gives {role} image {name} two labels: keep one")
    if not row_of.keys() - {None}:
        raise DataError(
            f"{given.origin} names none of the {len(ids)} {role} images ({ids[0]}, …), "
            f"but {few(given.names, 1) or 'nothing'}, …: give the labels of these vectors"
        )
    return [row_of.get(name) for name in ids]


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────


def _matrix(vectors: Any, role: str) -> np.ndarray:
    """(N, D) float64 in which every row has a direction; DataError says which has none."""
    try:
        array = _as_numpy(vectors)
    except (ValueError, TypeError, BufferError, RuntimeError) as error:
        raise DataError(f"the {role} vectors cannot be read as numbers ({error})") from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number) or array.size == 0:
        raise DataError(
            f"the {role} vectors have shape {array.shape} and type {array.dtype}: "
            "expected numbers of shape (N, D), a row for each image"
        )
    if np.iscomplexobj(array):
        raise DataError(f"the {role} vectors are complex numbers: expected real ones")
    array = array.astype(np.float64)
    _refuse_rows(~np.isfinite(array).all(axis=1), role, "hold NaN or infinity")
    _refuse_rows((array == 0).all(axis=1), role, "are all zeros, so they have no direction")
    largest = abs(array).max(axis=1, keepdims=True)
    return array / largest  # its squares neither overflow nor vanish


def _as_numpy(vectors: Any) -> np.ndarray:
    if hasattr(vectors, "detach"):  # a torch tensor: NumPy has no bfloat16, and no gradients
        vectors = vectors.detach().cpu()
        vectors = vectors.float() if "bfloat16" in str(vectors.dtype) else vectors
    if hasattr(vectors, "__dlpack__") and not isinstance(vectors, np.ndarray):
        return np.from_dlpack(vectors)
    return np.asarray(vectors)


def _refuse_rows(bad: np.ndarray, role: str, what: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        shown = ", ".join(map(str, rows[:3])) + (", …" if len(rows) > 3 else "")
        raise DataError(
            f"{len(rows)} of {len(bad)} {role} vectors {what} (rows {shown}, counted from 0): "
            "remove them, or find out where they come from"
        )


def _read(path: Path, role: str) -> "Embeddings | _Raw":
    if path.is_dir():
        if not is_embeddings(path):
            raise DataError(f"{path} is a folder without embeddings (see `vizsla embed`)")
        return Embeddings.open(path)
    if not path.is_file():
        raise DataError(f"there is no file {path} with the {role} vectors")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: vectors are read from {', '.join(READERS)} and embeddings folders"
        )
    return reader(path)


def _read_npy(path: Path) -> _Raw:
    return _Raw(_loaded(path))


def _read_npz(path: Path) -> _Raw:
    with _loaded(path) as archive:
        try:
            arrays = {name: archive[name] for name in archive.files}
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} cannot be read ({error})") from error
    return _named(arrays, path)


def _read_safetensors(path: Path) -> _Raw:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return _named(load(path.read_bytes()), path)
    except (SafetensorError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as safetensors ({type(error).__name__}: {error}): "
            "store the vectors as float32 or float16"
        ) from error


def _named(arrays: Mapping[str, np.ndarray], path: Path) -> _Raw:
    """The vectors, by name or as the only matrix, and the ids and labels, by their usual names."""
    matrices = [name for name, array in arrays.items() if array.ndim == 2]
    name = _pick(arrays, VECTOR_NAMES) or (matrices[0] if len(matrices) == 1 else None)
    if name is None:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: expected one array (N, D), or one "
            f"called {', '.join(VECTOR_NAMES)}"
        )
    ids, labels = _pick(arrays, ID_NAMES), _pick(arrays, LABEL_NAMES)
    columns = {"label": arrays[labels].tolist()} if labels else {}
    return _Raw(arrays[name], arrays[ids].tolist() if ids else None, columns)


def _read_parquet(path: Path) -> _Raw:
    """The column of lists as vectors; the others as ids, labels and attributes."""
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as a Parquet file ({error})") from error
    lists = [field.name for field in table.schema if _is_list(field.type)]
    name = _pick(lists, VECTOR_NAMES) or (lists[0] if len(lists) == 1 else None)
    if name is None:
        raise DataError(
            f"{path} has the columns {', '.join(table.column_names)}: expected one of lists of "
            f"numbers, such as {VECTOR_NAMES[0]}"
        )
    column = table[name].combine_chunks()
    lengths = {*pc.fill_null(pc.list_value_length(column), 0).to_pylist()}
    if len(lengths) > 1:
        raise DataError(
            f"{path}: the rows of {name} have from {min(lengths)} to {max(lengths)} numbers: "
            "expected the same for all"
        )
    flat = column.flatten().to_numpy(zero_copy_only=False)
    ids, label = _pick(table.column_names, ID_NAMES), _pick(table.column_names, LABEL_NAMES)
    others = [n for n in table.column_names if n not in (ids, label, "id", *lists)]
    columns: dict[str, Any] = {n: typed_column(n, as_text(table[n])) for n in others}
    if label:
        columns["label"] = table[label].to_pylist()
    vectors = flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0)
    return _Raw(vectors, table[ids].to_pylist() if ids else None, columns)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


READERS: dict[str, Callable[[Path], _Raw]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}


def _loaded(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): expected what numpy.save or numpy.savez writes, "
            "without objects in it"
        ) from error


def _pick(there: Any, wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in there), None)


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


def _read_labels(labels: Any, role: str) -> _Labels:
    if isinstance(labels, str | Path):
        return _labels_in(Path(labels), role)
    return _Labels({"label": _flat(labels, f"the {role} labels")})


def _labels_in(path: Path, role: str) -> _Labels:
    if not path.is_file():
        raise DataError(f"there is no file {path} with the {role} labels")
    if path.suffix.lower() == ".npy":
        return _Labels({"label": _flat(_loaded(path), str(path))})
    if path.suffix.lower() not in TABLES:
        lines = read_text(path).removesuffix("\n").split("\n")
        return _Labels({"label": [line.strip() for line in lines]})
    table = read_rows(path)
    names = table.column_names
    label = _pick(names, LABEL_NAMES)
    if label is None:
        raise DataError(
            f"{path} has the columns {', '.join(names)}: expected one called label "
            "(in a CSV, the first line names the columns; in a .txt there is one label a line)"
        )
    if "role" in names and role in table["role"].to_pylist():
        table = table.filter(pc.equal(table["role"], role))
    key = name_column(names)
    others = [n for n in names if n not in (label, key, "role", "vector", "id")]
    columns = {"label": as_text(table[label]), **{n: table[n] for n in others}}
    if key is None:
        return _Labels(columns)
    return _Labels(columns, table[key].to_pylist(), f"{path} (column {key})")


def _flat(labels: Any, what: str) -> list[Any]:
    """N values from an array, a tensor or a list."""
    array = labels if isinstance(labels, list | tuple) else _as_numpy(labels)
    if isinstance(array, np.ndarray):
        if array.ndim == 2 and 1 in array.shape:
            array = array.ravel()
        if array.ndim != 1:
            raise DataError(f"{what} have shape {array.shape}: expected (N,), one for each vector")
        return list(array.tolist())
    return list(array)


def _texts(values: Sequence[Any]) -> list[str | None]:
    """Labels as text: 3 and 3.0 are the same; None for None, NaN and empty text."""

    def text(value: Any) -> str | None:
        if value is None or value == "" or value != value:
            return None
        if isinstance(value, bytes):
            return nfc(value.decode(errors="replace"))
        whole = isinstance(value, float) and value.is_integer()
        return str(int(value)) if whole else nfc(str(value))

    return [text(value) for value in values]
