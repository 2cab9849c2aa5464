"""A ranking of images and its truth → those of items: several query pictures are one query, and all
gallery images of one group are one result.

Knows no metric: what it returns is scored as any ranking is.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vizsla.data.label_sets import join_labels, labels_in
from vizsla.errors import DataError
from vizsla.score.calibration import Calibration
from vizsla.score.relevance import ignored_names, relevant_and_ignored
from vizsla.score.truth import Truth, knows_gallery
from vizsla.search.groups import first_of_groups
from vizsla.search.items import items_of, joined_rankings
from vizsla.search.ranking import Ranking

ITEM_SCORES = "scores_by_item.json"  # in a run's folder


def by_item(
    ranking: Ranking,
    truth: Truth,
    *,
    group_by: str | None = None,
    query_group: str | None = None,
    query_join: str = "mean",
    calibration: Calibration | None = None,
) -> tuple[Ranking, Truth]:
    """Items in place of queries, of gallery images, or of both: see the two functions below.

    calibration: decides what is accepted of items: a query by the mean of its pictures' scores, a
    group of gallery images by the score of its first.
    """
    if query_group is not None:
        ranking, truth = by_query_group(ranking, truth, query_group, query_join)
    listed = ranking.scores
    if group_by is not None:
        ranking, truth = by_group(ranking, truth, group_by)
    if calibration is not None:
        ranking = calibration.decide(ranking, listed=listed)
    return ranking, truth


def require_columns(truth: Truth, *, group_by: str | None, query_group: str | None) -> None:
    """DataError, before any ranking, for what `by_item` cannot do with this truth."""
    if query_group is not None:
        _query_column(truth, query_group)
    if group_by is not None:
        _column(truth.gallery_attributes, group_by, "gallery")


def by_query_group(
    ranking: Ranking, truth: Truth, column: str, join: str = "mean"
) -> tuple[Ranking, Truth]:
    """One query for each value of a column of the queries: see `items.joined_rankings`.

    An item has all labels of its pictures, and what is relevant to one is relevant to it.
    DataError: no such column; one set, in which a query's pictures are in the gallery.
    """
    values = _query_column(truth, column)
    items = items_of(ranking.queries, values, column)
    names = {item: [ranking.queries[i] for i in at] for item, at in items.items()}
    lost = [name for name in truth.query if name not in set(ranking.queries)]
    for name in lost if truth.query_complete else ():  # they count as wrong, unless others rank it
        value = values.get(name)
        names.setdefault(name if value is None else str(value), []).append(name)

    def joined(of: Mapping[str, Any]) -> dict[str, list[Any]]:
        return {
            item: [of[name] for name in pictures if name in of]
            for item, pictures in names.items()
            if any(name in of for name in pictures)
        }

    relevant = truth.relevant and {q: set().union(*s) for q, s in joined(truth.relevant).items()}
    grades = truth.grades and {
        item: {name: max(row.get(name, 0) for row in rows) for row in rows for name in row}
        for item, rows in joined(truth.grades).items()
    }
    of_items = replace(
        truth,
        query={
            item: join_labels(one for label in labels for one in labels_in(label))
            for item, labels in joined(truth.query).items()
        },
        attributes={
            name: {item: found[0] for item, found in joined(of).items()}
            for name, of in truth.attributes.items()
        },
        relevant=relevant,
        grades=grades,
        junk={  # what is junk for all pictures
            item: set.intersection(*(set(truth.junk.get(name, ())) for name in pictures))
            for item, pictures in names.items()
        } if truth.junk else {},
    )  # fmt: skip
    return joined_rankings(ranking, items, join), of_items


def by_group(ranking: Ranking, truth: Truth, column: str) -> tuple[Ranking, Truth]:
    """One result for each value of a column of the gallery: the first image of a group in a list.

    A group is relevant to a query if one of its images is; it is junk if all of them are junk or
    the query itself. An image without a value is a group of its own. A group is named as its first
    image in the gallery. DataError: no such column, or the gallery is not completely known.
    """
    values = _column(truth.gallery_attributes, column, "gallery")
    if not truth.gallery_complete and not knows_gallery(ranking) and truth.relevant is None:
        raise DataError(
            f"--group-by {column}: which images a group has is not known from a submission: give "
            "the whole gallery (--data DATA, or a table with roles)"
        )
    names = list(dict.fromkeys([*ranking.gallery, *truth.gallery]))
    codes, groups = _codes(names, values)
    queries = list(dict.fromkeys([*ranking.queries, *(truth.relevant or truth.query)]))
    judged = [q for q in queries if (truth.relevant or truth.query).get(q) is not None]
    relevant, ignored = relevant_and_ignored(truth, judged, names)
    sizes = np.bincount(codes, minlength=len(groups))
    junk = {}
    for query, gone in zip(judged, ignored, strict=True):
        touched, counts = np.unique(codes[gone], return_counts=True)
        if whole := [groups[c] for c in touched[counts == sizes[touched]]]:
            junk[query] = frozenset(whole)
    of_groups = replace(
        truth,
        gallery={groups[c]: truth.gallery.get(groups[c]) for c in range(len(groups))},
        relevant={
            query: frozenset(groups[c] for c in np.unique(codes[right]))
            for query, right in zip(judged, relevant, strict=True)
        },
        grades=None, gallery_grades=None, levels={}, label_level=None, one_set=False, junk=junk,
        junk_of_all=frozenset(),
    )  # fmt: skip
    return _grouped(ranking, truth, codes, groups), of_groups


def _codes(names: list[str], values: Mapping[str, Any]) -> tuple[np.ndarray, list[str]]:
    """The group of each name, (N,), and each group's first name."""
    first: dict[tuple[bool, Any], int] = {}
    groups: list[str] = []
    codes = np.empty(len(names), np.int64)
    for i, name in enumerate(names):
        value = values.get(name)
        key = (False, name) if value is None else (True, value)
        codes[i] = first.setdefault(key, len(groups))
        if codes[i] == len(groups):
            groups.append(name)
    return codes, groups


def _grouped(ranking: Ranking, truth: Truth, codes: np.ndarray, groups: list[str]) -> Ranking:
    """The first image of each group in each row, as the group. Ignored images are in no group."""
    at = {name: i for i, name in enumerate(ranking.gallery)}
    there = ranking.positions >= 0
    for i, query in enumerate(ranking.queries):
        gone = [at[name] for name in ignored_names(truth, query) if name in at]
        there[i] &= ~np.isin(ranking.positions[i], gone)
    found = codes[ranking.positions]
    first = first_of_groups(found, there)
    order = np.argsort(~first, axis=1, kind="stable")[:, : int(first.sum(axis=1).max(initial=0))]
    kept = np.take_along_axis(first, order, 1)
    positions = np.where(kept, np.take_along_axis(found, order, 1), -1)
    scores = None
    if ranking.scores is not None:
        scores = np.where(kept, np.take_along_axis(ranking.scores, order, 1), np.nan)
    size = None if ranking.gallery_size is None else len(groups)
    return Ranking(
        ranking.queries, groups, positions, scores, size, ranking.origin,
        query_root=ranking.query_root, gallery_root=ranking.gallery_root,
    )  # fmt: skip


def _query_column(truth: Truth, name: str) -> Mapping[str, Any]:
    if truth.one_set:
        raise DataError("--query-group: queries and gallery are one set, so their pictures would "
                        "find each other: use two sets")  # fmt: skip
    return _column(truth.attributes, name, "query")


def _column(columns: Mapping[str, Mapping[str, Any]], name: str, role: str) -> Mapping[str, Any]:
    if name not in columns:
        raise DataError(
            f"the truth has no column {name!r} of the {role} images: it has "
            f"{', '.join(columns) or 'none'} (beside the label)"
        )
    return columns[name]
