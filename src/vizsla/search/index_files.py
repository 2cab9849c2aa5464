"""The folder of an index: vectors, ids, attributes, removed rows, and the manifest that names them.

`vectors.npy` only grows: an addition is written after its last row, and becomes part of the index
when the manifest names it. Each addition is one shard: rows of `vectors.npy`, with their SHA-256,
and a Parquet file of ids and attributes. Small shards are merged, so that there are few. Removed
rows stay on disk until `rewrite`. The manifest is replaced as the last step of every change, so
that a crash leaves a file either whole or not named by the manifest. Knows nothing of searching.
"""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vizsla import storage
from vizsla.data.tiles import Tiles
from vizsla.embed import shards, vector_source
from vizsla.embed.embeddings import Embeddings, Part, about_tiles, parts_of, tiles_in
from vizsla.embed.local_features import LOCAL
from vizsla.embed.shards import MANIFEST, STORES
from vizsla.errors import DataError, StorageError

FORM = "index/2"
HEADER = 128  # bytes before the first row of vectors.npy
STILL_VALID = ("structure", "sample")  # files that an addition or removal does not make invalid
EMPTY: dict[str, Any] = {
    "shards": [], "removed": None, "structure": None, "sample": None, "extras": {},
}  # fmt: skip
COPY_ROWS = 8192  # rows written or hashed at a time
OUR_FILES = re.compile(
    r"(vectors|items|removed|structure|sample|extra)[\w.-]*|\..*\.tmp|\.lock|local|"
    r"(manifest|source)\.json"
)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One committed state of an index folder; a change gives a new one and leaves this readable.

    Of all N rows, the removed ones among them: vectors (N·T, D), memory-mapped, fp32 or fp16, those
    of the T tiles of an image together; row_ids and row_attributes. Of the G images that are not
    removed, by gallery position: ids, attributes.
    """

    folder: Path
    manifest: dict[str, Any]
    vectors: np.ndarray
    row_ids: list[str]
    row_attributes: pa.Table
    removed: np.ndarray  # rows, rising

    def __len__(self) -> int:
        """G, the number of images that are not removed."""
        return len(self.row_ids) - len(self.removed)

    @cached_property
    def tiles(self) -> Tiles | None:
        """The tiles of each image; None if it has one vector."""
        return tiles_in(self.manifest)

    @cached_property
    def vectors_each(self) -> int:
        """T, the vectors of an image."""
        return _vectors_each(self.manifest)

    @cached_property
    def vector_rows(self) -> np.ndarray:
        """(G·T,) the rows of `vectors` that belong to images that are not removed."""
        return self.vector_rows_of(self.rows)

    def vector_rows_of(self, rows: np.ndarray) -> np.ndarray:
        """The rows of `vectors` of the images in these rows, (n·T,)."""
        T = self.vectors_each
        return rows if T == 1 else (rows[:, None] * T + np.arange(T)).reshape(-1)

    @cached_property
    def alive_vectors(self) -> np.ndarray:
        """(N·T,) bool: the rows of `vectors` that are not removed."""
        return np.repeat(self.alive, self.vectors_each)

    @cached_property
    def alive(self) -> np.ndarray:
        """(N,) bool: the rows that are not removed."""
        alive = np.ones(len(self.row_ids), bool)
        alive[self.removed] = False
        return alive

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of every id that is not removed."""
        alive = self.alive
        return {name: row for row, name in enumerate(self.row_ids) if alive[row]}

    @cached_property
    def rows(self) -> np.ndarray:
        """(G,) the row of every gallery position."""
        return np.flatnonzero(self.alive)

    @cached_property
    def position_of(self) -> np.ndarray:
        """(N + 1,) the gallery position of every row; -1 for the removed, and for row -1."""
        positions = np.full(len(self.row_ids) + 1, -1)
        positions[self.rows] = np.arange(len(self.rows))
        return positions

    @cached_property
    def ids(self) -> list[str]:
        """G ids."""
        if not len(self.removed):
            return self.row_ids
        return [self.row_ids[row] for row in self.rows]

    @cached_property
    def attributes(self) -> pa.Table:
        """G rows."""
        return self.row_attributes.take(self.rows) if len(self.removed) else self.row_attributes


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def is_index(folder: str | Path) -> bool:
    """Whether the folder holds an index."""
    return shards.has_manifest(folder, FORM)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of an index. StorageError: damaged; DataError: no index."""
    return shards.read_manifest(folder, FORM, what="index", command="vizsla index")


def version_of(manifest: dict[str, Any]) -> str:
    """Twelve hex digits that change whenever the index does."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]


def read(folder: str | Path, *, verify: bool = False) -> Snapshot:
    """Opens a folder. StorageError: it is damaged; `verify` hashes large files again, too."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        return _open(folder, manifest, verify)
    except StorageError:
        if read_manifest(folder) == manifest:
            raise
        return _open(folder, read_manifest(folder), verify)  # another process changed it meanwhile


def _open(folder: Path, manifest: dict[str, Any], verify: bool) -> Snapshot:
    verify_vectors(folder, manifest, force=verify)
    for name, sha256 in files_of(manifest).items():
        storage.verify(folder / name, sha256, force=verify)
    table = shards.concatenated([shards.read_shard(folder, e) for e in manifest["shards"]])
    removed = np.empty(0, np.int64)
    if manifest["removed"]:
        removed = shards.read_shard(folder, manifest["removed"])["row"].to_numpy()
    vectors = _mapped(folder / manifest["vectors"], _rows(manifest), manifest)
    ids = table["id"].to_pylist()
    return Snapshot(folder, manifest, vectors, ids, table.drop_columns(["id"]), removed)


def _mapped(path: Path, rows: int, manifest: dict[str, Any]) -> np.ndarray:
    """(rows, D) memory-mapped, copy-on-write so that torch can wrap it without copying it."""
    shape = (rows * _vectors_each(manifest), manifest["dim"])
    if rows == 0:
        return np.empty(shape, STORES[manifest["store"]])
    return np.memmap(path, STORES[manifest["store"]], "c", offset=HEADER, shape=shape)


def files_of(manifest: dict[str, Any]) -> dict[str, str]:
    """{file: SHA-256} of all files that the manifest names, except `vectors.npy`."""
    others = [manifest[key] for key in ("removed", *STILL_VALID)] + [*manifest["extras"].values()]
    return {entry["file"]: entry["sha256"] for entry in [*manifest["shards"], *others] if entry}


def verify_vectors(folder: Path, manifest: dict[str, Any], *, force: bool = False) -> None:
    """StorageError unless the header and the rows of every shard are as the manifest says.

    A success is remembered for each (size, mtime, inode), as storage.verify does for whole files.
    """
    path = folder / manifest["vectors"]
    try:
        with path.open("rb") as file:
            memo = _memo(path, file, manifest)
            if memo and memo.exists() and not force:
                return
            # an addition interrupted after its manifest was written leaves the header before it
            headers = {_header(n, manifest) for n in (_rows(manifest), manifest["header_rows"])}
            if file.read(HEADER) not in headers:
                raise StorageError(f"{path} is damaged: its header is not as the manifest says")
            for shard in manifest["shards"]:
                found = _hash_rows(file, shard["rows"] * _row_bytes(manifest))
                if found != shard["vectors_sha256"]:
                    raise StorageError(
                        f"{path} is damaged: the SHA-256 of its rows is {found[:12]}…, expected "
                        f"{shard['vectors_sha256'][:12]}…. Restore it from a copy, or build the "
                        "index again"
                    )
    except OSError as error:
        raise storage.storage_error("read", path, error) from error
    _remember(memo)


def _memo(path: Path, file: io.BufferedReader, manifest: dict[str, Any]) -> Path | None:
    state = os.fstat(file.fileno())
    if state.st_size < storage.MEMO_FROM_BYTES:
        return None
    parts = "".join(shard["vectors_sha256"] for shard in manifest["shards"])
    return storage.memo_path(path, state, parts)


def _remember(memo: Path | None) -> None:
    if memo:
        with contextlib.suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            memo.touch()


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def create(
    folder: Path, embeddings: Embeddings | str | Path, about: dict[str, Any], store: str
) -> Snapshot:
    """Writes a new index into `folder`; an existing one stays intact until the new one is complete.

    about: keys of the manifest. DataError: unknown store, or the folder holds other things.
    """
    if store not in STORES:
        raise DataError(f"store={store!r}: choose {' or '.join(STORES)}")
    check_place(folder)
    source = parts_of(embeddings)
    number = read_manifest(folder)["next"] if is_index(folder) else 0
    manifest: dict[str, Any] = {
        "form": FORM, **about, "model_id": source.model_id, "dim": source.dim, "store": store,
        **about_tiles(source.tiles),
        "vectors": f"vectors-{number:05d}.npy" if number else "vectors.npy",
        "next": number + 1, **EMPTY,
    }  # fmt: skip
    return _write_all(folder, manifest, source.parts)


def check_place(folder: Path) -> None:
    """DataError if the folder holds other files than those of an index."""
    foreign = (
        [p.name for p in folder.iterdir() if not OUR_FILES.fullmatch(p.name)]
        if folder.is_dir()
        else []
    )
    if foreign or ((folder / MANIFEST).exists() and not is_index(folder)):
        raise DataError(
            f"{folder} holds other things than an index ({(foreign or [MANIFEST])[0]}): choose "
            "another folder"
        )


def _write_all(folder: Path, manifest: dict[str, Any], parts: Iterator[Part]) -> Snapshot:
    """Writes all parts as the only shard of a new `vectors.npy`."""
    tables, rows, digest = [], 0, hashlib.sha256()
    seen: set[str] = set()
    with storage.writing(folder / manifest["vectors"]) as temporary, temporary.open("wb") as file:
        file.write(_header(0, manifest))
        for ids, vectors, attributes in parts:
            check_new(ids, vectors, seen)
            seen.update(ids)
            tables.append(shards.shard_table(ids, attributes))
            _write_rows(file, vectors, manifest, digest)
            rows += len(ids)
        file.seek(0)
        file.write(_header(rows, manifest))
        file.flush()
    table = shards.concatenated(tables or [shards.shard_table([], pa.table({}))])
    manifest = _with_shard(folder, {**manifest, "header_rows": rows}, table, digest.hexdigest())
    _remember_verified(folder, manifest)
    commit(folder, manifest)
    return read(folder)


def append(snapshot: Snapshot, added: Embeddings) -> Snapshot:
    """The index with `added` after its last row. DataError: an id exists, or types do not fit."""
    folder, manifest = snapshot.folder, snapshot.manifest
    check_new(added.ids, added.all_vectors, snapshot.row_of)
    table = shards.shard_table(added.ids, added.attributes)
    before = shards.shard_table(
        pa.nulls(len(snapshot.row_ids), pa.string()), snapshot.row_attributes
    )
    attributes = shards.concatenated([before, table])  # fails before anything is written
    verify_vectors(folder, manifest)  # costs nothing unless the file was touched
    path, rows_before = folder / manifest["vectors"], _rows(manifest)
    start = HEADER + rows_before * _row_bytes(manifest)
    digest = hashlib.sha256()
    try:
        with path.open("r+b") as file:
            file.truncate(start)  # removes what an interrupted addition has left
            file.seek(start)
            _write_rows(file, added.all_vectors, manifest, digest)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise storage.storage_error("write", path, error) from error
    manifest = _merged(folder, _with_shard(folder, manifest, table, digest.hexdigest()))
    manifest = {**manifest, "header_rows": rows_before, "extras": {}}
    commit(folder, manifest)
    with path.open("r+b") as file:
        file.write(_header(_rows(manifest), manifest))
    _remember_verified(folder, manifest)
    grown = Snapshot(
        folder, manifest, _mapped(path, _rows(manifest), manifest), [*snapshot.row_ids, *added.ids],
        attributes.drop_columns(["id"]), snapshot.removed,
    )  # fmt: skip
    new_rows = zip(added.ids, range(rows_before, _rows(manifest)), strict=True)
    row_of = {**snapshot.row_of, **dict(new_rows)}
    grown.__dict__["row_of"] = row_of  # fills the cached property: computing it takes longer
    return grown


def _with_shard(
    folder: Path, manifest: dict[str, Any], table: pa.Table, vectors_sha256: str
) -> dict[str, Any]:
    """The manifest with one more shard, whose Parquet file is written here."""
    name, manifest = _numbered(manifest, "items-{:05d}.parquet")
    entry = {**shards.write_shard(folder, name, table), "vectors_sha256": vectors_sha256}
    return {**manifest, "shards": [*manifest["shards"], entry]}


def _merged(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Merges the last shard into the one before while it has at least half its size, so that there
    are about log N shards."""
    path, width = folder / manifest["vectors"], _row_bytes(manifest)
    while len(manifest["shards"]) > 1:
        *first, last_but_one, last = manifest["shards"]
        if 2 * last["rows"] < last_but_one["rows"]:
            break
        pair = [last_but_one, last]
        table = shards.concatenated([shards.read_shard(folder, entry) for entry in pair])
        start = HEADER + sum(entry["rows"] for entry in first) * width
        with path.open("rb") as file:
            file.seek(start)
            for entry in pair:  # or damage since the last check would be hashed too
                if _hash_rows(file, entry["rows"] * width) != entry["vectors_sha256"]:
                    raise StorageError(f"{path} is damaged")
            file.seek(start)
            digest = _hash_rows(file, len(table) * width)
        manifest = _with_shard(folder, {**manifest, "shards": first}, table, digest)
    return manifest


def remove(snapshot: Snapshot, rows: np.ndarray) -> Snapshot:
    """The index without these rows; they stay on disk until `rewrite`."""
    removed = np.union1d(snapshot.removed, rows).astype(np.int64)
    name, manifest = _numbered(snapshot.manifest, "removed-{:05d}.parquet")
    entry = shards.write_shard(snapshot.folder, name, pa.table({"row": removed}))
    commit(snapshot.folder, {**manifest, "removed": entry, "extras": {}})
    return read(snapshot.folder)


def rewrite(snapshot: Snapshot) -> Snapshot:
    """Rewrites the folder without the removed rows and without a structure."""
    manifest = {
        **snapshot.manifest, **EMPTY, "vectors": f"vectors-{snapshot.manifest['next']:05d}.npy",
        "next": snapshot.manifest["next"] + 1,
    }  # fmt: skip
    return _write_all(snapshot.folder, manifest, _remaining(snapshot))


def _remaining(snapshot: Snapshot) -> Iterator[Part]:
    """The rows that are not removed, 65,536 at a time."""
    for start in range(0, max(1, len(snapshot)), 65_536):
        part = slice(start, start + 65_536)
        vectors = snapshot.vectors[snapshot.vector_rows_of(snapshot.rows[part])]
        yield snapshot.ids[part], vectors, snapshot.attributes.slice(start, 65_536)


def keep(
    snapshot: Snapshot, key: str, suffix: str, write: Callable[[Path], None], about: dict[str, Any]
) -> Snapshot:
    """The index with a file made by `write`: one of STILL_VALID, or an extra of that name."""
    stem = key if key in STILL_VALID else f"extra-{key}"
    name, manifest = _numbered(snapshot.manifest, stem + "-{:05d}" + suffix)
    with storage.writing(snapshot.folder / name) as temporary:
        write(temporary)
        sha256 = storage.sha256_of(temporary)
    entry = {"file": name, "sha256": sha256, **about}
    if key in STILL_VALID:
        manifest = {**manifest, key: entry}
    else:
        manifest = {**manifest, "extras": {**manifest["extras"], key: entry}}
    return note(snapshot, manifest)


def note(snapshot: Snapshot, manifest: dict[str, Any]) -> Snapshot:
    """The same rows with another manifest, which is written."""
    commit(snapshot.folder, manifest)
    return replace(snapshot, manifest=manifest)


def commit(folder: Path, manifest: dict[str, Any]) -> None:
    """Replaces the manifest, then deletes files that it no longer names."""
    shards.write_manifest(folder, manifest)
    named = {*files_of(manifest), manifest["vectors"], MANIFEST, vector_source.FILE, ".lock", LOCAL}
    for path in folder.iterdir():
        if path.name not in named and OUR_FILES.fullmatch(path.name):
            with contextlib.suppress(OSError):  # still open elsewhere, on Windows
                path.unlink()


@contextlib.contextmanager
def changing(snapshot: Snapshot) -> Iterator[None]:
    """Locks the folder. StorageError: another process has locked it, or has changed it."""
    with storage.locked(snapshot.folder):
        if read_manifest(snapshot.folder) != snapshot.manifest:
            raise StorageError(f"another process has changed {snapshot.folder}: open it again")
        yield


def require_same_tiles(added: Tiles | None, known: Tiles | None) -> None:
    """DataError unless new images have vectors of the same tiles as those of the index."""
    if added != known:
        raise DataError(
            f"the new images have vectors of {added or 'whole images only'}, those in the index of "
            f"{known or 'whole images only'}: embed the new ones with the same --tiles"
        )


def check_new(ids: Sequence[str], vectors: np.ndarray, present: Any) -> None:
    """DataError unless the ids are new and their vectors (n·T, D) have length 1."""
    seen: set[str] = set()
    for name in ids:
        if name in present or name in seen:
            raise DataError(
                f"the index holds {name!r} already: an id stands for one image; remove it first, "
                "or leave it out (`vizsla index add --skip-known`)"
            )
        seen.add(name)
    for start in range(0, len(vectors), COPY_ROWS):
        norms = np.linalg.norm(vectors[start : start + COPY_ROWS].astype(np.float32), axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) < 0.01))
        if len(wrong):
            name = ids[(start + wrong[0]) // (len(vectors) // len(ids))]
            raise DataError(
                f"the vector of {name!r} has length {norms[wrong[0]]:.3g}, "
                "expected 1: Embeddings.from_arrays makes unit vectors"
            )


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────


def _rows(manifest: dict[str, Any]) -> int:
    return sum(entry["rows"] for entry in manifest["shards"])


def _vectors_each(manifest: dict[str, Any]) -> int:
    return len(tiles_in(manifest) or [0])


def _row_bytes(manifest: dict[str, Any]) -> int:
    """Of all vectors of an image."""
    of_one = int(manifest["dim"]) * STORES[manifest["store"]].itemsize
    return _vectors_each(manifest) * of_one


def _header(rows: int, manifest: dict[str, Any]) -> bytes:
    """The header of a .npy file, of HEADER bytes for any number of rows."""
    sink = io.BytesIO()
    about = {"descr": STORES[manifest["store"]].str, "fortran_order": False,
             "shape": (rows * _vectors_each(manifest), manifest["dim"])}  # fmt: skip
    np.lib.format.write_array_header_1_0(sink, about)
    header = sink.getvalue()
    if len(header) != HEADER:
        raise StorageError(f"NumPy {np.__version__} writes headers of {len(header)} bytes")
    return header


def _write_rows(file: Any, vectors: np.ndarray, manifest: dict[str, Any], digest: Any) -> None:
    for start in range(0, len(vectors), COPY_ROWS):
        rows = vectors[start : start + COPY_ROWS].astype(STORES[manifest["store"]])
        data = np.ascontiguousarray(rows).tobytes()
        file.write(data)
        digest.update(data)


def _hash_rows(file: io.BufferedReader, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (data := file.read(min(size, 2**22))):
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


def _remember_verified(folder: Path, manifest: dict[str, Any]) -> None:
    """Remembers rows as verified that were hashed while they were written."""
    path = folder / manifest["vectors"]
    with path.open("rb") as file:
        _remember(_memo(path, file, manifest))


def _numbered(manifest: dict[str, Any], form: str) -> tuple[str, dict[str, Any]]:
    """A file name that was never used in this index, and the manifest with the next number."""
    return form.format(manifest["next"]), {**manifest, "next": manifest["next"] + 1}
