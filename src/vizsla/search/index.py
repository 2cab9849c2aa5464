"""Embeddings → Index → Ranking: one protocol for every way of searching a gallery.

An index is a folder. Whatever its kind, it holds the vectors themselves, memory-mapped; a kind but
`exact` adds a structure that finds candidates without looking at every vector, and their scores are
then computed as exact search computes them. `add` and `remove` are on disk when they return.
Searching is safe from many threads, also while another one adds or removes. Knows nothing of images
and never interprets an attribute.
"""

import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from vizsla import storage
from vizsla.errors import DataError, UsageError
from vizsla.model.embeddings import Embeddings
from vizsla.search import exact
from vizsla.search import store as disk
from vizsla.search.filters import Filter
from vizsla.search.ranking import Ranking
from vizsla.search.store import Stored

KINDS = ("exact",)
COMPACT_AT = 0.2  # share of removed rows at which the folder is rewritten without them


class Index(Protocol):
    """What every kind of index can do. Its images are counted without the removed ones."""

    kind: str
    model_id: str
    dim: int

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


@dataclass(frozen=True, eq=False)
class _State:
    """What one search sees, whatever is added meanwhile."""

    stored: Stored

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of every gallery position."""
        return np.flatnonzero(self.stored.alive)

    @cached_property
    def ids(self) -> list[str]:
        if not len(self.stored.removed):
            return self.stored.ids
        return [self.stored.ids[row] for row in self.rows]

    @cached_property
    def attributes(self) -> pa.Table:
        if not len(self.stored.removed):
            return self.stored.attributes
        return self.stored.attributes.take(self.rows)

    def __len__(self) -> int:
        return len(self.stored.ids) - len(self.stored.removed)


class FolderIndex:
    """An index in a folder of its own."""

    def __init__(self, stored: Stored, *, device: str = "cpu", precision: str = "fp32") -> None:
        self.kind: str = stored.manifest["kind"]
        self.model_id: str = stored.manifest["model_id"]
        self.dim: int = stored.manifest["dim"]
        self.device, self.precision = device, precision
        self._state = _State(stored)
        self._changing = threading.RLock()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @staticmethod
    def build(
        embeddings: Embeddings | str | Path, folder: str | Path | None = None, **options: Any
    ) -> "FolderIndex":
        """As `build_index`; without a folder the index lives in a temporary one."""
        if folder is not None:
            return build_index(embeddings, folder, **options)
        temporary = tempfile.TemporaryDirectory(prefix="vizsla-index-")
        index = build_index(embeddings, temporary.name, **options)
        index._temporary = temporary
        return index

    @staticmethod
    def load(folder: str | Path, **options: Any) -> "FolderIndex":
        """As `open_index`."""
        return FolderIndex(disk.read(folder, verify=options.pop("verify", False)), **options)

    # ── what it holds ────────────────────────────────────────────────────────────────────────────

    @property
    def folder(self) -> Path:
        return self._state.stored.folder

    @property
    def ids(self) -> list[str]:
        return self._state.ids

    @property
    def attributes(self) -> pa.Table:
        return self._state.attributes

    @property
    def labels(self) -> list[str | None] | None:
        attributes = self._state.attributes
        if "label" not in attributes.column_names:
            return None
        labels: list[str | None] = attributes["label"].to_pylist()
        return labels

    def __len__(self) -> int:
        return len(self._state)

    def vectors(self, positions: np.ndarray | slice | None = None) -> np.ndarray:
        """(n, D) float32 unit rows of these gallery positions (default: of all, a copy)."""
        state = self._state
        rows = state.rows if positions is None else state.rows[positions]
        return exact.Rows(state.stored.vectors, rows)[:]

    def embeddings(self) -> Embeddings:
        """The gallery, read into memory."""
        return Embeddings(self.ids, self.vectors(), self.attributes, self.model_id)

    def about(self) -> dict[str, Any]:
        stored = self._state.stored
        manifest = stored.manifest
        files = [stored.folder / name for name in (*disk.files_of(manifest), manifest["vectors"])]
        return {
            "kind": self.kind, "images": len(self), "removed": len(stored.removed),
            "dim": self.dim, "store": manifest["store"], "model_id": self.model_id,
            "attributes": stored.attributes.column_names,
            "bytes": sum(path.stat().st_size for path in files),
        }  # fmt: skip

    # ── searching ────────────────────────────────────────────────────────────────────────────────

    def search(
        self,
        queries: Embeddings | np.ndarray,
        k: int,
        filter: Filter | None = None,
        *,
        model_id: str | None = None,
        same_set: bool = False,
    ) -> Ranking:
        """See Index.search."""
        state = self._state
        queries = as_queries(queries, model_id, state.ids if same_set else None)
        exact.comparable(queries.model_id, self.model_id, queries.dim, self.dim)
        check_k(k, len(state) - same_set)
        allowed = None if filter is None else filter.mask(state.ids, state.attributes)
        wanted = min(k + same_set, len(state) if allowed is None else int(allowed.sum()))
        positions, scores = self._nearest(state, queries.vectors, wanted, allowed)
        if same_set:
            positions, scores = without_self(queries.ids, state.ids, positions, scores, k)
        origin = {"model_id": self.model_id, "kind": self.kind, "depth": k, "same_set": same_set}
        if filter is not None:
            origin["filter"] = str(filter)
        return Ranking(queries.ids, state.ids, positions, scores, len(state), origin)

    def _nearest(
        self, state: _State, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gallery positions (Q, k) and scores (Q, k)."""
        if k == 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0))
        chosen = None if allowed is None else np.flatnonzero(allowed)
        rows = state.rows if chosen is None else state.rows[chosen]
        gallery = exact.Rows(state.stored.vectors, rows)
        found, scores = exact.top_k(
            queries, gallery, k, device=self.device, precision=self.precision
        )
        return (found if chosen is None else chosen[found]), scores

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def add(self, embeddings: Embeddings) -> None:
        """See Index.add."""
        exact.comparable(embeddings.model_id, self.model_id, embeddings.dim, self.dim)
        if len(embeddings):
            self._change(lambda stored: disk.append(stored, embeddings))

    def remove(self, ids: Sequence[str]) -> int:
        """See Index.remove. Where a fifth of the rows is removed, the folder is rewritten."""

        def change(stored: Stored) -> Stored:
            missing = [name for name in ids if name not in stored.row_of]
            if missing:
                raise DataError(
                    f"the index holds no {missing[0]!r}"
                    + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
                    + ": nothing was removed"
                )
            rows = np.array([stored.row_of[name] for name in set(ids)], np.int64)
            stored = disk.remove(stored, rows)
            if len(stored.removed) >= COMPACT_AT * len(stored.ids):
                stored = self._compacted(stored)
            return stored

        if ids:
            self._change(change)
        return len(set(ids))

    def _compacted(self, stored: Stored) -> Stored:
        return disk.rewrite(stored)

    def _change(self, change: Callable[[Stored], Stored]) -> None:
        with self._changing:
            stored = self._state.stored
            with disk.changing(stored):
                try:
                    self._state = _State(change(stored))
                except BaseException:
                    self.refresh()  # a first step may be on disk
                    raise

    def refresh(self) -> bool:
        """Takes over what another process has changed; whether there was something."""
        with self._changing:
            if disk.read_manifest(self.folder) == self._state.stored.manifest:
                return False
            self._state = _State(disk.read(self.folder))
            return True

    # ── keeping ──────────────────────────────────────────────────────────────────────────────────

    def save(self, folder: str | Path) -> None:
        """A copy of the folder, whole or not at all."""
        stored, folder = self._state.stored, Path(folder)
        if folder.resolve() == stored.folder.resolve():
            return  # every change is there already
        disk.check_place(folder)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = stored.manifest
        for name in (*disk.files_of(manifest), manifest["vectors"]):
            with storage.writing(folder / name) as temporary:
                shutil.copyfile(stored.folder / name, temporary)
        disk.commit(folder, manifest)

    def verify(self) -> None:
        """See Index.verify. Hashes every file again."""
        disk.read(self.folder, verify=True)

    def keep(self, name: str, suffix: str, write: Callable[[Path], None], **about: Any) -> None:
        """Keeps a file that belongs to exactly these images, such as a graph of neighbours.

        `write` gets the path to write to. The file is gone after the next `add` or `remove`.
        """
        self._change(lambda stored: disk.keep(stored, name, suffix, write, about))

    def kept(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """The file of that name, verified, and what was said about it; None where there is none."""
        stored = self._state.stored
        entry = stored.manifest["extras"].get(name)
        if entry is None:
            return None
        storage.verify(stored.folder / entry["file"], entry["sha256"])
        return stored.folder / entry["file"], entry


def build_index(
    embeddings: Embeddings | str | Path,
    out: str | Path,
    *,
    kind: str = "auto",
    store: str = "fp32",
    memory: int | None = None,
    recall: float | None = None,
    device: str = "cpu",
    precision: str = "fp32",
) -> FolderIndex:
    """The index of a gallery, in the folder `out`.

    embeddings: in memory, or their folder, which is read shard by shard.
    store: fp16 halves what is kept; scores then are those of the rounded vectors.
    """
    if kind not in {"auto", *KINDS}:
        raise UsageError(f"kind={kind!r}: choose one of auto, {', '.join(KINDS)}")
    kind = "exact" if kind == "auto" else kind
    out = Path(out)
    with storage.locked(out):
        stored = disk.create(out, embeddings, kind, store)
    return FolderIndex(stored, device=device, precision=precision)


def open_index(
    path: str | Path, *, verify: bool = False, device: str = "cpu", precision: str = "fp32"
) -> FolderIndex:
    """The index in a folder. StorageError where a file is damaged; `verify` hashes all again."""
    return FolderIndex(disk.read(path, verify=verify), device=device, precision=precision)


def in_memory(embeddings: Embeddings, *, device: str = "cpu") -> FolderIndex:
    """An exact index of embeddings as they are, without a folder: to search in and nothing else."""
    manifest = {"kind": "exact", "model_id": embeddings.model_id, "dim": embeddings.dim}
    nowhere, none = Path("an index in memory"), np.empty(0, np.int64)
    attributes = embeddings.attributes
    stored = Stored(nowhere, manifest, embeddings.vectors, embeddings.ids, attributes, none)
    return FolderIndex(stored, device=device)


def as_queries(
    queries: Embeddings | np.ndarray, model_id: str | None, gallery: list[str] | None = None
) -> Embeddings:
    """Embeddings as they are; numbers as unit vectors of that model, called 0, 1, …"""
    if isinstance(queries, Embeddings):
        return queries
    if model_id is None:
        raise UsageError("which model made these vectors? Give their model_id, or Embeddings")
    if gallery is not None:
        raise UsageError("same_set needs the queries' ids: give Embeddings")
    return Embeddings.from_arrays(queries, model_id=model_id)


def check_k(k: int, available: int) -> None:
    if available < 1:
        raise DataError("the index holds no image to be found: add some first (`vizsla index add`)")
    exact.check_k(k, available)


def without_self(
    query_ids: Sequence[str], gallery_ids: Sequence[str],
    positions: np.ndarray, scores: np.ndarray, k: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Each row without the query itself, k long; the last may be missing (-1, nan)."""
    wanted = set(query_ids)
    place = {name: i for i, name in enumerate(gallery_ids) if name in wanted}
    own = np.array([place.get(name, -2) for name in query_ids])
    found = positions == own[:, None]
    order = np.argsort(found, axis=1, kind="stable")  # the own one last
    positions = np.where(np.take_along_axis(found, order, 1), -1,
                         np.take_along_axis(positions, order, 1))[:, :k]  # fmt: skip
    scores = np.take_along_axis(scores, order, 1)[:, :k]
    return positions, np.where(positions < 0, np.nan, scores)
