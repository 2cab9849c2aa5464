"""Judged rankings of validation queries → their matches, the levels of classes, doubtful labels."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vizsla.score.match_model import LISTED
from vizsla.score.precision_levels import Level, Matches, precision_levels
from vizsla.score.relevance import Relevance

MUCH, MANY_QUERIES = 0.25, 5  # with a wrong first match between two classes: these are named
FEWEST_OF_CLASS = 30  # different queries whose first match is of a class, for levels of its own
LEVELS_OF_CLASS = 20

ClassLevels = tuple[tuple[str, tuple[Level, ...]], ...]


def levels_of_classes(judged: Sequence[Relevance]) -> ClassLevels:
    """The levels of each class that is the first match of enough queries, from these queries."""
    names = sorted({
        label for part in judged for label in part.first_labels if label is not None
    })  # fmt: skip
    found = []
    for name in names:
        rows = [np.flatnonzero([label == name for label in part.first_labels]) for part in judged]
        if sum(map(len, rows)) < FEWEST_OF_CLASS:
            continue
        matches = matches_of(judged, rows)
        if len(np.unique(matches.queries)) >= FEWEST_OF_CLASS:
            found.append((name, tuple(precision_levels(matches, levels=LEVELS_OF_CLASS))))
    return tuple(found)


def most_confused(judged: Sequence[Relevance]) -> tuple[str, str, float] | None:
    """Two classes, and their share of the wrong first matches with scores above the median."""
    first = [
        (part.scores[i, 0], part.queries[i], part.labels[i], part.first_labels[i], part.hits[i, 0])
        for part in judged if part.scores is not None
        for i in np.flatnonzero(answered(part) & ~part.nothing_relevant)
    ]  # fmt: skip
    if not first:
        return None
    median = np.median([score for score, *_ in first])
    confused = {  # each query once, whatever the number of its draws
        (query, min(label, other), max(label, other))
        for score, query, label, other, is_right in first
        if score >= median and not is_right and label and other
    }
    pairs = Counter((one, other) for _, one, other in confused)
    if not pairs:
        return None
    ((one, other), times), wrong = pairs.most_common(1)[0], sum(pairs.values())
    return (one, other, times / wrong) if times >= max(MANY_QUERIES, MUCH * wrong) else None


def matches_of(judged: Sequence[Relevance], only: Sequence[np.ndarray] | None = None) -> Matches:
    """The first LISTED ranks of all queries, which have scores. only: rows of each part."""
    name_of: dict[str, int] = {}
    class_of: dict[str, int] = {}
    parts: list[tuple[np.ndarray, ...]] = []
    asks = 0
    for i, part in enumerate(judged):
        assert part.scores is not None
        rows = np.flatnonzero(answered(part))
        rows = rows if only is None else np.intersect1d(rows, only[i])
        queries = [name_of.setdefault(part.queries[row], len(name_of)) for row in rows]
        labels = [part.labels[row] or part.queries[row] for row in rows]
        classes = [class_of.setdefault(label, len(class_of)) for label in labels]
        scores, hits = part.scores[rows, :LISTED], part.hits[rows, :LISTED]
        ask, column = np.nonzero(np.arange(scores.shape[1])[None] < part.lengths[rows, None])
        parts.append((
            scores[ask, column], hits[ask, column], ask + asks,
            scores[:, 0], np.array(queries, np.int64), np.array(classes, np.int64),
        ))  # fmt: skip
        asks += len(rows)
    return Matches(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def answered(part: Relevance) -> np.ndarray:
    """(Q,) bool: the queries that have a first image."""
    return part.lengths > 0
