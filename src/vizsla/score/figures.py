"""A metric's values, one a query → its mean over the queries, with an interval.

Knows which queries a mean divides by (docs/metrics.md); knows no ranking and no labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vizsla.score.intervals import RESAMPLES, bootstrap_intervals, wilson


@dataclass(frozen=True, eq=False)
class Metric:
    """values: (Q,), nan where unknown, 0 where nothing is relevant. highest: a perfect query's.

    over_all: the mean divides by all queries; otherwise by those with something relevant.
    unknown: why there is no mean, or None.
    """

    title: str
    values: np.ndarray
    over_all: bool = False
    highest: float = 1.0
    unknown: str | None = None


@dataclass(frozen=True)
class Figure:
    """A metric's mean over n queries and its interval; None if unknown.

    other_mean, other_n: with the other denominator (all queries, or those with something
    relevant); None and 0 where the two are the same. draws: the values of the resamples, of a
    metric that has one value for all queries.
    """

    title: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    other_mean: float | None = None
    other_n: int = 0
    unknown: str | None = None
    draws: tuple[float, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `unknown` and the other mean only if there are such."""
        interval = None if self.low is None else [self.low, self.high]
        entry: dict[str, Any] = {"mean": self.mean, "interval": interval, "queries": self.n}
        if self.other_mean is not None:
            entry |= {"other_mean": self.other_mean, "other_queries": self.other_n}
        if self.unknown:
            entry["unknown"] = self.unknown
        return entry


@dataclass(frozen=True)
class IntervalSettings:
    """How intervals are made. cluster: None draws queries, a column draws its values."""

    cluster: str | None = None
    confidence: float = 0.95
    resamples: int = RESAMPLES
    seed: int = 0


def figures_of(
    metrics: Mapping[str, Metric],
    queries: Sequence[str],
    answerable: np.ndarray,
    clusters: np.ndarray | None,
    settings: IntervalSettings,
) -> dict[str, Figure]:
    """The mean and interval of each metric, in the order of `metrics`.

    queries: Q ids. answerable: (Q,) bool, whether something is relevant. clusters: (Q,) values of
    the column `settings.cluster`, drawn as wholes; None: queries are drawn.
    """
    intervals: dict[str, tuple[float, float]] = {}
    for over_all in (True, False):  # metrics of the same queries are resampled together
        keys = [k for k, m in metrics.items() if m.over_all == over_all and not m.unknown]
        used = np.flatnonzero(answerable | over_all)
        if not keys or not len(used):
            continue
        used = used[np.argsort([queries[int(i)] for i in used])]  # draws must not depend on order
        values = np.stack([metrics[key].values[used] for key in keys], axis=1)  # (n, M)
        # 0 and 1 alone, drawn query by query, are hits, and their mean a share: Wilson's interval
        is_share = np.isin(values, (0.0, 1.0)).all(axis=0) & (clusters is None)
        ends = np.full((len(keys), 2), np.nan)
        hits = values[:, is_share]
        ends[is_share] = np.stack(
            wilson(hits.sum(axis=0), len(used), confidence=settings.confidence), axis=1
        )
        if not is_share.all():
            ends[~is_share] = bootstrap_intervals(
                values[:, ~is_share],
                clusters=None if clusters is None else clusters[used],
                highest=np.array([metrics[key].highest for key in keys])[~is_share],
                confidence=settings.confidence,
                resamples=settings.resamples,
                seed=settings.seed,
            )
        intervals |= {
            key: (float(low), float(high))
            for key, (low, high) in zip(keys, ends, strict=True)
            if low == low
        }
    return {key: _figure(metric, answerable, intervals.get(key)) for key, metric in metrics.items()}


def mean_of(metric: Metric, answerable: np.ndarray) -> float | None:
    """The mean over the queries that the metric divides by; None if it is unknown."""
    used = answerable | metric.over_all
    if metric.unknown or not used.any():
        return None
    return float(metric.values[used].mean())


def _figure(metric: Metric, answerable: np.ndarray, interval: tuple[float, float] | None) -> Figure:
    used = answerable | metric.over_all
    low, high = interval or (None, None)
    other = answerable if metric.over_all else np.ones(len(answerable), dtype=bool)
    differs = not metric.unknown and 0 < other.sum() != used.sum()
    return Figure(
        metric.title,
        mean_of(metric, answerable),
        low,
        high,
        int(used.sum()),
        float(metric.values[other].mean()) if differs else None,
        int(other.sum()) if differs else 0,
        metric.unknown or (None if used.any() else "no query has anything relevant"),
    )
