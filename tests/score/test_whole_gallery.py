from dataclasses import replace

import numpy as np
import pytest
import torch

import vizsla
from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.score import whole_gallery
from vizsla.score.truth import Truth
from vizsla.score.whole_gallery import (
    evaluate_embeddings,
    evaluate_ranked,
    own_pair,
    relevant_ranks,
)
from vizsla.search import exact


def vectors(n: int, seed: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim))


QUERY, GALLERY = vectors(20, 1), vectors(60, 2)
QUERY_LABELS = [i % 4 for i in range(20)]
GALLERY_LABELS = [i % 5 for i in range(60)]


def test_by_hand() -> None:
    scores = evaluate_embeddings(
        [[1, 0], [0, 1]], [[1, 0.1], [0.1, 1], [1, 0.2]], ["a", "b"], ["b", "b", "a"], ks=[1]
    )
    assert scores.per_query("map") == [1 / 2, pytest.approx((1 + 2 / 3) / 2)]
    assert scores.mean("top_k_accuracy@1") == 0.5


def test_the_same_from_numpy_torch_and_from_the_stages_by_themselves() -> None:
    scores = evaluate_embeddings(QUERY, GALLERY, QUERY_LABELS, GALLERY_LABELS)
    again = evaluate_embeddings(
        torch.tensor(QUERY), torch.tensor(GALLERY), torch.tensor(QUERY_LABELS), GALLERY_LABELS
    )
    assert again.to_dict() == scores.to_dict()
    cosines = (QUERY @ GALLERY.T) / np.linalg.norm(GALLERY, axis=1)
    order = np.argsort(-cosines, axis=1)
    hits = np.array(GALLERY_LABELS)[order] == np.array(QUERY_LABELS)[:, None]
    ranks = np.arange(1, 61)
    ap = (hits * np.cumsum(hits, axis=1) / ranks).sum(axis=1) / hits.sum(axis=1)
    assert scores.mean("map") == pytest.approx(ap.mean())
    assert vizsla.evaluate_embeddings.__wrapped__ is evaluate_embeddings


def test_one_set_leaves_each_image_itself_out() -> None:
    scores = evaluate_embeddings(GALLERY, query_labels=GALLERY_LABELS, same_set=True)
    assert scores.mean("top_k_accuracy@1") < 1  # type: ignore[operator]
    assert set(scores.n_relevant.tolist()) == {11}
    assert scores.mean("map") is not None
    alone = evaluate_embeddings(
        [[1.0], [1.0], [-1.0]], query_labels=[*"aab"], same_set=True, ks=[1]
    )
    assert alone.per_query("top_k_accuracy@1") == [1, 1, 0]
    assert alone.with_nothing_relevant == 1


@pytest.mark.parametrize("same_set", [False, True])
def test_a_cut_ranking_gives_the_figures_of_the_whole_gallery(
    same_set: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (GALLERY, None, GALLERY_LABELS) if same_set else (
        QUERY, GALLERY, QUERY_LABELS, GALLERY_LABELS
    )  # fmt: skip
    whole = evaluate_embeddings(*given, same_set=same_set)
    monkeypatch.setattr(whole_gallery, "WHOLE", 0)
    monkeypatch.setattr(whole_gallery, "DEPTH", 3)
    cut = evaluate_embeddings(*given, same_set=same_set)
    assert (cut.depth, whole.depth) == (10, 59 if same_set else 60)
    for key in whole.metrics:
        assert cut.per_query(key) == pytest.approx(whole.per_query(key)), key


def test_junk_and_judgements_reach_the_ranks_behind_the_rankings_end() -> None:
    query_set, gallery_set = own_pair(QUERY, GALLERY, QUERY_LABELS, GALLERY_LABELS)
    grades = {q: {str(j): j % 3 - 1 for j in range(int(q), 60)} for q in query_set.ids}
    truth = Truth.from_grades(grades)
    found = [
        evaluate_ranked(
            exact.rank(query_set, gallery_set, k), truth, query_set, gallery_set, ks=[1]
        )
        for k in (60, 5)
    ]
    assert found[0].per_query("map") == found[1].per_query("map")
    assert found[0].mean("map") is not None


def test_later_ranks_of_images_with_tiles_are_unknown() -> None:
    query_set, gallery_set = own_pair(QUERY, GALLERY, QUERY_LABELS, GALLERY_LABELS)
    tiles = Tiles.parse("2x1")
    parts = np.stack([gallery_set.vectors, gallery_set.vectors[::-1], gallery_set.vectors], axis=1)
    gallery_set = replace(gallery_set, tiles=tiles, tile_vectors=parts)
    truth = Truth.from_grades({q: {"0": 1} for q in query_set.ids})
    whole, cut = (
        evaluate_ranked(
            exact.rank(query_set, gallery_set, k), truth, query_set, gallery_set, ks=[1]
        )
        for k in (60, 5)
    )
    assert whole.mean("map") is not None and cut.mean("map") is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="8 dimensions, the gallery 3"):
        own_pair(QUERY, GALLERY[:, :3], QUERY_LABELS, GALLERY_LABELS)
    with pytest.raises(DataError, match="gallery vectors have no labels"):
        evaluate_embeddings(QUERY, GALLERY, QUERY_LABELS)
    with pytest.raises(UsageError, match=r"gallery's vectors too \(gallery\)"):
        own_pair(QUERY, query_labels=QUERY_LABELS)
    with pytest.raises(UsageError, match="give it as queries"):
        own_pair(QUERY, GALLERY, QUERY_LABELS, same_set=True)
    with pytest.raises(UsageError, match="one list of labels"):
        own_pair(QUERY, None, QUERY_LABELS, QUERY_LABELS, same_set=True)
    with pytest.raises(DataError, match="two or more"):
        evaluate_embeddings([[1.0]], query_labels=["a"], same_set=True)


def test_vectors_of_two_models_are_never_compared(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("one", "two"):
        Embeddings.from_arrays(QUERY, labels=list("ab" * 10), model_id=name).save(tmp_path / name)
    with pytest.raises(DataError, match="embedded by model one, the gallery by two"):
        evaluate_embeddings(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("chunk_bytes", [2**26, 2**13])
def test_relevant_ranks_are_those_of_the_whole_ranking(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(exact, "CHUNK_BYTES", chunk_bytes)
    rng = np.random.default_rng(0)
    queries, gallery = (rng.standard_normal((n, 8)).astype(np.float32) for n in (20, 500))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    gallery[100:200] = gallery[0]
    relevant = [rng.choice(500, size=n, replace=False) for n in range(20)]
    ignored = [np.setdiff1d(rng.choice(500, size=30), found) for found in relevant]
    order, _ = exact.top_k(queries, gallery, 500)
    ranks = relevant_ranks(queries, gallery, relevant)
    without = relevant_ranks(queries, gallery, relevant, ignored=ignored)
    for i in range(20):
        whole = order[i].tolist()
        assert ranks[i].tolist() == sorted(whole.index(j) + 1 for j in relevant[i])
        kept = [j for j in whole if j not in ignored[i]]
        assert without[i].tolist() == sorted(kept.index(j) + 1 for j in relevant[i])
