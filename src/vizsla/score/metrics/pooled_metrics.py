"""All pairs of query and image in one list → one value: µAP, recall at a precision, TPR, …

Such a metric has no value for a single query. It is prepared for some of the queries and then
computed for any weights of them, so that its interval can draw queries (or classes) anew.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vizsla.score.figures import Figure, IntervalSettings
from vizsla.score.intervals import wilson
from vizsla.score.relevance import Relevance

Weighted = Callable[[np.ndarray], float]  # weights of the queries → the value
_DRAWN_PAIRS = 200_000_000  # pairs weighed for an interval; with fewer than 100 draws there is none
_FEWEST_DRAWS = 100


@dataclass(frozen=True, eq=False)
class PooledMetric:
    """A metric of all queries together. unknown: why it has no value, or None.

    prepare: places of the queries → its value for any weights of these. at: the places. pairs: how
    many numbers one value is computed from. saved: its figure, if it was read from a file; it then
    cannot be computed anew.
    """

    title: str
    prepare: Callable[[np.ndarray], Weighted] | None
    at: np.ndarray
    pairs: int = 0
    unknown: str | None = None
    saved: Figure | None = None

    def subset(self, places: np.ndarray) -> "PooledMetric":
        """The same of only some of these queries."""
        pairs = self.pairs * len(places) // max(len(self.at), 1)
        return dataclasses.replace(self, at=self.at[places], pairs=pairs)

    @cached_property
    def mean(self) -> float | None:
        """The value over all its queries; None if it is unknown."""
        if self.saved is not None:
            return self.saved.mean
        if self._value is None or not len(self.at):
            return None
        value = self._value(np.ones(len(self.at)))
        return None if np.isnan(value) else value

    @cached_property
    def _value(self) -> Weighted | None:
        return self.prepare(self.at) if self.prepare else None

    def figure(
        self, queries: Sequence[str], clusters: np.ndarray | None, settings: IntervalSettings
    ) -> Figure:
        """The value, with the bootstrap's percentile interval and the resampled values.

        queries: their ids. The draws depend on these (or on the clusters), not on their order, so
        that those of several systems are of the same queries.
        """
        if self.saved is not None:
            return self.saved
        n, mean = len(self.at), self.mean
        if mean is None or self._value is None:
            why = self.unknown or ("there are no such pairs" if n else "no queries")
            return Figure(self.title, None, None, None, n, unknown=why)
        units = np.unique(queries if clusters is None else clusters, return_inverse=True)[1]
        count = int(units.max()) + 1
        draws = min(settings.resamples, _DRAWN_PAIRS // max(self.pairs, 1))
        if draws < min(_FEWEST_DRAWS, settings.resamples) or count < 2:
            return Figure(self.title, mean, None, None, n)
        generator = np.random.default_rng(settings.seed)
        values = [
            self._value(np.bincount(generator.integers(0, count, count), minlength=count)[units])
            for _ in range(draws)
        ]
        tail = (1 - settings.confidence) / 2
        low, high = np.nanquantile(values, [tail, 1 - tail])
        if low == high == mean and 0 <= mean <= 1:  # no spread to resample, as if all were perfect
            low, high = wilson(mean * count, count, confidence=settings.confidence)
        return Figure(self.title, mean, float(low), float(high), n, draws=tuple(values))


@dataclass(frozen=True, eq=False)
class Pairs:
    """All ranked pairs, by falling score; of equal scores the wrong pairs first.

    rows: (pairs,) of the query. right: (pairs,) bool. ends: (pairs,) bool, the last of its score.
    n_relevant: (Q,) right pairs of each query, in the lists or not.
    """

    rows: np.ndarray
    right: np.ndarray
    ends: np.ndarray
    n_relevant: np.ndarray

    @staticmethod
    def of(judged: Relevance) -> "Pairs":
        """The pairs of a judged ranking that has scores."""
        assert judged.scores is not None
        there = np.arange(judged.hits.shape[1])[None] < judged.lengths[:, None]
        rows, scores, right = np.nonzero(there)[0], judged.scores[there], judged.hits[there]
        order = np.lexsort((right, -scores))
        scores = scores[order]
        ends = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
        return Pairs(rows[order], right[order], ends, judged.n_relevant)

    def subset(self, places: np.ndarray) -> "Pairs":
        """Those of only some of the queries; `rows` then counts these."""
        if np.array_equal(places, np.arange(len(self.n_relevant))):
            return self
        row = np.full(len(self.n_relevant), -1)
        row[places] = np.arange(len(places))
        kept = row[self.rows] >= 0
        block = np.cumsum(self.ends) - self.ends  # the number of each pair's score
        blocks = block[kept]
        ends = np.append(blocks[1:] != blocks[:-1], True)[: len(blocks)]
        return Pairs(row[self.rows[kept]], self.right[kept], ends, self.n_relevant[places])

    def micro_average_precision(self, weights: np.ndarray) -> float:
        """Precision at each right pair, summed, over all right pairs (µAP, Perronnin et al. 2009).

        As the program of the Image Similarity Challenge 2021: tied right pairs come last.
        """
        precision, weight = self._precision(weights)
        total = float(weights @ self.n_relevant)
        return float((precision * weight)[self.right].sum() / total) if total else np.nan

    def recall_at_precision(self, weights: np.ndarray, least: float) -> float:
        """The largest share of the right pairs that a cut-off finds with this precision."""
        precision, weight = self._precision(weights)
        total = float(weights @ self.n_relevant)
        reached = np.cumsum(weight * self.right)[precision >= least]
        return float(reached.max(initial=0) / total) if total else np.nan

    def true_positive_rate(self, weights: np.ndarray, most: float) -> float:
        """The share of the right pairs above the lowest cut-off with at most this share of the
        wrong ones."""
        weight = weights[self.rows].astype(float)
        right = np.cumsum(weight * self.right)
        wrong = np.cumsum(weight * ~self.right)
        if not len(right) or not right[-1] or not wrong[-1]:
            return np.nan
        allowed = self.ends & (wrong <= most * wrong[-1] * (1 + 1e-12))
        return float(right[allowed].max(initial=0) / right[-1])

    def _precision(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = weights[self.rows].astype(float)
        called = np.cumsum(weight)
        return np.cumsum(weight * self.right) / np.where(called > 0, called, 1), weight


def at_places(value: Weighted, n: int) -> Callable[[np.ndarray], Weighted]:
    """`prepare` of a metric of n queries that is computed for some by giving the others no
    weight."""

    def prepare(places: np.ndarray) -> Weighted:
        def of_some(weights: np.ndarray) -> float:
            every = np.zeros(n)
            every[places] = weights
            return value(every)

        return of_some

    return prepare


def balanced_share(right: np.ndarray, classes: np.ndarray, used: np.ndarray) -> Weighted:
    """The share of right queries of each class, averaged over the classes. All (Q,); used: bool."""
    names, codes = np.unique(classes[used], return_inverse=True)
    values = right[used].astype(float)

    def value(weights: np.ndarray) -> float:
        weight = weights[used].astype(float)
        of_class = np.bincount(codes, weight, minlength=len(names))
        found = np.bincount(codes, weight * values, minlength=len(names))
        there = of_class > 0
        return float((found[there] / of_class[there]).mean()) if there.any() else np.nan

    return value


def adjusted_rand_index(labels: np.ndarray, groups: np.ndarray) -> Weighted:
    """How far two groupings of the same images agree, (N,) each: 1 if equal, 0 as by chance
    (Hubert and Arabie 1985).

    It counts pairs of images. With weights, a pair counts as often as the product of the two, and
    an image makes no pair with itself, however often it was drawn.
    """
    by_label = np.unique(labels, return_inverse=True)[1]
    by_group = np.unique(groups, return_inverse=True)[1]
    by_both = np.unique(by_label * (len(groups) + 1) + by_group, return_inverse=True)[1]

    def value(weights: np.ndarray) -> float:
        weight = weights.astype(float)
        itself = (weight**2).sum()

        def pairs(codes: np.ndarray) -> float:
            return float((np.bincount(codes, weight) ** 2).sum() - itself) / 2

        every = float(weight.sum() ** 2 - itself) / 2
        same, labelled, grouped = pairs(by_both), pairs(by_label), pairs(by_group)
        expected, most = (labelled * grouped / every if every else 0.0), (labelled + grouped) / 2
        return 1.0 if most == expected else (same - expected) / (most - expected)

    return value
