"""All pairs of query and image in one list → one value: µAP, recall at a precision, TPR, …

Such a metric has no value for a single query. Each is prepared once and then computed for any
weights of the queries, so that its interval can draw queries (or classes) anew.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vizsla.score.figures import Figure, IntervalSettings
from vizsla.score.relevance import Relevance

Weighted = Callable[[np.ndarray], float]  # (Q,) weights of the queries → the value
_DRAWN_PAIRS = 200_000_000  # pairs weighed for an interval; with fewer than 100 draws there is none
_FEWEST_DRAWS = 100


@dataclass(frozen=True, eq=False)
class PooledMetric:
    """A metric of all queries together. unknown: why it has no value, or None.

    pairs: how many numbers one value is computed from. drawn: whether an interval makes sense.
    """

    title: str
    value: Weighted | None
    pairs: int = 0
    unknown: str | None = None
    drawn: bool = True

    def figure(self, n: int, clusters: np.ndarray | None, settings: IntervalSettings) -> Figure:
        """The value over n queries, with the bootstrap's percentile interval."""
        if self.value is None or n == 0:
            return Figure(self.title, None, None, None, n, unknown=self.unknown or "no queries")
        mean = self.value(np.ones(n))
        if np.isnan(mean):
            return Figure(self.title, None, None, None, n, unknown="there are no such pairs")
        units = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
        draws = min(settings.resamples, _DRAWN_PAIRS // max(self.pairs, 1))
        if not self.drawn or draws < min(_FEWEST_DRAWS, settings.resamples) or units.max() < 1:
            return Figure(self.title, mean, None, None, n)
        generator = np.random.default_rng(settings.seed)
        count = int(units.max()) + 1
        values = [
            self.value(np.bincount(generator.integers(0, count, count), minlength=count)[units])
            for _ in range(draws)
        ]
        tail = (1 - settings.confidence) / 2
        low, high = np.nanquantile(values, [tail, 1 - tail])
        return Figure(self.title, mean, float(low), float(high), n)


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


def adjusted_rand_index(labels: np.ndarray, groups: np.ndarray) -> float:
    """How far two groupings of the same images agree, (N,) each: 1 if equal, 0 as by chance
    (Hubert and Arabie 1985)."""
    from sklearn.metrics import adjusted_rand_score  # slow to import

    return float(adjusted_rand_score(labels, groups))
