"""Unit vectors → which images show one thing, without knowing how many things there are.

graph: the mutual nearest neighbours of each image, weighed by how many neighbours two images have
in common (Zhong et al. 2017), joined by average linkage down to a cut-off. agglomerative and
hdbscan are scikit-learn's. Knows labels of known images only as numbers.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from vizsla.errors import UsageError
from vizsla.search.knn_graph import NeighbourGraph, build_graph
from vizsla.search.merge_tree import UNKNOWN, MergeTree, merge_tree

METHODS = ("graph", "agglomerative", "hdbscan")
DEPTH = 64  # neighbours of an image that may be joined to it directly
RECIPROCAL = 6  # neighbours of which the mutual ones describe an image
EXPANDED = 3  # images, itself and the nearest, whose descriptions are averaged
COSINE_SHARE = 0.5  # of the cosine in a weight; the rest are common neighbours
BACKGROUND_PAIRS = 20_000  # random pairs whose median cosine counts as 0
PAIRS_AT_ONCE = 50_000
MOST_AGGLOMERATIVE = 20_000  # images: more would need more than 3 GB
CUT_OFFS = {
    # similarity, of `weights`; the lowest ones join clusters of many times DEPTH images
    "graph": np.concatenate([[0.001, 0.002, 0.003, 0.005], np.arange(1, 81) / 100]),
    "agglomerative": np.arange(10, 96) / 100,  # mean cosine
    "hdbscan": np.array([2.0, 3, 4, 5, 8, 12, 20, 30]),  # fewest images of a cluster
}  # method → what calibration tries

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Fitted:
    """at: a cut-off → (N,) int64, each image's cluster. cut_offs: those to choose from."""

    at: Callable[[float], np.ndarray]
    cut_offs: np.ndarray


def fit(
    vectors: np.ndarray,
    method: str = "graph",
    *,
    known: np.ndarray | None = None,
    graph: NeighbourGraph | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Fitted:
    """Clusters of unit rows (N, D) for every cut-off.

    known: (N,) the number of the thing that an image shows, UNKNOWN elsewhere: images of one thing
    are in one cluster, images of two never. graph: of these vectors; None builds it.
    """
    if method not in METHODS:
        raise UsageError(f"no clustering is called {method!r}: choose one of {', '.join(METHODS)}")
    cut_offs = CUT_OFFS[method]
    if len(vectors) < 2:
        return Fitted(lambda cut_off: np.zeros(len(vectors), np.int64), cut_offs)
    if method == "graph":
        graph = graph or build_graph(vectors, DEPTH, device=device, progress=progress)
        tree = merge_tree(weights(vectors, graph), known, first_equal(vectors))
        return Fitted(tree.at, cut_offs)
    at = _agglomerative(vectors).at if method == "agglomerative" else _hdbscan(vectors)
    if known is None:
        return Fitted(at, cut_offs)
    return Fitted(lambda cut_off: with_known(at(cut_off), vectors, known), cut_offs)


def _agglomerative(vectors: np.ndarray) -> MergeTree:
    """The tree of average linkage by cosine, of all pairs."""
    from sklearn.cluster import AgglomerativeClustering

    n = len(vectors)
    if n > MOST_AGGLOMERATIVE:
        raise UsageError(
            f"agglomerative clustering compares all pairs of {n:,} images: expected at most "
            f"{MOST_AGGLOMERATIVE:,}; the method graph takes more"
        )
    model = AgglomerativeClustering(
        n_clusters=None, distance_threshold=0, metric="cosine", linkage="average"
    ).fit(vectors)
    member = np.arange(2 * n - 1)  # a position of each node of the tree
    for i, (a, _) in enumerate(model.children_):
        member[n + i] = member[a]
    return MergeTree(n, member[model.children_], 1 - model.distances_)


def _hdbscan(vectors: np.ndarray) -> Callable[[float], np.ndarray]:
    """Clusters of at least so many images; an image in none is alone."""
    from sklearn.cluster import HDBSCAN

    few = len(vectors) <= MOST_AGGLOMERATIVE  # then all distances are computed, once
    data, metric = vectors, "euclidean"
    if few:
        distances = np.sqrt(np.maximum(2 - 2 * vectors @ vectors.T, 0))
        data = np.maximum(distances, distances.T)  # some processors round a.b and b.a differently
        metric = "precomputed"
        np.fill_diagonal(data, 0)

    def at(min_size: float) -> np.ndarray:
        size = min(max(2, round(min_size)), len(vectors))
        model = HDBSCAN(min_cluster_size=size, metric=metric, copy=True)
        found = model.fit_predict(data).astype(np.int64)
        alone = found < 0
        found[alone] = found.max(initial=-1) + 1 + np.arange(alone.sum())
        clusters: np.ndarray = found
        return clusters

    return at


def first_equal(vectors: np.ndarray) -> np.ndarray:
    """(N,) int64: of each row the position of the first one that is equal to it.

    More than DEPTH equal images are not all among each other's nearest, so they are joined by this.
    """
    first: dict[bytes, int] = {}
    digests = (
        hashlib.blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(vectors)
    )
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], np.int64)


def with_known(clusters: np.ndarray, vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) the clusters after: those with images of one thing are joined, and each image of one
    with several things goes to the nearest known image in it."""
    found = clusters + 0
    things = known.max(initial=UNKNOWN) + 1
    for cluster in np.unique(clusters[known != UNKNOWN]):
        members = np.flatnonzero(clusters == cluster)
        anchors = members[known[members] != UNKNOWN]
        nearest = anchors[(vectors[members] @ vectors[anchors].T).argmax(axis=1)]
        found[members] = -1 - known[nearest]
    found[found >= 0] += things
    found[found < 0] = -1 - found[found < 0]
    found[known != UNKNOWN] = known[known != UNKNOWN]
    return found


def weights(vectors: np.ndarray, graph: NeighbourGraph, *, seed: int = 0) -> sparse.csr_matrix:
    """(N, N) float32, symmetric, from 0 to 1: how likely two neighbours show one thing.

    Of images that are among the DEPTH nearest of each other: the Jaccard similarity of their
    mutual neighbours as in k-reciprocal re-ranking, and their cosine above that of random pairs.
    """
    n, depth = len(graph), min(DEPTH, graph.depth)
    nearest = graph.positions[:, :depth].astype(np.int64)
    rows = np.repeat(np.arange(n), depth)
    cosines = sparse.csr_matrix(
        (np.ascontiguousarray(graph.scores[:, :depth], np.float32).ravel(),
         (rows, nearest.ravel())), (n, n),
    )  # fmt: skip
    mutual = sparse.triu(cosines.minimum(cosines.T), k=1, format="coo")
    described = _descriptions(graph)
    common = np.empty(mutual.nnz, np.float32)
    for start in range(0, mutual.nnz, PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        both = described[mutual.row[part]].minimum(described[mutual.col[part]])
        common[part] = np.asarray(both.sum(axis=1)).ravel()
    jaccard = common / (2 - common)
    usual = background(vectors, seed=seed)
    above = np.clip((mutual.data - usual) / max(1 - usual, 1e-6), 0, 1)
    found = (1 - COSINE_SHARE) * jaccard + COSINE_SHARE * above
    upper = sparse.csr_matrix((found.astype(np.float32), (mutual.row, mutual.col)), (n, n))
    return (upper + upper.T).tocsr()


def background(vectors: np.ndarray, *, seed: int = 0) -> float:
    """The median cosine of random pairs of unit rows."""
    rng = np.random.default_rng((seed, 41))
    a, b = rng.integers(0, len(vectors), (2, BACKGROUND_PAIRS))
    a, b = a[a != b], b[a != b]
    return float(np.median(np.einsum("nd,nd->n", vectors[a], vectors[b]))) if len(a) else 0.0


def _descriptions(graph: NeighbourGraph) -> sparse.csr_matrix:
    """(N, N), rows of sum 1: each image by its mutual neighbours and itself, averaged with those
    of the images nearest to it."""
    n, k = len(graph), min(RECIPROCAL, graph.depth)
    rows, nearest = np.repeat(np.arange(n), k), graph.positions[:, :k].astype(np.int64).ravel()
    near = np.exp(2 * graph.scores[:, :k].astype(np.float32) - 2).ravel()  # exp(−distance²)
    links = sparse.csr_matrix((near, (rows, nearest)), (n, n))
    mutual = links.minimum(links.T) + sparse.identity(n, np.float32, "csr")
    sums = np.asarray(mutual.sum(axis=1)).ravel()
    own = (sparse.diags((1 / sums).astype(np.float32)) @ mutual).tocsr()
    others = min(EXPANDED - 1, graph.depth)
    among = np.concatenate([np.arange(n)[:, None], graph.positions[:, :others]], axis=1)
    share = np.full(among.size, 1 / among.shape[1], np.float32)
    average = sparse.csr_matrix(
        (share, (np.repeat(np.arange(n), among.shape[1]), among.ravel().astype(np.int64))), (n, n)
    )
    return (average @ own).tocsr()
