"""Unit vectors → candidates, by FAISS, without comparing a query with every vector.

A structure covers the first rows of an index's vectors, except a few that are held out to measure
recall with: a graph finds what is in it more easily than what is not. It only finds candidates:
their exact scores are then computed from the stored vectors (`nearest`), so it may keep coarse
codes. On unit vectors the inner product orders as the distance does. Knows nothing of ids,
attributes or folders. FAISS crashes on a damaged file: check the file's hash before `load`.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.search import exact
from vizsla.search.exact import Rows

Progress = Callable[[int, int], None]  # rows done, of how many

# exact: no structure; hnsw: a graph of near neighbours over 8-bit codes; ivf: cells with a second
# copy of the vectors; ivfsq8: cells with 8-bit codes; ivfpq: with product codes of up to 64 bytes
KINDS = ("exact", "hnsw", "ivf", "ivfsq8", "ivfpq")
EXACT_UP_TO = 50_000  # images; exact search takes some milliseconds for so many
MIN_ROWS = 1000  # below, exact search is quicker than any structure
CANDIDATES = 100
LINKS = 32  # of a node of the graph; twice as many on its lowest level
BUILD_EFFORT = 80  # candidates for a node's links
TRAIN_PER_CELL = 64
TRAIN_PASSES = 10
ADD_ROWS = {"hnsw": 4096}  # added at a time: a graph takes a second for these; searches wait
QUERIES_AT_ONCE = 1024  # whose candidates are in memory at a time
SCORES_AT_ONCE = 2**23  # of unindexed rows, in memory at a time
GATHER_BYTES = 16 * 2**20  # of candidates' vectors that are copied at a time
EXACT_BELOW = 0.05  # share of the rows that a filter allows


class Structure:
    """A FAISS index over rows. Threads may search it while another one adds: they wait for it.

    covers: how many rows of the gallery it has taken or skipped, since they are held out.
    """

    def __init__(self, kind: str, index: Any, covers: int = 0) -> None:
        self.kind, self.index, self.covers = kind, index, covers
        self._lock = _FairLock()

    @staticmethod
    def build(
        kind: str, gallery: Rows, held_out: np.ndarray, progress: Progress | None = None,
        *, seed: int = 0,
    ) -> "Structure":  # fmt: skip
        """Over all rows but those held out."""
        structure = Structure(kind, _untrained(kind, len(gallery), gallery.shape[1]))
        n = min(len(gallery), _train_rows(kind, len(gallery)))
        chosen = np.random.default_rng(seed).choice(len(gallery), n, replace=False)
        structure.index.train(gallery[np.sort(chosen)])
        structure.add(gallery, np.setdiff1d(np.arange(len(gallery)), held_out), progress)
        return structure

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def cells(self) -> int | None:
        """How many there are; None for a graph."""
        return None if self.kind == "hnsw" else int(self.index.nlist)

    def add(self, gallery: Rows, rows: np.ndarray, progress: Progress | None = None) -> None:
        """Adds these rows, rising; those that it covers already are not added again."""
        rows = rows[rows >= self.covers]
        size = ADD_ROWS.get(self.kind, 65_536)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            with self._lock.changing():
                self.index.add_with_ids(np.ascontiguousarray(gallery[part]), part)
                self.covers = int(part[-1]) + 1
            if progress and len(rows) > size:
                progress(start + len(part), len(rows))

    def candidates(
        self, queries: np.ndarray, n: int, effort: int, allowed: "Allowed | None" = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(Q, n) int64 rows, best first, -1 after the last, and (Q, n) float32 coarse scores.

        effort: FAISS's efSearch of a graph, or nprobe, the cells that are searched.
        """
        import faiss as typed

        faiss: Any = typed  # its own annotations do not know its Python constructors
        queries = np.ascontiguousarray(queries, np.float32)
        with self._lock.reading():
            wanted: dict[str, Any] = {}
            if allowed is not None:
                wanted["sel"] = faiss.IDSelectorBitmap(allowed.bits)
            if self.kind == "hnsw":
                options = faiss.SearchParametersHNSW(efSearch=max(effort, n), **wanted)
            else:
                wanted["nprobe"] = min(effort, self.index.nlist)
                options = faiss.SearchParametersIVF(**wanted)
            # faiss.contrib.torch_utils, which pytorch-metric-learning loads, takes no params
            search = getattr(self.index, "search_numpy", self.index.search)
            scores, found = search(queries, n, params=options)
        return np.asarray(found, np.int64), scores

    @property
    def holds_vectors(self) -> bool:
        """Whether it holds the vectors as they are, so that its scores are float32 scores."""
        return self.kind == "ivf"

    def efforts(self, n: int) -> list[int]:
        """The efforts to try for n candidates: doubling, up to nearly an exhaustive search."""
        most = 32 * n if self.kind == "hnsw" else int(self.index.nlist)
        steps = [n if self.kind == "hnsw" else 1]
        while steps[-1] < most:
            steps.append(min(most, 2 * steps[-1]))
        return steps

    def save(self, path: Path) -> None:
        """Writes FAISS's own file."""
        import faiss

        with self._lock.reading():
            faiss.write_index(self.index, str(path))

    @staticmethod
    def load(path: Path, kind: str, covers: int) -> "Structure":
        """Reads what `save` wrote, over the first `covers` rows. Check the file's hash before."""
        import faiss

        return Structure(kind, faiss.read_index(str(path)), covers)


@dataclass(frozen=True, eq=False)
class Allowed:
    """Which rows may be found: all (N,) bool, those of the structure as bits, and their share."""

    mask: np.ndarray
    bits: np.ndarray
    share: float

    @staticmethod
    def of(mask: np.ndarray, covered: int) -> "Allowed":
        """mask: (N,) bool over all rows, the first `covered` of which are the structure's."""
        inside = mask[:covered]
        return Allowed(mask, np.packbits(inside, bitorder="little"), float(inside.mean()))


@dataclass(frozen=True, eq=False)
class Unindexed:
    """Rows that are not in the structure, rising, and their vectors (n, D), float32."""

    rows: np.ndarray
    vectors: np.ndarray

    @staticmethod
    def of(gallery: Rows, covered: int, held_out: np.ndarray) -> "Unindexed":
        """The rows from `covered` on, and those held out."""
        rows = np.concatenate([held_out, np.arange(covered, len(gallery))]).astype(np.int64)
        return Unindexed(rows, np.ascontiguousarray(gallery[rows]))

    def only(self, allowed: np.ndarray) -> "Unindexed":
        """Those of them that are allowed, (N,) bool."""
        kept = allowed[self.rows]
        return Unindexed(self.rows[kept], self.vectors[kept])


def nearest(
    structure: Structure,
    gallery: Rows,
    queries: np.ndarray,
    k: int,
    *,
    covered: int,
    unindexed: Unindexed,
    effort: int,
    candidates: int = CANDIDATES,
    allowed: Allowed | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (Q, k) int64 and exact scores (Q, k); -1 in a row that only exact search can answer.

    gallery: all N rows. The structure knows the first `covered` of them, except the held-out ones;
    all `unindexed` rows are compared. If a filter allows the share s of the rows, the effort is
    1/s of the usual one; for a large k so many cells are searched as hold twice as many rows.
    """
    if structure.cells:
        effort = max(effort, 2 * k * structure.cells // max(1, covered))
    if allowed is not None:
        effort = int(np.ceil(effort / max(allowed.share, EXACT_BELOW)))
        unindexed = unindexed.only(allowed.mask)
    positions, best = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    together = max(1, min(QUERIES_AT_ONCE, SCORES_AT_ONCE // max(1, len(unindexed.rows))))
    for start in range(0, len(queries), together):
        batch = np.ascontiguousarray(queries[start : start + together], np.float32)
        found, scores = _enough(structure, batch, k, candidates_for(k, candidates), effort, allowed)
        added = found >= covered  # while this search is under way
        found[added], scores[added] = -1, -np.inf
        if not structure.holds_vectors:
            scores = float_scores(batch, gallery, found)
        part = slice(start, start + together)
        positions[part], best[part] = _best(gallery, batch, k, found, scores, unindexed)
    return positions, best


def _enough(
    structure: Structure, queries: np.ndarray, k: int, n: int, effort: int, allowed: Allowed | None
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates. Without a filter, more cells are searched while fewer than k are found."""
    found, scores = structure.candidates(queries, n, effort, allowed)
    short = np.flatnonzero(found[:, k - 1] < 0)
    while len(short) and allowed is None and effort < (structure.cells or 0):
        effort *= 4
        found[short], scores[short] = structure.candidates(queries[short], n, effort)
        short = short[found[short, k - 1] < 0]
    return found, scores


def _best(
    gallery: Rows, queries: np.ndarray, k: int, found: np.ndarray, scores: np.ndarray,
    unindexed: Unindexed,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The k best of the found rows, with float32 scores (Q, n), and of all unindexed ones."""
    least = exact.lowest(queries, scores, k)
    near = scores >= least
    # if all candidates are as good as the k-th, earlier ones among its equals may be missing
    unsure = (found[:, k - 1] < 0) | ((found[:, -1] >= 0) & near.all(axis=1))
    near[unsure] = False
    rows = [_compact(found, near)]
    if len(unindexed.rows):
        others = queries @ unindexed.vectors.T  # (Q, unindexed)
        beside = others >= np.where(unsure[:, None], np.inf, least)
        rows.append(_compact(np.broadcast_to(unindexed.rows, others.shape), beside))
    few = np.concatenate(rows, axis=1)
    if few.shape[1] < k:  # all are unsure
        few = np.full((len(queries), k), -1)
    positions, best = exact.ordered(few, exact.rescored(queries, gallery, few), k)
    return positions, best


def _compact(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(Q, W) the wanted rows of each query, in their order, -1 after the last."""
    counts = wanted.sum(axis=1)
    line, column = np.nonzero(wanted)
    few = np.full((len(rows), counts.max(initial=0)), -1, np.int64)
    few[line, np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)] = (
        rows[line, column]
    )  # fmt: skip
    return few


def float_scores(queries: np.ndarray, gallery: Rows, found: np.ndarray) -> np.ndarray:
    """(Q, n) float32 scores of these rows, -inf where a row is -1."""
    import faiss as typed

    faiss: Any = typed
    vectors = gallery.vectors
    queries, found = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(found)
    in_place = gallery.rows is None and vectors.dtype == np.float32 and vectors.flags.c_contiguous
    if in_place and len(queries) > 1:  # nothing is copied; waking threads for one takes longer
        scores = np.empty(found.shape, np.float32)
        faiss.fvec_inner_products_by_idx(
            *map(faiss.swig_ptr, (scores, queries, vectors, found)), queries.shape[1], *found.shape
        )
        return scores
    scores = np.full(found.shape, -np.inf, np.float32)
    size = max(1, GATHER_BYTES // (4 * max(1, queries.shape[1] * found.shape[1])))
    for start in range(0, len(queries), size):
        part = found[start : start + size]
        picked = gallery[part.clip(0).reshape(-1)].reshape(*part.shape, -1)
        products = np.matmul(picked, queries[start : start + size, :, None])[..., 0]
        scores[start : start + size] = np.where(part >= 0, products, -np.inf)
    return scores


def candidates_for(k: int, candidates: int = CANDIDATES) -> int:
    """How many candidates to ask for: those measured to be needed, and always some more than k."""
    return max(candidates, k + k // 4 + 32)


def bytes_needed(kind: str, n: int, dim: int) -> int:
    """Bytes of memory that a structure of n rows takes beside the vectors, which stay on disk."""
    code = {"hnsw": dim + 8 * LINKS + 16, "ivf": 4 * dim + 8, "ivfsq8": dim + 8,
            "ivfpq": _parts(dim) + 8}  # fmt: skip
    return n * code[kind] + (0 if kind == "hnsw" else 4 * dim * _cells(n))


def _untrained(kind: str, n: int, dim: int) -> Any:
    import faiss as typed

    faiss: Any = typed
    inner = faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, LINKS, inner)
        graph.hnsw.efConstruction = BUILD_EFFORT
        return faiss.IndexIDMap(graph)
    cells, centres = _cells(n), faiss.IndexFlatIP(dim)
    if kind == "ivf":
        index = faiss.IndexIVFFlat(centres, dim, cells, inner)
    elif kind == "ivfsq8":
        quantizer = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(centres, dim, cells, quantizer, inner)
    else:
        index = faiss.IndexIVFPQ(centres, dim, cells, _parts(dim), 8, inner)
        index.pq.cp.min_points_per_centroid = 1
    index.cp.spherical, index.cp.niter = True, TRAIN_PASSES
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = TRAIN_PER_CELL, 1
    return index


def _cells(n: int) -> int:
    """A power of two near 2 √N."""
    return int(2 ** np.round(np.log2(max(1.0, 2 * n**0.5))))


def _parts(dim: int) -> int:
    """Of a product code, one byte each: the most up to 64 that split the dimensions evenly."""
    return max(m for m in range(1, 65) if dim % m == 0 and 2 * m <= max(dim, 2))


def _train_rows(kind: str, n: int) -> int:
    wanted = 65_536 if kind == "hnsw" else TRAIN_PER_CELL * _cells(n)
    return max(wanted, 65_536 if kind == "ivfpq" else 0)


def choose_kind(size: int, dim: int, memory: int | None = None) -> tuple[str, str]:
    """The kind of index for so many images, and why: the quickest whose structure fits the memory.

    memory: bytes for the structure; None: half of this machine's.
    """
    built = f"{size} images when it was built"  # some may be added or removed later
    if size <= EXACT_UP_TO:
        return "exact", f"{built}: exact search takes some milliseconds up to {EXACT_UP_TO}"
    limit = _half_of_memory() if memory is None else memory
    source = "half of this machine's memory" if memory is None else "the memory given"
    needed = {kind: bytes_needed(kind, size, dim) for kind in ("hnsw", "ivfsq8", "ivfpq")}
    of_limit = f"{source} ({limit / 1e6:.0f} MB)"
    for kind, taken in needed.items():
        if taken <= limit:
            return kind, f"{built}: the quickest that fits, {taken / 1e6:.0f} MB of {of_limit}"
    least = needed["ivfpq"] / 1e6
    return "exact", f"{built}: even ivfpq takes {least:.0f} MB, more than {of_limit}"


def _half_of_memory() -> int:
    """In bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError):  # Windows
        return 4 * 2**30


class _FairLock:
    """Many may read at a time, or one changes; each in the order in which they came.

    So neither a stream of searches nor a long addition in many parts keeps the other out.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._tickets = itertools.count()
        self._reads: set[int] = set()  # tickets that wait or are under way
        self._changes: set[int] = set()

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._turn(self._reads, lambda mine: min(self._changes, default=mine) >= mine):
            yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        with self._turn(
            self._changes, lambda mine: min(self._reads | self._changes, default=mine) >= mine
        ):
            yield

    @contextmanager
    def _turn(self, kept: set[int], free: Callable[[int], bool]) -> Iterator[None]:
        with self._free:
            mine = next(self._tickets)
            kept.add(mine)
        try:
            with self._free:
                self._free.wait_for(lambda: free(mine))
            yield
        finally:
            with self._free:
                kept.discard(mine)
                self._free.notify_all()
