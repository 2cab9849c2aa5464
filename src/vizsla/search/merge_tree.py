"""A sparse matrix of similarities → which clusters are joined, by falling average similarity.

Average linkage by joining all pairs of clusters at once that are each other's nearest (Sumengen
et al. 2021, "Scaling hierarchical agglomerative clustering to billion-sized datasets"), which
gives the same tree as joining one pair after the other. Knows no images.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class MergeTree:
    """N positions, and M merges: pairs (M, 2) of positions, one of each cluster that is joined,
    and their similarity (M,) float64. A merge of similarity inf joins positions that are known to
    be one thing."""

    n: int
    pairs: np.ndarray
    similarities: np.ndarray

    def at(self, cut_off: float) -> np.ndarray:
        """(N,) int64: the number of each position's cluster, from 0 in order of the positions.

        Clusters whose similarity is at least `cut_off` are joined.
        """
        a, b = self.pairs[self.similarities >= cut_off].T
        links = sparse.coo_matrix((np.ones(len(a), bool), (a, b)), (self.n, self.n))
        clusters: np.ndarray = sparse.csgraph.connected_components(links, directed=False)[1]
        return clusters.astype(np.int64)


def merge_tree(
    weights: sparse.csr_matrix, known: np.ndarray | None = None, equal: np.ndarray | None = None
) -> MergeTree:
    """The merges down to a similarity of 0.

    weights: (N, N) symmetric, 0 or more: the similarity of two clusters is the mean of the weights
    between their positions, of which most are 0. known: (N,) the number of the thing that a
    position shows, UNKNOWN elsewhere: positions of one thing are one cluster from the start, and
    those of two things never get into one. equal: (N,) of each position the first one that is
    equal to it; these too are one cluster from the start, unless they are known to be two things.
    """
    n = weights.shape[0]
    known = np.full(n, UNKNOWN) if known is None else known
    first, thing, start = _clusters_to_start_with(known, np.arange(n) if equal is None else equal)
    pairs = [np.stack([first[start], np.arange(n)], axis=1)[first[start] != np.arange(n)]]
    similarities = [np.full(len(pairs[0]), np.inf)]
    sizes: np.ndarray = np.bincount(start).astype(np.float64)
    links = _joined(sparse.csr_matrix(weights, dtype=np.float64), start, len(first))
    links = _without_conflicts(links, thing)
    while links.nnz:
        rows = np.repeat(np.arange(len(first)), np.diff(links.indptr))
        mean = links.data / (sizes[rows] * sizes[links.indices])
        nearest, best = _nearest(links, mean)
        a = np.flatnonzero(nearest >= 0)
        a = a[(nearest[nearest[a]] == a) & (a < nearest[a])]
        b = nearest[a]
        pairs.append(np.stack([first[a], first[b]], axis=1))
        similarities.append(best[a])
        into = np.arange(len(first))
        into[b] = a
        left, into = np.unique(into, return_inverse=True)
        thing[a] = np.maximum(thing[a], thing[b])
        first, thing = first[left], thing[left]
        sizes = np.bincount(into, sizes).astype(np.float64)
        links = _without_conflicts(_joined(links, into, len(left)), thing)
    return MergeTree(n, np.concatenate(pairs), np.concatenate(similarities))


def _clusters_to_start_with(
    known: np.ndarray, equal: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One for each thing, and for each unknown position with its equals: a position of it (C,), its
    thing (C,); and (N,) the cluster of each position."""
    of_equals = np.full(len(known), UNKNOWN)
    labelled = np.flatnonzero(known != UNKNOWN)[::-1]
    of_equals[equal[labelled]] = known[labelled]  # the first one's thing, if they show several
    known = np.where(known == UNKNOWN, of_equals[equal], known)
    own = known.max(initial=UNKNOWN) + 1 + equal
    keys = np.where(known == UNKNOWN, own, known)
    _, first, start = np.unique(keys, return_index=True, return_inverse=True)
    return first, known[first].copy(), start


def _joined(links: sparse.csr_matrix, into: np.ndarray, n: int) -> sparse.csr_matrix:
    """(n, n): the sums of the weights between the new clusters, exactly symmetric."""
    where = (np.ones(len(into)), (into, np.arange(len(into))))
    gather = sparse.csr_matrix(where, (n, len(into)))
    upper = sparse.triu(gather @ links @ gather.T, k=1, format="csr")
    found = (upper + upper.T).tocsr()
    found.sort_indices()
    return found


def _without_conflicts(links: sparse.csr_matrix, thing: np.ndarray) -> sparse.csr_matrix:
    rows = np.repeat(thing, np.diff(links.indptr))
    other = thing[links.indices]
    conflict = (rows != UNKNOWN) & (other != UNKNOWN) & (rows != other)
    if conflict.any():
        links.data[conflict] = 0
        links.eliminate_zeros()
    return links


def _nearest(links: sparse.csr_matrix, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) the nearest cluster of each, the first of several, -1 without any; (C,) how near."""
    filled = np.flatnonzero(np.diff(links.indptr))
    starts = links.indptr[filled]
    best = np.maximum.reduceat(mean, starts)
    is_best = mean == np.repeat(best, np.diff(links.indptr)[filled])
    places = np.where(is_best, np.arange(len(mean)), len(mean))
    nearest = np.full(links.shape[0], -1)
    nearest[filled] = links.indices[np.minimum.reduceat(places, starts)]
    near = np.zeros(links.shape[0])
    near[filled] = best
    return nearest, near
