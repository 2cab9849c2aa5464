"""Scores and what they were made of → what `vizsla evaluate` prints, writes and draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.errors import DataError
from vizsla.output import charts
from vizsla.score import metrics
from vizsla.score.calibration import Calibration
from vizsla.score.relevance import Relevance, match_pairs
from vizsla.score.scores import Scores
from vizsla.score.slices import confusion_table, slice_table
from vizsla.score.tables import Table

SHOWN = 30  # rows of a long table on a terminal
CONFUSED = 10
DEEPEST = 1000  # of a curve
POINTS = 40


@dataclass(frozen=True)
class Evaluation:
    """slices: by column, the worst first. confused: class pairs, where they were asked for.

    applied: what the calibrated cut-off does on these queries, in words.
    """

    scores: Scores
    slices: dict[str, Table]
    confused: Table | None = None
    calibration: Calibration | None = None
    applied: str = ""

    def text(self, rows: int = SHOWN) -> str:
        parts = [self.scores.text()]
        for column, table in self.slices.items():
            parts.append(f"by {column}, the worst first:\n{_shortened(table, rows)}")
        if self.confused is not None:
            title = "most confused at rank 1:"
            body = _shortened(self.confused, rows) if self.confused.rows else "no class is confused"
            parts.append(f"{title}\n{body}")
        if self.calibration is not None:
            lines = [*self.calibration.lines(), *([self.applied] if self.applied else [])]
            parts.append("\n".join(lines))
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The scores' own dict, and under their names what else was asked for."""
        more: dict[str, Any] = {}
        if self.slices:
            more["slices"] = {column: table.records() for column, table in self.slices.items()}
        if self.confused is not None:
            more["most_confused"] = self.confused.records()
        if self.calibration is not None:
            more["calibration"] = self.calibration.to_dict()
            more["calibration"]["applied"] = self.applied or None
        return {**self.scores.to_dict(), **more}


def detailed(
    scores: Scores,
    *,
    by: Sequence[str] = (),
    worst: int | None = None,
    calibration: Calibration | None = None,
    applied: str = "",
) -> Evaluation:
    """With the slices `by` column. worst: so many classes (or slices), and the confused pairs."""
    columns = dict.fromkeys(by or (["label"] if worst else []))
    slices = {column: slice_table(scores, column, worst) for column in columns}
    labelled = any(label is not None for label in scores.columns["label"])
    wanted = labelled and (worst is not None or "label" in columns)
    confused = confusion_table(scores, worst or CONFUSED) if wanted else None
    return Evaluation(scores, slices, confused, calibration, applied)


def draw_curve(path: str | Path, judged: Relevance) -> None:
    """top-k accuracy, and recall where it is known, at cut-offs that every list reaches."""
    reach = judged.lengths[~judged.lacking]
    deepest = min(int(reach.min(initial=DEEPEST)), DEEPEST)
    if deepest < 1:
        raise DataError("nothing to draw: the ranking's lists are empty")
    usual = [k for k in (1, 5, 10) if k <= deepest]
    ks = np.unique([*np.geomspace(1, deepest, POINTS).round().astype(int), *usual]).tolist()
    ranks, answerable = metrics.hit_ranks(judged.hits), ~judged.nothing_relevant
    lines: dict[str, list[float | None]] = {
        "top-k accuracy": [float(metrics.hit_rate_at_k(ranks, k).mean()) for k in ks]
    }
    if answerable.any() and (judged.n_relevant >= 0).all():
        counts = judged.n_relevant
        lines["recall@k"] = [
            float(metrics.recall_at_k(ranks, counts, k)[answerable].mean()) for k in ks
        ]
    charts.cutoff_curve(path, ks, lines, name=" and ".join(lines))


def draw_bars(path: str | Path, scores: Scores) -> None:
    """The metric that orders classes, for each class."""
    key = scores.headline
    parts = scores.by("label")
    figure = scores.metrics[key]
    means = [part.mean(key) for part in parts.values()]
    values = [None if mean is None else mean / figure.highest for mean in means]
    name = figure.title if figure.highest == 1 else f"{figure.title} / {figure.highest:g}"
    counts = [len(part) for part in parts.values()]
    charts.class_bars(path, list(parts), values, counts, name=name)


def draw_histogram(
    path: str | Path, judged: Relevance, calibration: Calibration | None = None
) -> None:
    """The scores of right and of wrong first matches, and the cut-off where there is one."""
    scores, matches = match_pairs(judged)
    cutoff = calibration.cutoff if calibration else None
    charts.score_histogram(
        path, scores[matches], scores[~matches], cut_off=cutoff.score if cutoff else None
    )


def _shortened(table: Table, rows: int) -> str:
    more = len(table.rows) - rows
    text = Table(table.columns, table.rows[:rows]).text()
    return text if more <= 0 else f"{text}\n… and {more} more (--json holds them all)"
