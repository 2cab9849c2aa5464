"""Embeddings → Index → Ranking: one protocol for every way of searching a gallery.

An index is a folder (folder_index.py) or a collection of Milvus (milvus_index.py). Knows nothing of
images and never interprets an attribute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from vizsla.data.query_box import GivenBox
from vizsla.embed.embeddings import Embeddings, about_tiles
from vizsla.embed.vector_source import VectorSource
from vizsla.errors import UsageError
from vizsla.search import index_files as disk
from vizsla.search.ann import Progress
from vizsla.search.filters import Filter
from vizsla.search.folder_index import FolderIndex, build_in
from vizsla.search.index_files import Snapshot
from vizsla.search.milvus_index import MilvusIndex, is_milvus
from vizsla.search.ranking import Ranking

if TYPE_CHECKING:
    from vizsla.model.embedder import Embedder


class Index(Protocol):
    """What every kind of index can do. Removed images are not counted."""

    @property
    def kind(self) -> str:
        """exact, hnsw, ivf, ivfsq8, ivfpq or milvus."""

    @property
    def model_id(self) -> str:
        """Of the model that made the vectors."""

    @property
    def dim(self) -> int:
        """D, the length of a vector."""

    @property
    def ids(self) -> list[str]:
        """G ids, by gallery position."""

    @property
    def attributes(self) -> pa.Table:
        """G rows."""

    def attributes_of(self, ids: Sequence[str]) -> pa.Table:
        """The attributes of these images, a row each. DataError: an id is missing."""

    @property
    def labels(self) -> list[str | None] | None:
        """The attribute `label` of the G images; None if the index has no such attribute."""

    @property
    def source(self) -> VectorSource:
        """What builds the model again, and where the images are."""

    def __len__(self) -> int: ...

    def search(
        self,
        queries: Any,
        k: int | None = None,
        filter: Filter | str | Sequence[str] | None = None,
        *,
        group_by: str | None = None,
        per_group: int = 1,
        group_score: str = "best",
        diverse: float | None = None,
        model_id: str | None = None,
        same_set: bool = False,
        items: Mapping[str, Sequence[int]] | None = None,
        embedder: "Embedder | None" = None,
        box: GivenBox = None,
        query_tiles: str | None = None,
    ) -> Ranking:
        """The k nearest images of each query, best first; fewer only if a filter leaves fewer.

        queries: an image (a path or a PIL image), a text (any other string), a list of these,
        Embeddings, or vectors (Q, D) of the gallery's model. k: 10 by default, or all if there are
        fewer. filter: a condition such as "label=shoe" or "price<10", a list of them, or a Filter.
        embedder: the gallery's model, needed for images and texts if the index does not record it.
        box: left, top, width and height of the part of each query image that counts, in pixels or
        as fractions of its sides.
        query_tiles: grids such as 1+2x2; the score of an image is the mean, over these tiles of a
        query, of their highest cosine with a tile of the image. Embeddings must have these tiles.
        same_set: the queries are images of the gallery, so each one's own id is left out.
        group_by: a column; the k nearest groups of images with one value, each by its best image.
        per_group: also the ranking's `members`, so many images of each. group_score: best-two
        scores a group by the mean of its best two images. diverse: from 1 down to 0, the more
        results differ from each other (`results.diversified`). items: name → the places of its
        pictures among the queries; an item is one query, and an image's score is its highest for
        any of the pictures.
        DataError: another model or dimension, k beyond the gallery, no such attribute.
        """

    def add(self, embeddings: Embeddings) -> None:
        """Adds images. DataError: an id is there already, or another model or dimension."""

    def remove(self, ids: Sequence[str]) -> int:
        """Removes images and returns how many. DataError: an id is missing; nothing is removed."""

    def save(self, folder: str | Path) -> None:
        """Writes a copy into a folder, whole or not at all."""

    def verify(self) -> None:
        """StorageError unless every byte is as it was written: all files are hashed again."""

    def about(self) -> dict[str, Any]:
        """What `vizsla index info` prints."""


def build_index(
    embeddings: Embeddings | str | Path,
    out: str | Path,
    *,
    kind: str = "auto",
    store: str = "fp32",
    memory: int | None = None,
    recall: float | None = None,
    sample: Embeddings | np.ndarray | None = None,
    device: str = "cpu",
    precision: str = "auto",
    progress: Progress | None = None,
) -> Index:
    """The index of a gallery, in the folder `out`, or in Milvus (see `open_index`).

    embeddings: in memory, or their folder, which is read shard by shard.
    kind: exact, hnsw, ivf, ivfsq8, ivfpq; auto chooses by size and `memory`.
    memory: bytes that the structure may take (default: half of this machine's memory).
    recall: the target for the ten nearest, by which the search effort is chosen (default .99),
    measured on rows of the gallery or on `sample`, (S, D) vectors that are like the later queries.
    store: fp16 halves the size of the vectors; scores are then those of the rounded vectors.
    progress: called with rows done and their number while a structure is built.
    """
    if not is_milvus(out):
        return build_in(
            Path(out), embeddings, kind=kind, store=store, memory=memory, recall=recall,
            sample=sample, device=device, precision=precision, progress=progress,
        )  # fmt: skip
    if kind not in ("auto", "milvus"):
        raise UsageError(f"{out} is an index in Milvus: leave --kind out")
    return MilvusIndex.build(embeddings, str(out))


def open_index(
    path: str | Path, *, verify: bool = False, device: str = "cpu", precision: str = "auto",
    progress: Progress | None = None,
) -> Index:  # fmt: skip
    """The index in a folder, or milvus://HOST:PORT/COLLECTION, or in a file of Milvus Lite.

    StorageError: a file is damaged; `verify` hashes all files again. progress: see `build_index`.
    """
    if is_milvus(path):
        found = MilvusIndex.open(str(path))
        if verify:
            found.verify()
        return found
    snapshot = disk.read(path, verify=verify)
    return FolderIndex(snapshot, device=device, precision=precision, progress=progress)


def in_memory(embeddings: Embeddings, *, device: str = "cpu") -> FolderIndex:
    """An exact index of embeddings as they are, without a folder. It can only be searched."""
    manifest = {"kind": "exact", "model_id": embeddings.model_id, "dim": embeddings.dim,
                "structure": None, **about_tiles(embeddings.tiles)}  # fmt: skip
    nowhere, none = Path("an index in memory"), np.empty(0, np.int64)
    attributes = embeddings.attributes
    vectors = embeddings.all_vectors
    snapshot = Snapshot(nowhere, manifest, vectors, embeddings.ids, attributes, none)
    source = embeddings.source
    if source.root is None and embeddings.root is not None:
        source = replace(source, images=str(embeddings.root))
    return FolderIndex(snapshot, device=device, source=source)
