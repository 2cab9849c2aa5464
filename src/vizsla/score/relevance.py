"""Ranking + Truth → Relevance: which retrieved image counts. Knows no metric.

An image is relevant to a query when both carry the same label, or when a list of judgements says
so. Junk (neither right nor wrong) and the query itself, where query and gallery are one set, are
taken out first and the ranks close up.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vizsla.errors import DataError
from vizsla.search.ranking import Ranking

if TYPE_CHECKING:
    import pyarrow as pa

    from vizsla.data.imageset import ImageSet
    from vizsla.model.embeddings import Embeddings

_ROWS = 256  # queries judged at once: bounds the memory
_CHECKED_DEPTH = 1000
_NAMED = 3  # how many names an error shows


@dataclass(frozen=True, eq=False)
class Truth:
    """What is right: the labels of the queries and of the gallery, by id. None: no label.

    query_complete: these are all the queries that were asked, so those that a ranking lacks count
      as wrong. False where roles are unknown: then the ranking's own queries are judged.
    gallery_complete: these are all the gallery images, so what a ranking misses is known. False
      where labels were read off a submission's names: recall and AP cannot be known then.
    one_set: query and gallery are one set; an id in both is one image, and never its own match.
    junk: query id → gallery ids that are neither right nor wrong for it.
    attributes: column → query id → value, to slice scores by.
    relevant: query id → the gallery ids that are right for it, in place of equal labels. Labels
      then only slice; what is in no set is wrong, and a query without a set is left out.
    """

    query: Mapping[str, str | None]
    gallery: Mapping[str, str | None]
    query_complete: bool = True
    gallery_complete: bool = True
    one_set: bool = False
    junk: Mapping[str, Collection[str]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    relevant: Mapping[str, Collection[str]] | None = None

    def __post_init__(self) -> None:
        if self.relevant is not None:
            if not self.relevant:
                raise DataError("the truth judges no query at all, so nothing can be scored")
            return
        for role, labels in (("query", self.query), ("gallery", self.gallery)):
            if not any(label is not None for label in labels.values()):
                raise DataError(
                    f"the truth labels none of its {len(labels)} {role} images, so nothing can be "
                    "scored: give a labels file or a file-name pattern that does"
                )

    @staticmethod
    def from_lists(
        query: Sequence[str],
        query_labels: Sequence[str | None],
        gallery: Sequence[str],
        gallery_labels: Sequence[str | None],
        *,
        gallery_complete: bool = True,
        one_set: bool = False,
    ) -> "Truth":
        """From ids and, in the same order, their labels."""
        return Truth(
            _paired(query, query_labels, "query"),
            _paired(gallery, gallery_labels, "gallery"),
            gallery_complete=gallery_complete,
            one_set=one_set,
        )

    @staticmethod
    def from_sets(
        query: "ImageSet | Embeddings", gallery: "ImageSet | Embeddings", *, one_set: bool = False
    ) -> "Truth":
        """From images or embeddings with labels; all the query's attributes can be sliced by."""
        table = query.attributes
        columns = [name for name in table.column_names if name != "label"]
        return Truth(
            _paired(query.ids, query.labels or [None] * len(query.ids), "query"),
            _paired(gallery.ids, gallery.labels or [None] * len(gallery.ids), "gallery"),
            one_set=one_set,
            attributes={
                name: dict(zip(query.ids, _texts(table[name].to_pylist()), strict=True))
                for name in columns
            },
        )

    @staticmethod
    def from_labels(table: "pa.Table", *, one_set: bool = False) -> "Truth":
        """From a table with file, label and, at best, role ("query", "gallery"), as `read_labels`.

        A row without a role may be either: then the ranking says which are queries, and the
        gallery is known only where the ranking knows it. Other columns become attributes.
        """
        names = table.column_names
        if "file" not in names or "label" not in names:
            raise DataError(
                f"the truth has the columns {', '.join(names)}: it needs file and label"
            )
        files, labels = table["file"].to_pylist(), _texts(table["label"].to_pylist())
        roles = table["role"].to_pylist() if "role" in names else None
        told = roles is not None and all(roles)
        asked = _labels_of("query", files, labels, roles)
        others = [name for name in names if name not in ("file", "label", "role")]
        return Truth(
            asked,
            _labels_of("gallery", files, labels, roles),
            query_complete=told,
            gallery_complete=told,
            one_set=one_set,
            attributes={
                name: _labels_of("query", files, _texts(table[name].to_pylist()), roles, name)
                for name in others
            },
        )

    @staticmethod
    def from_grades(
        grades: Mapping[str, Mapping[str, int]],
        *,
        labels: "Truth | None" = None,
        one_set: bool = False,
    ) -> "Truth":
        """From judgements, as `read_qrels` gives them: query id → gallery id → grade.

        A grade above 0 is right (however high), 0 is wrong, one below 0 is junk. Images that are
        not judged are wrong. labels: what the queries and the gallery are called, for slices.
        """
        return Truth(
            {query: labels.query.get(query) if labels else None for query in grades},
            labels.gallery if labels else {},
            gallery_complete=False,
            one_set=one_set,
            junk=_graded(grades, lambda grade: grade < 0),
            attributes=labels.attributes if labels else {},
            relevant={
                **dict.fromkeys(grades, frozenset[str]()),
                **_graded(grades, lambda g: g > 0),
            },
        )

    @staticmethod
    def from_file(path: str | Path, *, one_set: bool = False) -> "Truth":
        """From a labels file; see from_labels."""
        from vizsla.data.tables import read_labels

        return Truth.from_labels(read_labels(path), one_set=one_set)

    @staticmethod
    def from_pattern(
        ranking: Ranking,
        pattern: str = "{label}_{n}",
        *,
        queries: Sequence[str] | None = None,
        gallery: Sequence[str] | None = None,
        one_set: bool = False,
    ) -> "Truth":
        """From the names in a ranking. queries, gallery: all their ids, where they are known.

        Otherwise the gallery is complete only if the ranking knows all of it; the names in a
        submission are those it happened to retrieve.
        """
        from vizsla.data.tables import labels_from_pattern

        listed = ranking.gallery if gallery is None else gallery
        asked = ranking.queries if queries is None else queries
        return Truth.from_lists(
            asked,
            labels_from_pattern(asked, pattern),
            listed,
            labels_from_pattern(listed, pattern),
            gallery_complete=gallery is not None or _knows_gallery(ranking),
            one_set=one_set,
        )


@dataclass(frozen=True, eq=False)
class Relevance:
    """What a Ranking is worth, rank by rank, for the Q queries of the truth that have a label.

    queries, labels: Q, in the truth's order. rows: (Q,) where each stands in the ranking, -1 where
      the ranking lacks it (or holds an empty list for it): such a query is all wrong. A label is
      None where the truth is a list of judgements and has none.
    hits: (Q, K) bool, junk and self removed. lengths: (Q,) ranks that are left in each list.
    scores: (Q, K) as in the ranking, nan behind a row's end; None where it has none.
    whole: (Q,) bool: the list holds the whole gallery, so what it lacks does not exist.
    n_relevant: (Q,) relevant images in the gallery, -1 where unknown.
    first_labels: the label of each query's first image, None where there is none.
    unlabelled: queries that the truth names without a label, or that it does not judge; they are
      left out. unlabelled_gallery: gallery images without a label; they count as wrong.
    """

    queries: list[str]
    labels: list[str | None]
    rows: np.ndarray
    hits: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray | None
    whole: np.ndarray
    n_relevant: np.ndarray
    first_labels: list[str | None]
    unlabelled: list[str]
    unlabelled_gallery: int
    gallery_size: int | None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def lacking(self) -> np.ndarray:
        """(Q,) bool: queries that the ranking lacks."""
        return self.rows < 0

    @property
    def nothing_relevant(self) -> np.ndarray:
        """(Q,) bool: queries with nothing to find in the gallery."""
        return self.n_relevant == 0


def relevance(ranking: Ranking, truth: Truth) -> Relevance:
    """Judges every rank of every query.

    DataError for names that the truth does not hold, and for a list that names an image twice.
    """
    _check_names(ranking, truth)
    _refuse_repeats(ranking)
    in_ranking = {query: i for i, query in enumerate(ranking.queries)}
    queries, unlabelled = _asked(ranking, truth)
    rows = np.array([in_ranking.get(query, -1) for query in queries])
    rows[np.append(ranking.lengths, 0)[rows] == 0] = -1

    gallery_labels = [truth.gallery.get(name) for name in ranking.gallery]
    positions, scores = _rows_of(ranking.positions, rows, -1), ranking.scores
    scores = None if scores is None else _rows_of(scores, rows, np.nan)
    size = ranking.gallery_size or (len(truth.gallery) if truth.gallery_complete else None)
    positions, scores, missable = _without_ignored(positions, scores, truth, queries, ranking)
    lengths = (positions >= 0).sum(axis=1)
    full = lengths + missable >= (np.inf if size is None else size)
    first = positions[:, 0] if positions.shape[1] else np.full(len(queries), -1)
    n_relevant, unlabelled_gallery = _count_relevant(ranking, truth, queries)
    return Relevance(
        queries, [truth.query.get(query) for query in queries], rows,
        _hits(positions, queries, ranking, truth), lengths, scores,
        full | (rows < 0), n_relevant, [gallery_labels[p] if p >= 0 else None for p in first],
        unlabelled, unlabelled_gallery, size,
    )  # fmt: skip


def relevant_and_ignored(
    truth: Truth, queries: Sequence[str], gallery: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each query the positions in `gallery` that are relevant, and those that take no rank.

    What a search over the whole gallery needs to give `evaluate` its `full_ranks`. A query without
    a label has no relevant images.
    """
    at = {name: i for i, name in enumerate(gallery)}
    ignored = [_positions(ignored_names(truth, query), at) for query in queries]
    if truth.relevant is not None:
        right = [_positions(truth.relevant.get(query, ()), at) for query in queries]
    else:
        right = _of_same_label(truth, queries, gallery)
    relevant = [
        found[~np.isin(found, gone)] if len(gone) else found
        for found, gone in zip(right, ignored, strict=True)
    ]
    return relevant, ignored


def ignored_names(truth: Truth, query: str) -> list[str]:
    """The images that take no rank for this query: itself, in one set, and junk."""
    own = [query] if truth.one_set else []
    return [*own, *truth.junk.get(query, ())]


def match_pairs(relevance: Relevance, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Scores and matches, (pairs,), of the first k ranks of each query: for match or no match."""
    if relevance.scores is None:
        raise DataError("the ranking holds no scores: a cut-off on scores needs them")
    there = np.arange(relevance.hits.shape[1])[None, :k] < relevance.lengths[:, None]
    return relevance.scores[:, :k][there], relevance.hits[:, :k][there]


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _paired(ids: Sequence[str], labels: Sequence[str | None], role: str) -> dict[str, str | None]:
    if len(ids) != len(labels):
        raise DataError(f"{len(labels)} labels for {len(ids)} {role} ids: expected one each")
    paired = dict(zip(ids, _texts(labels), strict=True))
    if len(paired) != len(ids):
        raise DataError(f"some {role} ids occur twice among the {len(ids)}: they must be unique")
    return paired


def _texts(values: Sequence[Any]) -> list[str | None]:
    """Values as text; None for null and for an empty cell."""
    return [None if value is None or value == "" else str(value) for value in values]


def _labels_of(
    role: str,
    files: Sequence[str],
    labels: Sequence[str | None],
    roles: Sequence[str | None] | None,
    what: str = "label",
) -> dict[str, str | None]:
    """File → label over the rows of one role; DataError where two rows disagree."""
    found: dict[str, str | None] = {}
    for i, (file, label) in enumerate(zip(files, labels, strict=True)):
        if roles is not None and roles[i] not in (role, None):
            continue
        if found.setdefault(file, label) != label:
            raise DataError(
                f"the truth gives {role} {file} two values of {what}, {found[file]} and {label}: "
                "keep one"
            )
    if not found:
        raise DataError(f"the truth has no rows with role {role}")
    return found


def _graded(
    grades: Mapping[str, Mapping[str, int]], wanted: Callable[[int], bool]
) -> dict[str, frozenset[str]]:
    """Query → the images whose grade is wanted; queries without any are left out."""
    found = {
        query: frozenset(name for name, grade in row.items() if wanted(grade))
        for query, row in grades.items()
    }
    return {query: names for query, names in found.items() if names}


def _asked(ranking: Ranking, truth: Truth) -> tuple[list[str], list[str]]:
    """The queries that are judged, and those that are left out for want of a label or judgement."""
    if truth.relevant is not None:
        return list(truth.relevant), [q for q in ranking.queries if q not in truth.relevant]
    asked = truth.query if truth.query_complete else ranking.queries
    queries = [query for query in asked if truth.query[query] is not None]
    unlabelled = [query for query in asked if truth.query[query] is None]
    if not queries:
        raise DataError(f"the truth has a label for none of the {len(unlabelled)} queries")
    return queries, unlabelled


def _knows_gallery(ranking: Ranking) -> bool:
    return ranking.gallery_size is not None and ranking.gallery_size == len(ranking.gallery)


def _check_names(ranking: Ranking, truth: Truth) -> None:
    if truth.relevant is not None:
        _refuse_strangers(ranking, truth.relevant)
        return
    _refuse_unknown([q for q in ranking.queries if q not in truth.query], "queries")
    used = np.zeros(len(ranking.gallery) + 1, dtype=bool)  # the last for -1: behind a row's end
    used[ranking.positions.ravel()] = True
    names = [ranking.gallery[p] for p in np.flatnonzero(used[:-1])]
    _refuse_unknown([name for name in names if name not in truth.gallery], "gallery images")


def _refuse_strangers(ranking: Ranking, relevant: Mapping[str, Collection[str]]) -> None:
    """Judgements need not name all; where they name nothing of a ranking they are another's."""
    judged = [query for query in ranking.queries if query in relevant]
    if not judged:
        raise DataError(
            f"the judgements name none of the ranking's {len(ranking)} queries ("
            f"{', '.join(ranking.queries[:_NAMED])}, …), but {', '.join([*relevant][:_NAMED])}, …: "
            "give the judgements of this data set"
        )
    known, wanted = set(ranking.gallery), [name for query in judged for name in relevant[query]]
    if wanted and _knows_gallery(ranking) and known.isdisjoint(wanted):
        raise DataError(
            f"the judgements name none of the gallery's {len(known)} images ("
            f"{', '.join(ranking.gallery[:_NAMED])}, …), but {wanted[0]}, …: "
            "give the judgements of this data set"
        )


def _refuse_unknown(names: list[str], what: str) -> None:
    if names:
        shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        raise DataError(
            f"the truth does not know {len(names)} of the ranking's {what} ({shown}): "
            "give the truth of this data set, with names relative to its query and gallery folders"
        )


def _refuse_repeats(ranking: Ranking) -> None:
    """One right image listed ten times would look like ten. Deep rankings come from a search."""
    if ranking.depth > _CHECKED_DEPTH:
        return
    ordered = np.sort(ranking.positions, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        i, j = np.argwhere(twice)[0]
        raise DataError(
            f"the list of query {ranking.queries[i]} names {ranking.gallery[ordered[i, j]]} twice: "
            "every gallery image may stand in a list once"
        )


def _rows_of(array: np.ndarray, rows: np.ndarray, missing: float) -> np.ndarray:
    """array[rows], with `missing` in the rows that are -1. Not copied when nothing changes."""
    if len(rows) == len(array) and (rows == np.arange(len(rows))).all():
        return array
    taken = np.full((len(rows), array.shape[1]), missing, dtype=array.dtype)
    taken[rows >= 0] = array[rows[rows >= 0]]
    return taken


def _positions(names: Collection[str], position: Mapping[str, int]) -> np.ndarray:
    return np.array(sorted({position[n] for n in names if n in position}), dtype=np.int64)


def _without_ignored(
    positions: np.ndarray,
    scores: np.ndarray | None,
    truth: Truth,
    queries: list[str],
    ranking: Ranking,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Both (Q, K) without junk and self, ranks closed up; and how many of those the gallery has."""
    missable = np.zeros(len(queries), dtype=np.int64)
    if not truth.one_set and not truth.junk:
        return positions, scores, missable
    positions = positions.copy()
    scores = None if scores is None else scores.copy()
    position = {name: i for i, name in enumerate(ranking.gallery)}
    known: Collection[str] = truth.gallery if truth.relevant is None else position
    for i, query in enumerate(queries):
        names = ignored_names(truth, query)
        missable[i] = len({name for name in names if name in known})
        kept = ~np.isin(positions[i], _positions(names, position))
        n = int(kept.sum())
        positions[i, :n], positions[i, n:] = positions[i, kept], -1
        if scores is not None:
            scores[i, :n], scores[i, n:] = scores[i, kept], np.nan
    return positions, scores, missable


def _hits(positions: np.ndarray, queries: list[str], ranking: Ranking, truth: Truth) -> np.ndarray:
    if truth.relevant is not None:
        at = {name: i for i, name in enumerate(ranking.gallery)}
        rows = [_positions(truth.relevant[query], at) for query in queries]
        found = [np.isin(row, right) for row, right in zip(positions, rows, strict=True)]
        return np.stack(found) if found else np.zeros(positions.shape, dtype=bool)
    labels = [str(truth.query[query]) for query in queries]
    code = {label: i for i, label in enumerate(sorted(set(labels)))}
    wanted = np.array([code[label] for label in labels])[:, None]
    found_labels = [truth.gallery.get(name) for name in ranking.gallery]
    codes = np.array([code.get(label or "", -1) for label in found_labels] + [-1])
    hits = np.empty(positions.shape, dtype=bool)
    for start in range(0, len(positions), _ROWS):
        part = slice(start, start + _ROWS)
        hits[part] = codes[positions[part]] == wanted[part]  # position -1 reads the last code, -1
    return hits


def _of_same_label(
    truth: Truth, queries: Sequence[str], gallery: Sequence[str]
) -> list[np.ndarray]:
    """For each query the positions of the gallery images with its label."""
    places: dict[str, list[int]] = {}
    for position, name in enumerate(gallery):
        label = truth.gallery.get(name)
        if label is not None:
            places.setdefault(label, []).append(position)
    of_label = {label: np.array(found) for label, found in places.items()}
    nothing = np.array([], dtype=np.int64)
    return [of_label.get(truth.query.get(query) or "", nothing) for query in queries]


def _count_relevant(ranking: Ranking, truth: Truth, queries: list[str]) -> tuple[np.ndarray, int]:
    """n_relevant (Q,), and how many of the gallery images that are known carry no label."""
    if truth.relevant is not None:  # also those that the gallery lacks: TREC's R
        counts = [len({*truth.relevant[q]} - {*ignored_names(truth, q)}) for q in queries]
        return np.array(counts, dtype=np.int64), 0
    whole = list(truth.gallery) if truth.gallery_complete else ranking.gallery
    unlabelled = sum(truth.gallery.get(name) is None for name in whole)
    if not truth.gallery_complete and not _knows_gallery(ranking):
        return np.full(len(queries), -1), unlabelled
    relevant, _ = relevant_and_ignored(truth, queries, whole)
    return np.array([len(found) for found in relevant]), unlabelled
