"""Embeddings → Index → Ranking: one protocol for every way of searching a gallery.

An index is a folder (folder_index.py) or a collection of Milvus (milvus_index.py). Knows nothing of
images and never interprets an attribute.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import UsageError
from vizsla.search import index_files as disk
from vizsla.search.ann import Progress
from vizsla.search.filters import Filter
from vizsla.search.folder_index import FolderIndex, build_in
from vizsla.search.index_files import Snapshot
from vizsla.search.milvus_index import MilvusIndex, is_milvus
from vizsla.search.ranking import Ranking


class Index(Protocol):
    """What every kind of index can do. Its images are counted without the removed ones."""

    @property
    def kind(self) -> str: ...

    @property
    def model_id(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def ids(self) -> list[str]:
        """G ids, by gallery position."""

    @property
    def attributes(self) -> pa.Table:
        """G rows."""

    @property
    def labels(self) -> list[str | None] | None: ...

    def __len__(self) -> int: ...

    def search(
        self,
        queries: Embeddings | np.ndarray,
        k: int,
        filter: Filter | None = None,
        *,
        model_id: str | None = None,
        same_set: bool = False,
    ) -> Ranking:
        """The k nearest images of each query, best first; fewer only where a filter leaves fewer.

        queries: Embeddings, or (Q, D) numbers together with the model_id that made them.
        same_set: the queries are images of the gallery, so each one's own id is left out.
        DataError: another model or dimension, k beyond the gallery, no such attribute.
        """

    def add(self, embeddings: Embeddings) -> None:
        """DataError where an id is there already, or the model or dimension is another."""

    def remove(self, ids: Sequence[str]) -> int:
        """How many images were removed. DataError where an id is not there; then none is."""

    def save(self, folder: str | Path) -> None: ...

    def verify(self) -> None:
        """StorageError unless every byte is as it was written."""

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
    memory: bytes that the structure may take beside the vectors (default: half of this machine's).
    recall: of the ten nearest, that the search effort is chosen for (default .99), measured on rows
    of the gallery or, where given, on `sample`: vectors such as the later queries, (S, D).
    store: fp16 halves what is kept; scores then are those of the rounded vectors.
    progress: called with rows done and their number while a structure is built.
    """
    if not is_milvus(out):
        return build_in(
            Path(out), embeddings, kind=kind, store=store, memory=memory, recall=recall,
            sample=sample, device=device, precision=precision, progress=progress,
        )  # fmt: skip
    if kind not in ("auto", "milvus"):
        raise UsageError(f"{out} is Milvus's: leave --kind out")
    return MilvusIndex.build(embeddings, str(out))


def open_index(
    path: str | Path, *, verify: bool = False, device: str = "cpu", precision: str = "auto",
    progress: Progress | None = None,
) -> Index:  # fmt: skip
    """The index in a folder, or milvus://HOST:PORT/COLLECTION, or in a file of Milvus Lite.

    StorageError where a file is damaged; `verify` hashes all again. progress: see `build_index`.
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
                "structure": None}  # fmt: skip
    nowhere, none = Path("an index in memory"), np.empty(0, np.int64)
    attributes = embeddings.attributes
    snapshot = Snapshot(nowhere, manifest, embeddings.vectors, embeddings.ids, attributes, none)
    return FolderIndex(snapshot, device=device)
