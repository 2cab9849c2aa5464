"""An index in a folder of its own: built, searched, changed and kept.

It holds the vectors themselves, memory-mapped; a kind but `exact` adds a structure that finds
candidates without looking at every vector, and their scores are then computed as exact search
computes them. `add` and `remove` are on disk when they return. Searching is safe from many threads,
also while another one adds or removes.
"""

import copy
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vizsla import storage
from vizsla.embed.embeddings import Embeddings, parts_of
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.search import ann, exact
from vizsla.search import index_files as disk
from vizsla.search.ann import Progress, Structure
from vizsla.search.effort import Sample, find_effort
from vizsla.search.exact import Rows
from vizsla.search.filters import Filter
from vizsla.search.index_files import Stored
from vizsla.search.index_kinds import KINDS, choose_kind
from vizsla.search.index_snapshot import Loaded, State, in_file
from vizsla.search.ranking import Ranking, self_positions, without_self

log = logging.getLogger("vizsla.index")

RECALL = 0.99  # of the ten nearest; what an approximate kind is held to
FOLD_AT = 0.01  # share of new rows at which they go into the structure
FILE_AT = 0.05  # share of rows beyond those in the structure's file at which it is written again
COMPACT_AT = 0.2  # share of removed rows at which the folder is rewritten without them


class FolderIndex:
    """An index in a folder of its own."""

    def __init__(
        self, stored: Stored, *, device: str = "cpu", precision: str = "auto",
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.device, self.precision, self.progress = device, precision, progress
        self._state = State(stored, Loaded(), device, precision)
        self._fresh: Structure | None = None
        self._changing = threading.RLock()
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

    def at_this_moment(self) -> "FolderIndex":
        """The same index, to which later changes of this one do not show."""
        return copy.copy(self)

    # ── what it holds ────────────────────────────────────────────────────────────────────────────

    @property
    def kind(self) -> str:
        return str(self._state.stored.manifest["kind"])

    @property
    def model_id(self) -> str:
        return str(self._state.stored.manifest["model_id"])

    @property
    def dim(self) -> int:
        return int(self._state.stored.manifest["dim"])

    @property
    def folder(self) -> Path:
        return self._state.stored.folder

    @property
    def version(self) -> str:
        """Another one after every change; what `store.version_of` says of the folder's manifest."""
        return disk.version_of(self._state.stored.manifest)

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
        return Rows(state.stored.vectors, rows)[:]

    def embeddings(self) -> Embeddings:
        """The gallery, read into memory."""
        return Embeddings(self.ids, self.vectors(), self.attributes, self.model_id)

    def about(self) -> dict[str, Any]:
        stored = self._state.stored
        manifest = stored.manifest
        names = [*disk.files_of(manifest), manifest["vectors"]]
        about = {
            "kind": self.kind, "chosen": manifest["reason"],
            "images": len(self), "removed": len(stored.removed),
            "dim": self.dim, "store": manifest["store"], "model_id": self.model_id,
            "attributes": stored.attributes.column_names,
            "bytes": sum((stored.folder / name).stat().st_size for name in names),
        }  # fmt: skip
        structure = manifest["structure"]
        if structure is None:
            return about
        told = ("target", "recall", "effort", "candidates", "curve")
        about |= {key: structure[key] for key in told}
        about["structure_bytes"] = (stored.folder / structure["file"]).stat().st_size
        about["advice"] = _advice(structure)
        return about

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
        queries = exact.as_embeddings(queries, model_id, same_set=same_set)
        exact.comparable(queries.model_id, self.model_id, queries.dim, self.dim)
        exact.check_k(k, len(state) - same_set)
        allowed = None if filter is None else filter.mask(state.ids, state.attributes)
        wanted = min(k + same_set, len(state) if allowed is None else int(allowed.sum()))
        try:
            rows, scores = self._nearest(state, queries.vectors, wanted, allowed)
        except StorageError:
            if not self.refresh():  # another process has replaced a file that was not read yet
                raise
            return self.search(queries, k, filter, same_set=same_set)
        positions = state.position_of[rows]
        if same_set:
            self_at = self_positions(queries.ids, state.ids)
            positions, scores = without_self(positions, scores, self_at, k)
        origin = {"model_id": self.model_id, "kind": self.kind, "depth": k, "same_set": same_set}
        if filter is not None:
            origin["filter"] = str(filter)
        return Ranking(queries.ids, state.ids, positions, scores, len(state), origin)

    def _nearest(
        self, state: State, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, k) and exact scores (Q, k); allowed: (G,) bool by gallery position."""
        if k == 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0))
        stored = state.stored
        rows = state.rows if allowed is None else state.rows[allowed]
        structure = state.loaded.of(stored)
        if (
            structure is None
            or len(rows) < ann.EXACT_BELOW * len(state)
            or len(rows) < 4 * ann.candidates_for(k)
        ):
            return self._exactly(state, queries, k, rows)
        entry = stored.manifest["structure"]
        found, scores = ann.nearest(
            structure, Rows(stored.vectors), queries, k,
            covered=entry["rows"], outside=state.outside,
            effort=entry["effort"], candidates=entry["candidates"], allowed=state.allowed(rows),
        )  # fmt: skip
        unsure = np.flatnonzero(found[:, k - 1] < 0)
        if len(unsure):
            found[unsure], scores[unsure] = self._exactly(state, queries[unsure], k, rows)
        return found, scores

    def _exactly(
        self, state: State, queries: np.ndarray, k: int, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        gallery = Rows(state.stored.vectors, rows, state.resident)
        found, scores = exact.top_k(
            queries, gallery, k, device=self.device, precision=self.precision
        )
        return rows[found], scores

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def add(self, embeddings: Embeddings) -> None:
        """See Index.add.

        What is new is looked at one and all, until it is a hundredth of the gallery: then it goes
        into the structure, and recall is measured again.
        """
        exact.comparable(
            embeddings.model_id, self.model_id, embeddings.dim, self.dim, what="new images"
        )
        if not len(embeddings):
            return

        def change(stored: Stored) -> Stored:
            stored = disk.append(stored, embeddings)
            known = (stored.manifest["structure"] or {"rows": 0})["rows"]
            if len(stored.ids) - known > max(ann.MIN_ROWS, FOLD_AT * known):
                stored = self._folded(stored)
            return stored

        self._change(change)

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
                stored = self._rebuilt(stored)
            return stored

        if ids:
            self._change(change)
        return len(set(ids))

    def rebuild(self) -> None:
        """Writes the folder anew, without the removed rows, with a new structure."""
        self._change(self._rebuilt)

    def measure(self, recall: float | None = None) -> None:
        """Finds the search effort again, for this recall or the one asked for before."""

        def change(stored: Stored) -> Stored:
            grown = self._grown(stored)
            if grown is None:
                raise DataError(f"{stored.folder} ({self.kind}) has no search effort to choose")
            structure, sample = grown
            target = stored.manifest["structure"]["target"] if recall is None else recall
            measured = find_effort(structure, Rows(stored.vectors), sample, target)
            return self._noted(stored, structure, sample, measured)

        self._change(change)

    def _rebuilt(self, stored: Stored) -> Stored:
        before = stored.manifest["structure"]
        sample = self._sample(stored)
        given = None if sample is None or (sample.own >= 0).any() else sample.queries
        stored = disk.rewrite(stored)
        self._fresh = None
        if self.kind == "exact" or len(stored.ids) < ann.MIN_ROWS:
            return stored
        return self._built(stored, before["target"] if before else RECALL, given)

    def _built(self, stored: Stored, target: float, queries: np.ndarray | None) -> Stored:
        """With a new structure over all rows, and the search effort that reaches the target."""
        gallery = Rows(stored.vectors)
        sample = Sample.draw(gallery, queries)
        structure = Structure.build(self.kind, gallery, sample.apart, self.progress)
        measured = find_effort(structure, gallery, sample, target)
        return self._written(stored, structure, sample, measured)

    def _folded(self, stored: Stored) -> Stored:
        """With all rows in the structure, and its recall measured again."""
        if self.kind == "exact":
            return stored
        grown = self._grown(stored)
        if grown is None:
            return self._built(stored, RECALL, None)
        structure, sample = grown
        entry, gallery = stored.manifest["structure"], Rows(stored.vectors)
        recall, _ = sample.recall(
            structure, gallery, effort=entry["effort"], candidates=entry["candidates"],
            alive=stored.alive if len(stored.removed) else None,
        )  # fmt: skip
        entry = {**entry, "recall": recall}
        if advice := _advice(entry):
            log.warning("%s: %s", stored.folder, advice)
        return self._noted(stored, structure, sample, entry)

    def _grown(self, stored: Stored) -> tuple[Structure, Sample] | None:
        """The structure with all rows in it, and the sample that knows them; None without one."""
        structure, sample = self._state.loaded.of(stored), self._sample(stored)
        if structure is None or sample is None:
            return None
        gallery = Rows(stored.vectors)
        newer = np.arange(stored.manifest["structure"]["rows"], len(gallery))
        structure.add(gallery, newer, self.progress)
        return structure, sample.extended(gallery)

    def _noted(
        self, stored: Stored, structure: Structure, sample: Sample, entry: dict[str, Any]
    ) -> Stored:
        """With the structure's file as it is, where whoever reads it can add what it lacks.

        Cells take rows so quickly that this costs less than writing all of them again.
        """
        before = stored.manifest["structure"]
        written = in_file(before)
        if len(stored.ids) > (written if structure.cells is None else (1 + FILE_AT) * written):
            return self._written(stored, structure, sample, entry)
        self._fresh = structure
        entry = {**before, **entry, "rows": len(stored.ids), "in_file": written}
        stored = disk.keep(stored, "sample", ".parquet", sample.save, {})
        return disk.note(stored, {**stored.manifest, "structure": entry})

    def _written(
        self, stored: Stored, structure: Structure, sample: Sample, entry: dict[str, Any]
    ) -> Stored:
        about = {key: value for key, value in entry.items() if key not in ("file", "sha256")}
        about |= {
            "rows": len(stored.ids),
            "in_file": len(stored.ids),
            "apart": sample.apart.tolist(),
        }
        self._fresh = structure
        stored = disk.keep(stored, "sample", ".parquet", sample.save, {})
        return disk.keep(stored, "structure", ".faiss", structure.save, about)

    def _sample(self, stored: Stored) -> Sample | None:
        entry = stored.manifest["sample"]
        if entry is None:
            return None
        table = storage.read_table(stored.folder / entry["file"], entry["sha256"])
        return Sample.from_table(table)

    def _change(self, change: Callable[[Stored], Stored]) -> None:
        with self._changing:
            stored = self._state.stored
            with disk.changing(stored):
                self._fresh = None
                try:
                    changed = change(stored)
                    same = changed.manifest["structure"] == stored.manifest["structure"]
                    loaded = self._state.loaded if same else Loaded(self._fresh)
                    self._state = self._seen(changed, loaded)
                except BaseException:
                    self.refresh()  # a first step may be on disk
                    raise

    def refresh(self) -> bool:
        """Takes over what another process has changed; whether there was something."""
        with self._changing:
            before = self._state.stored.manifest
            if disk.read_manifest(self.folder) == before:
                return False
            self._state = self._seen(disk.read(self.folder), Loaded())
            return True

    def _seen(self, stored: Stored, loaded: Loaded) -> State:
        return State(stored, loaded, self.device, self.precision)

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
    if kind not in {"auto", *KINDS}:
        raise UsageError(f"kind={kind!r}: choose one of auto, {', '.join(KINDS)}")
    if recall is not None and not 0 < recall <= 1:
        raise UsageError(f"recall={recall}: choose a share above 0 and up to 1")
    model_id, dim, size, _ = parts_of(embeddings)
    reason = "as asked for"
    if kind == "auto":
        kind, reason = choose_kind(size, dim, memory)
    vectors = None
    if sample is not None:
        asked = exact.as_embeddings(sample, model_id)
        exact.comparable(asked.model_id, model_id, asked.dim, dim)
        vectors = asked.vectors
    with storage.locked(folder):
        stored = disk.create(folder, embeddings, {"kind": kind, "reason": reason}, store)
        index = FolderIndex(stored, device=device, precision=precision, progress=progress)
        if kind != "exact" and size >= ann.MIN_ROWS:
            stored = index._built(stored, RECALL if recall is None else recall, vectors)
            index._state = index._seen(stored, Loaded(index._fresh))
    return index


def _advice(structure: dict[str, Any]) -> str | None:
    if not structure["reached"]:
        return "the target was not reached: try --kind hnsw, or exact"
    if structure["recall"] >= structure["target"]:
        return None
    return (
        f"recall has fallen to {structure['recall']:.4f}, below {structure['target']}: "
        "`vizsla index rebuild` brings it back"
    )
