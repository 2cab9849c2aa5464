"""Exact nearest neighbours by cosine: chunked matrix products with a reproducible order.

Unit vectors are rounded to multiples of 2^-26. The products of two such numbers and all their
partial sums are multiples of 2^-52 below 2, so a float64 matrix product adds them without any
rounding: a score does not depend on chunks, threads, hardware or position, and equal vectors get
equal scores. Rounding moves a score by about 1e-8, less than float32 arithmetic does. Ties go to
the earlier gallery position.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizsla.argument_types import fits, wrong_type
from vizsla.embed.arrays import own_embeddings
from vizsla.embed.compute import has_fast_bf16
from vizsla.embed.embeddings import Embeddings, about_tiles
from vizsla.errors import DataError, UsageError
from vizsla.search.ranking import Ranking, self_positions, tile_of, without_self

GRID = 2.0**26  # steps in a unit
FULL_DEPTH = 20_000  # up to this gallery size a ranking holds all images
LIMITED_DEPTH = 1_000  # images of a ranking of a larger gallery
SPARE = {"fp32": 32, "bf16": 128}  # candidates beyond k that the first pass keeps
MANY_QUERIES, LARGE_GALLERY = 64, 20_000  # from both on, bf16 is faster than fp32 on a CPU
FIRST_CHUNK = 1024  # rows; all their scores are sorted
SCORES_AT_ONCE = 2**19  # compared together on a CPU: they fit its cache
BUFFER = 64  # scores of a query that are collected before they are sorted
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
PAIRS = 2**17  # numbers of candidates that are multiplied at a time: they fit a CPU's cache
CHUNK_BYTES = 64 * 2**20  # of one score matrix; about four of them exist at a time


class Rows:
    """Rows of stored vectors as (G, D) float32 unit rows, read when they are indexed.

    vectors: (N, D) float32 or float16, may be memory-mapped. rows: (G,) rising; None: all.
    resident: the N vectors on the searching device, if they fit (see `on_device`).
    """

    def __init__(
        self, vectors: np.ndarray, rows: np.ndarray | None = None, resident: Tensor | None = None
    ) -> None:
        whole = rows is None or len(rows) == len(vectors)
        self.vectors = np.asarray(vectors)  # taking rows of a map by itself takes longer
        self.rows, self.resident = None if whole else rows, resident
        self.shape = (len(vectors) if self.rows is None else len(self.rows), vectors.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: slice | np.ndarray) -> np.ndarray:
        found = self.vectors[at if self.rows is None else self.rows[at]]
        if found.dtype == np.float16:
            found = found.astype(np.float32)
            found /= np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found)

    def resident_block(self, part: slice) -> Tensor:
        """(n, D) these rows of `resident`, on its device."""
        assert self.resident is not None
        if self.rows is None:
            return self.resident[part]
        return self.resident[torch.from_numpy(self.rows[part]).to(self.resident.device)]


def on_device(vectors: np.ndarray, device: str, precision: str) -> Tensor | None:
    """All vectors on a GPU, if they take at most half of what is free there; else None."""
    if torch.device(device).type != "cuda" or not len(vectors):
        return None
    dtype = PRECISIONS["fp32" if precision == "auto" else precision]
    free, _ = torch.cuda.mem_get_info(device)
    if vectors.size * dtype.itemsize > free // 2:
        return None
    kept = torch.empty(vectors.shape, dtype=dtype, device=device)
    gallery = Rows(vectors)
    for part in slices(len(vectors), rows_per_chunk(vectors.shape[1])):
        kept[part] = _block(gallery, part, device, dtype)
    return kept


Gallery = np.ndarray | Rows


def default_depth(gallery_size: int) -> int:
    """How many images a ranking holds by default: the whole gallery, if it is not too large."""
    return gallery_size if gallery_size <= FULL_DEPTH else LIMITED_DEPTH


def rank(
    queries: Embeddings | Any,
    gallery: Embeddings | Any,
    k: int | None = None,
    *,
    same_set: bool = False,
    device: str = "cpu",
) -> Ranking:
    """The k gallery images nearest to each query (default: `default_depth`), best first.

    queries, gallery: Embeddings or their folders, or vectors of your own (N, D): see
    `evaluate_embeddings`.
    same_set: queries and gallery are one set, so each query's own id is left out.
    DataError: the models differ, or k exceeds the gallery.
    """
    queries, gallery = own_embeddings(queries), own_embeddings(gallery, role="gallery")
    require_comparable(queries.model_id, gallery.model_id, queries.dim, gallery.dim)
    available = len(gallery) - (1 if same_set else 0)
    k = min(default_depth(len(gallery)), available) if k is None else k
    check_k(k, available)
    T = len(gallery.tiles) if gallery.tiles else 1
    positions, scores = top_k_of_tiles(
        queries.vectors, gallery.all_vectors, T, k + same_set, device=device
    )
    if same_set:
        own = self_positions(queries.ids, gallery.ids)
        positions, scores = without_self(positions, scores, own, k, vectors_each=T)
    origin = {"model_id": gallery.model_id, "kind": "exact", "depth": k, "same_set": same_set}
    return Ranking(
        queries.ids, gallery.ids, positions // T, scores, len(gallery),
        {**origin, **about_tiles(gallery.tiles)},
        query_root=queries.root, gallery_root=gallery.root, tiles=gallery.tiles,
        best_tile=None if T == 1 else tile_of(positions, T),
    )  # fmt: skip


def require_comparable(
    query_model: str, gallery_model: str, query_dim: int, gallery_dim: int, *, what: str = "queries"
) -> None:
    """DataError unless vectors of both models may be compared. what: the first ones, in words."""
    if query_model != gallery_model:
        raise DataError(
            f"the {what} were embedded by model {query_model}, the gallery by {gallery_model}: "
            "their vectors cannot be compared; embed both with one model"
        )
    if query_dim != gallery_dim:
        raise DataError(f"the {what} have {query_dim} dimensions, the gallery {gallery_dim}")


def as_embeddings(
    queries: Embeddings | np.ndarray, model_id: str | None, *, same_set: bool = False
) -> Embeddings:
    """Embeddings as they are; (Q, D) numbers as unit vectors of that model with ids 0, 1, …

    UsageError if the model, or with `same_set` the ids, are not known.
    """
    if isinstance(queries, Embeddings):
        return queries
    if model_id is None:
        raise UsageError(
            "it is not known which model made these vectors: give model_id or Embeddings"
        )
    if same_set:
        raise UsageError("same_set needs the queries' ids: give Embeddings")
    return Embeddings.from_arrays(queries, model_id=model_id)


def check_k(k: int, available: int) -> None:
    """DataError unless 1 <= k <= available, the images that may be found. UsageError: no int."""
    if not fits(k, int):
        raise wrong_type("k", k, int)
    if available < 1:
        raise DataError("the index holds no image to be found: add some first (`vizsla index add`)")
    if not 1 <= k <= available:
        raise DataError(
            f"k={k}, but the gallery offers {available} images: choose k from 1 to {available}"
        )


def top_k(
    queries: np.ndarray,
    gallery: Gallery,
    k: int,
    *,
    device: str = "cpu",
    precision: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (Q, k) int64 and scores (Q, k) float64 of each query's k best.

    queries: (Q, D), gallery: (G, D), float32 or float16 unit rows; may be memory-mapped.
    precision: of the first pass (auto, fp32, bf16); the result is the same.
    """
    check_precision(precision)
    G = len(gallery)
    if precision == "auto":
        precision = _faster(len(queries), G, device)
    positions = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k))
    if (k + SPARE[precision]) * 4 >= G:
        precision = "fp32"
    few = (k + SPARE[precision]) * 4 < G
    for part in slices(len(queries), 1024 if few else rows_per_chunk(G)):
        if few:
            found = _by_candidates(queries[part], gallery, k, device, precision)
        else:
            found = _by_all(queries[part], gallery, k, device)
        positions[part], scores[part] = found
    return positions, scores


def top_k_of_tiles(
    queries: np.ndarray, gallery: Gallery, vectors_each: int, k: int, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and scores (Q, k) of the best tiles of each query's k best images.

    gallery: (G·T, D), the T vectors of an image together. Of equal tiles the first counts. All
    scores are computed, as for deep rankings; with one vector of each image it is `top_k`.
    """
    if vectors_each == 1:
        return top_k(queries, gallery, k, device=device)
    positions, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    for part in slices(len(queries), rows_per_chunk(len(gallery))):
        found = _by_all(queries[part], gallery, k, device, vectors_each)
        positions[part], scores[part] = found
    return positions, scores


def check_precision(precision: str) -> None:
    """UsageError unless it is auto or one of PRECISIONS."""
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"precision={precision!r}: choose auto, {' or '.join(PRECISIONS)}")


def _faster(queries: int, gallery: int, device: str) -> str:
    """The faster precision: fp32 for few queries, which wait for the gallery to be read."""
    on_cpu = torch.device(device).type == "cpu"
    many = queries >= MANY_QUERIES and gallery >= LARGE_GALLERY
    return "bf16" if on_cpu and many and has_fast_bf16(device) else "fp32"


def exact_scores(queries: Tensor, gallery: Tensor) -> Tensor:
    """(Q, G) float64 cosines, free of rounding: see the module's docstring.

    Both in grid units, as `on_grid` gives them. At most 1, though rows in float32 or float16 may
    be longer than 1 by a rounding.
    """
    return (queries @ gallery.T).div_(GRID**2).clamp_(max=1)


def on_grid(vectors: np.ndarray | Tensor, device: str = "cpu") -> Tensor:
    """Unit rows (N, D) as whole numbers of 2^-26, float64."""
    if isinstance(vectors, np.ndarray):
        vectors = torch.from_numpy(np.array(vectors, np.float64))
    return vectors.to(device, torch.float64).mul(GRID).round_()


def _by_all(
    queries: np.ndarray, gallery: Gallery, k: int, device: str, vectors_each: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Every score, exactly, then a stable sort: for deep rankings. Of T vectors of an image the
    best one counts, whose position is given."""
    T, grid = vectors_each, on_grid(queries, device)
    rows = T * max(1, rows_per_chunk(gallery.shape[1]) // T)
    best = [
        exact_scores(grid, _exact_block(gallery, part, device)).view(len(grid), -1, T).max(dim=2)
        for part in slices(len(gallery), rows)
    ]
    scores = torch.cat([found.values for found in best], dim=1)  # (q, G)
    tile = torch.cat([found.indices for found in best], dim=1)
    values, order = torch.sort(scores, dim=1, descending=True, stable=True)
    order = order[:, :k]
    return (order * T + tile.gather(1, order)).cpu().numpy(), values[:, :k].cpu().numpy()


def _exact_block(gallery: Gallery, part: slice, device: str) -> Tensor:
    """These rows for `exact_scores`: of the vectors on a GPU, if they are there in full."""
    if isinstance(gallery, Rows) and gallery.resident is not None:
        found = gallery.resident_block(part)
        if found.dtype == torch.float32:
            return on_grid(found, device)
    return on_grid(gallery[part], device)


def _by_candidates(
    queries: np.ndarray, gallery: Gallery, k: int, device: str, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """A pass in float32 or bfloat16 finds more than k candidates; exact scores order them.

    If all candidates of a query are within the pass's error of the k-th, others may be missing. The
    query is then searched again: in float32 after bfloat16, by all exact scores after float32.
    """
    found = _candidates(queries, gallery, k + SPARE[precision], device, precision)
    tolerance = _error(queries, found.scores[:, k - 1], precision)
    near = found.scores >= (found.scores[:, k - 1] - 2 * tolerance)[:, None]
    exact = rescored(queries, gallery, np.where(near, found.positions, -1))
    positions, scores = ordered(found.positions, exact, k)
    unsure = np.flatnonzero(near[:, -1])
    for part in slices(len(unsure), 1024 if precision != "fp32" else rows_per_chunk(len(gallery))):
        rows = unsure[part]
        if precision != "fp32":
            again = _by_candidates(queries[rows], gallery, k, device, "fp32")
        else:
            again = _by_all(queries[rows], gallery, k, device)
        positions[rows], scores[rows] = again
    return positions, scores


def _error(queries: np.ndarray, scores: np.ndarray, precision: str) -> np.ndarray:
    """(Q,) the largest error of the first pass for scores near these: roundings as random steps.

    bfloat16 keeps 8 bits. Both factors of every product are rounded, which adds up to a normal
    deviation of at most 2^-9 times the query's largest number, taken six times; so is the sum.
    """
    if precision == "fp32":
        return np.full(len(queries), 4 * queries.shape[1] ** 0.5 * 2.0**-24)
    largest = np.abs(queries).max(axis=1).astype(np.float64)
    return 2.0**-9 * (6 * largest + np.abs(scores) + 2.0**-9)


def rescored(queries: np.ndarray, gallery: Gallery, positions: np.ndarray) -> np.ndarray:
    """(Q, K) float64 exact scores at these positions; -inf where a position is -1."""
    scores = np.full(positions.shape, -np.inf)
    query, column = np.nonzero(positions >= 0)
    grid = np.rint(queries.astype(np.float64) * GRID)
    for part in slices(len(query), max(1, PAIRS // max(1, queries.shape[1]))):
        at = positions[query[part], column[part]]
        pairs = gallery[at].astype(np.float32, copy=False) * np.float32(GRID)
        np.rint(pairs, out=pairs)  # exact in float32: what has a fraction is below 2^23
        sums = np.einsum("nd,nd->n", pairs.astype(np.float64), grid[query[part]])
        scores[query[part], column[part]] = np.minimum(sums / GRID**2, 1)
    return scores


def lowest(queries: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """(Q, 1) float32 score below which none can be among the k best of these by exact scores."""
    last = np.partition(scores, -k, axis=1)[:, -k]
    return (last - 2 * _error(queries, last, "fp32")).astype(np.float32)[:, None]


def ordered(positions: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row, by falling score, ties by rising position."""
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(scores, order, axis=1)


@dataclass(frozen=True)
class _Candidates:
    positions: np.ndarray  # (q, wanted) int64
    scores: np.ndarray  # (q, wanted) float32, falling


def _candidates(
    queries: np.ndarray, gallery: Gallery, wanted: int, device: str, precision: str
) -> _Candidates:
    dtype = PRECISIONS[precision]
    query_tensor = torch.as_tensor(queries, dtype=torch.float32).to(device, dtype)
    first = min(len(gallery), max(wanted, FIRST_CHUNK))
    scores = (query_tensor @ _block(gallery, slice(0, first), device, dtype).T).float()
    on_cpu = torch.device(device).type == "cpu"
    best = (_Buffered if on_cpu else _Sorted)(*torch.topk(scores, wanted, dim=1))
    rows = min(rows_per_chunk(2 * len(queries)), rows_per_chunk(gallery.shape[1]))
    if on_cpu:
        rows = min(rows, SCORES_AT_ONCE // len(queries))
    room = torch.empty((len(queries), max(wanted, rows)), dtype=dtype, device=device)
    for part in slices(len(gallery), max(wanted, rows), first):
        into = room.view(-1)[: len(queries) * (part.stop - part.start)].view(len(queries), -1)
        torch.mm(query_tensor, _block(gallery, part, device, dtype).T, out=into)
        best.take(into.float(), part.start)
    return best.found()


class _Sorted:
    """The best scores of each query so far, falling. For GPUs, which sort quickly."""

    def __init__(self, values: Tensor, positions: Tensor) -> None:
        self.values, self.positions = values, positions

    def take(self, scores: Tensor, start: int) -> None:
        """Takes the scores (Q, chunk) of the gallery positions from `start` on."""
        wanted = self.values.shape[1]
        best, at = torch.topk(scores, min(wanted, scores.shape[1]), dim=1)
        self.values, order = torch.topk(torch.cat([self.values, best], 1), wanted, dim=1)
        positions = torch.cat([self.positions, at + start], 1)
        self.positions = torch.gather(positions, 1, order)

    def found(self) -> _Candidates:
        return _Candidates(self.positions.cpu().numpy(), self.values.cpu().numpy())


class _Buffered:
    """The best scores of each query so far, and a buffer of later scores that are higher.

    Few of a chunk's scores are higher than those found before: comparing all and keeping those few
    is much faster on a CPU than `topk` of every row.
    """

    def __init__(self, values: Tensor, positions: Tensor) -> None:
        queries, self.wanted = values.shape
        self.buffer = max(BUFFER, self.wanted)  # columns for higher scores until they are sorted
        self.values = np.full((queries, self.wanted + self.buffer), -np.inf, np.float32)
        self.positions = np.full(self.values.shape, -1, np.int64)
        self._keep(values, positions)

    def _keep(self, values: Tensor, positions: Tensor) -> None:
        """Keeps these, falling, and empties the buffer."""
        self.values[:, : self.wanted], self.values[:, self.wanted :] = values.numpy(), -np.inf
        self.positions[:, : self.wanted] = positions.numpy()
        self.least = self.values[:, self.wanted - 1 : self.wanted].copy()
        self.filled = np.full(len(values), self.wanted)

    def _sort(self, more: Tensor | None = None, at: Tensor | None = None) -> None:
        values, positions = torch.from_numpy(self.values), torch.from_numpy(self.positions)
        if more is not None and at is not None:
            values, positions = torch.cat([values, more], 1), torch.cat([positions, at], 1)
        best, order = torch.topk(values, self.wanted, dim=1)
        self._keep(best, torch.gather(positions, 1, order))

    def take(self, scores: Tensor, start: int) -> None:
        """Takes the scores (Q, chunk) of the gallery positions from `start` on."""
        hits = self._above(scores.numpy())
        if (self.filled + hits.counts).max() > self.values.shape[1]:
            self._sort()
            hits = self._above(scores.numpy())
            if hits.counts.max() > self.buffer:
                best, at = torch.topk(scores, min(self.wanted, scores.shape[1]), dim=1)
                self._sort(best, at + start)
                return
        place = self.filled[hits.row] + hits.beside
        self.values[hits.row, place] = hits.scores
        self.positions[hits.row, place] = hits.at + start
        self.filled += hits.counts

    def _above(self, scores: np.ndarray) -> "_Hits":
        found = np.flatnonzero(scores > self.least)  # by one thread: several wait for each other
        row, at = np.divmod(found, scores.shape[1])
        counts = np.bincount(row, minlength=len(scores))
        beside = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        return _Hits(row, at, scores.reshape(-1)[found], counts, beside)

    def found(self) -> _Candidates:
        self._sort()
        return _Candidates(self.positions[:, : self.wanted], self.values[:, : self.wanted])


@dataclass(frozen=True)
class _Hits:
    """Scores higher than those found before: query, position in the chunk and value, by query.

    counts: (Q,) how many each query has. beside: how many hits of the same query come before each.
    """

    row: np.ndarray
    at: np.ndarray
    scores: np.ndarray
    counts: np.ndarray
    beside: np.ndarray


def _block(gallery: Gallery, part: slice, device: str, dtype: torch.dtype) -> Tensor:
    """(chunk, D) on the device; a writable float32 array (such as a copy-on-write map) uncopied."""
    if isinstance(gallery, Rows) and gallery.resident is not None:
        return gallery.resident_block(part).to(dtype)
    rows = gallery[part]
    if rows.dtype != np.float32 or not rows.flags.writeable:
        rows = rows.astype(np.float32)
    return torch.from_numpy(rows).to(device, dtype)


def rows_per_chunk(width: int) -> int:
    """How many float64 rows of this width fit into CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (8 * max(1, width)))


def slices(n: int, size: int, first: int = 0) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover first…n."""
    for start in range(first, n, size):
        yield slice(start, min(start + size, n))
