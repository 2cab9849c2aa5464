"""Refinements against their papers' definitions, written densely and without the product's code."""

import logging
from pathlib import Path

import numpy as np
import pytest

from vizsla.errors import DataError, StorageError
from vizsla.search import exact, knn_graph, refine
from vizsla.search.knn_graph import GraphFolder, NeighbourGraph, build_graph, kept_graph


def clustered(n: int, d: int, seed: int, *, spread: float = 0.7, classes: int = 8) -> np.ndarray:
    """Unit rows around a few centres, with positive cosines as features of networks have them."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, d))
    rows = centres[np.arange(n) % classes] + spread * rng.standard_normal((n, d)) + 0.4
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# ── the dense definitions ──


def dense_k_reciprocal(
    queries: np.ndarray, gallery: np.ndarray, k1: int, k2: int, weight: float, program: bool = True
) -> np.ndarray:
    """1 - d* (Q, G) by Zhong et al. (2017), with Python sets and loops over all images.

    program: more than two thirds, rows of V that sum to 1, and numpy's rounding of half of k1,
    which the authors' program has and their formulas have not.
    """
    every = np.concatenate([gallery, queries]).astype(np.float64)
    N, G = len(every), len(gallery)
    d = 1 - every @ every.T

    def order(i: int) -> list[int]:  # the image itself first
        return [i] + [j for j in np.argsort(d[i], kind="stable").tolist() if j != i]

    ranked = [order(i) for i in range(N)]

    def reciprocal(p: int, k: int) -> set[int]:
        near = ranked[p][: k + 1]
        return {g for g in near if p in ranked[g][: k + 1]}

    R = [reciprocal(i, k1) for i in range(N)]
    halved = max(1, int(np.around(k1 / 2))) if program else (k1 + 1) // 2
    H = [reciprocal(i, halved) for i in range(N)]
    V = np.zeros((N, N))
    for p in range(N):
        expanded = set(R[p])
        for q in R[p]:
            both, whole = 3 * len(R[p] & H[q]), 2 * len(H[q])
            if both > whole or (both == whole and not program):
                expanded |= H[q]
        for g in expanded:
            V[p, g] = np.exp(-d[p, g])
        V[p] /= V[p].sum() if program else 1
    V = np.array([np.mean([V[g] for g in ranked[p][:k2]], axis=0) for p in range(N)])
    out = np.zeros((len(queries), G))
    for i in range(len(queries)):
        for j in range(G):
            both = np.stack([V[G + i], V[j]])
            jaccard = 1 - both.min(axis=0).sum() / both.max(axis=0).sum()
            out[i, j] = 1 - ((1 - weight) * jaccard + weight * d[G + i, j])
    return out


def dense_diffusion(
    queries: np.ndarray, gallery: np.ndarray, k: int, seeds: int, alpha: float, gamma: float
) -> np.ndarray:
    """f (Q, G) by a dense solve of (I - alpha S) f = y (Iscen et al., 2017)."""
    s = gallery.astype(np.float64) @ gallery.T.astype(np.float64)
    np.fill_diagonal(s, -1)
    near = np.zeros(s.shape, bool)
    for i, row in enumerate(s):
        near[i, np.argsort(-row)[:k]] = True
    A = np.where(near & near.T, np.maximum(s, 0) ** gamma, 0)
    degree = A.sum(axis=1)
    scale = np.array([1 / np.sqrt(x) if x > 0 else 0 for x in degree])
    S = scale[:, None] * A * scale
    cosine = queries.astype(np.float64) @ gallery.T
    y = np.zeros(cosine.shape)
    for i, row in enumerate(cosine):
        best = np.argsort(-row)[:seeds]
        y[i, best] = np.maximum(row[best], 0) ** gamma
    return np.linalg.solve(np.eye(len(gallery)) - alpha * S, y.T).T


def as_matrix(found: tuple[np.ndarray, np.ndarray], G: int) -> np.ndarray:
    positions, scores = found
    matrix = np.full((len(positions), G), np.nan)
    np.put_along_axis(matrix, positions, scores, axis=1)
    return matrix


# ── k-reciprocal ──


@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(20, 6, 0.3), (7, 1, 0.0), (4, 3, 0.9), (9, 2, 0.5), (1, 1, 0.3)]
)
@pytest.mark.parametrize("sizes", [(23, 90), (60, 41), (1, 70)])
@pytest.mark.parametrize("program", [True, False])
def test_k_reciprocal_is_the_papers(
    k1: int, k2: int, weight: float, sizes: tuple[int, int], program: bool
) -> None:
    queries, gallery = clustered(sizes[0], 16, 1), clustered(sizes[1], 16, 2)
    found = refine.k_reciprocal(
        queries, gallery, build_graph(gallery), k1=k1, k2=k2, weight=weight, program=program
    )
    expected = dense_k_reciprocal(queries, gallery, k1, k2, weight, program)
    np.testing.assert_allclose(as_matrix(found, len(gallery)), expected, atol=2e-6)
    assert (np.diff(found[1], axis=1) <= 0).all()


def test_k_reciprocal_apart_does_not_know_the_other_queries() -> None:
    queries, gallery = clustered(30, 16, 3), clustered(80, 16, 4)
    known = build_graph(gallery)
    options = {"k1": 10, "k2": 4, "weight": 0.2}
    whole = refine.k_reciprocal(queries, gallery, known, together=False, **options)
    for i in (0, 11, 29):
        alone = refine.k_reciprocal(queries[i : i + 1], gallery, known, together=False, **options)
        np.testing.assert_array_equal(alone[0][0], whole[0][i])
        np.testing.assert_allclose(alone[1][0], whole[1][i], atol=1e-12)
    together = refine.k_reciprocal(queries, gallery, known, **options)
    assert not np.allclose(as_matrix(together, 80), as_matrix(whole, 80))


def test_k_reciprocal_apart_is_near_the_papers_for_one_query() -> None:
    """The gallery's own sets do not know the query; with k2 = 1 its own set is the paper's."""
    queries, gallery = clustered(12, 16, 5), clustered(120, 16, 6)
    known = build_graph(gallery)
    found = as_matrix(
        refine.k_reciprocal(queries, gallery, known, together=False, k1=10, k2=1), 120
    )
    for i in range(len(queries)):
        expected = dense_k_reciprocal(queries[i : i + 1], gallery, 10, 1, 0.3)[0]
        assert np.corrcoef(found[i], expected)[0, 1] > 0.97


def test_k_reciprocal_of_one_set() -> None:
    """Queries that are gallery images: the sets are those among the gallery alone."""
    gallery = clustered(70, 16, 7)
    own = np.array([3, 50, 21])
    found = refine.k_reciprocal(
        gallery[own], gallery, build_graph(gallery), k1=8, k2=3, self_at=own
    )
    every = dense_k_reciprocal(gallery[:0], gallery, 8, 3, 0.3)
    assert every.shape == (0, 70)
    rest = np.setdiff1d(np.arange(70), own)
    mixed = np.concatenate([rest, own])
    expected = dense_k_reciprocal(gallery[own], gallery[rest], 8, 3, 0.3)  # the same 70 images
    np.testing.assert_allclose(as_matrix(found, 70)[:, mixed[:67]], expected, atol=2e-6)


def test_many_small_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = clustered(20, 16, 8), clustered(60, 16, 9)
    known = build_graph(gallery)

    def every() -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            refine.k_reciprocal(queries, gallery, known),
            refine.diffused(queries, gallery, known),
            refine.balanced(queries, gallery),
        ]

    whole = every()
    monkeypatch.setattr(refine, "PAIRS_AT_ONCE", 50)
    monkeypatch.setattr(refine, "CELLS_AT_ONCE", 70)
    for one, other in zip(whole, every(), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_allclose(one[1], other[1], atol=1e-6)


def test_equal_images_and_tiny_galleries_are_ranked() -> None:
    gallery = np.repeat(clustered(3, 8, 10), 20, axis=0)
    queries = gallery[:2]
    known = build_graph(gallery)
    for found in (
        refine.k_reciprocal(queries, gallery, known, k1=5, k2=3),
        refine.diffused(queries, gallery, known, k=5),
    ):
        assert np.isfinite(found[1]).all()
        assert sorted(found[0][0]) == list(range(60))
    two = clustered(2, 8, 11)
    positions, _ = refine.k_reciprocal(two, two, build_graph(two))
    assert positions.tolist() == [[0, 1], [1, 0]]


# ── diffusion ──


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 0.99])
def test_diffusion_is_a_dense_solve(alpha: float) -> None:
    queries, gallery = clustered(9, 16, 12), clustered(120, 16, 13)
    options = {"k": 8, "seeds": 4, "alpha": alpha, "gamma": 3.0}
    found = refine.diffused(queries, gallery, build_graph(gallery), weight=0.1, **options)
    f = dense_diffusion(queries, gallery, **options)
    expected = 0.9 * f / f.max(axis=1, keepdims=True) + 0.1 * (queries @ gallery.T)
    np.testing.assert_allclose(as_matrix(found, 120), expected, atol=1e-5)


# ── balance ──


def hubs(classes: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Three queries and one gallery image of each class; some gallery images have more than others
    of what all queries share."""
    rng = np.random.default_rng(21)
    centres = rng.standard_normal((classes, 24))
    shared = 6 * np.eye(24)[0]
    queries = np.repeat(centres, 3, axis=0) + rng.normal(0, 0.8, (3 * classes, 24)) + shared
    gallery = centres + rng.uniform(0, 1.5, (classes, 1)) * shared
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
    return unit[0].astype(np.float32), unit[1].astype(np.float32)


def test_with_balance_all_gallery_images_get_equally_many_votes() -> None:
    queries, gallery = hubs()
    scores = as_matrix(refine.balanced(queries, gallery, temperature=0.1), len(gallery))
    votes = np.exp(scores / 0.1)
    votes /= votes.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(votes.sum(axis=0), 3, rtol=0.05)
    correction = queries.astype(np.float64) @ gallery.T.astype(np.float64) - scores
    assert np.ptp(correction, axis=0).max() < 1e-6  # the same for all queries
    assert abs(correction.mean()) < 1e-6 and correction.std() > 0.05


def test_balance_finds_what_hubs_hide() -> None:
    queries, gallery = hubs()
    truth = np.repeat(np.arange(60), 3)
    plain = exact.top_k(queries, gallery, 1)[0][:, 0]
    found = refine.balanced(queries, gallery)[0][:, 0]
    assert (plain == truth).mean() < 0.8 and (found == truth).mean() > 0.95


def test_balance_of_one_set_counts_no_vote_of_an_image_for_itself() -> None:
    vectors = clustered(40, 12, 22)
    own = np.arange(40)
    scores = as_matrix(refine.balanced(vectors, vectors, temperature=0.1, self_at=own), 40)
    votes = np.exp(scores / 0.1) * (1 - np.eye(40))
    votes /= votes.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(votes.sum(axis=0), 1, rtol=0.05)


def test_balance_needs_several_queries(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="vizsla")
    queries, gallery = hubs()
    found = refine.balanced(queries[:19], gallery)
    np.testing.assert_array_equal(found[0], exact.top_k(queries[:19], gallery, 60)[0])
    assert "needs 20 or more: with 19 the order is that by cosine" in caplog.text


# ── expansion ──


def test_expansion_by_hand() -> None:
    gallery = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    query = np.array([[0.8, 0.6]], np.float32)  # cosines .8, .96, .6
    average = refine.expanded_queries(query, gallery, n=2)
    expected = query[0] + gallery[1] + gallery[0]
    np.testing.assert_allclose(average[0], expected / np.linalg.norm(expected), atol=1e-6)
    weighted = refine.expanded_queries(query, gallery, n=2, alpha=3)
    expected = query[0] + 0.96**3 * gallery[1] + 0.8**3 * gallery[0]
    np.testing.assert_allclose(weighted[0], expected / np.linalg.norm(expected), atol=1e-6)
    augmented = refine.augmented_gallery(gallery, build_graph(gallery), n=1)
    expected = gallery[0] + gallery[1]
    np.testing.assert_allclose(augmented[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_expansion_of_one_set_leaves_each_image_itself_out() -> None:
    gallery = clustered(40, 12, 14)
    own = np.arange(40)
    by_query = refine.expanded_queries(gallery, gallery, n=3, alpha=2, self_at=own)
    by_graph = refine.augmented_gallery(gallery, build_graph(gallery), n=3, alpha=2)
    np.testing.assert_allclose(by_query, by_graph, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    gallery = clustered(6, 8, 15)
    with pytest.raises(DataError, match="choose k from 1 to 6"):
        refine.expanded_queries(gallery, gallery, n=7)
    with pytest.raises(DataError, match="expected 0…1"):
        refine.k_reciprocal(gallery, gallery, build_graph(gallery), weight=1.2)
    with pytest.raises(DataError, match="alpha from 0"):
        refine.diffused(gallery, gallery, build_graph(gallery), alpha=1.0)


# ── the graph ──


def test_graph_in_blocks_is_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(700, 24, 16)
    whole = build_graph(vectors, 12)
    monkeypatch.setattr(knn_graph, "SMALL", 100)
    monkeypatch.setattr(knn_graph, "BLOCK", 96)
    blocks = build_graph(vectors, 12)
    assert (blocks.positions == whole.positions).mean() > 0.999
    np.testing.assert_allclose(blocks.scores, whole.scores, atol=1e-6)
    assert blocks.recall > 0.999
    for i in (0, 350, 699):
        assert i not in blocks.positions[i] and i not in whole.positions[i]


def test_recall_of_a_sample_sees_what_is_missing() -> None:
    vectors = clustered(300, 24, 17)
    positions, _ = exact.top_k(vectors, vectors, 11)
    right = build_graph(vectors, 10).positions.copy()
    assert knn_graph.recall_of_sample(vectors, right) == 1
    right[:, -1] = right[:, 0]
    assert knn_graph.recall_of_sample(vectors, right) == pytest.approx(0.9)
    assert positions.shape == (300, 11)


def test_a_kept_graph_is_read_again_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = clustered(90, 24, 18)
    first = kept_graph(vectors, GraphFolder(tmp_path))
    (path,) = tmp_path.glob("graph-*.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(knn_graph, "build_graph", lambda *_, **__: pytest.fail("built again"))
        again = kept_graph(vectors, GraphFolder(tmp_path))
    np.testing.assert_array_equal(first.positions, again.positions)
    np.testing.assert_array_equal(first.scores, again.scores)
    deeper = kept_graph(vectors, GraphFolder(tmp_path), 80)
    assert (first.depth, deeper.depth) == (64, 80)
    kept_graph(clustered(90, 24, 19), GraphFolder(tmp_path))
    assert len(list(tmp_path.glob("graph-*.parquet"))) == 2
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match="damaged"):
        NeighbourGraph.load(path)
    mended = kept_graph(vectors, GraphFolder(tmp_path), 80)
    np.testing.assert_array_equal(mended.positions, deeper.positions)
    assert "built again" in caplog.text
    NeighbourGraph.load(path)
