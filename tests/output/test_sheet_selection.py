"""Which queries get a sheet, and what is known about them."""

import numpy as np
import pytest

from vizsla.data.tiles import Tiles
from vizsla.errors import DataError, UsageError
from vizsla.output.query_sheets import RankingTruth
from vizsla.output.sheet_selection import pick_queries, ranking_truth, with_unanswered
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


def truth(
    hits: np.ndarray, judged: np.ndarray | bool = True, ap: np.ndarray | None = None
) -> RankingTruth:
    """hits: (Q, K) bool. judged: (Q, 1) bool."""
    return RankingTruth(np.where(judged, hits, -1).astype(np.int8), ap)


HITS = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]], bool)


def test_all_wrong_worst_and_random() -> None:
    assert pick_queries(6).tolist() == [0, 1, 2, 3, 4, 5]
    assert pick_queries(6, truth(HITS), only_wrong=True, k=3).tolist() == [2, 5]
    assert pick_queries(6, truth(HITS), only_wrong=True, k=1).tolist() == [1, 2, 3, 5]
    assert pick_queries(6, truth(HITS), worst=5).tolist() == [2, 5, 1, 3, 0]
    ap = np.array([0.1, 0.9, np.nan, 0.1, 0.05, 0.0])
    assert pick_queries(6, truth(HITS, ap=ap), worst=4).tolist() == [5, 4, 3, 0]
    some = pick_queries(1000, random=5, seed=3)
    assert some.tolist() == pick_queries(1000, random=5, seed=3).tolist()
    assert some.tolist() != pick_queries(1000, random=5, seed=4).tolist()
    assert (np.diff(some) > 0).all()
    assert pick_queries(6, random=50).tolist() == [0, 1, 2, 3, 4, 5]
    wrong = pick_queries(6, truth(HITS), only_wrong=True, k=1, random=2).tolist()
    assert len(wrong) == 2
    assert set(wrong) <= {1, 2, 3, 5}


def test_unjudged_queries_are_neither_wrong_nor_bad() -> None:
    judged = np.array([[True], [True], [False], [True], [True], [True]])
    assert pick_queries(6, truth(HITS, judged), only_wrong=True, k=3).tolist() == [5]
    assert pick_queries(6, truth(HITS, judged), worst=1).tolist() == [5]


def test_what_cannot_be_picked() -> None:
    with pytest.raises(DataError, match="give labels"):
        pick_queries(6, worst=3)
    with pytest.raises(DataError, match="give labels"):
        pick_queries(6, only_wrong=True)
    with pytest.raises(UsageError, match="are mutually exclusive"):
        pick_queries(6, truth(HITS), worst=3, random=3)
    with pytest.raises(UsageError, match="random=0"):
        pick_queries(6, random=0)


def test_what_is_known_of_each_result() -> None:
    lists = {"q0": ["g0", "g1"], "q1": ["g1", "g2"], "unlabelled": ["g0"]}
    ranking = with_unanswered(Ranking.from_lists(lists), ["q1", "broken"])
    assert ranking.queries == ["q0", "q1", "unlabelled", "broken"]
    labels = Truth(query={"q0": "a", "q1": "b", "broken": "a"}, gallery={"g0": "a", "g1": "b"})
    known = ranking_truth(ranking, labels, None, 2)
    assert known is not None and known.correct.dtype == np.int8
    assert known.correct.tolist() == [[1, 0], [1, -1], [-1, -1], [0, 0]]
    assert known.is_judged.tolist() == [True, True, False, True]
    assert ranking_truth(ranking, None, None, 2) is None


def test_a_query_without_an_answer_has_no_result_in_anything_a_ranking_holds() -> None:
    one = np.array([[1, 0]])
    ranking = Ranking(
        ["q0"], ["g0", "g1"], one, one + 0.5, accepted=np.array([1]), probability=one / 2,
        members=one[..., None], member_scores=one[..., None] / 2,
        tiles=Tiles.parse("2x2"), best_tile=one.astype(np.int8),
    )  # fmt: skip
    found = with_unanswered(ranking, ["q0", "broken"])
    assert found.queries == ["q0", "broken"] and found.row(1) == []
    assert found.box(0, 0) == ranking.box(0, 0) and found.box(1, 0) is None
    assert found.best_tile is not None and found.best_tile.dtype == np.int8
    assert not found.is_accepted[1].any() and found.members.tolist() == [[[1], [0]], [[-1], [-1]]]
    for values in (found.scores, found.probability, found.member_scores):
        assert np.isfinite(values[0]).all() and np.isnan(values[1]).all()
