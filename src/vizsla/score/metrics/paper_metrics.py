"""Hits → the variants of metrics that papers use, one value a query; see formulas.py for the forms.

They have names of their own (metric_names.py): the plain metrics divide and count in another way.
"""

import numpy as np

from vizsla.score.metrics.formulas import hit_ranks


def interpolated_average_precision(
    hits: np.ndarray, n_relevant: np.ndarray, k: int | None = None
) -> np.ndarray:
    """AP of the Oxford protocol: the area below precision over recall, by trapezoids.

    Each hit adds the mean of the precision before it and at it; before rank 1 the precision is 1
    (Philbin et al. 2007; the program of Radenović et al. 2018). k: only hits up to that rank count.
    """
    ranks = hit_ranks(hits)
    found = np.arange(1, ranks.shape[1] + 1)
    before = np.where(ranks > 1, (found - 1) / np.maximum(ranks - 1, 1), 1.0)
    at = found / np.maximum(ranks, 1)
    counted = (ranks > 0) & (ranks <= (np.inf if k is None else k))
    sums = np.where(counted, (before + at) / 2, 0.0).sum(axis=1)
    return _over(sums, n_relevant if k is None else np.minimum(n_relevant, k))


def clipped_precision_at_k(hits: np.ndarray, last: np.ndarray, k: int) -> np.ndarray:
    """mP@k of the revisited Oxford and Paris: precision at k, or at the last relevant image.

    last: (Q,) rank of the last relevant image, inf where it is beyond the list. 0 without a hit.
    """
    ranks = hit_ranks(hits)
    reach = np.minimum(last, k)
    found = ((ranks > 0) & (ranks <= reach[:, None])).sum(axis=1)
    return found / np.maximum(reach, 1)


def last_hit_rank(hits: np.ndarray) -> np.ndarray:
    """Rank of the last hit, (Q,) float64; 0 if there is none."""
    ranks = hit_ranks(hits)
    return ranks.max(axis=1, initial=0).astype(float)


def inverse_negative_penalty(hits: np.ndarray, n_relevant: np.ndarray) -> np.ndarray:
    """R over the rank of the last relevant image; 0 if one is not in the list (Ye et al. 2021)."""
    ranks = hit_ranks(hits)
    complete = (ranks > 0).sum(axis=1) >= n_relevant
    values = np.where(complete, n_relevant / np.maximum(last_hit_rank(hits), 1), 0.0)
    return np.where(n_relevant > 0, values, np.nan)


def graded_ndcg(
    grades: np.ndarray, best: np.ndarray, k: int | None = None, *, exponential: bool = False
) -> np.ndarray:
    """Sum of gain / log2(1 + rank) over the ranks up to k, over that of the best ranking.

    grades: (Q, K) of the image at each rank, 0 where it is not relevant. best: (Q, M) of all
    relevant images, falling. The gain is the grade, or 2^grade - 1 if exponential. nan for a query
    with nothing relevant.
    """
    ideal = _discounted(best, k, exponential)
    return np.where(
        ideal > 0, _discounted(grades, k, exponential) / np.where(ideal > 0, ideal, 1), np.nan
    )


def _discounted(grades: np.ndarray, k: int | None, exponential: bool) -> np.ndarray:
    cut = grades[:, :k].astype(float)
    gains = 2.0**cut - 1 if exponential else cut
    return np.asarray((gains / np.log2(np.arange(2, cut.shape[1] + 2))).sum(axis=1))


def _over(sums: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    known = divisor > 0
    return np.where(known, sums / np.where(known, divisor, 1), np.nan)
