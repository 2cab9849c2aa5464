"""Embeddings: ids, unit vectors and attributes, and their folder of Parquet shards.

Knows nothing of images. The folder's sealed manifest names every shard with its SHA-256; while
`complete` is false, `embed` resumes after the last shard that it names.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vizsla import storage
from vizsla.data.tiles import Tiles
from vizsla.embed import shards
from vizsla.embed.vector_source import VectorSource
from vizsla.errors import DataError, StorageError
from vizsla.notebook import SHOWN, Shown, Summary, counted, data_frame

FORM = "embeddings/1"
Part = tuple[list[str], np.ndarray, pa.Table]  # ids, (n·T, D) float32 unit rows, attributes


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings(Shown):
    """ids: N. vectors: (N, D) float32, rows of length 1. attributes: N rows (label, group, …).

    model_id decides what may be compared, compute_id what is bit-equal (None: unknown).
    broken: (id, reason) of the images that could not be embedded and are not among the ids.
    root: the folder that the ids are below, if it is known. source: what builds the model again.
    tiles, tile_vectors: of images with several vectors, their boxes and (N, T, D); the first tile
    is the whole image, and its vectors are `vectors`. Code that ignores tiles compares those.
    """

    ids: list[str]
    vectors: np.ndarray
    attributes: pa.Table
    model_id: str
    compute_id: str | None = None
    broken: list[tuple[str, str]] = field(default_factory=list)
    root: Path | None = None
    source: VectorSource = field(default_factory=VectorSource)
    tiles: Tiles | None = None
    tile_vectors: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.ids):
            raise DataError(
                f"vectors have shape {self.vectors.shape}, expected ({len(self.ids)}, D)"
            )
        if self.attributes.num_columns and self.attributes.num_rows != len(self.ids):
            raise DataError(
                f"the attributes have {self.attributes.num_rows} rows, the ids {len(self.ids)}"
            )
        if self.tiles is not None or self.tile_vectors is not None:
            self._check_tiles()

    def _check_tiles(self) -> None:
        shape = len(self), len(self.tiles or ()), self.dim
        if self.tile_vectors is None or self.tile_vectors.shape != shape:
            found = None if self.tile_vectors is None else self.tile_vectors.shape
            raise DataError(f"the vectors of tiles {self.tiles} have shape {found}, not {shape}")
        first = self.tile_vectors[:, 0]
        same = np.shares_memory(first[:1], self.vectors[:1]) or np.array_equal(first, self.vectors)
        if not same:
            raise DataError(
                "the vectors of whole images are not those of their first tiles: change `vectors` "
                "and `tile_vectors` together, or drop the tiles with `only_whole`"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, rows: Sequence[int] | np.ndarray) -> "Embeddings":
        """The embeddings of these rows, in this order."""
        rows, table = np.asarray(rows, np.int64), self.attributes
        tile_vectors = None if self.tile_vectors is None else self.tile_vectors[rows]
        return dataclasses.replace(
            self,
            ids=[self.ids[i] for i in rows],
            vectors=self.vectors[rows] if tile_vectors is None else tile_vectors[:, 0],
            attributes=table.take(rows) if table.num_columns else table,
            tile_vectors=tile_vectors,
        )

    def of_images(self, ids: Sequence[str]) -> "Embeddings":
        """The embeddings of those of these images that it has, in this order."""
        row_of = {name: i for i, name in enumerate(self.ids)}
        return self.subset([row_of[name] for name in ids if name in row_of])

    def only_whole(self) -> "Embeddings":
        """The same images without the vectors of their tiles."""
        return dataclasses.replace(self, tiles=None, tile_vectors=None)

    @property
    def all_vectors(self) -> np.ndarray:
        """(N·T, D): the vectors of all tiles, those of one image together."""
        found = self.vectors if self.tile_vectors is None else self.tile_vectors
        return found.reshape(-1, self.dim)

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return int(self.vectors.shape[1])

    @property
    def labels(self) -> list[str | None] | None:
        """The attribute `label`, N values; None without such an attribute."""
        return shards.labels_in(self.attributes)

    def summary(self) -> Summary:
        """Their number, dimension and model; the first ids with their attributes."""
        facts = [f"{len(self):,} × {self.dim}", f"model {self.model_id}"]
        facts += [f"{len(self.tiles or ())} tiles each: {self.tiles}"] * (self.tiles is not None)
        facts += [f"{len(self.broken):,} broken images left out"] * bool(self.broken)
        first = self.attributes.slice(0, SHOWN).to_pydict()
        rows = list(zip(self.ids[:SHOWN], *first.values(), strict=True))
        more = len(self) - SHOWN
        notes = [f"… and {counted(more, 'more image')}"] * (more > 0)
        return Summary("Embeddings", facts, ["id", *first], rows, notes=notes)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each image: id, the attributes, and the vector (D,)."""
        table = self.attributes
        columns = {name: table[name].to_pylist() for name in table.column_names}
        return data_frame({"id": self.ids, **columns, "vector": list(self.vectors)})

    @staticmethod
    def from_arrays(
        vectors: Any,
        ids: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        *,
        model_id: str = "own",
    ) -> "Embeddings":
        """From (N, D) numbers that NumPy or DLPack can read; rows are normalised.

        ids: N; default: the row numbers from 0. DataError: a row is zero or not finite.
        """
        array = _as_matrix(vectors)
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or (norms == 0).any():
            bad = int(np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))[0])
            raise DataError(
                f"row {bad} of the vectors is zero or not finite, so it has no direction: "
                "remove it, or find out where it comes from"
            )
        ids = [str(i) for i in range(len(array))] if ids is None else list(ids)
        columns = {} if labels is None else {"label": pa.array(labels, pa.string())}
        return Embeddings(ids, array / norms, pa.table(columns), model_id)

    def save(self, folder: str | Path, *, store: str = "fp32") -> None:
        """Writes a folder of one shard and its manifest. store: fp32 or fp16."""
        about = {
            "model_id": self.model_id,
            "compute_id": self.compute_id,
            **about_tiles(self.tiles),
        }
        writer = ShardWriter(Path(folder), lambda: about, self.dim, store=store, total=len(self))
        writer.add(self.ids, self.all_vectors, self.attributes, self.broken)
        writer.finish()
        self.source.save(folder, self.model_id)

    @staticmethod
    def open(folder: str | Path, *, root: Path | None = None) -> "Embeddings":
        """Reads a folder into memory. StorageError: damaged; DataError: unfinished or none.

        root: the folder of the images.
        """
        manifest = read_manifest(folder)
        tables = [shards.read_shard(folder, entry) for entry in manifest["shards"]]
        if not tables:
            raise StorageError(f"{folder} holds no shards: embed again")
        table = shards.concatenated(tables)
        vectors = np.concatenate([shards.all_vectors_of(part) for part in tables])  # (N, T, D)
        tiles = tiles_in(manifest)
        return Embeddings(
            table["id"].to_pylist(),
            vectors[:, 0],
            shards.attributes_in(table),
            manifest["model_id"],
            manifest["compute_id"],
            [tuple(pair) for shard in manifest["shards"] for pair in shard["broken"]],
            root,
            VectorSource.load(folder, manifest["model_id"]),
            tiles,
            vectors if tiles else None,
        )


def is_embeddings(folder: str | Path) -> bool:
    """Whether the folder holds embeddings, complete or not."""
    return shards.has_manifest(folder, FORM)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of complete embeddings. StorageError: damaged; DataError: unfinished, or none.

    Its keys: model_id, compute_id, dim, store, shards and the other arguments of `embed`.
    """
    manifest = shards.read_manifest(folder, FORM, what="embeddings", command="vizsla embed")
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
            "run the same `vizsla embed` again, it continues where it stopped"
        )
    return manifest


def source_of(embeddings: Embeddings | str | Path) -> VectorSource:
    """What is recorded of embeddings in memory or in their folder."""
    if isinstance(embeddings, Embeddings):
        return embeddings.source
    return VectorSource.load(embeddings, read_manifest(embeddings)["model_id"])


@dataclass(frozen=True)
class Parts:
    """Embeddings that are read part by part. size: N, the number of images."""

    model_id: str
    dim: int
    size: int
    tiles: Tiles | None
    parts: Iterator[Part]

    @property
    def rows(self) -> int:
        """N·T, the number of vectors."""
        return self.size * (len(self.tiles) if self.tiles else 1)


def parts_of(source: Embeddings | str | Path) -> Parts:
    """Embeddings in memory as one part, or their folder shard by shard.

    So a gallery larger than the memory can be read. Errors as of `read_manifest`.
    """
    if isinstance(source, Embeddings):
        part = (source.ids, source.all_vectors, source.attributes)
        return Parts(source.model_id, source.dim, len(source), source.tiles, iter([part]))
    manifest = read_manifest(source)

    def read(entry: dict[str, Any]) -> Part:
        table = shards.read_shard(source, entry)
        ids: list[str] = table["id"].to_pylist()
        vectors = shards.all_vectors_of(table).reshape(-1, manifest["dim"])
        return ids, vectors, shards.attributes_in(table)

    size = sum(entry["rows"] for entry in manifest["shards"])
    parts = map(read, manifest["shards"])
    return Parts(manifest["model_id"], manifest["dim"], size, tiles_in(manifest), parts)


def about_tiles(tiles: Tiles | None) -> dict[str, str]:
    """The key of a manifest that says which tiles its vectors are of; none without tiles."""
    return {"tiles": str(tiles)} if tiles else {}


def tiles_in(about: dict[str, Any]) -> Tiles | None:
    """What `about_tiles` wrote."""
    return Tiles.parse(about["tiles"]) if "tiles" in about else None


class ShardWriter:
    """Writes shard after shard; after each one the manifest names all that are safely on disk.

    about: gives the manifest's keys on the origin of the vectors; called once, when first needed.
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
        self.early: dict[int, dict[str, Any]] = {}  # number → shard, while earlier ones are missing
        self.done = 0  # images read, broken ones included

    def resume(self) -> int:
        """Continues what an interrupted run has written; returns how many images are done.

        A damaged shard is made again, and so are all after it. DataError: the folder holds other
        embeddings.
        """
        path = self.folder / shards.MANIFEST
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
        """Writes a shard. The manifest names it once all shards before it are on disk.

        vectors: (n, D), or (n, T·D) of tiles. number: its position, if shards come out of order;
        None: the next one.
        """
        number = len(self.shards) if number is None else number
        width = len(tiles_in(self.about()) or [0]) * self.dim
        vectors = vectors.reshape(len(ids), width)
        table = shards.shard_table(ids, attributes, vectors, self.store, self.dim)
        entry = shards.write_shard(self.folder, f"shard-{number:05d}.parquet", table)
        self.early[number] = {**entry, "broken": list(map(list, broken))}
        while entry := self.early.pop(len(self.shards), {}):
            self.shards.append(entry)
            self.done += entry["rows"] + len(entry["broken"])
            if len(self.shards) not in self.early:
                self._write_manifest(complete=False)

    def finish(self) -> None:
        """Marks the embeddings as complete; those without any vector stay unfinished."""
        self._write_manifest(
            complete=self.total == 0 or any(shard["rows"] for shard in self.shards)
        )

    def _header(self) -> dict[str, Any]:
        return {**self.about(), "dim": self.dim, "store": self.store, "total": self.total}

    def _write_manifest(self, *, complete: bool) -> None:
        progress = {"complete": complete, "done": self.done, "shards": self.shards}
        shards.write_manifest(self.folder, {"form": FORM, **self._header(), **progress})


def _as_matrix(vectors: Any) -> np.ndarray:
    """(N, D) float32 from an array, a torch tensor or nested lists."""
    array = np.from_dlpack(vectors) if hasattr(vectors, "__dlpack__") else np.asarray(vectors)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise DataError(
            f"vectors have shape {array.shape} and type {array.dtype}, expected numbers (N, D)"
        )
    return array.astype(np.float32)
