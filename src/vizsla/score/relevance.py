"""Ranking + Truth → Relevance: which retrieved image counts. Knows no metric.

An image is relevant to a query when both carry the same label, share one of several, or have the
first levels of a label in common; or when a list of judgements says so. Junk (neither right nor
wrong) and, if query and gallery are one set, the query itself are taken out first and the ranks
close up.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vizsla.data.label_sets import SharedLabels, are_sets
from vizsla.errors import DataError
from vizsla.score.truth import Truth, knows_gallery, named_as
from vizsla.search.ranking import Ranking

_ROWS = 256  # queries judged at once: bounds the memory
_CHECKED_DEPTH = 1000
DEEPEST = 1000  # of the grades of the best ranking, unless lists are deeper
RIGHT, WRONG, UNKNOWN, JUNK = 1, 0, -1, -2  # verdicts on an image
_NAMED = 3  # how many names an error shows


@dataclass(frozen=True, eq=False)
class Relevance:
    """Which ranks of a Ranking are right, for the Q queries of the truth that have a label.

    queries, labels: Q, in the truth's order; a label is None if the truth is a list of
      judgements without labels. rows: (Q,) the row of each query in the ranking, -1 where the
      ranking lacks it or has an empty list for it: such a query is all wrong.
    hits: (Q, K) bool, junk and self removed. lengths: (Q,) ranks that are left in each list.
    scores: (Q, K) as in the ranking, nan after a row's end; None if it has none.
    whole: (Q,) bool: the list holds the whole gallery, so what it lacks does not exist.
    n_relevant: (Q,) relevant images in the gallery, -1 where unknown.
    grades: (Q, K) int64, how relevant the image at each rank is, 0 where it is not; None if all
      relevant images count the same. best_grades: (Q, M) the grades of all relevant images,
      falling, 0 after a row's end; None with `grades`.
    first_labels: the label of each query's first image, None if there is none.
    accepted: (Q, K) bool, what was decided; probability: (Q, K) that it is right, nan after a row's
      end. None if nothing was decided. evidence: (Q, K) as in the ranking; None if it has none.
    unlabelled: queries that the truth has no label for, or does not judge; they are left out.
    unlabelled_gallery: gallery images without a label; they count as wrong.
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
    grades: np.ndarray | None = None
    best_grades: np.ndarray | None = None
    accepted: np.ndarray | None = None
    probability: np.ndarray | None = None
    evidence: np.ndarray | None = None

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
    """Judges every rank of every query. Names may be spelled differently, see `truth.named_as`.

    DataError for names that the truth lacks, and for a list that names an image twice.
    """
    truth = named_as(truth, ranking)
    _check_names(ranking, truth)
    _refuse_repeats(ranking)
    in_ranking = {query: i for i, query in enumerate(ranking.queries)}
    queries, unlabelled = _judged_queries(ranking, truth)
    rows = np.array([in_ranking.get(query, -1) for query in queries])
    rows[np.append(ranking.lengths, 0)[rows] == 0] = -1

    gallery_labels = [truth.gallery.get(name) for name in ranking.gallery]
    positions = _rows_of(ranking.positions, rows, -1)
    decided = ranking.is_accepted if ranking.accepted is not None else None
    of_ranks = [
        None if values is None else _rows_of(values, rows, missing)
        for values, missing in (
            (ranking.scores, np.nan), (ranking.probability, np.nan), (decided, False),
            (ranking.evidence, np.nan),
        )
    ]  # fmt: skip
    size = ranking.gallery_size or (len(truth.gallery) if truth.gallery_complete else None)
    positions, of_ranks, missable = _without_ignored(positions, of_ranks, truth, queries, ranking)
    scores, probability, accepted, evidence = of_ranks
    lengths = (positions >= 0).sum(axis=1)
    full = lengths + missable >= (np.inf if size is None else size)
    first = positions[:, 0] if positions.shape[1] else np.full(len(queries), -1)
    n_relevant, unlabelled_gallery = _count_relevant(ranking, truth, queries)
    grades, best_grades = _grades(positions, queries, ranking, truth)
    return Relevance(
        queries, [truth.query.get(query) for query in queries], rows,
        _hits(positions, queries, ranking, truth), lengths, scores,
        full | (rows < 0), n_relevant, [gallery_labels[p] if p >= 0 else None for p in first],
        unlabelled, unlabelled_gallery, size, grades, best_grades, accepted, probability, evidence,
    )  # fmt: skip


def relevant_and_ignored(
    truth: Truth, queries: Sequence[str], gallery: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each query the positions in `gallery` that are relevant, and those that take no rank.

    A search over the whole gallery needs them to compute the `full_ranks` of `evaluate`. A query
    without a label has no relevant images.
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
    return [*own, *truth.junk.get(query, ()), *truth.junk_of_all]


def match_pairs(relevance: Relevance, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Scores (pairs,) and whether they match (pairs,) bool, of the first k ranks of each query."""
    if relevance.scores is None:
        raise DataError("the ranking holds no scores: a cut-off on scores needs them")
    there = np.arange(relevance.hits.shape[1])[None, :k] < relevance.lengths[:, None]
    return relevance.scores[:, :k][there], relevance.hits[:, :k][there]


def verdicts(ranking: Ranking, truth: Truth, k: int) -> np.ndarray:
    """(Q, k) int8 for the first k ranks of each row of the ranking: RIGHT, WRONG, JUNK or UNKNOWN.

    Junk is neither right nor wrong and takes no rank; so is the query itself, in one set.
    """
    truth = named_as(truth, ranking)
    positions = ranking.positions[:, :k]
    found = np.full(positions.shape, UNKNOWN, dtype=np.int8)
    judged = truth.relevant if truth.relevant is not None else truth.query
    rows = [i for i, query in enumerate(ranking.queries) if judged.get(query) is not None]
    if not rows:
        return found
    hits = _hits(positions[rows], [ranking.queries[i] for i in rows], ranking, truth)
    labels = [truth.gallery.get(name) for name in ranking.gallery] + [None]
    known = np.array([truth.relevant is not None or label is not None for label in labels])
    known[-1] = False  # position -1: after a row's end
    found[rows] = np.where(known[positions[rows]], np.where(hits, RIGHT, WRONG), UNKNOWN)
    if truth.one_set or truth.junk or truth.junk_of_all:
        at = {name: i for i, name in enumerate(ranking.gallery)}
        for i, query in enumerate(ranking.queries):
            found[i, np.isin(positions[i], _positions(ignored_names(truth, query), at))] = JUNK
    return found


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _judged_queries(ranking: Ranking, truth: Truth) -> tuple[list[str], list[str]]:
    """The queries that are judged, and those without a label or judgement, which are left out."""
    if truth.relevant is not None:
        return list(truth.relevant), [q for q in ranking.queries if q not in truth.relevant]
    all_queries = truth.query if truth.query_complete else ranking.queries
    queries = [query for query in all_queries if truth.query[query] is not None]
    unlabelled = [query for query in all_queries if truth.query[query] is None]
    if not queries:
        raise DataError(f"the truth has a label for none of the {len(unlabelled)} queries")
    return queries, unlabelled


def _check_names(ranking: Ranking, truth: Truth) -> None:
    if truth.relevant is not None:
        _require_common_names(ranking, truth.relevant)
        return
    _require_known([q for q in ranking.queries if q not in truth.query], "queries")
    used = np.zeros(len(ranking.gallery) + 1, dtype=bool)  # the last for -1: after a row's end
    used[ranking.positions.ravel()] = True
    names = [ranking.gallery[p] for p in np.flatnonzero(used[:-1])]
    _require_known([name for name in names if name not in truth.gallery], "gallery images")


def _require_common_names(ranking: Ranking, relevant: Mapping[str, Collection[str]]) -> None:
    """DataError if judgements name no image of the ranking: they are of another data set."""
    judged = [query for query in ranking.queries if query in relevant]
    if not judged:
        raise DataError(
            f"the judgements name none of the ranking's {len(ranking)} queries ("
            f"{', '.join(ranking.queries[:_NAMED])}, …), but {', '.join([*relevant][:_NAMED])}, …: "
            "give the judgements of this data set"
        )
    known, wanted = set(ranking.gallery), [name for query in judged for name in relevant[query]]
    if wanted and knows_gallery(ranking) and known.isdisjoint(wanted):
        raise DataError(
            f"the judgements name none of the gallery's {len(known)} images ("
            f"{', '.join(ranking.gallery[:_NAMED])}, …), but {wanted[0]}, …: "
            "give the judgements of this data set"
        )


def _require_known(names: list[str], what: str) -> None:
    if names:
        shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        raise DataError(
            f"the truth does not know {len(names)} of the ranking's {what} ({shown}): "
            "give the truth of this data set, with names relative to its query and gallery folders"
        )


def _refuse_repeats(ranking: Ranking) -> None:
    """A right image listed ten times would count as ten. Deep rankings come from a search."""
    if ranking.depth > _CHECKED_DEPTH:
        return
    ordered = np.sort(ranking.positions, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        i, j = np.argwhere(twice)[0]
        raise DataError(
            f"the list of query {ranking.queries[i]} names {ranking.gallery[ordered[i, j]]} twice: "
            "every gallery image may be in a list once"
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
    of_ranks: list[np.ndarray | None],
    truth: Truth,
    queries: list[str],
    ranking: Ranking,
) -> tuple[np.ndarray, list[np.ndarray | None], np.ndarray]:
    """All (Q, K) without junk and self, ranks closed up; and how many of those the gallery has."""
    missable = np.zeros(len(queries), dtype=np.int64)
    if not truth.one_set and not truth.junk and not truth.junk_of_all:
        return positions, of_ranks, missable
    positions = positions.copy()
    of_ranks = [None if values is None else values.copy() for values in of_ranks]
    position = {name: i for i, name in enumerate(ranking.gallery)}
    known: Collection[str] = truth.gallery if truth.relevant is None else position
    for i, query in enumerate(queries):
        names = ignored_names(truth, query)
        missable[i] = len({name for name in names if name in known})
        kept = ~np.isin(positions[i], _positions(names, position))
        n = int(kept.sum())
        positions[i, :n], positions[i, n:] = positions[i, kept], -1
        for values in of_ranks:
            if values is not None:
                values[i, :n] = values[i, kept]
                values[i, n:] = False if values.dtype == np.bool_ else np.nan
    return positions, of_ranks, missable


def _hits(positions: np.ndarray, queries: list[str], ranking: Ranking, truth: Truth) -> np.ndarray:
    if truth.relevant is not None:
        at = {name: i for i, name in enumerate(ranking.gallery)}
        rows = [_positions(truth.relevant[query], at) for query in queries]
        found = [np.isin(row, right) for row, right in zip(positions, rows, strict=True)]
        return np.stack(found) if found else np.zeros(positions.shape, dtype=bool)
    shared = _shared_labels(truth, queries, ranking.gallery)
    if shared is not None:
        return _at_ranks(positions, shared.relevant)
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


def _grades(
    positions: np.ndarray, queries: list[str], ranking: Ranking, truth: Truth
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Relevance.grades and .best_grades."""
    if truth.grades is None and truth.gallery_grades is not None:
        return _grades_of_images(positions, queries, ranking, truth)
    if truth.grades is None:
        if truth.label_level is None or truth.relevant is not None:
            return None, None
        return _levels_in_common(positions, queries, ranking, truth)
    at = {name: i for i, name in enumerate(ranking.gallery)}
    found = np.zeros(positions.shape, dtype=np.int64)
    best = []
    for i, query in enumerate(queries):
        ignored = {*ignored_names(truth, query)}
        row = {n: g for n, g in truth.grades.get(query, {}).items() if n not in ignored}
        by_position = np.zeros(len(ranking.gallery) + 1, dtype=np.int64)  # the last for -1
        for name, grade in row.items():
            by_position[at.get(name, -1)] = grade if name in at else 0
        found[i] = by_position[positions[i]]
        best.append(sorted(row.values(), reverse=True))
    longest = max(map(len, best), default=0)
    return found, np.array([row + [0] * (longest - len(row)) for row in best], dtype=np.int64)


def _grades_of_images(
    positions: np.ndarray, queries: list[str], ranking: Ranking, truth: Truth
) -> tuple[np.ndarray, np.ndarray]:
    """Relevance.grades and .best_grades if each relevant image has a grade of its own."""
    known = truth.gallery_grades or {}
    whole = [*truth.gallery] if truth.gallery_complete else ranking.gallery
    own = np.array([known.get(name, 0) for name in ranking.gallery] + [0], dtype=np.int64)
    grades = np.where(_hits(positions, queries, ranking, truth), own[positions], 0)
    of_whole = np.array([known.get(name, 0) for name in whole], dtype=np.int64)
    rows = [-np.sort(-of_whole[at]) for at in relevant_and_ignored(truth, queries, whole)[0]]
    best = np.zeros((len(queries), max(map(len, rows), default=0)), dtype=np.int64)
    for i, row in enumerate(rows):
        best[i, : len(row)] = row
    return grades, best


def _levels_in_common(
    positions: np.ndarray, queries: list[str], ranking: Ranking, truth: Truth
) -> tuple[np.ndarray, np.ndarray]:
    """Relevance.grades and .best_grades (DEEPEST at most) of labels that are paths."""
    shared = _shared_labels(truth, queries, ranking.gallery)
    whole = [*truth.gallery] if truth.gallery_complete else ranking.gallery
    of_whole = _shared_labels(truth, queries, whole)
    assert shared is not None and of_whole is not None
    at = {name: i for i, name in enumerate(whole)}
    best = np.zeros((len(queries), min(len(whole), max(DEEPEST, positions.shape[1]))), np.int64)
    for i, query in enumerate(queries):
        row = of_whole.depths([i])[0]
        row[_positions(ignored_names(truth, query), at)] = 0
        best[i] = -np.sort(-row)[: best.shape[1]]
    return _at_ranks(positions, shared.depths), best


def _shared_labels(
    truth: Truth, queries: Sequence[str], gallery: Sequence[str]
) -> SharedLabels | None:
    """None if every image has one label, and that is no path."""
    labels = [*truth.query.values(), *truth.gallery.values()]
    if truth.label_level is None and not are_sets(labels):
        return None
    return SharedLabels(
        [truth.query.get(query) for query in queries],
        [truth.gallery.get(name) for name in gallery],
        truth.label_level,
    )


def _at_ranks(positions: np.ndarray, of_gallery: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(Q, K) the value of the image at each rank, 0 after a row's end.

    of_gallery: rows of queries (n,) → their values for the whole gallery (n, G).
    """
    parts = []
    for start in range(0, len(positions), _ROWS):
        part = positions[start : start + _ROWS]
        values = of_gallery(np.arange(start, start + len(part)))
        found = np.take_along_axis(values, np.maximum(part, 0), axis=1)
        parts.append(np.where(part >= 0, found, np.zeros((), values.dtype)))
    return np.concatenate(parts)


def _of_same_label(
    truth: Truth, queries: Sequence[str], gallery: Sequence[str]
) -> list[np.ndarray]:
    """For each query the positions of the gallery images with its label, or one of its labels."""
    shared = _shared_labels(truth, queries, gallery)
    if shared is not None:
        return [np.flatnonzero(shared.relevant([i])[0]) for i in range(len(queries))]
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
    if not truth.gallery_complete and not knows_gallery(ranking):
        return np.full(len(queries), -1), unlabelled
    relevant, _ = relevant_and_ignored(truth, queries, whole)
    return np.array([len(found) for found in relevant]), unlabelled
