"""Evidence beside the cosines: shared neighbours, against the dense definition."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.search.test_refine import clustered, dense_k_reciprocal
from vizsla.embed.embeddings import Embeddings
from vizsla.search import evidence, exact
from vizsla.search.evidence import NEAR, with_evidence
from vizsla.search.ranking import Ranking


def embeddings(rows: np.ndarray, name: str) -> Embeddings:
    return Embeddings.from_arrays(rows, [f"{name}{i}.jpg" for i in range(len(rows))], model_id="m")


@pytest.fixture(scope="module")
def sets() -> tuple[Embeddings, Embeddings]:
    every = clustered(140, 16, 0)
    return embeddings(every[:40], "q"), embeddings(every[40:], "g")


def dense(queries: np.ndarray, gallery: np.ndarray, ranking: Ranking) -> np.ndarray:
    jaccard = dense_k_reciprocal(queries, gallery, 20, 6, 0.0)
    return np.take_along_axis(jaccard, ranking.positions, axis=1)


def test_it_is_the_jaccard_index_of_k_reciprocal_neighbours(
    sets: tuple[Embeddings, Embeddings], tmp_path: Path
) -> None:
    queries, gallery = sets
    plain = exact.rank(queries, gallery)
    found = with_evidence(plain, queries, gallery)
    assert found.evidence is not None
    expected = dense(queries.vectors, gallery.vectors, plain)
    assert found.evidence == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(found.positions, plain.positions)  # the order stays
    found.save(tmp_path / "r.parquet")
    stored = Ranking.load(tmp_path / "r.parquet")
    assert stored.evidence == pytest.approx(found.evidence) and stored.origin[NEAR] > 0
    assert stored.head(3).evidence == pytest.approx(found.evidence[:, :3])


def test_queries_are_compared_in_batches_until_as_few_are_near(
    sets: tuple[Embeddings, Embeddings],
) -> None:
    queries, gallery = sets
    plain = exact.rank(queries, gallery)
    whole = with_evidence(plain, queries, gallery).origin[NEAR]
    fewer = with_evidence(plain, queries, gallery, near=whole / 2)
    assert 0 < fewer.origin[NEAR] <= whole / 2 * evidence.FEWER
    alone = with_evidence(plain, queries, gallery, near=0.0)
    assert alone.origin[NEAR] == 0 and alone.evidence is not None
    for i in (0, 7):  # no other query matters
        one = queries.subset([i])
        by_itself = with_evidence(exact.rank(one, gallery), one, gallery).evidence
        assert by_itself == pytest.approx(alone.evidence[i : i + 1], abs=1e-6)


def test_vectors_in_another_order_give_the_same_evidence(
    sets: tuple[Embeddings, Embeddings],
) -> None:
    queries, gallery = sets
    plain = exact.rank(queries, gallery)
    turned = gallery.subset(np.arange(len(gallery))[::-1].tolist())
    found = with_evidence(plain, queries, turned).evidence
    assert found == pytest.approx(with_evidence(plain, queries, gallery).evidence, abs=1e-6)


def test_some_rankings_get_none(
    sets: tuple[Embeddings, Embeddings], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, gallery = sets
    plain = exact.rank(queries, gallery)
    of_one_set = exact.rank(gallery, gallery, same_set=True)
    assert with_evidence(of_one_set, gallery, gallery).evidence is None
    lacking = gallery.subset(list(range(50)))
    assert with_evidence(plain, queries, lacking).evidence is None
    monkeypatch.setattr(evidence, "MOST_IMAGES", 99)
    assert with_evidence(plain, queries, gallery).evidence is None


def test_the_evidence_of_absent_classes_is_lower_with_other_queries() -> None:
    every, labels = clustered(240, 16, 1, classes=12), np.arange(240) % 12
    is_query = np.arange(240) < 96
    queries = embeddings(every[is_query], "q")
    gallery = embeddings(every[~is_query & (labels < 6)], "g")
    plain = exact.rank(queries, gallery, 10)
    absent = labels[is_query] >= 6
    together, alone = (
        with_evidence(plain, queries, gallery, near=near).evidence for near in (None, 0.0)
    )
    assert together is not None and alone is not None
    assert together[absent].mean() < alone[absent].mean() / 2
    assert together[~absent].mean() > 2 * together[absent].mean()
    assert dataclasses.replace(plain, evidence=together).only_accepted().evidence is not None
