import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.search import exact


def unit(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def reference(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """An independent way to the same order: Python integers, sorted."""
    q = np.rint(queries.astype(np.float64) * 2**26).astype(object)
    g = np.rint(gallery.astype(np.float64) * 2**26).astype(object)
    dots = q.dot(g.T)
    order = np.array(
        [sorted(range(len(g)), key=lambda j: (-row[j], j))[:k] for row in dots], dtype=np.int64
    )
    values = np.array(
        [[float(row[j]) / 2.0**52 for j in o] for row, o in zip(dots, order, strict=True)]
    )
    return order, values


@pytest.mark.parametrize(("G", "k"), [(60, 60), (60, 1), (700, 10), (700, 300)])
def test_equal_to_integer_arithmetic(G: int, k: int) -> None:
    queries, gallery = unit(9, 33, 0), unit(G, 33, 1)
    gallery[G // 2 :: 7] = gallery[0]  # ties
    positions, scores = exact.top_k(queries, gallery, k)
    expected, values = reference(queries, gallery, k)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(scores, values)


def test_more_ties_than_spare_candidates() -> None:
    gallery = np.repeat(unit(4, 16, 2), 400, axis=0)
    positions, scores = exact.top_k(unit(5, 16, 3), gallery, 10)
    expected, values = reference(unit(5, 16, 3), gallery, 10)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(scores, values)


def test_near_ties_beyond_float32_are_ordered_right() -> None:
    """Neighbours that float32 cannot tell apart, far more of them than spare candidates."""
    base = unit(1, 64, 4)
    gallery = base + 2e-8 * unit(2000, 64, 5)
    gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).astype(np.float32)
    positions, _ = exact.top_k(base, gallery, 5)
    np.testing.assert_array_equal(positions, reference(base, gallery, 5)[0])


def test_the_order_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = unit(40, 24, 6), unit(900, 24, 7)
    found = []
    for chunk_bytes in (2**26, 2**15, 2**12):
        monkeypatch.setattr(exact, "CHUNK_BYTES", chunk_bytes)
        found.append(exact.top_k(queries, gallery, 15) + exact.top_k(queries, gallery, 900))
    for one, other in itertools.combinations(found, 2):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_the_best_may_come_first_or_last(
    order: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a gallery by rising similarity every chunk beats all that was found before."""
    queries, gallery = unit(30, 24, 6), unit(4000, 24, 7)
    queries[:20] = queries[0] + 0.1 * queries[:20]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    by = np.argsort(gallery @ queries[0])
    gallery = gallery[{"rising": by, "falling": by[::-1], "mixed": np.arange(4000)}[order]]
    expected = exact.top_k(queries, gallery, 4000)
    monkeypatch.setattr(exact, "SCORES_AT_ONCE", 30 * 200)
    for room in (1, 64):
        monkeypatch.setattr(exact, "BUFFER", room)
        found = exact.top_k(queries, gallery, 15, precision=precision)
        np.testing.assert_array_equal(found[0], expected[0][:, :15])
        np.testing.assert_array_equal(found[1], expected[1][:, :15])


def test_many_queries_of_a_large_gallery_go_through_bf16_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queries, gallery = unit(64, 16, 8), unit(2000, 16, 9)
    monkeypatch.setattr(exact, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr(exact, "LARGE_GALLERY", 2000)
    used = []
    candidates = exact._candidates

    def seen(*given: Any) -> Any:
        used.append(given[-1])
        return candidates(*given)

    monkeypatch.setattr(exact, "_candidates", seen)
    many = exact.top_k(queries, gallery, 5)
    assert used[0] == "bf16"
    used.clear()
    few = exact.top_k(queries[:63], gallery, 5)
    smaller = exact.top_k(queries, gallery[:1999], 5)
    assert set(used) == {"fp32"}
    for one, other in zip(many, exact.top_k(queries, gallery, 5, precision="fp32"), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(few[0], many[0][:63])
    assert smaller[0].max() < 1999
    with pytest.raises(UsageError, match="choose auto, fp32 or bf16"):
        exact.top_k(queries, gallery, 5, precision="fp8")


def test_scores_are_cosines() -> None:
    queries, gallery = unit(9, 512, 0), unit(50, 512, 1)
    positions, scores = exact.top_k(queries, gallery, 50)
    cosines = queries.astype(np.float64) @ gallery.astype(np.float64).T
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, positions, 1), atol=5e-8)


def embeddings(vectors: np.ndarray, prefix: str, model_id: str = "m") -> Embeddings:
    ids = [f"{prefix}{i}" for i in range(len(vectors))]
    return Embeddings(ids, vectors, pa.table({}), model_id)


def test_rank_gives_a_ranking_and_says_what_is_wrong() -> None:
    queries, gallery = embeddings(unit(3, 8, 0), "q"), embeddings(unit(20, 8, 1), "g")
    ranking = exact.rank(queries, gallery)
    assert (ranking.depth, ranking.gallery_size) == (20, 20)
    assert ranking.head(4).to_lists() == exact.rank(queries, gallery, 4).to_lists()
    with pytest.raises(DataError, match="choose k from 1 to 20"):
        exact.rank(queries, gallery, 21)
    with pytest.raises(DataError, match="cannot be compared"):
        exact.rank(embeddings(unit(3, 8, 0), "q", "other"), gallery)
    with pytest.raises(DataError, match="dimensions"):
        exact.rank(embeddings(unit(3, 9, 0), "q"), gallery)


def test_one_set_leaves_itself_out_by_id() -> None:
    vectors = unit(30, 8, 2)
    vectors[3] = vectors[5]
    both = embeddings(vectors, "x")
    ranking = exact.rank(both, both, 10, same_set=True)
    assert all(query not in row for query, row in ranking.to_lists().items())
    assert ranking.to_lists()["x3"][0] == "x5"
    assert ranking.to_lists()["x5"][0] == "x3"
    assert exact.rank(both, both, same_set=True).depth == 29


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_no_score_is_above_one(kind: type) -> None:
    """A row of length 1 is a little longer or shorter once it is rounded."""
    vectors = np.random.default_rng(0).standard_normal((200, 48))
    gallery = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(kind)
    queries = gallery.astype(np.float32)
    assert (np.square(np.rint(queries.astype(np.float64) * 2**26)).sum(axis=1) > 2.0**52).any()
    positions, scores = exact.top_k(queries, gallery, 1)
    assert positions[:, 0].tolist() == list(range(200)) and scores.max() == 1
    assert (exact.rescored(queries, gallery, positions) == scores).all()
