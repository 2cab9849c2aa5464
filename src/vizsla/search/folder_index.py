"""An index in a folder: built, searched, changed and copied.

It holds the vectors themselves, memory-mapped; every kind but `exact` adds a structure that finds
candidates without comparing every vector, and their scores are then computed as exact search
computes them. `add` and `remove` are on disk when they return. Many threads may search at once,
also while another one adds or removes.
"""

import copy
import shutil
import tempfile
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vizsla import storage
from vizsla.data.query_box import GivenBox, QueryBox
from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import Embeddings, about_tiles, parts_of, source_of
from vizsla.embed.local_features import LOCAL
from vizsla.embed.shards import labels_in
from vizsla.embed.vector_source import VectorSource
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.notebook import Shown, Summary
from vizsla.search import ann, exact
from vizsla.search import index_files as disk
from vizsla.search.ann import KINDS, Progress, Structure, choose_kind
from vizsla.search.exact import Rows
from vizsla.search.filters import Filter
from vizsla.search.groups import Grouping, ResultForm
from vizsla.search.index_files import Snapshot
from vizsla.search.index_structure import (
    RECALL,
    advice_on,
    build_structure,
    fold_new_rows,
    measure_effort,
    rebuild,
    should_fold,
)
from vizsla.search.index_view import LazyStructure, View
from vizsla.search.queries import QueryEncoder
from vizsla.search.query_tiles import repeated, vectors_of_queries
from vizsla.search.ranking import Ranking, self_positions, tile_of

if TYPE_CHECKING:
    from vizsla.model.embedder import Embedder

SHOWN = 10  # images of a query, if k is not given
COMPACT_AT = 0.2  # share of removed rows at which the folder is rewritten without them
Changed = tuple[Snapshot, Structure | None]  # None: the structure has not changed


class FolderIndex(Shown):
    """See index.Index. `view` is the state that the next search sees."""

    def __init__(
        self, snapshot: Snapshot, *, device: str = "cpu", precision: str = "auto",
        progress: Progress | None = None, source: VectorSource | None = None,
    ) -> None:  # fmt: skip
        self.device, self.precision, self.progress = device, precision, progress
        self.view = View(snapshot, LazyStructure(), device, precision)
        self._changing = threading.RLock()
        if source is None:
            source = VectorSource.load(snapshot.folder, snapshot.manifest["model_id"])
        self.encoder = QueryEncoder(source, snapshot.manifest["model_id"], str(snapshot.folder))
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @staticmethod
    def build(
        embeddings: Embeddings | str | Path, folder: str | Path | None = None, **options: Any
    ) -> "FolderIndex":
        """As `build_index`; without a folder the index lives in a temporary one."""
        if folder is not None:
            return build_in(Path(folder), embeddings, **options)
        temporary = tempfile.TemporaryDirectory(prefix="vizsla-index-")
        index = build_in(Path(temporary.name), embeddings, **options)
        index._temporary = temporary
        return index

    @staticmethod
    def load(folder: str | Path, **options: Any) -> "FolderIndex":
        """As `open_index`."""
        return FolderIndex(disk.read(folder, verify=options.pop("verify", False)), **options)

    def summary(self) -> Summary:
        """Its size, kind and attributes."""
        attributes = ", ".join(self.attributes.column_names)
        facts = [f"{len(self):,} × {self.dim}", self.kind, f"model {self.model_id}"]
        facts += [f"attributes {attributes}"] * bool(attributes)
        return Summary(f"Index in {self.folder}", facts)

    def at_this_moment(self) -> "FolderIndex":
        """A copy that later changes of this index do not affect."""
        return copy.copy(self)

    # ── what it holds ────────────────────────────────────────────────────────────────────────────

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return str(self.view.snapshot.manifest["kind"])

    @property
    def model_id(self) -> str:
        """Of the model that made the vectors."""
        return str(self.view.snapshot.manifest["model_id"])

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return int(self.view.snapshot.manifest["dim"])

    @property
    def source(self) -> VectorSource:
        """What builds the model again, and where the images are."""
        return self.encoder.source

    @property
    def folder(self) -> Path:
        """Where it is stored."""
        return self.view.snapshot.folder

    @property
    def version(self) -> str:
        """`index_files.version_of` of the manifest: another one after every change."""
        return disk.version_of(self.view.snapshot.manifest)

    @property
    def ids(self) -> list[str]:
        """G ids, by gallery position."""
        return self.view.snapshot.ids

    @property
    def attributes(self) -> pa.Table:
        """G rows."""
        return self.view.snapshot.attributes

    def attributes_of(self, ids: Sequence[str]) -> pa.Table:
        """See Index.attributes_of."""
        return attributes_in(self.view.snapshot, ids)

    @property
    def labels(self) -> list[str | None] | None:
        """The attribute `label` of the G images; None if the index has no such attribute."""
        return labels_in(self.attributes)

    def __len__(self) -> int:
        return len(self.view.snapshot)

    def vectors(self, positions: np.ndarray | slice | None = None) -> np.ndarray:
        """(n, D) float32 unit rows of these gallery positions (default: of all, a copy): of whole
        images, where they have tiles."""
        snapshot = self.view.snapshot
        rows = snapshot.rows if positions is None else snapshot.rows[positions]
        return Rows(snapshot.vectors, rows * snapshot.vectors_each)[:]

    def embeddings(self) -> Embeddings:
        """The gallery, read into memory."""
        snapshot, T = self.view.snapshot, self.view.snapshot.vectors_each
        found = Rows(snapshot.vectors, snapshot.vector_rows)[:].reshape(len(self), T, self.dim)
        return Embeddings(
            self.ids, found[:, 0], self.attributes, self.model_id, root=self.source.root,
            source=self.source, tiles=snapshot.tiles, tile_vectors=found if T > 1 else None,
        )  # fmt: skip

    def about(self) -> dict[str, Any]:
        """What `vizsla index info` prints; sizes in bytes."""
        snapshot = self.view.snapshot
        manifest = snapshot.manifest
        names = [*disk.files_of(manifest), manifest["vectors"]]
        about = {
            "kind": self.kind, "chosen": manifest["reason"],
            "images": len(self), "removed": len(snapshot.removed),
            **about_tiles(snapshot.tiles),
            "dim": self.dim, "store": manifest["store"], "model_id": self.model_id,
            "attributes": snapshot.row_attributes.column_names,
            "bytes": sum((snapshot.folder / name).stat().st_size for name in names),
        }  # fmt: skip
        structure = manifest["structure"]
        if structure is None:
            return about
        keys = ("target", "recall", "effort", "candidates", "curve")
        about |= {key: structure[key] for key in keys}
        about["structure_bytes"] = (snapshot.folder / structure["file"]).stat().st_size
        about["advice"] = advice_on(structure, self.kind)
        return about

    # ── searching ────────────────────────────────────────────────────────────────────────────────

    def search(
        self,
        queries: Any,
        k: int | None = None,
        filter: Filter | str | Sequence[str] | None = None,
        *,
        group_by: str | Grouping | None = None,
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
        """See Index.search. group_by: also a Grouping of the G images."""
        form = ResultForm(group_by, per_group, group_score, diverse)
        view, snapshot = self.view, self.view.snapshot
        filter = Filter.of(filter)
        allowed = None if filter is None else filter.mask(snapshot.ids, snapshot.attributes)
        queries = self.encoder.embeddings(
            queries, model_id, same_set=same_set, embedder=embedder, box=QueryBox.of(box),
            tiles=Tiles.of_query(query_tiles),
        )  # fmt: skip
        k = min(SHOWN, len(snapshot) - same_set) if k is None else k
        exact.require_comparable(queries.model_id, self.model_id, queries.dim, self.dim)
        exact.check_k(k, len(snapshot) - same_set)
        self_at = self_positions(queries.ids, snapshot.ids) if same_set else None
        try:
            vectors, each = vectors_of_queries(queries, query_tiles)
            found = view.search(
                vectors, k, form, allowed, repeated(self_at, each), items, query_vectors_each=each
            )
        except StorageError:
            if not self.refresh():  # another process has replaced a file that was not read yet
                raise
            return self.search(
                queries, k, filter, group_by=group_by, per_group=per_group,
                group_score=group_score, diverse=diverse, same_set=same_set, items=items,
                query_tiles=query_tiles,
            )  # fmt: skip
        origin = {"model_id": self.model_id, "kind": self.kind, "depth": k, "same_set": same_set}
        origin |= about_tiles(snapshot.tiles)
        if filter is not None:
            origin["filter"] = str(filter)
        if items is not None:
            origin["query_join"] = "max"
        if each > 1:
            origin["query_tiles"] = str(queries.tiles)
        T = snapshot.vectors_each
        return Ranking(
            queries.ids if items is None else list(items), snapshot.ids,
            found.positions // T, found.scores, len(snapshot),
            {**origin, **form.record()}, query_root=queries.root, gallery_root=self.source.root,
            members=None if found.members is None else found.members // T,
            member_scores=found.member_scores, tiles=snapshot.tiles,
            best_tile=None if T == 1 else tile_of(found.positions, T),
            attributes_of=partial(attributes_in, snapshot),
        )  # fmt: skip

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def add(self, embeddings: Embeddings) -> None:
        """See Index.add.

        Every search compares the new rows one by one, until they are a hundredth of the gallery:
        then they go into the structure, and recall is measured again.
        """
        disk.require_same_tiles(embeddings.tiles, self.view.snapshot.tiles)  # or model_ids differ
        exact.require_comparable(
            embeddings.model_id, self.model_id, embeddings.dim, self.dim, what="new images"
        )

        def change(snapshot: Snapshot) -> Changed:
            snapshot = disk.append(snapshot, embeddings)
            if not should_fold(snapshot):
                return snapshot, None
            return fold_new_rows(snapshot, self.view.structure, self.progress)

        if len(embeddings):
            self._change(change)

    def remove(self, ids: Sequence[str]) -> int:
        """See Index.remove. If a fifth of the rows is removed, the folder is rewritten."""

        def change(snapshot: Snapshot) -> Changed:
            check_present(ids, snapshot.row_of)
            rows = np.array([snapshot.row_of[name] for name in set(ids)], np.int64)
            snapshot = disk.remove(snapshot, rows)
            if len(snapshot.removed) >= COMPACT_AT * len(snapshot.row_ids):
                return rebuild(snapshot, self.progress)
            return snapshot, None

        if ids:
            self._change(change)
        return len(set(ids))

    def rebuild(self) -> None:
        """Rewrites the folder without the removed rows, with a new structure."""
        self._change(lambda snapshot: rebuild(snapshot, self.progress))

    def measure(self, recall: float | None = None) -> None:
        """Chooses the search effort again, for this recall or the one that it was built for."""
        self._change(
            lambda snapshot: measure_effort(snapshot, self.view.structure, recall, self.progress)
        )

    def refresh(self) -> bool:
        """Reads what another process has changed; returns whether there was a change."""
        with self._changing:
            if disk.read_manifest(self.folder) == self.view.snapshot.manifest:
                return False
            self._show(disk.read(self.folder), LazyStructure())
            return True

    def _change(self, change: Callable[[Snapshot], Changed]) -> None:
        with self._changing:
            before = self.view.snapshot
            with disk.changing(before):
                try:
                    snapshot, structure = change(before)
                    same = snapshot.manifest["structure"] == before.manifest["structure"]
                    lazy = self.view.lazy_structure if same else LazyStructure(structure)
                    self._show(snapshot, lazy)
                except BaseException:
                    self.refresh()  # a first step may be on disk
                    raise

    def _show(self, snapshot: Snapshot, structure: LazyStructure) -> None:
        self.view = View(snapshot, structure, self.device, self.precision)

    # ── copies and files beside it ───────────────────────────────────────────────────────────────

    def save(self, folder: str | Path) -> None:
        """A copy in another folder, whole or not at all."""
        snapshot, folder = self.view.snapshot, Path(folder)
        if folder.resolve() == snapshot.folder.resolve():
            return  # every change is there already
        disk.check_place(folder)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = snapshot.manifest
        for name in (*disk.files_of(manifest), manifest["vectors"]):
            with storage.writing(folder / name) as temporary:
                shutil.copyfile(snapshot.folder / name, temporary)
        disk.commit(folder, manifest)
        self.source.save(folder, self.model_id)
        if (self.folder / LOCAL).is_dir():
            shutil.copytree(self.folder / LOCAL, folder / LOCAL, dirs_exist_ok=True)

    def verify(self) -> None:
        """See Index.verify. Hashes every file again."""
        disk.read(self.folder, verify=True)

    def keep(self, name: str, suffix: str, write: Callable[[Path], None], **about: Any) -> None:
        """Keeps a file that belongs to exactly these images, such as a graph of neighbours.

        `write` gets the path to write to. The file is gone after the next `add` or `remove`.
        """
        self._change(lambda snapshot: (disk.keep(snapshot, name, suffix, write, about), None))

    def kept(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """The kept file of that name, verified, and its `about`; None if there is none."""
        snapshot = self.view.snapshot
        entry = snapshot.manifest["extras"].get(name)
        if entry is None:
            return None
        storage.verify(snapshot.folder / entry["file"], entry["sha256"])
        return snapshot.folder / entry["file"], entry


def build_in(
    folder: Path,
    embeddings: Embeddings | str | Path,
    *,
    kind: str = "auto",
    store: str = "fp32",
    memory: int | None = None,
    recall: float | None = None,
    sample: Embeddings | np.ndarray | None = None,
    device: str = "cpu",
    precision: str = "auto",
    progress: Progress | None = None,
) -> FolderIndex:
    """See index.build_index."""
    if kind not in {"auto", *KINDS}:
        raise UsageError(f"kind={kind!r}: choose one of auto, {', '.join(KINDS)}")
    if recall is not None and not 0 < recall <= 1:
        raise UsageError(f"recall={recall}: choose a share above 0 and up to 1")
    source = parts_of(embeddings)
    model_id, dim = source.model_id, source.dim
    reason = "as requested"
    if kind == "auto":
        kind, reason = choose_kind(source.rows, dim, memory)
    vectors = None
    if sample is not None:
        queries = exact.as_embeddings(sample, model_id)
        exact.require_comparable(queries.model_id, model_id, queries.dim, dim)
        vectors = queries.vectors
    with storage.locked(folder):
        snapshot = disk.create(folder, embeddings, {"kind": kind, "reason": reason}, store)
        structure = None
        if kind != "exact" and source.rows >= ann.MIN_ROWS:
            target = RECALL if recall is None else recall
            snapshot, structure = build_structure(snapshot, target, vectors, progress)
        source_of(embeddings).save(folder, model_id)
    index = FolderIndex(snapshot, device=device, precision=precision, progress=progress)
    index._show(snapshot, LazyStructure(structure))
    return index


def check_present(ids: Sequence[str], known: Container[str]) -> None:
    """DataError unless the index holds all of these ids, which are to be removed."""
    require_ids(ids, known, ": nothing was removed")


def attributes_in(snapshot: Snapshot, ids: Sequence[str]) -> pa.Table:
    """The attributes of images of one state of an index. DataError: an id is missing."""
    require_ids(ids, snapshot.row_of)
    rows = pa.array([snapshot.row_of[name] for name in ids], pa.int64())
    return snapshot.row_attributes.take(rows)


def require_ids(ids: Sequence[str], known: Container[str], effect: str = "") -> None:
    """DataError unless the index holds all of these ids. effect: ends the message."""
    missing = [name for name in ids if name not in known]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"the index holds no {missing[0]!r}{more}{effect}")
