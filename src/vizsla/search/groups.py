"""Nearest images → nearest groups: one result for each product, place or individual.

Images with one value of an attribute are a group; an image without a value is a group of one.
Groups are ordered by their best image, or by the mean of their best two. Knows no kind of index: an
`ImageSource` searches for images, and for more of them until there are enough groups.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vizsla.errors import UsageError
from vizsla.search.filters import no_attribute

GROUP_SCORES = ("best", "best-two")
FIRST = 54  # images of the first search: for an approximate index these cost no more than ten
MORE = 4  # times as many images are searched for while there are too few groups


@dataclass(frozen=True, eq=False)
class Grouping:
    """The group of each of G images by the values of one column. codes: (G,) int64, from 0 on."""

    column: str
    codes: np.ndarray

    @staticmethod
    def of(column: str, attributes: pa.Table) -> "Grouping":
        """Equal values of any type are one group; null and NaN are unknown. DataError: no such
        column."""
        if column not in attributes.column_names:
            raise no_attribute(column, attributes.column_names)
        values = attributes[column]
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_finite(values), values, None)
        encoded = pc.dictionary_encode(values).combine_chunks()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        alone = codes < 0
        codes[alone] = len(encoded.dictionary) + np.arange(alone.sum())
        return Grouping(column, codes)

    @cached_property
    def _order(self) -> np.ndarray:
        """(G,) positions by group, those of one group rising."""
        return np.argsort(self.codes, kind="stable")

    @cached_property
    def _starts(self) -> np.ndarray:
        """(groups + 1,) where each group begins in `_order`."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.codes))])

    @cached_property
    def _largest(self) -> np.ndarray:
        """The sizes of the largest groups, added up."""
        return np.cumsum(-np.sort(-np.bincount(self.codes)))

    def first(self, k: int) -> int:
        """How many images to search for at first: as many as are of k groups for certain, or fewer
        if groups are large."""
        certain = 1 + int(self._largest[: k - 1][-1:].sum()) if k > 1 else 1
        return min(certain, first_images(k))

    def images(self, code: int) -> np.ndarray:
        """The positions of a group, rising."""
        found: np.ndarray = self._order[self._starts[code] : self._starts[code + 1]]
        return found


def first_images(k: int) -> int:
    """How many images to search for at first for k groups of unknown sizes."""
    return max(FIRST, MORE * k)


@dataclass(frozen=True)
class ResultForm:
    """What one result is, and whether results should differ.

    group_by: the column whose values are groups; None: each image is a result. per_group: how many
    images of a group are given. group_score: `best`, of its best image, or `best-two`, the mean of
    its best two. diverse: see `results.diversified`; None: results may be alike.
    """

    group_by: str | Grouping | None = None
    per_group: int = 1
    group_score: str = "best"
    diverse: float | None = None

    def __post_init__(self) -> None:
        if self.per_group < 1:
            raise UsageError(f"--per-group {self.per_group}: choose 1 image of each group or more")
        if self.group_score not in GROUP_SCORES:
            raise UsageError(
                f"--group-score {self.group_score}: choose {' or '.join(GROUP_SCORES)}"
            )
        if self.group_by is None and (self.per_group > 1 or self.group_score != "best"):
            raise UsageError("--per-group and --group-score need groups: add --group-by COLUMN")
        if self.diverse is not None and not 0 <= self.diverse <= 1:
            raise UsageError(
                f"--diverse {self.diverse:g}: choose from 0 (only avoid similar results) to 1 (off)"
            )

    def record(self) -> dict[str, Any]:
        """What is not the default, for a ranking's origin."""
        column = self.group_by.column if isinstance(self.group_by, Grouping) else self.group_by
        about = {
            "group_by": column, "per_group": self.per_group, "group_score": self.group_score,
            "diverse": self.diverse,
        }  # fmt: skip
        plain = ResultForm()
        return {name: value for name, value in about.items() if value != getattr(plain, name)}


class Nearest(Protocol):
    """Searches for images for Q queries. Positions are whole numbers that stand for images."""

    def nearest(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (q, ≤n), -1 after the last, and scores of the nearest images, best first."""

    def codes(self, positions: np.ndarray) -> np.ndarray:
        """The group of each position, in the same shape."""


class ImageSource(Nearest, Protocol):
    """A `Nearest` that also knows all images of a group."""

    def images(self, query: int, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (W,) and scores for one query of all images of these groups."""

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n, D) float32 unit rows of these positions."""


@dataclass(frozen=True, eq=False)
class Found:
    """positions, scores: (Q, K) of each result, or the group's best image and the group's score; -1
    and nan after the last. members, member_scores: (Q, K, N) of the best images of each group; None
    if only the best one was asked for."""

    positions: np.ndarray
    scores: np.ndarray
    members: np.ndarray | None = None
    member_scores: np.ndarray | None = None


def nearest_groups(
    source: Nearest,
    n_queries: int,
    k: int,
    *,
    available: int,
    first: int,
    best_two: ImageSource | None = None,
) -> Found:
    """The k nearest groups of each query, fewer only if there are fewer.

    available: how many images may be found. first: how many to search for at first. best_two: the
    same source, if a group's score is the mean of its best two images, not that of its best one.
    """
    positions = np.full((n_queries, k), -1, np.int64)
    scores = np.full((n_queries, k), np.nan)
    left, n = np.arange(n_queries), min(first, available)
    while len(left) and n:
        found, values = source.nearest(left, n)
        best = first_of_groups(source.codes(found), found >= 0)
        few, few_scores = _compact(best, found, values)
        done = best.sum(axis=1) >= k
        if best_two is not None and few.shape[1]:
            few, few_scores = _by_best_two(best_two, left, few)
            # a group of which no image was found scores no more than the last image that was
            done &= (few_scores[:, k - 1] if few.shape[1] >= k else -np.inf) > values[:, -1]
        done |= n >= available
        done |= (found >= 0).sum(axis=1) < n  # the source gives no more
        width = min(k, few.shape[1])
        positions[left[done], :width] = few[done, :width]
        scores[left[done], :width] = few_scores[done, :width]
        left, n = left[~done], min(available, MORE * n)
    width = int((positions >= 0).sum(axis=1).max(initial=0))
    return Found(positions[:, :width], scores[:, :width])


def with_members(source: ImageSource, found: Found, n: int, *, again: bool) -> Found:
    """The groups with the n best images of each.

    All images of the groups are compared: an approximate index may have missed the best one. again:
    whether the groups are then ordered anew by their best images.
    """
    members, values = _best_images(source, np.arange(len(found.positions)), found.positions, n)
    if not again or not found.positions.size:
        return replace(found, members=members, member_scores=values)
    order = _order(members[..., 0], values[..., 0])
    members, values = (np.take_along_axis(a, order[..., None], 1) for a in (members, values))
    return Found(members[..., 0], values[..., 0], members, values)


def _by_best_two(
    source: ImageSource, queries: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best image of each of these images' groups, and the mean of its best two, by the mean."""
    members, values = _best_images(source, queries, found, 2)
    second = np.where(np.isnan(values[..., 1]), values[..., 0], values[..., 1])
    scores = (values[..., 0] + second) / 2
    order = _order(members[..., 0], scores)
    return np.take_along_axis(members[..., 0], order, 1), np.take_along_axis(scores, order, 1)


def _best_images(
    source: ImageSource, queries: np.ndarray, found: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and scores (q, K, n) of the n best images of the groups of these images (q, K)."""
    members = np.full((*found.shape, n), -1, np.int64)
    values = np.full(members.shape, np.nan)
    for i, row in enumerate(found):
        groups = source.codes(row[row >= 0])
        positions, scores = source.images(int(queries[i]), groups)
        codes = source.codes(positions)
        order = np.lexsort((positions, -scores, codes))
        starts = np.searchsorted(codes[order], groups)
        ends = np.searchsorted(codes[order], groups, "right")
        for j, (start, end) in enumerate(zip(starts, ends, strict=True)):
            best = order[start:end][:n]
            members[i, j, : len(best)] = positions[best]
            values[i, j, : len(best)] = scores[best]
    return members, values


def first_of_groups(codes: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(q, n) bool: whether an image is the first one of its group in its row. there: (q, n) bool,
    false after a row's end."""
    codes = np.where(there, codes, -1)
    order = np.argsort(codes, axis=1, kind="stable")
    ranked = np.take_along_axis(codes, order, axis=1)
    new = np.ones(codes.shape, bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    first = np.empty(codes.shape, bool)
    np.put_along_axis(first, order, new, axis=1)
    return first & there


def _compact(
    wanted: np.ndarray, positions: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The wanted positions and scores of each row (q, W), -1 and nan after the last."""
    width = int(wanted.sum(axis=1).max(initial=0))
    order = np.argsort(~wanted, axis=1, kind="stable")[:, :width]
    there = np.take_along_axis(wanted, order, 1)
    few, few_scores = (np.take_along_axis(a, order, 1) for a in (positions, scores))
    return np.where(there, few, -1), np.where(there, few_scores, np.nan)


def _order(positions: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """By falling score, ties by rising position; -1 last."""
    order: np.ndarray = np.lexsort((positions, -np.where(positions >= 0, scores, -np.inf)), axis=1)
    return order
