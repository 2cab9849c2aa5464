import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vizsla.errors import DataError
from vizsla.score.metrics import formulas

# One query by hand. Ranks 1, 3 and 6 are right; 4 images are relevant, one of them never found.
HITS = np.array([[True, False, True, False, False, True, False]])
R = np.array([4])


def one(values: np.ndarray) -> float:
    assert values.shape == (1,)
    return float(values[0])


def test_cut_off_metrics_by_hand() -> None:
    assert one(formulas.hit_rate_at_k(HITS, 1)) == 1
    assert one(formulas.precision_at_k(HITS, 5)) == 2 / 5
    assert one(formulas.recall_at_k(HITS, R, 5)) == 2 / 4
    assert one(formulas.reciprocal_rank_at_k(HITS, 3)) == 1
    late = np.array([[False, False, True]])
    assert one(formulas.hit_rate_at_k(late, 2)) == 0
    assert one(formulas.reciprocal_rank_at_k(late, 2)) == 0
    assert one(formulas.reciprocal_rank_at_k(late, 3)) == 1 / 3


def test_average_precision_by_hand() -> None:
    assert one(formulas.average_precision_at_k(HITS, R, 3)) == pytest.approx((1 + 2 / 3) / 3)
    assert one(formulas.average_precision_at_k(HITS, R, 6)) == pytest.approx(
        (1 + 2 / 3 + 3 / 6) / 4
    )
    assert one(formulas.average_precision(HITS, R)) == pytest.approx((1 + 2 / 3 + 3 / 6) / 4)


def test_metrics_at_r_by_hand() -> None:
    assert one(formulas.map_at_r(HITS, R)) == pytest.approx((1 + 2 / 3) / 4)  # ranks 1 to 4
    assert one(formulas.r_precision(HITS, R)) == 2 / 4


def test_ndcg_by_hand() -> None:
    gain = 1 / math.log2(2) + 1 / math.log2(4)
    best = 1 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(5)
    assert one(formulas.ndcg_at_k(HITS, R, 5)) == pytest.approx(gain / best)


@pytest.mark.parametrize(
    ("first", "points"), [(1, 1000), (2, 400), (5, 400), (6, 100), (10, 100), (11, 0), (0, 0)]
)
def test_contest_points_by_hand(first: int, points: float) -> None:
    hits = np.arange(1, 13)[None] == first
    assert one(formulas.contest_points(hits)) == points


def test_contest_points_take_other_levels_and_count_missing_ranks_as_wrong() -> None:
    assert one(formulas.contest_points(HITS[:, :1], {1: 1.0, 20: 2.0})) == 3
    assert one(formulas.contest_points(np.zeros((1, 0), bool))) == 0


def test_first_rank_by_hand() -> None:
    hits = np.array([[True, True], [False, True], [False, False]])
    assert formulas.first_hit_rank(hits).tolist() == [1, 2, math.inf]
    assert formulas.reciprocal_rank(hits).tolist() == [1, 0.5, 0]


def test_first_rank_statistics_leave_out_what_nobody_saw() -> None:
    full = formulas.first_rank_statistics(np.array([1.0, 2.0, 6.0]))
    assert full == {"found": 1, "mean": 3, "median": 2, "p90": 6}
    part = formulas.first_rank_statistics(np.array([1.0, 2.0, math.inf]))
    assert part == {"found": pytest.approx(2 / 3), "mean": None, "median": 2, "p90": None}
    assert formulas.first_rank_statistics(np.array([]))["mean"] is None


def test_nothing_relevant_or_unknown_is_nan_never_zero() -> None:
    hits = np.zeros((2, 3), dtype=bool)
    for values in (
        formulas.recall_at_k(hits, np.array([0, -1]), 2),
        formulas.average_precision_at_k(hits, np.array([0, -1]), 2),
        formulas.average_precision(hits, np.array([0, -1])),
        formulas.map_at_r(hits, np.array([0, -1])),
        formulas.r_precision(hits, np.array([0, -1])),
        formulas.ndcg_at_k(hits, np.array([0, -1]), 2),
    ):
        assert np.isnan(values).all()


def test_cut_offs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match="lists end at rank 7"):
        formulas.precision_at_k(HITS, 8)
    with pytest.raises(DataError, match="must be 1 or more"):
        formulas.precision_at_k(HITS, 0)


# ── properties ───────────────────────────────────────────────────────────────────────────────────

rankings = hnp.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 12)))


def relevant(hits: np.ndarray, more: int = 0) -> np.ndarray:
    return hits.sum(axis=1) + more


@given(rankings, st.integers(0, 3))
def test_ranks_alone_give_what_hits_give(hits: np.ndarray, more: int) -> None:
    n, ranks, k = relevant(hits, more), formulas.hit_ranks(hits), hits.shape[1]
    for measure in (formulas.average_precision, formulas.map_at_r, formulas.r_precision):
        np.testing.assert_array_equal(measure(hits, n), measure(ranks, n))
    for measure in (formulas.recall_at_k, formulas.average_precision_at_k, formulas.ndcg_at_k):
        np.testing.assert_array_equal(measure(hits, n, k), measure(ranks, n, k))
    np.testing.assert_array_equal(formulas.contest_points(hits), formulas.contest_points(ranks))


def all_metrics(hits: np.ndarray, n: np.ndarray, k: int) -> dict[str, np.ndarray]:
    return {
        "hit_rate": formulas.hit_rate_at_k(hits, k),
        "precision": formulas.precision_at_k(hits, k),
        "recall": formulas.recall_at_k(hits, n, k),
        "ap_at_k": formulas.average_precision_at_k(hits, n, k),
        "ndcg": formulas.ndcg_at_k(hits, n, k),
        "ap": formulas.average_precision(hits, n),
        "map_at_r": formulas.map_at_r(hits, n),
        "r_precision": formulas.r_precision(hits, n),
        "reciprocal": formulas.reciprocal_rank(hits),
        "points": formulas.contest_points(hits) / 1000,
    }


@given(st.integers(1, 8), st.integers(0, 8), st.data())
def test_a_perfect_ranking_scores_1(n: int, others: int, data: st.DataObject) -> None:
    hits = np.array([[True] * n + [False] * others])
    k = data.draw(st.integers(1, n + others))
    for name, values in all_metrics(hits, relevant(hits), k).items():
        best = min(n, k) / (k if name == "precision" else n)
        expected = best if name in ("precision", "recall") else 1
        assert one(values) == pytest.approx(expected), name


@given(rankings, st.data())
def test_moving_a_hit_up_lowers_nothing(hits: np.ndarray, data: st.DataObject) -> None:
    row = hits[:1]
    lower = [j for j in range(1, row.shape[1]) if row[0, j] and not row[0, j - 1]]
    if not lower:
        return
    j = data.draw(st.sampled_from(lower))
    better = row.copy()
    better[0, [j - 1, j]] = [True, False]
    k = data.draw(st.integers(1, row.shape[1]))
    before, after = (all_metrics(h, relevant(row), k) for h in (row, better))
    for name in before:
        assert after[name][0] >= before[name][0] - 1e-12, name
    assert after["ap"][0] > before["ap"][0]


@given(rankings, st.integers(0, 3), st.data())
def test_values_lie_between_0_and_1(hits: np.ndarray, more: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, hits.shape[1]))
    for name, values in all_metrics(hits, relevant(hits, more), k).items():
        known = values[~np.isnan(values)]
        assert ((known >= 0) & (known <= 1 + 1e-12)).all(), name


# ── match or no match ────────────────────────────────────────────────────────────────────────────


def test_auc_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.8, 0.1])
    matches = np.array([True, True, False, False])
    assert formulas.match_auc(scores, matches) == (1 + 1 + 0.5 + 1) / 4
    assert formulas.match_auc(scores, np.ones(4, bool)) is None


def test_pairs_must_fit_and_have_scores() -> None:
    with pytest.raises(DataError, match="one a pair"):
        formulas.match_auc(np.zeros(3), np.zeros(2, bool))
    with pytest.raises(DataError, match="have no score"):
        formulas.match_auc(np.array([math.nan]), np.zeros(1, bool))
