"""Scores and judged rankings → what `vizsla evaluate` prints, writes and draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.errors import DataError
from vizsla.output import charts
from vizsla.score.calibration import Calibration
from vizsla.score.metrics import formulas
from vizsla.score.relevance import Relevance, match_pairs
from vizsla.score.score_tables import confusion_table, slice_table
from vizsla.score.scores import Scores
from vizsla.score.text_table import Table

SHOWN = 30  # rows of a long table on a terminal
CONFUSED = 10
DEEPEST = 1000  # cut-off of a curve
POINTS = 40  # of a curve


@dataclass(frozen=True)
class Evaluation:
    """slices: column → its table, worst first. confused: pairs of classes, if requested."""

    scores: Scores
    slices: dict[str, Table]
    confused: Table | None = None
    calibration: Calibration | None = None

    def text(self, rows: int = SHOWN) -> str:
        """For a terminal, with at most this many rows per table."""
        parts = [self.scores.text()]
        for column, table in self.slices.items():
            parts.append(f"by {column}, the worst first:\n{_shortened(table, rows)}")
        if self.confused is not None:
            title = "most confused at rank 1:"
            body = _shortened(self.confused, rows) if self.confused.rows else "no class is confused"
            parts.append(f"{title}\n{body}")
        if self.calibration is not None:
            parts.append("\n".join(self.calibration.lines()))
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The scores' own dict, with the slices, the confused classes and the calibration."""
        more: dict[str, Any] = {}
        if self.slices:
            more["slices"] = {column: table.records() for column, table in self.slices.items()}
        if self.confused is not None:
            more["most_confused"] = self.confused.records()
        if self.calibration is not None:
            more["calibration"] = self.calibration.to_dict()
        return {**self.scores.to_dict(), **more}


def detailed(
    scores: Scores,
    *,
    by: Sequence[str] = (),
    worst: int | None = None,
    calibration: Calibration | None = None,
) -> Evaluation:
    """The scores with slices by these columns.

    worst: only so many of each column; without `by`, of the classes. Also adds as many confused
    pairs of classes.
    """
    columns = dict.fromkeys(by or (["label"] if worst else []))
    slices = {column: slice_table(scores, column, worst) for column in columns}
    labelled = any(label is not None for label in scores.columns["label"])
    wanted = labelled and (worst is not None or "label" in columns)
    confused = confusion_table(scores, worst or CONFUSED) if wanted else None
    return Evaluation(scores, slices, confused, calibration)


def curves_by_cutoff(judged: Relevance) -> tuple[list[int], dict[str, list[float]]]:
    """(cut-offs k that every list reaches, metric → its mean at each k).

    top-k accuracy is over all queries; precision and recall are over those with something relevant,
    and absent if that is not known. No cut-offs if the lists are empty.
    """
    reach = judged.lengths[~judged.lacking]
    deepest = min(int(reach.min(initial=DEEPEST)), DEEPEST)
    if deepest < 1:
        return [], {}
    usual = [k for k in (1, 5, 10) if k <= deepest]
    ks = np.unique([*np.geomspace(1, deepest, POINTS).round().astype(int), *usual]).tolist()
    ranks, n_relevant = formulas.hit_ranks(judged.hits), judged.n_relevant
    answerable = ~judged.nothing_relevant
    curves = {"top-k accuracy": [float(formulas.hit_rate_at_k(ranks, k).mean()) for k in ks]}
    if answerable.any():
        curves["precision@k"] = [
            float(formulas.precision_at_k(ranks, k)[answerable].mean()) for k in ks
        ]
        if (n_relevant >= 0).all():
            curves["recall@k"] = [
                float(formulas.recall_at_k(ranks, n_relevant, k)[answerable].mean()) for k in ks
            ]
    return ks, curves


def draw_curve(path: str | Path, judged: Relevance) -> None:
    """Writes a PNG of top-k accuracy, and of recall if it is known, by cut-off."""
    ks, curves = curves_by_cutoff(judged)
    if not ks:
        raise DataError("nothing to draw: the ranking's lists are empty")
    curves.pop("precision@k", None)
    charts.cutoff_curve(path, ks, curves, name=" and ".join(curves))


def draw_bars(path: str | Path, scores: Scores) -> None:
    """Writes a PNG of the metric that classes are ordered by, for each class."""
    key = scores.headline
    parts = scores.by("label")
    figure = scores.metrics[key]
    means = [part.mean(key) for part in parts.values()]
    values = [None if mean is None else mean / figure.highest for mean in means]
    name = figure.title if figure.highest == 1 else f"{figure.title} / {figure.highest:g}"
    counts = [len(part) for part in parts.values()]
    charts.class_bars(path, list(parts), values, counts, name=name)


def draw_histogram(path: str | Path, judged: Relevance) -> None:
    """Writes a PNG of the scores of right and wrong first matches."""
    scores, matches = match_pairs(judged)
    charts.score_histogram(path, scores[matches], scores[~matches])


def _shortened(table: Table, rows: int) -> str:
    more = len(table.rows) - rows
    text = Table(table.columns, table.rows[:rows]).text()
    return text if more <= 0 else f"{text}\n… and {more} more (--json holds them all)"
