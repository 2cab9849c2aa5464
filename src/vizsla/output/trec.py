"""Judgements ↔ TREC qrels files, and a judged ranking → a TREC run. Knows no metric.

Other evaluators compute the same numbers from these files: the run leaves out junk and the query
itself, and its scores fall strictly, since each evaluator breaks ties in its own way.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from vizsla import storage
from vizsla.data.names import with_spaces, without_spaces
from vizsla.errors import DataError
from vizsla.output.submission_formats import (
    FORMATS,
    quoted,
    text_of,
)
from vizsla.score.relevance import ignored_names, relevance, relevant_and_ignored
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

Grades = dict[str, dict[str, int]]  # query id → gallery id → grade
RELEVANT, WRONG, JUNK = 1, 0, -1


def read_qrels(path: str | Path, *, known: Collection[str] = ()) -> Grades:
    """The grades in a file of `query iteration image grade` lines.

    known: names of images; codes such as %20 in them are no codes. The iteration is ignored. A
    pair may occur twice with the same grade. DataError names the line that has another form.
    """
    try:
        return _parsed(text_of(storage.read_bytes(path)), known)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _parsed(text: str, known: Collection[str]) -> Grades:
    grades: Grades = {}
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 4:
            raise DataError(
                f"line {number}: expected four fields (query 0 image grade), got {len(fields)}"
            )
        query, name = (
            written if written in known else with_spaces(written)
            for written in (fields[0], fields[2])
        )
        try:
            grade = int(fields[3])
        except ValueError:
            raise DataError(
                f"line {number}: expected a whole number as grade, got {quoted(fields[3])}"
            ) from None
        row = grades.setdefault(query, {})
        if row.setdefault(name, grade) != grade:
            raise DataError(
                f"line {number}: {quoted(query)} and {quoted(name)} have the grades {row[name]} "
                f"and {grade}: keep one"
            )
    if not grades:
        raise DataError("it holds no judgements: expected lines such as `q1 0 image7 1`")
    return grades


def write_qrels(grades: Mapping[str, Mapping[str, int]], path: str | Path) -> None:
    """Writes a line for each judged pair; spaces in names become %20, as in a run."""
    lines = [
        f"{without_spaces(query)} 0 {without_spaces(name)} {grade}\n"
        for query, row in grades.items()
        for name, grade in row.items()
    ]
    storage.write_text(path, "".join(lines))


def grades_of(ranking: Ranking, truth: Truth) -> Grades:
    """The truth as judgements: grades of relevant images (1 without), -1 for junk and self.

    A query with nothing relevant gets one image with grade 0: without a line it would be unknown.
    DataError if the truth of the gallery is incomplete.
    """
    judged = relevance(ranking, truth)
    if (judged.n_relevant < 0).any():
        raise DataError(
            "the truth of some gallery images is unknown, so the judgements would be incomplete: "
            "give --data DATA, or a labels file with roles"
        )
    explicit = truth.relevant or {}
    names = [*truth.gallery] if truth.gallery_complete else list(ranking.gallery)
    names += sorted({n for row in explicit.values() for n in row} - set(names))
    relevant, ignored = relevant_and_ignored(truth, judged.queries, names)
    grades: Grades = {}
    for query, right, junk in zip(judged.queries, relevant, ignored, strict=True):
        kept = (truth.grades or {}).get(query, {})
        row = {names[i]: kept.get(names[i], RELEVANT) for i in right}
        row |= dict.fromkeys((names[i] for i in junk), JUNK)
        if not len(right):
            taken = np.isin(np.arange(len(names)), junk)
            row |= {names[int(np.argmin(taken))]: WRONG} if not taken.all() else {}
        grades[query] = row
    return grades


def write_run(ranking: Ranking, truth: Truth, path: str | Path) -> None:
    """Writes the ranking as a TREC run, without junk and the query itself."""
    lists: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    for i, query in enumerate(ranking.queries):
        ignored = set(ignored_names(truth, query))
        row = ranking.row(i)
        kept = [j for j, name in enumerate(row) if name not in ignored]
        lists[query] = [row[j] for j in kept]
        if ranking.scores is not None:
            scores[query] = ranking.scores[i, kept].tolist()
    text = FORMATS["trec"].write(lists, None if ranking.scores is None else scores)
    storage.write_text(path, text)
