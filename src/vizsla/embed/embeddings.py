"""Embeddings: ids, unit vectors and attributes, and their folder of Parquet shards.

Knows nothing of images. The folder's sealed manifest names every shard with its SHA-256; while
`complete` is false, an interrupted `embed` goes on behind the last shard that it names.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vizsla import storage
from vizsla.errors import DataError, StorageError

MANIFEST = "manifest.json"
FORM = "embeddings/1"
STORES = {"fp32": pa.float32(), "fp16": pa.float16()}


@dataclass(frozen=True, eq=False)
class Embeddings:
    """ids: N. vectors: (N, D) float32, rows of length 1. attributes: N rows (label, group, …).

    model_id says what may be compared, compute_id what is bit-equal (None: unknown).
    broken: (id, reason) of the images that gave no vector and are not among the ids.
    """

    ids: list[str]
    vectors: np.ndarray
    attributes: pa.Table
    model_id: str
    compute_id: str | None = None
    broken: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.ids):
            raise DataError(
                f"vectors have shape {self.vectors.shape}, expected ({len(self.ids)}, D)"
            )
        if self.attributes.num_columns and self.attributes.num_rows != len(self.ids):
            raise DataError(
                f"the attributes have {self.attributes.num_rows} rows, the ids {len(self.ids)}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def labels(self) -> list[str | None] | None:
        if "label" not in self.attributes.column_names:
            return None
        labels: list[str | None] = self.attributes["label"].to_pylist()
        return labels

    @staticmethod
    def from_arrays(
        vectors: Any,
        ids: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        *,
        model_id: str = "own",
    ) -> "Embeddings":
        """From anything that NumPy reads (torch through DLPack too); rows are normalised."""
        array = _as_matrix(vectors)
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or (norms == 0).any():
            bad = int(np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))[0])
            raise DataError(
                f"row {bad} of the vectors is zero or not finite, so it has no direction: "
                "remove it, or look for what made it"
            )
        ids = [str(i) for i in range(len(array))] if ids is None else list(ids)
        columns = {} if labels is None else {"label": pa.array(labels, pa.string())}
        return Embeddings(ids, array / norms, pa.table(columns), model_id)

    def save(self, folder: str | Path, *, store: str = "fp32") -> None:
        """One shard and its manifest."""
        about = {"model_id": self.model_id, "compute_id": self.compute_id}
        writer = ShardWriter(Path(folder), lambda: about, self.dim, store=store, total=len(self))
        writer.add(self.ids, self.vectors, self.attributes, self.broken)
        writer.finish()

    @staticmethod
    def open(folder: str | Path) -> "Embeddings":
        """Reads a whole folder; StorageError where it is damaged or unfinished."""
        manifest = read_manifest(folder)
        parts = [shard_table(folder, shard) for shard in manifest["shards"]]
        if not parts:
            raise StorageError(f"{folder} holds no shards: embed again")
        table = pa.concat_tables(parts, promote_options="default")
        vectors = np.concatenate([vectors_of(part) for part in parts])
        return Embeddings(
            table["id"].to_pylist(),
            vectors,
            table.drop_columns(["id", "vector"]),
            manifest["model_id"],
            manifest["compute_id"],
            [tuple(pair) for shard in manifest["shards"] for pair in shard["broken"]],
        )


def is_embeddings(folder: str | Path) -> bool:
    path = Path(folder) / MANIFEST
    return path.is_file() and f'"{FORM}"' in path.read_text(errors="replace")[:200]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no embeddings: it has no {MANIFEST} (see `vizsla embed`)")
    manifest = storage.read_sealed_json(path)
    if manifest.get("form") != FORM:
        raise DataError(f"{folder} holds no embeddings but {manifest.get('form')!r}")
    if not manifest["complete"] and 0 < manifest["total"] == manifest["done"]:
        broken = [pair for shard in manifest["shards"] for pair in shard["broken"]]
        if len(broken) == manifest["done"]:
            raise DataError(
                f"{folder} holds no vectors: none of its {len(broken)} images could be used "
                f"(first: {': '.join(broken[0])})"
            )
    if not manifest["complete"]:
        raise DataError(
            f"{folder} is unfinished ({manifest['done']} of {manifest['total']} images): "
            "run the same `vizsla embed` again, it goes on where it stopped"
        )
    return manifest


def shard_table(folder: str | Path, shard: dict[str, Any]) -> pa.Table:
    return storage.read_table(Path(folder) / shard["file"], shard["sha256"])


def shards(folder: str | Path) -> Iterator[pa.Table]:
    """One table (id, attributes…, vector) a shard, for galleries larger than memory."""
    for shard in read_manifest(folder)["shards"]:
        yield shard_table(folder, shard)


def vectors_of(table: pa.Table) -> np.ndarray:
    """(N, D) float32 unit rows of a shard's `vector` column; float16 ones get length 1 again."""
    column = table["vector"].combine_chunks()
    stored = column.flatten().to_numpy(zero_copy_only=False)
    vectors = stored.astype(np.float32, copy=False).reshape(len(column), column.type.list_size)
    if stored.dtype == np.float16:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


class ShardWriter:
    """Writes shard after shard; after each the manifest names all that is safely on disk.

    about: what the vectors were made from and with; asked once, when it is first needed.
    """

    def __init__(
        self,
        folder: Path,
        about: Callable[[], dict[str, Any]],
        dim: int,
        *,
        store: str = "fp32",
        total: int = 0,
    ) -> None:
        self.folder, self.dim, self.store, self.total = folder, dim, store, total
        self.about = cache(about)
        self.shards: list[dict[str, Any]] = []
        self.early: dict[int, dict[str, Any]] = {}  # by number: written, a shard before is not
        self.done = 0  # images read, broken ones included

    def resume(self) -> int:
        """Takes over what an interrupted run left; how many images are done.

        DataError when the folder holds something else. A damaged shard is made again, and so is
        all behind it.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            return 0
        found = storage.read_sealed_json(path)
        differing = sorted(
            key
            for key, value in {**self._header(), "form": FORM}.items()
            if found.get(key) != value
        )
        if differing:
            raise DataError(
                f"{self.folder} already holds other embeddings (they differ in "
                f"{', '.join(differing)}): choose another folder, or --overwrite"
            )
        for shard in found["shards"]:
            try:
                storage.verify(self.folder / shard["file"], shard["sha256"])
            except StorageError:
                break
            self.shards.append(shard)
            self.done += shard["rows"] + len(shard["broken"])
        return self.done

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        attributes: pa.Table,
        broken: Sequence[tuple[str, str]],
        *,
        number: int | None = None,
    ) -> None:
        """number: the shard's place, when shards come out of turn; None: the next one.

        The manifest names a shard as soon as all before it are on disk.
        """
        number = len(self.shards) if number is None else number
        self.early[number] = self._write_shard(number, ids, vectors, attributes, broken)
        while (entry := self.early.pop(len(self.shards), None)) is not None:
            self.shards.append(entry)
            self.done += entry["rows"] + len(entry["broken"])
            if len(self.shards) not in self.early:
                self._write(complete=False)

    def _write_shard(
        self,
        number: int,
        ids: Sequence[str],
        vectors: np.ndarray,
        attributes: pa.Table,
        broken: Sequence[tuple[str, str]],
    ) -> dict[str, Any]:
        """The manifest's entry for it."""
        kept = {name: attributes[name] for name in attributes.column_names}
        if reserved := {"id", "vector"} & kept.keys():
            raise DataError(f"attributes cannot be called {' or '.join(sorted(reserved))}")
        flat = pa.array(vectors.reshape(-1).astype(STORES[self.store].to_pandas_dtype()))
        table = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                **kept,
                "vector": pa.FixedSizeListArray.from_arrays(flat, self.dim),
            }
        )
        name = f"shard-{number:05d}.parquet"
        sha256 = storage.write_table(self.folder / name, table)
        return {"file": name, "rows": len(ids), "sha256": sha256, "broken": list(map(list, broken))}

    def finish(self) -> None:
        """An artefact without a single vector stays unfinished: nothing could be done with it."""
        self._write(complete=self.total == 0 or any(shard["rows"] for shard in self.shards))

    def _header(self) -> dict[str, Any]:
        return {**self.about(), "dim": self.dim, "store": self.store, "total": self.total}

    def _write(self, *, complete: bool) -> None:
        progress = {"complete": complete, "done": self.done, "shards": self.shards}
        storage.write_sealed_json(
            self.folder / MANIFEST, {"form": FORM, **self._header(), **progress}
        )


def _as_matrix(vectors: Any) -> np.ndarray:
    """(N, D) float32 from an array, a torch tensor or nested lists."""
    array = np.from_dlpack(vectors) if hasattr(vectors, "__dlpack__") else np.asarray(vectors)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise DataError(
            f"vectors have shape {array.shape} and type {array.dtype}, expected numbers (N, D)"
        )
    return array.astype(np.float32)
