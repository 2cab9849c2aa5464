"""The structure of an approximate index: built, extended, stored, and how much effort it needs.

Recall is that of the ten nearest, measured against exact search on a sample: queries that the user
gives, or rows of the gallery that are held out of the structure, each one left out of its own
answer. The exact answers are stored with the index and extended when images are added, so measuring
recall again only searches the new rows.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vizsla import storage
from vizsla.embed.shards import list_column, matrix_of, read_shard
from vizsla.errors import DataError
from vizsla.search import ann, exact
from vizsla.search import index_files as disk
from vizsla.search.ann import Allowed, Progress, Structure, Unindexed
from vizsla.search.exact import Rows
from vizsla.search.index_files import Snapshot
from vizsla.search.ranking import without_self

log = logging.getLogger("vizsla.index")

RECALL = 0.99  # of the ten nearest: the target of an approximate kind
DEPTH = 10
SAMPLE = 400  # rows of the gallery, which every search then compares one by one
GIVEN_SAMPLE = 1000  # queries from the user, which do not slow searches down
MAX_CANDIDATES = 1600
FOLD_AT = 0.01  # share of new rows at which they are added to the structure
FILE_AT = 0.05  # share of rows missing from the structure's file at which it is rewritten


# ── building, extending, storing ─────────────────────────────────────────────────────────────────


def build_structure(
    snapshot: Snapshot,
    target: float = RECALL,
    queries: np.ndarray | None = None,
    progress: Progress | None = None,
) -> tuple[Snapshot, Structure]:
    """The index with a new structure over all rows, and that structure.

    Its search effort is the least that reaches the recall `target`, measured on `queries` (S, D) or
    on rows of the gallery.
    """
    gallery = Rows(snapshot.vectors)
    sample = Sample.draw(gallery, queries)
    structure = Structure.build(snapshot.manifest["kind"], gallery, sample.held_out, progress)
    entry = find_effort(structure, gallery, sample, target)
    return _store(snapshot, structure, sample, entry), structure


def read_structure(snapshot: Snapshot) -> Structure:
    """The structure from its file, which is verified first, with the rows that its file lacks."""
    entry = snapshot.manifest["structure"]
    path = snapshot.folder / entry["file"]
    storage.verify(path, entry["sha256"])  # the folder may have been opened long ago
    structure = Structure.load(path, snapshot.manifest["kind"], entry["in_file"])
    structure.add(Rows(snapshot.vectors), np.arange(entry["in_file"], entry["rows"]))
    return structure


def should_fold(snapshot: Snapshot) -> bool:
    """Whether the structure lacks so many rows that they should be added to it."""
    entry = snapshot.manifest["structure"]
    covered = 0 if entry is None else entry["rows"]
    many = len(snapshot.vectors) - covered > max(ann.MIN_ROWS, FOLD_AT * covered)
    return many and snapshot.manifest["kind"] != "exact"


def fold_new_rows(
    snapshot: Snapshot, structure: Structure | None, progress: Progress | None = None
) -> tuple[Snapshot, Structure]:
    """The index with all rows in its structure, and the recall measured again."""
    if structure is None:
        return build_structure(snapshot, progress=progress)
    entry = snapshot.manifest["structure"]
    sample = _extend(snapshot, structure, progress)
    recall, _ = sample.recall(
        structure, Rows(snapshot.vectors), effort=entry["effort"], candidates=entry["candidates"],
        alive=snapshot.alive_vectors if len(snapshot.removed) else None,
    )  # fmt: skip
    entry = {**entry, "recall": recall}
    if advice := advice_on(entry, structure.kind):
        log.warning("%s: %s", snapshot.folder, advice)
    return _note_or_store(snapshot, structure, sample, entry), structure


def measure_effort(
    snapshot: Snapshot,
    structure: Structure | None,
    target: float | None = None,
    progress: Progress | None = None,
) -> tuple[Snapshot, Structure]:
    """The index with all rows in its structure and the least effort that reaches the target.

    target: a recall; None: the one before. DataError if the index has no structure.
    """
    if structure is None:
        kind = snapshot.manifest["kind"]
        raise DataError(f"{snapshot.folder} ({kind}) has no search effort to choose")
    sample = _extend(snapshot, structure, progress)
    target = snapshot.manifest["structure"]["target"] if target is None else target
    entry = find_effort(structure, Rows(snapshot.vectors), sample, target)
    return _note_or_store(snapshot, structure, sample, entry), structure


def rebuild(
    snapshot: Snapshot, progress: Progress | None = None
) -> tuple[Snapshot, Structure | None]:
    """Rewrites the folder without the removed rows, with a new structure if it needs one."""
    before, sample = snapshot.manifest["structure"], _read_sample(snapshot)
    given = sample.queries if sample is not None and not len(sample.held_out) else None
    snapshot = disk.rewrite(snapshot)
    if snapshot.manifest["kind"] == "exact" or len(snapshot.vectors) < ann.MIN_ROWS:
        return snapshot, None
    return build_structure(snapshot, before["target"] if before else RECALL, given, progress)


def advice_on(entry: dict[str, Any], kind: str) -> str | None:
    """Advice if the recall in a structure's manifest entry is too low, else None."""
    if not entry["reached"]:
        return f"the target was not reached: try --kind {_better_kinds(kind)}"
    if entry["recall"] >= entry["target"]:
        return None
    return (
        f"recall has fallen to {entry['recall']:.4f}, below {entry['target']}: "
        "`vizsla index rebuild` restores it"
    )


def _better_kinds(kind: str) -> str:
    return "exact" if kind == "hnsw" else "hnsw, or exact"


def _extend(snapshot: Snapshot, structure: Structure, progress: Progress | None) -> "Sample":
    """Adds to the structure the rows that it lacks; the sample with their exact answers."""
    gallery, covered = Rows(snapshot.vectors), snapshot.manifest["structure"]["rows"]
    structure.add(gallery, np.arange(covered, len(gallery)), progress)
    sample = _read_sample(snapshot)
    assert sample is not None
    return sample.extended(gallery)


def _note_or_store(
    snapshot: Snapshot, structure: Structure, sample: "Sample", entry: dict[str, Any]
) -> Snapshot:
    """Records in the manifest what the structure covers, without rewriting its file.

    Whoever reads the file adds the rows that it lacks: cells take rows so quickly that this costs
    less than writing all of them. A graph does not, and neither do many rows.
    """
    before = snapshot.manifest["structure"]
    limit = before["in_file"] * (1 if structure.cells is None else 1 + FILE_AT)
    if len(snapshot.vectors) > limit:
        return _store(snapshot, structure, sample, entry)
    entry = {**before, **entry, "rows": len(snapshot.vectors)}
    snapshot = disk.keep(snapshot, "sample", ".parquet", sample.save, {})
    return disk.note(snapshot, {**snapshot.manifest, "structure": entry})


def _store(
    snapshot: Snapshot, structure: Structure, sample: "Sample", entry: dict[str, Any]
) -> Snapshot:
    """Writes the sample and the structure, with all that is known of its effort."""
    rows, held_out = len(snapshot.vectors), sample.held_out.tolist()
    about = {key: value for key, value in entry.items() if key not in ("file", "sha256")}
    about |= {"rows": rows, "in_file": rows, "held_out": held_out}
    snapshot = disk.keep(snapshot, "sample", ".parquet", sample.save, {})
    return disk.keep(snapshot, "structure", ".faiss", structure.save, about)


def _read_sample(snapshot: Snapshot) -> "Sample | None":
    entry = snapshot.manifest["sample"]
    return None if entry is None else Sample.from_table(read_shard(snapshot.folder, entry))


# ── measuring recall ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Sample:
    """Queries and their exact answers.

    queries: (S, D) float32. own: (S,) the row that is the query itself, or -1.
    rows, scores: (S, DEPTH) the exact answer, -1 and nan where the gallery is smaller.
    covers: how many rows of the gallery were searched for it.
    """

    queries: np.ndarray
    own: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    covers: int

    @staticmethod
    def draw(gallery: Rows, queries: np.ndarray | None = None, *, seed: int = 0) -> "Sample":
        """At most GIVEN_SAMPLE of the queries (S, D), else a twentieth of the gallery's rows."""
        rng = np.random.default_rng(seed)
        if queries is None:
            n = min(SAMPLE, -(-len(gallery) // 20))
            own = np.sort(rng.choice(len(gallery), n, replace=False))
            queries = gallery[own]
        else:
            queries = queries[np.sort(rng.permutation(len(queries))[:GIVEN_SAMPLE])]
            own = np.full(len(queries), -1)
        shape = (len(queries), DEPTH)
        nothing = Sample(queries, own, np.full(shape, -1), np.full(shape, np.nan), 0)
        return nothing.extended(gallery)

    def extended(self, gallery: Rows) -> "Sample":
        """The same queries with the exact answers over all rows, new ones among them."""
        newer = np.arange(self.covers, len(gallery))
        if not len(newer):
            return self
        k = min(DEPTH + 1, len(newer))
        found, scores = exact.top_k(self.queries, Rows(gallery.vectors, newer), k)
        found, scores = without_self(newer[found], scores, self.own, DEPTH)
        rows = np.concatenate([self.rows, found], axis=1)
        scores = np.concatenate([self.scores, scores], axis=1)
        rows, scores = exact.ordered(rows, scores, DEPTH)
        return replace(self, rows=rows, scores=scores, covers=len(gallery))

    @property
    def held_out(self) -> np.ndarray:
        """The rows of the gallery that are queries here, and in no structure."""
        return self.own[self.own >= 0]

    def recall(
        self,
        structure: Structure,
        gallery: Rows,
        *,
        effort: int,
        candidates: int,
        alive: np.ndarray | None = None,
    ) -> tuple[float, float]:
        """Share of the exact answer that a search finds, and the standard error of that.

        An equal score counts as found. So does the whole answer to a query with more equals than
        candidates: a search compares it with all rows (`index_view.View.nearest`).
        """
        mask = np.ones(len(gallery), bool) if alive is None else alive
        counted = (self.own < 0) | mask[self.own]
        wanted = (self.rows >= 0) & mask[self.rows] & counted[:, None]
        if not wanted.any():
            return 1.0, 0.0
        rows, scores = ann.nearest(
            structure, gallery, self.queries, DEPTH + 1,
            covered=len(gallery), unindexed=Unindexed.of(gallery, len(gallery), self.held_out),
            effort=effort, candidates=candidates,
            allowed=None if alive is None else Allowed.of(alive, len(gallery)),
        )  # fmt: skip
        exactly = rows[:, DEPTH] < 0
        _, scores = without_self(rows, scores, self.own, DEPTH)
        last = np.where(wanted, self.scores, np.inf).min(axis=1)  # score of the last to be found
        hits = np.minimum((scores >= last[:, None]).sum(axis=1), wanted.sum(axis=1))
        hits = np.where(exactly, wanted.sum(axis=1), hits)
        shares = hits[counted] / np.maximum(wanted[counted].sum(axis=1), 1)
        error = float(shares.std() / len(shares) ** 0.5)
        return float(hits[counted].sum() / wanted.sum()), error

    def save(self, path: Path) -> None:
        """Writes one Parquet file, without a seal: the manifest has its hash."""
        table = pa.table(
            {
                "query": list_column(self.queries),
                "own": self.own,
                "rows": list_column(self.rows),
                "scores": list_column(self.scores),
            }
        )
        table = table.replace_schema_metadata({"covers": str(self.covers)})
        pq.write_table(table, path, use_dictionary=False, compression="none")

    @staticmethod
    def from_table(table: pa.Table) -> "Sample":
        """From the table that `save` wrote."""
        covers = int((table.schema.metadata or {})[b"covers"])
        queries, rows, scores = (np.array(matrix_of(table[n])) for n in ("query", "rows", "scores"))
        return Sample(queries, table["own"].to_numpy(), rows, scores, covers)


def find_effort(
    structure: Structure, gallery: Rows, sample: Sample, target: float
) -> dict[str, Any]:
    """The smallest effort whose recall reaches the target, for the manifest's entry.

    Recall has to exceed the target by a standard error: the smallest of many efforts that just
    reach it may be lucky. Keys: effort, candidates, target, recall; curve: [effort, recall] as
    measured, rising; reached: False if the greatest effort stays below the target, and then
    `effort` is the one with the best recall.
    """
    candidates = _candidates(structure, gallery, sample, target)
    curve: dict[int, float] = {}

    def measured(effort: int) -> float:
        curve[effort], error = sample.recall(
            structure, gallery, effort=effort, candidates=candidates
        )
        return curve[effort] - error

    below = 0
    for effort in structure.efforts(candidates):
        if measured(effort) >= target:
            while below and effort - below > max(1, below // 10):  # narrow the last step down
                middle = (below + effort) // 2
                if measured(middle) >= target:
                    effort = middle
                else:
                    below = middle
            break
        below = effort
    else:
        just = [e for e in curve if curve[e] >= target]
        effort = min(just) if just else max(curve, key=lambda e: (curve[e], -e))
    reached = curve[effort] >= target
    if not reached:
        log.warning(
            "recall@%d is %.4f at best, %.4f was requested: try --kind %s",
            DEPTH, curve[effort], target, _better_kinds(structure.kind),
        )  # fmt: skip
    return {
        "effort": effort, "candidates": candidates, "target": target, "reached": reached,
        "recall": curve[effort], "curve": sorted(map(list, curve.items())),
    }  # fmt: skip


def _candidates(structure: Structure, gallery: Rows, sample: Sample, target: float) -> int:
    """How many candidates of the coarse order are scored exactly.

    Enough that they miss at most half of what the target allows.
    """
    if structure.kind != "ivfpq":
        return ann.CANDIDATES
    most = min(MAX_CANDIDATES, len(structure))
    assert structure.cells is not None
    found, _ = structure.candidates(sample.queries, most, max(1, structure.cells // 2))
    steps = [100, 140, 200, 280, 400, 560, 800, 1130, MAX_CANDIDATES]
    scores = exact.rescored(sample.queries, gallery, found)
    wanted = (sample.rows >= 0).sum(axis=1)
    last = np.where(sample.rows >= 0, sample.scores, np.inf).min(axis=1)
    hits = np.cumsum(scores >= last[:, None], axis=1)  # (S, most)
    for step in steps:
        reach = np.minimum(hits[:, min(step, most) - 1], wanted).sum() / wanted.sum()
        if reach >= 1 - (1 - target) / 2:
            return step
    return MAX_CANDIDATES
