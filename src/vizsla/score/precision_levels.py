"""Scores of matches, right or wrong → from which score on enough of them are right, for sure.

The matches of one query depend on each other, and so do the queries of one class: they count for
fewer than they are. The lower bound of the precision is Clopper and Pearson's exact binomial one
for the effective number of matches (Korn and Graubard 1998), which is never above the number of
queries. Cut-offs are tested from the strictest down, and the first that fails ends the test, so
that many cut-offs cost no confidence (fixed-sequence testing).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vizsla.errors import DataError

CONFIDENCE = 0.95  # that the precision is reached
LEVELS = 100  # cut-offs, each reached by 1 % more of the queries
FIRST_TESTED = (0.1, 0.3, 0.5)  # shares of the queries that reach a cut-off where a test begins


@dataclass(frozen=True, eq=False)
class Matches:
    """The first ranks of queries, as pairs of query and image.

    scores: (P,). right: (P,) bool. queries: (P,) the number of the query; one that was asked
    several times has one number. classes: (P,) the number of its class. first: (A,) the best score
    each time that a query was asked. asked: (A,) the number of that query.
    """

    scores: np.ndarray
    right: np.ndarray
    queries: np.ndarray
    classes: np.ndarray
    first: np.ndarray
    asked: np.ndarray

    def __post_init__(self) -> None:
        if np.isnan(self.scores).any() or np.isnan(self.first).any():
            raise DataError("some matches have no score (nan): leave them out")


@dataclass(frozen=True)
class Level:
    """What happens when all matches that score `score` or more are accepted.

    share: of the times that queries were asked, how many have such a match. queries: how many
    different ones. matches: how many there are. precision: the share that is right. effective: the
    number of independent matches that say as much. lower: what the precision is at least, with the
    confidence of one test.
    """

    score: float
    share: float
    queries: int
    matches: int
    precision: float
    effective: float
    lower: float


def precision_levels(found: Matches, *, confidence: float = CONFIDENCE) -> list[Level]:
    """A level for each quantile of the best scores, the strictest first; equal scores share one."""
    if len(found.first) == 0:
        return []
    shares = np.arange(LEVELS - 1, -1, -1) / LEVELS
    cuts = np.unique(np.quantile(found.first, shares, method="inverted_cdf"))[::-1]
    asked = (found.first[:, None] >= cuts[None]).mean(axis=0)
    best = np.full(int(found.asked.max()) + 1, -np.inf)
    np.maximum.at(best, found.asked, found.first)
    queries = (best[:, None] >= cuts[None]).sum(axis=0)  # (levels,)
    at = np.searchsorted(-cuts, -found.scores)  # the strictest level that a match reaches
    error = (1 - confidence) / len(FIRST_TESTED)
    effective = queries.astype(float)
    for units in (found.queries, found.classes):
        accepted, right = _counts(units, at, found.right, len(cuts))
        effective = np.minimum(effective, _effective(accepted, right, queries, error))
    matches = accepted.sum(axis=0)
    precision = right.sum(axis=0) / matches
    lower = _clopper_pearson(precision * effective, effective, error)
    columns = (cuts, asked, queries, matches, precision, effective, lower)
    rows = np.stack([np.asarray(column, float) for column in columns], axis=1).tolist()
    return [Level(s, a, int(q), int(m), p, e, low) for s, a, q, m, p, e, low in rows]


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


def _counts(
    units: np.ndarray, at: np.ndarray, right: np.ndarray, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """(units, levels) each: accepted matches at each level, and the right ones among them."""
    kept = at < levels
    n = int(units.max(initial=0)) + 1
    cell = units[kept] * levels + at[kept]
    both = (np.bincount(cell, w, minlength=n * levels) for w in (None, right[kept].astype(float)))
    accepted, hits = (counts.reshape(n, levels).cumsum(axis=1) for counts in both)
    return accepted, hits


def _effective(
    accepted: np.ndarray, right: np.ndarray, queries: np.ndarray, error: float
) -> np.ndarray:
    """(levels,) how many independent matches vary as much as these; inf where all are right.

    accepted, right: (units, levels). Few units say little of their own spread, so the number is
    reduced by the quantiles of Student's t.
    """
    from scipy.stats import t as student

    total = accepted.sum(axis=0)
    precision = right.sum(axis=0) / total
    units = (accepted > 0).sum(axis=0)
    spread = ((right - precision * accepted) ** 2).sum(axis=0) / total**2
    spread = spread * units / np.maximum(units - 1, 1)
    few = student.ppf(1 - error, np.maximum(queries - 1, 1))
    few = few / student.ppf(1 - error, np.maximum(units - 1, 1))
    found = precision * (1 - precision) / np.where(spread > 0, spread, 1) * few**2
    return np.where(spread > 0, found, np.inf)


def _clopper_pearson(right: np.ndarray, n: np.ndarray, error: float) -> np.ndarray:
    """The lower end of the one-sided exact binomial interval; counts need not be whole."""
    from scipy.stats import beta

    some = right > 0
    return np.where(some, beta.ppf(error, np.where(some, right, 1), n - right + 1), 0.0)
