"""Scores of matches, right or wrong → from which score on enough of them are right, for sure.

The precision is that of all accepted matches together. Matches of one query are alike, so queries
are what is counted: the lower bound is Clopper and Pearson's exact binomial one for as many
independent matches as vary as much as these queries do, and no more than there are queries (Korn
and Graubard 1998). Cut-offs are tested from the strictest down, and the first that fails ends the
test, so that many cut-offs cost no confidence (fixed-sequence testing). A second bound is for
queries of other classes: those of one class are alike too, and count for fewer than they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vizsla.errors import DataError

CONFIDENCE = 0.95  # that the precision is reached
LEVELS = 100  # cut-offs, each reached by 1 % more of the queries
FIRST_TESTED = (0.1, 0.3)  # shares of the queries that reach a cut-off where a test begins
ALIKE = 0.2  # correlation of queries of one class that is taken for granted


@dataclass(frozen=True, eq=False)
class Matches:
    """The first ranks of queries; a query may be asked several times, in different galleries.

    scores: (P,) of pairs of query and image. right: (P,) bool. asks: (P,) which of the A asks a
    pair belongs to. best: (A,) the best score. queries, classes: (A,) numbers of query and class.
    """

    scores: np.ndarray
    right: np.ndarray
    asks: np.ndarray
    best: np.ndarray
    queries: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        if np.isnan(self.scores).any() or np.isnan(self.best).any():
            raise DataError("some matches have no score (nan): leave them out")


@dataclass(frozen=True)
class Level:
    """What happens when all matches that score `score` or more are accepted.

    share: of the asks, how many accept something. queries: how many different ones. precision: the
    share of the accepted matches that is right. lower, upper: what it is at least, and at most, for
    such queries, each with the confidence of one test. lower_of_others: what it is at least for
    queries of other classes.
    """

    score: float
    share: float
    queries: int
    precision: float
    lower: float
    upper: float
    lower_of_others: float


def precision_levels(
    found: Matches,
    *,
    by_class: bool = False,
    levels: int = LEVELS,
    confidence: float = CONFIDENCE,
) -> list[Level]:
    """A level for each quantile of the best scores, the strictest first; equal scores share one.

    by_class: the queries are of few classes, and others are to be decided, so that the first bound
    is that for other classes.
    """
    if len(found.best) == 0:
        return []
    shares = np.arange(levels - 1, -1, -1) / levels
    cuts = np.unique(np.quantile(found.best, shares, method="inverted_cdf"))[::-1]
    accepted, right = _accepted_and_right(found, cuts)  # (asks, levels)
    asked, total = accepted > 0, accepted.sum(axis=0)
    precision = right.sum(axis=0) / total
    queries = (_sums(asked, found.queries) > 0).sum(axis=0)
    error = (1 - confidence) / len(FIRST_TESTED)
    gap = right - precision * accepted

    def effective(units: np.ndarray) -> np.ndarray:
        number = (_sums(asked, units) > 0).sum(axis=0)
        spread = (_sums(gap, units) ** 2).sum(axis=0) / total**2
        kish = total**2 / (_sums(accepted, units) ** 2).sum(axis=0)  # (1965), if all are right
        independent = _effective(precision, spread, number, queries, error)
        return np.minimum(queries, np.where(spread > 0, independent, kish))

    n = effective(found.queries)
    of_class = _sums(asked, found.classes)
    alike = (of_class**2).sum(axis=0) / of_class.sum(axis=0) * queries / asked.sum(axis=0)
    as_if_alike = queries / (1 + np.maximum(alike - 1, 0) * ALIKE)
    of_others = np.minimum.reduce([n, as_if_alike, effective(found.classes)])
    lower, other = (_clopper_pearson(precision * m, m, error) for m in (n, of_others))
    upper = 1 - _clopper_pearson((1 - precision) * n, n, error)
    first = other if by_class else lower
    columns = (cuts, asked.mean(axis=0), queries, precision, first, upper, other)
    rows = np.stack([np.asarray(column, float) for column in columns], axis=1).tolist()
    return [Level(s, a, int(q), *bounds) for s, a, q, *bounds in rows]


def sure_level(
    levels: Sequence[Level], sure: float, *, confidence: float = CONFIDENCE
) -> Level | None:
    """The lowest level at which the precision is `sure` or more; None if there is none.

    Each test begins at a fixed share of the queries, but not before there are enough to be sure.
    """
    enough = np.log((1 - confidence) / len(FIRST_TESTED)) / np.log(sure)  # if all were right
    best = -1
    for share in FIRST_TESTED:
        begins = (i for i, at in enumerate(levels) if at.share >= share and at.queries >= enough)
        i = next(begins, len(levels))
        while i < len(levels) and levels[i].lower >= sure:
            best, i = max(best, i), i + 1
    return levels[best] if best >= 0 else None


def _accepted_and_right(found: Matches, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A, levels) each: how many matches each ask accepts at each level, and how many are right."""
    at = np.searchsorted(-cuts, -found.scores)  # the strictest level that a match reaches
    kept = at < len(cuts)
    cell = found.asks[kept] * len(cuts) + at[kept]
    size = len(found.best) * len(cuts)
    accepted, right = (
        np.bincount(cell, weights, minlength=size).reshape(-1, len(cuts)).cumsum(axis=1)
        for weights in (None, found.right[kept].astype(float))
    )
    return accepted, right


def _sums(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(units, levels): the sums of the rows of each unit."""
    sums = np.zeros((int(units.max()) + 1, values.shape[1]))
    np.add.at(sums, units, values)
    return sums


def _effective(
    precision: np.ndarray, spread: np.ndarray, units: np.ndarray, queries: np.ndarray, error: float
) -> np.ndarray:
    """(levels,) how many independent matches vary as much as these units.

    Few units say little of their own spread, so the number is reduced by quantiles of Student's t.
    """
    from scipy.stats import t as student

    spread = spread * units / np.maximum(units - 1, 1)
    few = student.ppf(1 - error, np.maximum(queries - 1, 1))
    few = few / student.ppf(1 - error, np.maximum(units - 1, 1))
    return np.asarray(precision * (1 - precision) / np.where(spread > 0, spread, 1) * few**2)


def _clopper_pearson(right: np.ndarray, n: np.ndarray, error: float) -> np.ndarray:
    """The lower end of the one-sided exact binomial interval; counts need not be whole."""
    from scipy.stats import beta

    some = right > 0
    return np.where(some, beta.ppf(error, np.where(some, right, 1), n - right + 1), 0.0)
