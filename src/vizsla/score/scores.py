"""Ranking + Truth → Scores: means with intervals, per-query values, and what was left out and why.

Knows which queries a mean divides by (docs/metrics.md); the formulas are in metrics.py.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.errors import DataError, UsageError
from vizsla.score import metrics, summary
from vizsla.score.intervals import RESAMPLES, bootstrap_intervals, wilson
from vizsla.score.per_query import Metric, Seen, measure
from vizsla.score.relevance import Truth, relevance
from vizsla.score.summary import result_record as result_record  # a public name of this module
from vizsla.search.ranking import Ranking

FORM = "scores/1"
MISSING_RANKS = ("unknown", "wrong", "absent")
UNLABELLED = "(none)"  # the slice of the queries that have no value in a column


@dataclass(frozen=True)
class Figure:
    """A metric's mean over n queries and its interval; None where unknown.

    other_mean, other_n: with the other denominator (all queries, or those with something
    relevant); None and 0 where the two are the same.
    """

    title: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    other_mean: float | None = None
    other_n: int = 0
    unknown: str | None = None


@dataclass(frozen=True)
class IntervalSettings:
    """How intervals are made. cluster: None draws queries, a column draws its values."""

    cluster: str | None = None
    confidence: float = 0.95
    resamples: int = RESAMPLES
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of Q queries. `scores["map"]` is a Figure, `scores.metrics["map"].values` is (Q,).

    answerable: (Q,) bool, whether something is relevant in the gallery (True where unknown).
    n_relevant: (Q,), -1 where unknown. first_ranks: (Q,) of the first hit, inf where none was seen.
    first_labels: the label of each query's first image. columns: column → Q values, to slice by.
    lacking, unlabelled, unlabelled_gallery: how many queries the ranking lacks (counted as wrong),
    how many have no label (left out), how many gallery images have none (counted as wrong).
    """

    queries: list[str]
    metrics: dict[str, Metric]
    top_k: int
    answerable: np.ndarray
    n_relevant: np.ndarray
    first_ranks: np.ndarray
    first_labels: list[str | None]
    columns: dict[str, list[str | None]]
    gallery_size: int | None = None
    depth: int = 0
    lacking: int = 0
    unlabelled: int = 0
    unlabelled_gallery: int = 0
    settings: IntervalSettings = field(default_factory=IntervalSettings)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, key: str) -> Figure:
        if key not in self.metrics:
            raise UsageError(f"no metric {key!r} here: there are {', '.join(self.metrics)}")
        return self.figures[key]

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """All means with their intervals, in the order of `metrics`."""
        intervals = self._intervals()
        return {key: self._figure(key, intervals.get(key)) for key in self.metrics}

    @property
    def known(self) -> dict[str, Figure]:
        """The figures that could be computed."""
        return {key: figure for key, figure in self.figures.items() if figure.mean is not None}

    def mean(self, key: str) -> float | None:
        """One mean, without the work of an interval."""
        metric, used = self.metrics[key], self._used(key)
        if metric.unknown or not used.any():
            return None
        return float(metric.values[used].mean())

    @property
    def headline(self) -> str:
        """The metric to order queries and classes by: AP, else precision@k, else top-k accuracy."""
        choices = ("map", f"precision@{self.top_k}", f"top_k_accuracy@{self.top_k}")
        return next((key for key in choices if self.mean(key) is not None), "contest_points")

    # ── slices ──

    def by(self, column: str = "label") -> dict[str, "Scores"]:
        """The scores of each value of a column, by value; intervals are made when looked at."""
        values = [value if value is not None else UNLABELLED for value in self._column(column)]
        places: dict[str, list[int]] = {}
        for i, value in enumerate(values):
            places.setdefault(value, []).append(i)
        return {value: self.subset(places[value]) for value in sorted(places)}

    def subset(self, places: Sequence[int]) -> "Scores":
        """The scores of some of the queries alone."""
        at = np.asarray(places, dtype=np.int64)
        return dataclasses.replace(
            self,
            queries=[self.queries[i] for i in at],
            metrics={
                key: dataclasses.replace(metric, values=metric.values[at])
                for key, metric in self.metrics.items()
            },
            answerable=self.answerable[at],
            n_relevant=self.n_relevant[at],
            first_ranks=self.first_ranks[at],
            first_labels=[self.first_labels[i] for i in at],
            columns={name: [values[i] for i in at] for name, values in self.columns.items()},
            lacking=0,
            unlabelled=0,
            unlabelled_gallery=0,
        )

    def worst(
        self, n: int = 5, *, column: str = "label", key: str | None = None
    ) -> list[tuple[str, float, int]]:
        """(value, mean, queries) of the n values of a column with the lowest mean."""
        key = key or self.headline
        means = [(value, part.mean(key), len(part)) for value, part in self.by(column).items()]
        known = [(v, mean, size) for v, mean, size in means if mean is not None and v != UNLABELLED]
        return sorted(known, key=lambda entry: (entry[1], entry[0]))[:n]

    def zero_classes(self) -> list[str]:
        """Classes none of whose queries has a hit in the first top_k."""
        key = f"top_k_accuracy@{self.top_k}"
        parts = self.by("label").items()
        return [label for label, part in parts if label != UNLABELLED and part.mean(key) == 0]

    def confused(self, n: int = 10) -> list[tuple[str, str, int]]:
        """(label, label of the first image, queries) of the n most frequent wrong pairs."""
        pairs = Counter(
            (label, first)
            for label, first in zip(self._column("label"), self.first_labels, strict=True)
            if label is not None and first is not None and first != label
        )
        ordered = sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0]))
        return [(label, first, count) for (label, first), count in ordered[:n]]

    # ── for people and files ──

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know: queries left out, unknowns, classes at zero."""
        return summary.notes(self)

    @property
    def doubts(self) -> list[str]:
        """Why the labels may be none, so that the numbers say nothing; the first of the notes."""
        return summary.doubts(self)

    def lines(self) -> list[str]:
        """The table and the notes for a terminal."""
        notes = self.notes
        return [*summary.table_lines(self), *([""] if notes else []), *notes]

    def text(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """All but the per-query values, ready for JSON: unknown is None."""
        return {
            "top_k": self.top_k,
            "queries": len(self),
            "queries_with_nothing_relevant": self.with_nothing_relevant,
            "queries_lacking": self.lacking,
            "queries_unlabelled": self.unlabelled,
            "gallery_size": self.gallery_size,
            "gallery_unlabelled": self.unlabelled_gallery,
            "depth": self.depth,
            "intervals": dataclasses.asdict(self.settings),
            "metrics": {key: summary.figure_dict(figure) for key, figure in self.figures.items()},
            "first_rank": metrics.first_rank_statistics(self.first_ranks[self.answerable]),
            "zero_classes": self.zero_classes(),
            "worst_classes": [list(entry) for entry in self.worst()],
            "confused": [list(entry) for entry in self.confused()],
            "notes": self.notes,
        }

    @property
    def with_nothing_relevant(self) -> int | None:
        return None if (self.n_relevant < 0).any() else int((~self.answerable).sum())

    def per_query(self, key: str) -> list[float | None]:
        """A metric's value for each query; None where it is unknown or the mean leaves it out."""
        values, used = self.metrics[key].values, self._used(key)
        return [float(v) if u and v == v else None for v, u in zip(values, used, strict=True)]

    def save(self, path: str | Path) -> None:
        """One sealed JSON file with the per-query values; `load` gives the same Scores."""
        table = {
            key: {
                "title": metric.title,
                "over_all": metric.over_all,
                "highest": metric.highest,
                "unknown": metric.unknown,
                "values": _nullable(metric.values),
            }
            for key, metric in self.metrics.items()
        }
        per_query = {
            "queries": self.queries,
            "answerable": self.answerable.tolist(),
            "n_relevant": self.n_relevant.tolist(),
            "first_ranks": _nullable(
                np.where(np.isinf(self.first_ranks), np.nan, self.first_ranks)
            ),
            "first_labels": self.first_labels,
            "columns": self.columns,
            "metrics": table,
        }
        content = {"form": FORM, "summary": self.to_dict(), "per_query": per_query}
        storage.write_sealed_json(path, content)

    @staticmethod
    def load(path: str | Path) -> "Scores":
        content = storage.read_sealed_json(path)
        if content.get("form") != FORM:
            raise DataError(f"{path} holds no scores: it says form={content.get('form')!r}")
        summary, kept = content["summary"], content["per_query"]
        first = _numbers(kept["first_ranks"])
        return Scores(
            queries=kept["queries"],
            metrics={
                key: Metric(**{**entry, "values": _numbers(entry["values"])})
                for key, entry in kept["metrics"].items()
            },
            top_k=summary["top_k"],
            answerable=np.array(kept["answerable"], dtype=bool),
            n_relevant=np.array(kept["n_relevant"], dtype=np.int64),
            first_ranks=np.where(np.isnan(first), np.inf, first),
            first_labels=kept["first_labels"],
            columns=kept["columns"],
            gallery_size=summary["gallery_size"],
            depth=summary["depth"],
            lacking=summary["queries_lacking"],
            unlabelled=summary["queries_unlabelled"],
            unlabelled_gallery=summary["gallery_unlabelled"],
            settings=IntervalSettings(**summary["intervals"]),
        )

    # ── parts ──

    def _column(self, column: str) -> list[str | None]:
        if column not in self.columns:
            raise UsageError(
                f"no column {column!r} to slice by: there are {', '.join(self.columns)}"
            )
        return self.columns[column]

    def _used(self, key: str) -> np.ndarray:
        """(Q,) bool: the queries that the metric's mean divides by."""
        return self.metrics[key].over_all | self.answerable

    def clusters(self, used: np.ndarray, column: str | None) -> np.ndarray | None:
        """A column's value for each of the used queries; None without a column."""
        if column is None:
            return None
        values = self._column(column)
        return np.array([UNLABELLED if v is None else v for v in values], dtype=str)[used]

    def _intervals(self) -> dict[str, tuple[float, float]]:
        """Wilson for shares (hit rates), the bootstrap for the rest: together, so drawn once."""
        found: dict[str, tuple[float, float]] = {}
        for over_all in (True, False):
            keys = [k for k, m in self.metrics.items() if m.over_all == over_all and not m.unknown]
            used = np.flatnonzero(self.answerable | over_all)
            if not keys or not len(used):
                continue
            used = used[np.argsort([self.queries[i] for i in used])]  # draws know no file's order
            shares = [k for k in keys if self._is_share(k, used)]
            drawn = [k for k in keys if k not in shares]
            for key in shares:
                hits = self.metrics[key].values[used]
                low, high = wilson(hits.sum(), len(hits), confidence=self.settings.confidence)
                found[key] = float(low), float(high)
            if drawn:
                table = bootstrap_intervals(
                    np.stack([self.metrics[key].values[used] for key in drawn], axis=1),
                    clusters=self.clusters(used, self.settings.cluster),
                    highest=np.array([self.metrics[key].highest for key in drawn]),
                    confidence=self.settings.confidence,
                    resamples=self.settings.resamples,
                    seed=self.settings.seed,
                )
                found |= {
                    key: (float(low), float(high))
                    for key, (low, high) in zip(drawn, table, strict=True)
                    if low == low
                }
        return found

    def _is_share(self, key: str, used: np.ndarray) -> bool:
        """Only 0 and 1, drawn query by query: then the mean is a share."""
        return self.settings.cluster is None and bool(
            np.isin(self.metrics[key].values[used], (0.0, 1.0)).all()
        )

    def _figure(self, key: str, interval: tuple[float, float] | None) -> Figure:
        metric, used = self.metrics[key], self._used(key)
        low, high = interval or (None, None)
        other = self.answerable if metric.over_all else np.ones(len(self), dtype=bool)
        differs = not metric.unknown and 0 < other.sum() != used.sum()
        return Figure(
            metric.title,
            self.mean(key),
            low,
            high,
            int(used.sum()),
            float(metric.values[other].mean()) if differs else None,
            int(other.sum()) if differs else 0,
            metric.unknown or (None if used.any() else "no query has anything relevant"),
        )


def evaluate(
    ranking: Ranking,
    truth: Truth,
    *,
    ks: Sequence[int] = (1, 5, 10),
    top_k: int | None = None,
    full_ranks: Sequence[np.ndarray] | None = None,
    missing_ranks: str = "unknown",
    points: Mapping[int, float] | None = None,
    cluster: str | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Scores of a ranking at the cut-offs `ks` and `top_k`.

    top_k: the contest's k, beyond which no contest points are won. By default the lists' length
      for a submission, whose gallery is not known, and max(ks) otherwise; also for a run with
      judgements, which may be long.
    full_ranks: for each query of the ranking the ranks (from 1, rising) of its relevant images in
      the whole gallery, junk and self taken out: AP, MAP@R and the like from a shallow ranking.
    missing_ranks: behind a list's end: "unknown" (no mean at that cut-off); "wrong" as a judge has
      it; or "absent" as trec_eval has it: wrong, and what a list lacks is never found, so that AP
      and the like are known too.
    cluster: "label" or another column, to draw whole classes for the intervals.
    """
    if missing_ranks not in MISSING_RANKS:
        raise UsageError(f"missing_ranks={missing_ranks!r}: choose {', '.join(MISSING_RANKS)}")
    judged = relevance(ranking, truth)
    asked_k = top_k
    if top_k is None:
        handed_in = judged.gallery_size is None and truth.relevant is None
        top_k = ranking.depth if handed_in else min(max(ks), ranking.depth)
    cutoffs = sorted({*ks, top_k})
    if not cutoffs or cutoffs[0] < 1:
        raise UsageError(f"cut-offs {cutoffs}: choose whole numbers from 1")
    if full_ranks is not None and len(full_ranks) != len(ranking):
        raise DataError(f"full_ranks holds {len(full_ranks)} rows for {len(ranking)} queries")
    seen = Seen.of(judged, full_ranks)
    if missing_ranks != "unknown":
        deepest = np.full(len(judged), max(cutoffs[-1], seen.depth))
        whole = seen.whole | (missing_ranks == "absent")
        seen = dataclasses.replace(seen, lengths=deepest, whole=whole)
    columns: dict[str, list[str | None]] = {"label": list(judged.labels)}
    for name, values in truth.attributes.items():
        columns[name] = [values.get(query) for query in judged.queries]
    scores = Scores(
        queries=judged.queries,
        metrics=measure(seen, cutoffs, points, handed_in=asked_k),
        top_k=top_k,
        answerable=~judged.nothing_relevant,
        n_relevant=judged.n_relevant,
        first_ranks=metrics.first_hit_rank(seen.ranks),
        first_labels=judged.first_labels,
        columns=columns,
        gallery_size=judged.gallery_size,
        depth=ranking.depth,
        lacking=int(judged.lacking.sum()),
        unlabelled=len(judged.unlabelled),
        unlabelled_gallery=judged.unlabelled_gallery,
        settings=IntervalSettings(cluster, confidence, resamples, seed),
    )
    if cluster is not None:
        scores._column(cluster)  # an unknown column is said now, not when a figure is looked at
    return scores


def _nullable(values: np.ndarray) -> list[float | None]:
    """For JSON: None for nan."""
    return [None if v != v else v for v in values.tolist()]


def _numbers(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)
