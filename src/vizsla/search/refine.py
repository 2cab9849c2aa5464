"""Unit vectors → a better order: expansion of queries and gallery, re-ranking, diffusion, balance.

Uses the gallery's neighbour graph, and no labels. Everything is sparse: memory grows with images ×
neighbours, never with images × images.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy.special import logsumexp

from vizsla.errors import DataError
from vizsla.search import exact
from vizsla.search.knn_graph import NeighbourGraph
from vizsla.search.ranking import without_self

log = logging.getLogger("vizsla.search")

PAIRS_AT_ONCE = 4_000_000  # of sparse entries, and so of memory
CELLS_AT_ONCE = 8_000_000  # of a dense (queries, gallery) part, float64
DENSE = 32  # if more than one pair in 32 is needed, all are computed
CG_STEPS, CG_ACCURACY = 100, 1e-7
BALANCE_STEPS = 10
FEWEST_VOTERS = 20  # queries by which `balance` corrects scores


# ── expansion ────────────────────────────────────────────────────────────────────────────────────


def expanded_queries(
    queries: np.ndarray,
    gallery: np.ndarray,
    *,
    n: int = 5,
    alpha: float = 0.0,
    self_at: np.ndarray | None = None,
    device: str = "cpu",
    vectors_each: int = 1,
) -> np.ndarray:
    """(Q, D) unit rows: each query plus its n nearest gallery vectors, weighted by score^alpha.

    alpha 0 is average query expansion (Chum et al., 2007), above it αQE (Radenović et al., 2018).
    self_at: each query's own gallery position (-1: none), which is not a neighbour. vectors_each:
    T vectors of an image; of each of the n nearest images the best one is added.
    """
    T = vectors_each
    exact.check_k(n, len(gallery) // T - (self_at is not None))
    positions, scores = exact.top_k_of_tiles(
        queries, gallery, T, n + (self_at is not None), device=device
    )
    if self_at is not None:
        positions, scores = without_self(positions, scores, self_at, n, vectors_each=T)
    return _weighted_sum(queries, gallery, positions, scores, alpha)


def augmented_gallery(
    gallery: np.ndarray, graph: NeighbourGraph, *, n: int = 5, alpha: float = 0.0
) -> np.ndarray:
    """(G, D) unit rows: each gallery vector plus its n nearest others (Arandjelović and Zisserman,
    2012), weighted by score^alpha."""
    exact.check_k(n, graph.depth)
    scores = graph.scores[:, :n].astype(np.float64)
    return _weighted_sum(gallery, gallery, graph.positions[:, :n], scores, alpha)


def _weighted_sum(
    vectors: np.ndarray, others: np.ndarray, at: np.ndarray, scores: np.ndarray, alpha: float
) -> np.ndarray:
    """Unit rows of vectors[i] + Σ_j score[i, j]^alpha · others[at[i, j]]; float32."""
    weights = np.maximum(scores, 0) ** alpha if alpha else np.ones_like(scores)
    out = np.empty(vectors.shape, np.float32)
    for part in exact.slices(len(vectors), max(1, PAIRS_AT_ONCE // (8 * vectors.shape[1]))):
        near = others[at[part]].astype(np.float64)  # (chunk, n, D)
        summed = vectors[part] + np.einsum("ij,ijd->id", weights[part], near)
        length = np.linalg.norm(summed, axis=1, keepdims=True)
        lost = length[:, 0] < 1e-9  # cancelled out: keep the vector
        out[part] = np.where(lost[:, None], vectors[part], summed / np.maximum(length, 1e-9))
    return out


# ── keeping the first ranks ───────────────────────────────────────────────────────────────────────


def with_first_kept(
    positions: np.ndarray, scores: np.ndarray, first: np.ndarray, levels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """A ranking (Q, K) in which the first l images of another stay the first l, for each level l.

    first: (Q, n) positions, best first. So top-l accuracy is that of `first`; between two levels,
    and after the last, the order is that of `positions`. Where an image moves up, it gets the score
    of those after it, so that scores never rise along a row.
    """
    Q, K = positions.shape
    there = np.full((Q, K), len(levels))  # the level that an image belongs to
    extra, extra_level = [], []
    for column in range(first.shape[1]):
        level = int(np.searchsorted(levels, column + 1))
        same = positions == first[:, column, None]
        there[same] = level
        missing = ~same.any(axis=1)
        extra.append(np.where(missing, first[:, column], -1))
        extra_level.append(np.where(missing, level, len(levels) + 1))  # last where it is there
    everything = np.concatenate([positions, np.stack(extra, 1)], axis=1)
    level_of = np.concatenate([there, np.stack(extra_level, 1)], axis=1)
    order = np.argsort(level_of, axis=1, kind="stable")[:, :K]
    padded = np.concatenate([scores, np.full((Q, first.shape[1]), -np.inf)], axis=1)
    found = np.take_along_axis(padded, order, axis=1)
    found = np.maximum.accumulate(found[:, ::-1], axis=1)[:, ::-1]
    lowest = np.broadcast_to(scores[:, -1:], found.shape)
    return np.take_along_axis(everything, order, axis=1), np.where(
        np.isfinite(found), found, lowest
    )


# ── k-reciprocal re-ranking ──────────────────────────────────────────────────────────────────────


def k_reciprocal(
    queries: np.ndarray,
    gallery: np.ndarray,
    graph: NeighbourGraph,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    together: bool = True,
    program: bool = True,
    self_at: np.ndarray | None = None,
    depth: int | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (Q, depth) and scores 1 - d* (Zhong et al., 2017, eq. 12), best first.

    d = 1 - cosine; d* = weight · d + (1 - weight) · Jaccard distance of k-reciprocal neighbours.
    The other options are those of `neighbourhoods`.
    """
    around = neighbourhoods(
        queries,
        gallery,
        graph,
        k1=k1,
        k2=k2,
        together=together,
        program=program,
        self_at=self_at,
        device=device,
    )
    return by_neighbourhoods(
        around, queries, gallery, weight=weight, depth=depth or len(gallery), device=device
    )


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """k-reciprocal neighbours of all images, the G gallery images first.

    features: (N, N) sparse, a row for each image. rows: (Q,) the rows of the queries.
    """

    features: sp.csr_matrix
    rows: np.ndarray


def neighbourhoods(
    queries: np.ndarray,
    gallery: np.ndarray,
    graph: NeighbourGraph,
    *,
    k1: int = 20,
    k2: int = 6,
    together: bool = True,
    program: bool = True,
    self_at: np.ndarray | None = None,
    device: str = "cpu",
) -> Neighbourhoods:
    """The paper's features of all images (eq. 2-7 and 11).

    k1: neighbours, not counting the image itself. k2: images whose features are averaged, the image
    itself among them; 1 averages nothing. together: neighbours are searched among all queries and
    the gallery, as in the paper; otherwise only within the gallery for each query, and the lists of
    gallery images hold no query. program: as the authors' program, which differs from the paper in
    the normalisation and the overlap. self_at: (Q,) each query's position in the gallery, where
    both are one set.
    """
    if k1 < 1 or k2 < 1:
        raise DataError(f"k1={k1}, k2={k2}: expected 1 or more")
    G = len(gallery)
    k1 = min(k1, graph.depth, G - 1)
    if self_at is not None:
        lists, none = graph.positions[:, :k1], _no_entries(G)
        return Neighbourhoods(
            _reciprocal_features(gallery, lists, none, none, k2, program), self_at
        )
    halved = _half(k1, program)
    lists, back, half_back = _lists_of_all(queries, gallery, graph, k1, halved, together, device)
    every = np.concatenate([gallery, queries])
    features = _reciprocal_features(every, lists, back, half_back, k2, program)
    return Neighbourhoods(features, np.arange(G, G + len(queries)))


def by_neighbourhoods(
    around: Neighbourhoods,
    queries: np.ndarray,
    gallery: np.ndarray,
    *,
    weight: float = 0.3,
    depth: int,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (Q, depth) and scores by the Jaccard distance of neighbourhoods and the cosine."""
    if not 0 <= weight <= 1:
        raise DataError(f"weight={weight}: expected 0…1")
    features, G = around.features, len(gallery)
    of_queries = features[around.rows]
    by_column = features[:G].tocsc()  # (G, N): for each image, in whose neighbourhood it is
    gallery_sums = np.asarray(features[:G].sum(axis=1), np.float64).ravel()
    query_sums = np.asarray(of_queries.sum(axis=1), np.float64).ravel()

    def scored(part: slice, cosines: np.ndarray) -> np.ndarray:
        shared = _min_sums(of_queries[part], by_column)  # (q, G)
        jaccard = shared / (query_sums[part, None] + gallery_sums - shared)
        return (1 - weight) * jaccard + weight * cosines

    return _ordered(queries, gallery, depth, device, scored)


def overlaps(around: Neighbourhoods, positions: np.ndarray) -> np.ndarray:
    """(Q, K) Jaccard index of the neighbourhoods of each query and of the gallery images at
    positions (Q, K); nan where a position is -1."""
    features, found = around.features, np.full(positions.shape, np.nan)
    sums = np.asarray(features.sum(axis=1), np.float64).ravel()
    own = np.zeros(features.shape[1], features.dtype)
    for i, row in enumerate(around.rows):
        at = positions[i][positions[i] >= 0]
        mine = slice(features.indptr[row], features.indptr[row + 1])
        own[features.indices[mine]] = features.data[mine]
        theirs = features[at]
        owner = np.repeat(np.arange(len(at)), np.diff(theirs.indptr))
        least = np.minimum(theirs.data, own[theirs.indices])
        shared = np.bincount(owner, least, len(at))
        found[i, positions[i] >= 0] = shared / (sums[row] + sums[at] - shared)
        own[features.indices[mine]] = 0
    return found


def _lists_of_all(
    queries: np.ndarray,
    gallery: np.ndarray,
    graph: NeighbourGraph,
    k1: int,
    half: int,
    together: bool,
    device: str,
) -> tuple[np.ndarray, sp.csr_matrix, sp.csr_matrix]:
    """Neighbours (G + Q, k1), the gallery first; and, where its lists hold no queries, which images
    would have a query among their k1 neighbours, or half of that: (N, N), entries (query, image).
    """
    G, Q = len(gallery), len(queries)
    at, scores = exact.top_k(queries, gallery, min(k1, G), device=device)
    near = graph.scores[:, k1 - 1], graph.scores[:, half - 1]  # the score that a query must exceed
    query, image, score = _pairs_above(queries, gallery, np.minimum(*near), device)
    listed = graph.positions[:, :k1]
    if not together:
        back, half_back = (
            _pattern(query[score > limit[image]] + G, image[score > limit[image]], G + Q)
            for limit in near
        )
    else:
        back = half_back = _no_entries(G + Q)  # the lists hold the queries
        listed, _ = _merged(listed, graph.scores[:, :k1], (image, query + G, score), k1)
        k = min(k1, Q - 1)
        others, other_scores = exact.top_k(queries, queries, k + 1, device=device)
        others, other_scores = without_self(others, other_scores, np.arange(Q), k)
        at, _ = exact.ordered(
            np.concatenate([at, others + G], axis=1),
            np.concatenate([scores, other_scores], axis=1),
            k1,
        )
    return np.concatenate([listed, at]), back, half_back


def _pairs_above(
    queries: np.ndarray, gallery: np.ndarray, limits: np.ndarray, device: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(query, gallery position, score) of all scores above the gallery image's limit, (G,)."""
    on_device = torch.as_tensor(np.asarray(queries, np.float32)).to(device)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for part in exact.slices(len(gallery), max(1, CELLS_AT_ONCE // max(1, len(queries)))):
        searched = torch.from_numpy(np.array(gallery[part], np.float32)).to(device)
        least = torch.from_numpy(limits[part] - 1e-5).to(device)
        close = searched @ on_device.T > least[:, None]  # (chunk, Q)
        g, q = (side.cpu().numpy() for side in close.nonzero(as_tuple=True))
        if len(g) > close.numel() / DENSE:
            scores = _cosines(gallery[part], queries, device)[g, q]
        else:
            scores = _pair_scores(queries, gallery[part], q, g, np.float64)
        sure = scores.astype(np.float32) > limits[part][g]
        found.append((q[sure], g[sure] + part.start, scores[sure].astype(np.float32)))
    query, image, score = (np.concatenate(side) for side in zip(*found, strict=True))
    return query, image, score


def _merged(
    listed: np.ndarray,
    scores: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Lists (G, k) with (row, node, score) sorted in; ties go to the smaller node."""
    row, node, score = pairs
    order = np.lexsort((node, row))
    row, node, score = row[order], node[order], score[order]
    counts = np.bincount(row, minlength=len(listed))
    changed = np.flatnonzero(counts)
    listed, scores = listed.copy(), scores.copy()
    if len(changed) == 0:
        return listed, scores
    place = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    at = np.searchsorted(changed, row)
    nodes = np.full((len(changed), counts.max()), -1, listed.dtype)
    values = np.full(nodes.shape, -np.inf, scores.dtype)
    nodes[at, place], values[at, place] = node, score
    nodes = np.concatenate([listed[changed], nodes], axis=1)
    values = np.concatenate([scores[changed], values], axis=1)
    best = np.lexsort((nodes, -values), axis=1)[:, :k]
    listed[changed] = np.take_along_axis(nodes, best, axis=1)
    scores[changed] = np.take_along_axis(values, best, axis=1)
    return listed, scores


def _reciprocal_features(
    vectors: np.ndarray,
    lists: np.ndarray,
    back: sp.csr_matrix,
    half_back: sp.csr_matrix,
    k2: int,
    program: bool,
) -> sp.csr_matrix:
    """V (N, N): e^-d on the expanded k-reciprocal set of each image, averaged over k2 (eq. 2-7)."""
    k1 = lists.shape[1]
    mutual = _mutual(lists, back)  # R(p, k1)
    half = _mutual(lists[:, : _half(k1, program)], half_back)  # R(q, k1/2)
    overlap = (mutual @ half.T).multiply(mutual).tocsr()  # |R(p, k1) ∩ R(q, k1/2)| for q in R(p)
    sizes = np.asarray(half.sum(axis=1)).ravel()
    least = 2 * sizes[overlap.indices] + 0.5 * program  # more than two thirds, or at least
    overlap.data = (3 * overlap.data >= least).astype(np.float32)
    overlap.eliminate_zeros()
    expanded = (mutual + overlap @ half).tocsr()  # R*(p, k1)
    expanded.sort_indices()
    row = np.repeat(np.arange(len(vectors)), np.diff(expanded.indptr))
    cosines = _pair_scores(vectors, vectors, row, expanded.indices)
    expanded.data = np.exp(np.minimum(cosines, 1) - 1).astype(np.float32)
    if program:
        expanded.data /= np.add.reduceat(expanded.data, expanded.indptr[:-1])[row]
    if k2 == 1:
        return expanded
    nearest = _with_self(lists[:, : k2 - 1])
    nearest.data /= nearest.indptr[1]
    return (nearest @ expanded).tocsr()


def _mutual(lists: np.ndarray, back: sp.csr_matrix) -> sp.csr_matrix:
    """(N, N) True for pairs that are in each other's lists, and for each image with itself."""
    near = _with_self(lists)
    far = (near.T + back).tocsr()
    far.data[:] = 1
    return near.multiply(far).tocsr()


def _min_sums(queries: sp.csr_matrix, by_column: sp.csc_matrix) -> np.ndarray:
    """(q, G) float64: Σ_j min(queries[q, j], gallery[g, j]), for the j that both have."""
    q, G = queries.shape[0], by_column.shape[0]
    lengths = np.diff(by_column.indptr)[queries.indices].astype(np.int64)
    row = np.repeat(np.arange(q), np.diff(queries.indptr))
    sums = np.zeros(q * G)
    for part in _slices_by_length(lengths, PAIRS_AT_ONCE):
        n = lengths[part]
        starts = by_column.indptr[queries.indices[part]]
        inside = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        entry = np.repeat(starts, n) + inside
        least = np.minimum(np.repeat(queries.data[part], n), by_column.data[entry])
        cell = np.repeat(row[part], n) * G + by_column.indices[entry]
        sums += np.bincount(cell, weights=least, minlength=q * G)
    return sums.reshape(q, G)


# ── diffusion ────────────────────────────────────────────────────────────────────────────────────


def diffused(
    queries: np.ndarray,
    gallery: np.ndarray,
    graph: NeighbourGraph,
    *,
    k: int = 20,
    seeds: int = 5,
    alpha: float = 0.9,
    gamma: float = 3.0,
    weight: float = 0.1,
    self_at: np.ndarray | None = None,
    depth: int | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (Q, depth) and scores by diffusion on the gallery's graph (Iscen et al., 2017).

    Solves (I - alpha · S) f = y, S the normalised affinity of mutual k-nearest neighbours with
    weights cosine^gamma, y the query's `seeds` nearest gallery images with cosine^gamma. The score
    is (1 - weight) · f / max f + weight · cosine, which orders the images that f does not reach.
    """
    if not (k >= 1 and seeds >= 1 and 0 <= alpha < 1 and 0 < weight <= 1):
        raise DataError(
            f"k={k}, seeds={seeds}, alpha={alpha}, weight={weight}: expected k and seeds of 1 or "
            "more, alpha from 0 to below 1, weight above 0 to 1"
        )
    G = len(gallery)
    affinity = normalised_affinity(graph, min(k, graph.depth), gamma)
    seeds = min(seeds, G - (self_at is not None))
    at, scores = exact.top_k(queries, gallery, seeds + (self_at is not None), device=device)
    if self_at is not None:
        at, scores = without_self(at, scores, self_at, seeds)
    strength = np.maximum(scores, 0) ** gamma

    def scored(part: slice, cosines: np.ndarray) -> np.ndarray:
        start = np.zeros((G, len(cosines)))
        start[at[part].T, np.arange(len(cosines))] = strength[part].T
        spread = solved(affinity, start, alpha).T  # (q, G)
        most = np.maximum(spread.max(axis=1, keepdims=True), 1e-12)
        return (1 - weight) * spread / most + weight * cosines

    return _ordered(queries, gallery, depth or G, device, scored)


def normalised_affinity(graph: NeighbourGraph, k: int, gamma: float) -> sp.csr_matrix:
    """S = D^-1/2 A D^-1/2 (N, N): A holds cosine^gamma of mutual k-nearest neighbours."""
    N = len(graph)
    row = np.repeat(np.arange(N), k)
    values = np.maximum(graph.scores[:, :k].astype(np.float64), 0).ravel() ** gamma
    one_way = sp.csr_matrix((values, (row, graph.positions[:, :k].ravel())), shape=(N, N))
    affinity = one_way.minimum(one_way.T).tocsr()
    degree = np.asarray(affinity.sum(axis=1)).ravel()
    scale = np.divide(1, np.sqrt(degree), out=np.zeros(N), where=degree > 0)
    return (sp.diags(scale) @ affinity @ sp.diags(scale)).tocsr()


def solved(affinity: sp.csr_matrix, start: np.ndarray, alpha: float) -> np.ndarray:
    """f (N, B) of (I - alpha · S) f = start, by conjugate gradients for all columns at once."""
    f = np.zeros_like(start)
    rest = start.copy()
    direction = rest.copy()
    square = (rest**2).sum(axis=0)
    goal = square * CG_ACCURACY**2
    for _ in range(CG_STEPS):
        if (square <= goal).all():
            break
        moved = direction - alpha * (affinity @ direction)
        along = (direction * moved).sum(axis=0)
        step = np.divide(square, along, out=np.zeros_like(along), where=along > 0)
        f += step * direction
        rest -= step * moved
        before, square = square, (rest**2).sum(axis=0)
        turn = np.divide(square, before, out=np.zeros_like(square), where=before > 0)
        direction = rest + turn * direction
    return f


# ── balance ──────────────────────────────────────────────────────────────────────────────────────


def balanced(
    queries: np.ndarray,
    gallery: np.ndarray,
    *,
    temperature: float = 0.05,
    self_at: np.ndarray | None = None,
    depth: int | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (Q, depth) and scores: the cosine minus what the gallery image has too much of.

    Some images are near to every query, others to none. If each query gives one vote, by the
    softmax of cosine / temperature, then with this correction all gallery images get equally many
    (Sinkhorn and Knopp, 1967; Cuturi, 2013). Its mean is 0, so that scores are like cosines. With
    fewer than FEWEST_VOTERS queries nothing is corrected.
    """
    if not 0 < temperature < np.inf:
        raise DataError(f"temperature={temperature}: expected one above 0")
    Q, G = len(queries), len(gallery)
    if Q < FEWEST_VOTERS:
        log.debug(
            "balance compares queries with each other and needs %d or more: with %d the order is "
            "that by cosine", FEWEST_VOTERS, Q,
        )  # fmt: skip
        return _ordered(queries, gallery, depth or G, device, lambda _, cosines: cosines)
    parts = list(exact.slices(Q, max(1, CELLS_AT_ONCE // G)))
    kept = _cosines(queries, gallery, device) if len(parts) == 1 else None
    own = np.full(Q, -1) if self_at is None else self_at
    excess = np.zeros(G)  # of votes, as a logarithm
    for _ in range(BALANCE_STEPS):
        votes = np.full(G, -np.inf)
        for part in parts:
            cosines = _cosines(queries[part], gallery, device) if kept is None else kept
            strength = cosines / temperature
            itself = np.flatnonzero(own[part] >= 0)
            strength[itself, own[part][itself]] = -np.inf
            given = strength - logsumexp(strength - excess, axis=1, keepdims=True)
            votes = np.logaddexp(votes, logsumexp(given, axis=0))
        excess = votes
    correction = temperature * (excess - excess.mean())  # (G,)
    return _ordered(queries, gallery, depth or G, device, lambda _, cosines: cosines - correction)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _ordered(
    queries: np.ndarray,
    gallery: np.ndarray,
    depth: int,
    device: str,
    scored: Callable[[slice, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """The best `depth` by scored(slice of queries, cosines (q, G)); ties to the earlier image."""
    G = len(gallery)
    exact.check_k(depth, G)
    positions = np.empty((len(queries), depth), np.int64)
    scores = np.empty((len(queries), depth))
    for part in exact.slices(len(queries), max(1, CELLS_AT_ONCE // G)):
        values = scored(part, _cosines(queries[part], gallery, device))
        order = np.argsort(-values, axis=1, kind="stable")[:, :depth]
        positions[part] = order
        scores[part] = np.take_along_axis(values, order, axis=1)
    return positions, scores


def _half(k1: int, program: bool) -> int:
    """numpy, in which the program is written, rounds a half to the even number."""
    return max(1, round(k1 / 2) if program else (k1 + 1) // 2)


def _with_self(lists: np.ndarray) -> sp.csr_matrix:
    """(N, N) with a 1 for each image in a list, and for the image itself."""
    N, k = lists.shape
    whole = np.concatenate([np.arange(N)[:, None], lists], axis=1).astype(np.int32)
    pointers = np.arange(N + 1) * (k + 1)
    return sp.csr_matrix((np.ones(whole.size, np.float32), whole.ravel(), pointers), shape=(N, N))


def _pattern(row: np.ndarray, column: np.ndarray, n: int) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(n, n))


def _no_entries(n: int) -> sp.csr_matrix:
    return sp.csr_matrix((n, n), dtype=np.float32)


def _cosines(queries: np.ndarray, gallery: np.ndarray, device: str) -> np.ndarray:
    """(q, G) float64, free of rounding."""
    grid = exact.on_grid(queries, device)
    parts = exact.slices(len(gallery), max(1, CELLS_AT_ONCE // gallery.shape[1]))
    blocks = [exact.exact_scores(grid, exact.on_grid(gallery[p], device)).cpu() for p in parts]
    return torch.cat(blocks, dim=1).numpy()


def _pair_scores(
    a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray, kind: type = np.float32
) -> np.ndarray:
    """(P,) of the given kind: the cosines of a[i] and b[j]."""
    scores: np.ndarray = np.empty(len(i), kind)
    for part in exact.slices(len(i), max(1, PAIRS_AT_ONCE // a.shape[1])):
        one, other = a[i[part]].astype(kind, copy=False), b[j[part]].astype(kind, copy=False)
        scores[part] = np.einsum("pd,pd->p", one, other)
    return scores


def _slices_by_length(lengths: np.ndarray, most: int) -> Iterator[slice]:
    """Slices whose lengths add up to about `most` each."""
    total = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, done + most, side="right")))
        yield slice(start, stop)
        start = stop
