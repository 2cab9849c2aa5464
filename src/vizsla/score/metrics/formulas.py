"""Hits → one value a query, (Q,) float64. Knows nothing of names, labels or files.

`hits` is always one of two forms of the same thing:
  (Q, K) bool: whether the image at each rank is relevant, junk and self already removed; or
  (Q, M) int:  the ranks (from 1) of the relevant images, rising along a row, 0 after its end.
The second form needs no ranking of the whole gallery: counting the scores above each relevant
image gives its rank. `n_relevant` is (Q,): the number of relevant images in the gallery, -1 where
that is unknown. What cannot be computed for a query is nan, never 0: if nothing is relevant
(n_relevant == 0), and, for metrics that divide by it, if n_relevant is unknown.
"""

from typing import Any

import numpy as np

from vizsla.errors import DataError

CONTEST_POINTS = {1: 600.0, 5: 300.0, 10: 100.0}  # added if any of the first k is right


def hit_ranks(hits: np.ndarray) -> np.ndarray:
    """(Q, M) int64: the ranks of the hits of each query, from 1; 0 after a row's end.

    Takes both forms of `hits`; ranks are returned as they came.
    """
    if hits.ndim != 2:
        raise DataError(f"hits have shape {hits.shape}, expected (Q, K)")
    if hits.dtype != np.bool_:
        return hits
    rows, columns = np.nonzero(hits)
    counts = np.bincount(rows, minlength=len(hits))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    ranks = np.zeros((len(hits), int(counts.max(initial=0))), dtype=np.int64)
    ranks[rows, place] = columns + 1
    return ranks


# ── cut off at k ─────────────────────────────────────────────────────────────────────────────────


def hit_rate_at_k(hits: np.ndarray, k: int) -> np.ndarray:
    """1 if any of the first k is relevant, else 0. Its mean is the top-k accuracy."""
    return _within(hits, k).any(axis=1).astype(float)


def precision_at_k(hits: np.ndarray, k: int) -> np.ndarray:
    """Relevant among the first k, over k."""
    return _within(hits, k).sum(axis=1) / k


def recall_at_k(hits: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """Relevant among the first k, over all relevant (TREC's recall)."""
    return _over(_within(hits, k).sum(axis=1), n_relevant)


def average_precision_at_k(hits: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """Precision at each hit's rank up to k, summed, over min(n_relevant, k)."""
    return _over(_precision_sum(hits, _within(hits, k)), np.minimum(n_relevant, k))


def reciprocal_rank_at_k(hits: np.ndarray, k: int) -> np.ndarray:
    """1 over the rank of the first hit; 0 where the first k hold none."""
    first = first_hit_rank(hits)
    _within(hits, k)
    return np.where(first <= k, 1 / first, 0.0)


def ndcg_at_k(hits: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """Sum of 1 / log2(1 + rank) over the hits up to k, over the sum of the best ranking."""
    ranks = hit_ranks(hits)
    gains = np.where(_within(hits, k), 1 / np.log2(1.0 + np.maximum(ranks, 1)), 0.0)
    best = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    return _over(gains.sum(axis=1), n_relevant, best[np.clip(n_relevant, 0, k)])


def contest_points(hits: np.ndarray, points: dict[int, float] | None = None) -> np.ndarray:
    """Points of each query: for every cut-off k: its points if any of the first k is right.

    Ranks that a list lacks count as wrong. By default 600, 300 and 100 for ranks 1, 5 and 10,
    so that a query that is right at rank 1 gets 1000.
    """
    first = first_hit_rank(hits)
    levels = CONTEST_POINTS if points is None else points
    return sum((worth * (first <= k) for k, worth in levels.items()), np.zeros(len(first)))


# ── over the whole gallery ───────────────────────────────────────────────────────────────────────


def average_precision(hits: np.ndarray, n_relevant: np.ndarray) -> np.ndarray:
    """Precision at each hit's rank, summed, over n_relevant. Relevant images without a rank add 0.

    `hits` must reach as deep as the gallery (or hold the rank of every relevant image): from a
    shallower ranking this is a lower bound.
    """
    return _over(_precision_sum(hits, hit_ranks(hits) > 0), n_relevant)


def map_at_r(hits: np.ndarray, n_relevant: np.ndarray) -> np.ndarray:
    """AP over the first R = n_relevant ranks, over R (Musgrave, Belongie and Lim 2020)."""
    ranks = hit_ranks(hits)
    within = (ranks > 0) & (ranks <= n_relevant[:, None])
    return _over(_precision_sum(hits, within), n_relevant)


def r_precision(hits: np.ndarray, n_relevant: np.ndarray) -> np.ndarray:
    """Relevant among the first R = n_relevant ranks, over R."""
    ranks = hit_ranks(hits)
    return _over(((ranks > 0) & (ranks <= n_relevant[:, None])).sum(axis=1), n_relevant)


def reciprocal_rank(hits: np.ndarray) -> np.ndarray:
    """1 over the rank of the first hit, 0 if there is none."""
    return 1 / first_hit_rank(hits)


def first_hit_rank(hits: np.ndarray) -> np.ndarray:
    """Rank of the first hit, (Q,) float64; inf if there is none."""
    ranks = hit_ranks(hits)
    if ranks.shape[1] == 0:
        return np.full(len(ranks), np.inf)
    return np.where(ranks[:, 0] > 0, ranks[:, 0].astype(float), np.inf)


def first_rank_statistics(first: np.ndarray) -> dict[str, float | None]:
    """Mean, median and 90 % quantile of the first hit's rank; `found` is the share with one.

    first: (Q,), inf if no hit was found. Statistics that would need those ranks are None.
    """
    if len(first) == 0:
        return {"found": None, "mean": None, "median": None, "p90": None}
    median, p90 = np.quantile(first, [0.5, 0.9], method="inverted_cdf")
    numbers = {"mean": float(first.mean()), "median": float(median), "p90": float(p90)}
    known = {name: value if np.isfinite(value) else None for name, value in numbers.items()}
    return {"found": float(np.isfinite(first).mean()), **known}


# ── match or no match ────────────────────────────────────────────────────────────────────────────


def match_auc(scores: np.ndarray, matches: np.ndarray) -> float | None:
    """Chance that a matching pair scores higher than another one, ties counted half.

    scores, matches: (pairs,). None unless both kinds of pair occur.
    """
    scores, matches = _pairs(scores, matches)
    n_match, n_other = int(matches.sum()), int((~matches).sum())
    if n_match == 0 or n_other == 0:
        return None
    _, level, size = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(size) - (size - 1) / 2  # of each level: the middle of its tied ranks
    above = rank[level][matches].sum() - n_match * (n_match + 1) / 2
    return float(above / (n_match * n_other))


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _within(hits: np.ndarray, k: int) -> np.ndarray:
    """(Q, M) bool: which of `hit_ranks(hits)` are among the first k."""
    if k < 1:
        raise DataError(f"k={k}: a cut-off must be 1 or more")
    if hits.dtype == np.bool_ and k > hits.shape[1]:
        raise DataError(f"k={k}, but the lists end at rank {hits.shape[1]}: choose a smaller k")
    ranks = hit_ranks(hits)
    return (ranks > 0) & (ranks <= k)


def _precision_sum(hits: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(Q,): sum over the counted hits of the precision at their rank."""
    ranks = hit_ranks(hits)
    found = np.arange(1, ranks.shape[1] + 1)  # the j-th hit is the j-th found at its rank
    return np.where(counted, found / np.maximum(ranks, 1), 0.0).sum(axis=1)


def _over(sums: np.ndarray, n_relevant: np.ndarray, best: Any = None) -> np.ndarray:
    """sums / best (n_relevant unless given); nan where n_relevant is 0 or unknown."""
    divisor = n_relevant if best is None else best
    known = n_relevant > 0
    return np.where(known, sums / np.where(known, divisor, 1), np.nan)


def _pairs(scores: np.ndarray, matches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, matches = np.asarray(scores, dtype=float), np.asarray(matches, dtype=bool)
    if scores.shape != matches.shape or scores.ndim != 1:
        raise DataError(f"{scores.shape} scores for {matches.shape} pairs: expected one a pair")
    if np.isnan(scores).any():
        raise DataError("some pairs have no score (nan): leave them out")
    return scores, matches
