"""Scores: means with intervals, per-query values, which queries were left out and why; as text.

The formulas are in metrics/formulas.py, the means and intervals in figures.py.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.errors import DataError, UsageError
from vizsla.notebook import Shown, Summary, counted, data_frame
from vizsla.score.figures import Figure, IntervalSettings, Metric, figures_of, mean_of
from vizsla.score.metrics import formulas
from vizsla.score.metrics.pooled_metrics import PooledMetric
from vizsla.score.text_table import Table

FORM = "scores/2"
_NAMED = 10  # how many classes a note names
UNLABELLED = "(none)"  # the slice of the queries that have no value in a column


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Shown):
    """The scores of Q queries. `scores["map"]` is a Figure, `scores.metrics["map"].values` is (Q,).

    answerable: (Q,) bool, whether something is relevant in the gallery (True if unknown).
    n_relevant: (Q,), -1 where unknown. first_ranks: (Q,) of the first hit, inf where none was seen.
    first_labels: the label of each query's first image. columns: column → Q values, to slice by.
    lacking: queries that the ranking lacks (counted as wrong). unlabelled: queries without a label
    (left out). unlabelled_gallery: gallery images without a label (counted as wrong).
    chosen: the keys of the metrics that were asked for by name; tables then show these alone.
    pooled: those that have one value for all queries together. protocol: its name, if one was used.
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
    chosen: tuple[str, ...] = ()
    pooled: dict[str, PooledMetric] = field(default_factory=dict)
    protocol: str | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, key: str) -> Figure:
        if key not in self.metrics and key not in self.pooled:
            known = ", ".join([*self.metrics, *self.pooled])
            raise UsageError(f"no metric {key!r} here: there are {known}")
        return self.figures[key]

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """All means with their intervals, in the order of `metrics`; then those of all queries."""
        cluster = self.settings.cluster
        clusters = None if cluster is None else self.cluster_values(cluster)
        found = figures_of(self.metrics, self.queries, self.answerable, clusters, self.settings)
        pooled = {
            key: metric.figure(self.queries, clusters, self.settings)
            for key, metric in self.pooled.items()
        }
        return {**found, **pooled}

    def resampled(self, key: str, *, cluster: str | None = None, seed: int = 0) -> np.ndarray:
        """(draws,): the values of a pooled metric for queries (or classes) drawn anew.

        The draws are the same for all scores of the same queries. Empty: none were drawn.
        DataError: the scores were read from a file, which holds those of other settings.
        """
        settings = dataclasses.replace(self.settings, cluster=cluster, seed=seed)
        if settings == self.settings:
            return np.array(self.figures[key].draws)
        if self.pooled[key].saved is not None:
            drawn, wanted = self.settings.cluster or "query", cluster or "query"
            raise DataError(
                f"the saved scores hold {self.title(key)} with queries drawn by {drawn}, not by "
                f"{wanted}: give --protocol or --metrics, which scores the ranking again"
            )
        clusters = None if cluster is None else self.cluster_values(cluster)
        return np.array(self.pooled[key].figure(self.queries, clusters, settings).draws)

    @property
    def shown(self) -> dict[str, Figure]:
        """The figures that a table shows: the known ones among those that were asked for by name,
        or the usual ones."""
        if self.chosen:
            return {key: self.known[key] for key in self.chosen if key in self.known}
        return {key: figure for key, figure in self.known.items() if is_shown(self, key)}

    @property
    def known(self) -> dict[str, Figure]:
        """The figures that could be computed."""
        return {key: figure for key, figure in self.figures.items() if figure.mean is not None}

    def title(self, key: str) -> str:
        """What tables call a metric."""
        return self.pooled[key].title if key in self.pooled else self.metrics[key].title

    def mean(self, key: str) -> float | None:
        """One mean, without the work of an interval."""
        if key in self.pooled:
            return self.pooled[key].mean
        return mean_of(self.metrics[key], self.answerable)

    @property
    def headline(self) -> str:
        """The metric that classes are sorted by: the first that was asked for by name; else AP,
        precision@k or top-k accuracy."""
        named = [key for key in self.chosen if key in self.metrics]
        choices = (*named, "map", f"precision@{self.top_k}", f"top_k_accuracy@{self.top_k}")
        return next((key for key in choices if self.mean(key) is not None), "contest_points")

    # ── slices ──

    def by(self, column: str = "label") -> dict[str, "Scores"]:
        """The scores of the queries of each value of a column, {value: Scores}, sorted by value."""
        values = [value if value is not None else UNLABELLED for value in self._column(column)]
        places: dict[str, list[int]] = {}
        for i, value in enumerate(values):
            places.setdefault(value, []).append(i)
        return {value: self.subset(places[value]) for value in sorted(places)}

    def subset(self, places: Sequence[int]) -> "Scores":
        """The scores of only some of the queries."""
        at = np.asarray(places, dtype=np.int64)
        pooled = {key: m.subset(at) for key, m in self.pooled.items() if m.saved is None}
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
            chosen=tuple(key for key in self.chosen if key in self.metrics or key in pooled),
            pooled=pooled,
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

    def summary(self) -> Summary:
        """The main means; all known figures with their intervals, and the notes."""
        main = ["top_k_accuracy@1", f"top_k_accuracy@{self.top_k}", "map", "contest_points"]
        main = list(self.chosen) or [key for key in main if key in self.metrics]
        means = {self.title(key): self.mean(key) for key in main}
        facts = [
            f"{title} {mean:.{1 if title == 'contest points' else 4}f}"
            for title, mean in means.items()
            if mean is not None
        ]
        queries = counted(len(self), "query", "queries")
        table = _figures_table(self)
        return Summary("Scores", [queries, *facts], table.columns, table.rows, notes=self.notes)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each query: its columns, the first hit, every metric."""
        first = np.where(np.isinf(self.first_ranks), np.nan, self.first_ranks)
        return data_frame(
            {
                "query": self.queries,
                **self.columns,
                "n_relevant": self.n_relevant,
                "first_rank": first,
                "first_label": self.first_labels,
                **{key: np.array(self.per_query(key), dtype=float) for key in self.metrics},
            }
        )

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores should know: queries left out, unknowns, classes at zero."""
        return _notes(self)

    @property
    def doubts(self) -> list[str]:
        """Signs that the labels were misread, so that the scores mean nothing; the first notes."""
        return _doubts(self)

    def lines(self) -> list[str]:
        """The table and the notes for a terminal."""
        notes = self.notes
        return [*_figures_table(self).lines(), *([""] if notes else []), *notes]

    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """All but the per-query values, ready for JSON: unknown is None."""
        wanted = self.chosen or self.figures
        return {
            **({"protocol": self.protocol} if self.protocol else {}),
            "top_k": self.top_k,
            "queries": len(self),
            "queries_with_nothing_relevant": self.with_nothing_relevant,
            "queries_lacking": self.lacking,
            "queries_unlabelled": self.unlabelled,
            "gallery_size": self.gallery_size,
            "gallery_unlabelled": self.unlabelled_gallery,
            "depth": self.depth,
            "intervals": dataclasses.asdict(self.settings),
            "metrics": {key: self.figures[key].to_dict() for key in wanted},
            "first_rank": formulas.first_rank_statistics(self.first_ranks[self.answerable]),
            "zero_classes": self.zero_classes(),
            "worst_classes": [list(entry) for entry in self.worst()],
            "confused": [list(entry) for entry in self.confused()],
            "notes": self.notes,
        }

    @property
    def with_nothing_relevant(self) -> int | None:
        """How many queries have nothing relevant in the gallery; None if that is unknown."""
        return None if (self.n_relevant < 0).any() else int((~self.answerable).sum())

    def per_query(self, key: str) -> list[float | None]:
        """A metric's value for each query; None if it is unknown or the mean leaves it out."""
        metric = self.metrics[key]
        used = self.answerable | metric.over_all
        return _nullable(np.where(used, metric.values, np.nan))

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
            "pooled": {
                key: {
                    **dataclasses.asdict(self.figures[key]),
                    "draws": _nullable(np.array(self.figures[key].draws)),
                }
                for key in self.pooled
            },
            "chosen": list(self.chosen),
        }
        content = {"form": FORM, "summary": self.to_dict(), "per_query": per_query}
        storage.write_sealed_json(path, content)

    @staticmethod
    def load(path: str | Path) -> "Scores":
        """Reads what `save` wrote. StorageError: damaged; DataError: another kind of file."""
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
            chosen=tuple(kept["chosen"]),
            pooled={key: _saved_metric(entry) for key, entry in kept["pooled"].items()},
            protocol=summary.get("protocol"),
        )

    def _column(self, column: str) -> list[str | None]:
        if column not in self.columns:
            raise UsageError(
                f"no column {column!r} to slice by: there are {', '.join(self.columns)}"
            )
        return self.columns[column]

    def cluster_values(self, column: str) -> np.ndarray:
        """(Q,) text: a column's value for each query, UNLABELLED if it has none."""
        return np.array([UNLABELLED if v is None else v for v in self._column(column)], dtype=str)


def _nullable(values: np.ndarray) -> list[float | None]:
    """For JSON: None for nan."""
    return [None if v != v else v for v in values.tolist()]


def _numbers(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _saved_metric(entry: dict[str, Any]) -> PooledMetric:
    figure = Figure(**{**entry, "draws": tuple(_numbers(entry["draws"]))})
    return PooledMetric(figure.title, None, np.arange(figure.n), saved=figure)


# ── text ────────────────────────────────────────────────────────────


def _notes(scores: Scores) -> list[str]:
    """What was left out, what is unknown, and why."""
    found = [*_doubts(scores), _unknown_note(scores), *_left_out_notes(scores)]
    zero = [] if scores.chosen else scores.zero_classes()
    if not scores.chosen:
        found.append(_reach_note(scores))
    if zero:
        found.append(
            f"{_count(len(zero), 'class has', 'classes have')} no hit in the first {scores.top_k} "
            f"of any query: {_listed(zero)}"
        )
    return [note for note in found if note]


def _doubts(scores: Scores) -> list[str]:
    """Signs of misread labels, with which every score is 0, or 1, whatever the ranking."""
    labels = sorted({label for label in scores.columns["label"] if label is not None})
    if not labels:  # judgements, no labels
        return []
    found, known = np.isfinite(scores.first_ranks), scores.n_relevant >= 0
    shown = _listed(labels, 3)
    if known.all() and not scores.answerable.any():
        seen = sorted({label for label in scores.first_labels if label is not None})
        own = "every query has a label of its own, and "
        how = own * (len(labels) == len(scores) > 1)
        return [
            f"there is nothing to find: {how}no gallery image carries the label of any query: "
            f"queries are labelled {shown}, gallery images {_listed(seen, 3) or 'not at all'}. "
            "Are these labels of one kind?"
        ]
    if not found.any() and not known.any():
        seen = sorted({label for label in scores.first_labels if label is not None})
        return [
            f"not one right image in {_count(len(scores), 'list', 'lists')}: queries are labelled "
            f"{shown}, the images found first {_listed(seen, 3)}. Are these labels of one kind?"
        ]
    key = f"precision@{scores.top_k}"
    if len(labels) == 1 and len(scores) > 1 and key in scores.metrics and scores.mean(key) == 1:
        return [
            f"all {len(scores)} queries and all that was found carry the one label {labels[0]}, so "
            "any ranking is right. Is it a label?"
        ]
    return []


def _figures_table(scores: Scores) -> Table:
    """The known figures: metric, value, interval, how many queries it divides by."""
    rows = [_row(key, figure) for key, figure in scores.shown.items()]
    percent = f"{100 * scores.settings.confidence:g} % interval"
    header = ("metric", "value", percent, "queries", "with the other denominator")
    width = 5 if any(row[4] for row in rows) else 4
    return Table(list(header[:width]), [list(row[:width]) for row in rows])


def is_shown(scores: Scores, key: str) -> bool:
    """Whether a table shows it: at k = 1 all metrics are equal; AP@k and MRR@k replace unknown mAP
    and MRR."""
    kind, _, k = key.partition("@")
    if kind == "top_k_accuracy" or not k:
        return True
    deepest = max(int(other.partition("@")[2]) for other in scores.known if f"{kind}@" in other)
    if kind == "ap":
        return scores.mean("map") is None and int(k) == deepest
    if kind == "mrr":
        return scores.mean("mrr") is None and int(k) == deepest
    return int(k) > 1


def _row(key: str, figure: Figure) -> tuple[str, str, str, str, str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}" if "points" in key else f"{value:.4f}"

    interval = f"[{number(figure.low)}, {number(figure.high)}]" if figure.low is not None else ""
    other = f"{number(figure.other_mean)} of {figure.other_n}" if figure.other_n else ""
    return figure.title, number(figure.mean), interval, str(figure.n), other


def _unknown_note(scores: Scores) -> str:
    reasons: dict[str, list[str]] = {}
    for figure in [scores.figures[key] for key in scores.chosen or scores.figures]:
        if figure.unknown:
            reasons.setdefault(figure.unknown, []).append(figure.title)
    parts = [f"{'; '.join(_merged(titles))} ({reason})" for reason, titles in reasons.items()]
    return f"not known: {'; '.join(parts)}" if parts else ""


def _merged(titles: Sequence[str]) -> list[str]:
    """recall@1, recall@5, mAP → recall@1,5 and mAP."""
    cutoffs: dict[str, list[str]] = {}
    for title in titles:
        kind, _, k = title.partition("@")
        cutoffs.setdefault(kind, []).extend([k] if k else [])
    return [kind + ("@" + ",".join(ks) if ks else "") for kind, ks in cutoffs.items()]


def _left_out_notes(scores: Scores) -> list[str]:
    empty, effect = scores.with_nothing_relevant or 0, _effect_of_nothing(scores)
    return [
        _if_any(
            empty,
            f"query has nothing relevant in the gallery: {effect}",
            f"queries have nothing relevant in the gallery: {effect}",
        ),
        _if_any(
            scores.lacking,
            "query of the truth is not in the ranking: counted as wrong",
            "queries of the truth are not in the ranking: counted as wrong",
        ),
        _if_any(
            scores.unlabelled,
            "query has no label: left out of everything",
            "queries have no label: left out of everything",
        ),
        _if_any(
            scores.unlabelled_gallery,
            "gallery image has no label: counted as wrong",
            "gallery images have no label: counted as wrong",
        ),
    ]


def _effect_of_nothing(scores: Scores) -> str:
    """What becomes of a query with nothing relevant, in words."""
    if not scores.chosen:
        return "wrong in top-k accuracy and contest points, left out of the other means"
    over_all = [scores.metrics[key].over_all for key in scores.chosen if key in scores.metrics]
    parts = ["wrong in " + ", ".join(
        key for key in scores.chosen if key in scores.metrics and scores.metrics[key].over_all
    )] * any(over_all) + ["left out of the means"] * (False in over_all)  # fmt: skip
    parts += ["their pairs are wrong"] * bool(scores.pooled)
    return ", ".join(parts)


def _reach_note(scores: Scores) -> str:
    """k beyond what a class allows: then precision@k measures the data, not the model."""
    counts = scores.n_relevant[scores.n_relevant > 0]
    few = int((counts < scores.top_k).sum())
    if not few:
        return ""
    best = np.minimum(counts, scores.top_k).mean() / scores.top_k
    return (
        f"{_count(few, 'query has', 'queries have')} fewer than {scores.top_k} relevant images "
        f"(the fewest: {counts.min()}), so precision@{scores.top_k} can reach {best:.4f} at most"
    )


def _if_any(n: int, one: str, many: str) -> str:
    return _count(n, one, many) if n else ""


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _listed(names: Sequence[str], most: int = _NAMED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
