"""Several query pictures of one item → one query, by joined vectors, searches or rankings."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.search.groups import ImageSource
from vizsla.search.ranking import Ranking

JOINS = ("mean", "max")


def items_of(
    names: Sequence[str], values: Mapping[str, object], column: str
) -> dict[str, list[int]]:
    """Item → the positions of its pictures, in their order. A picture without a value is an item of
    its own, under its own name. DataError: no picture has a value.
    """
    if not any(values.get(name) is not None for name in names):
        raise DataError(
            f"--query-group {column}: no query has a value in this column: give it in a table of "
            "the queries (metadata.csv in their folder, or embed them with --table)"
        )
    items: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        value = values.get(name)
        items.setdefault(name if value is None else str(value), []).append(i)
    return items


def joined_vectors(queries: Embeddings, items: Mapping[str, Sequence[int]]) -> Embeddings:
    """One unit vector for each item: the mean of its pictures' vectors.

    The mean of cosines orders images as the cosine with the mean does. The attributes are those of
    the first picture. DataError: the vectors of an item cancel each other out.
    """
    rows = []
    for name, pictures in items.items():
        if len(pictures) == 1:
            rows.append(queries.vectors[pictures[0]])
            continue
        mean = queries.vectors[list(pictures)].astype(np.float64).mean(axis=0)
        length = float(np.linalg.norm(mean))
        if length < 1e-6:
            raise DataError(f"the {len(pictures)} pictures of {name} cancel each other out")
        rows.append((mean / length).astype(np.float32))
    first = [pictures[0] for pictures in items.values()]
    whole = queries.subset(first).only_whole()
    return replace(whole, ids=list(items), vectors=np.stack(rows))


def mean_lengths(queries: Embeddings, items: Mapping[str, Sequence[int]]) -> np.ndarray:
    """(items,) the length of the mean of each one's vectors: a cosine with `joined_vectors` times
    this is the mean cosine of the pictures."""
    vectors = queries.vectors.astype(np.float64)
    means = [vectors[list(pictures)].mean(axis=0) for pictures in items.values()]
    return np.asarray(np.linalg.norm(np.stack(means), axis=1))


def joined_rankings(ranking: Ranking, items: Mapping[str, Sequence[int]], join: str) -> Ranking:
    """One row for each item, by the highest (max) or the mean score over its pictures.

    For a mean, an image that a picture's list lacks counts with the last score of that list. The
    rows are as deep as before. DataError: the ranking has no scores.
    """
    if ranking.scores is None:
        raise DataError("--query-group joins the scores of pictures, and this ranking has none")
    lists = list(items.values())
    positions, scores = _joined(ranking.positions, ranking.scores, lists, join)
    return ranking.with_results(positions, scores, queries=list(items), origin={"query_join": join})


@dataclass(frozen=True, eq=False)
class ImagesOfItems:
    """Searches for images by several pictures of an item; see groups.ImageSource.

    The score of an image is its highest for any of the pictures: so the n best are among the n best
    of each picture. pictures: of each item the places of its pictures among the source's queries.
    vectors_each: T, where a position p is that of a tile of image p // T.
    """

    source: ImageSource
    pictures: Sequence[Sequence[int]]
    vectors_each: int = 1

    def nearest(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource."""
        pictures = [self.pictures[i] for i in queries]
        ends = np.cumsum([0, *map(len, pictures)])
        positions, scores = self.source.nearest(np.concatenate([*pictures]).astype(np.int64), n)
        found = np.full((len(pictures), positions.shape[1]), -1, np.int64)
        found_scores = np.full(found.shape, np.nan)
        for i, (start, end) in enumerate(itertools.pairwise(ends)):
            rows, values = positions[start:end].ravel(), scores[start:end].ravel()
            rows, values = rows[rows >= 0], values[rows >= 0]
            order = np.lexsort((rows, -values))
            _, first = np.unique(rows[order] // self.vectors_each, return_index=True)
            best = order[np.sort(first)][: found.shape[1]]  # an image by its highest score
            found[i, : len(best)], found_scores[i, : len(best)] = rows[best], values[best]
        return found, found_scores

    def codes(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        return self.source.codes(positions)

    def images(self, query: int, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource."""
        found = [self.source.images(picture, codes) for picture in self.pictures[query]]
        positions, scores = (np.stack(arrays) for arrays in zip(*found, strict=True))
        best = scores.argmax(axis=0)[None]  # the images are the same for all pictures
        of_images = np.take_along_axis(positions, best, 0)[0]
        return of_images, np.take_along_axis(scores, best, 0)[0]

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        return self.source.vectors(positions)


def source_of_items(
    source: ImageSource,
    items: Mapping[str, Sequence[int]] | None,
    *,
    same_set: bool,
    vectors_each: int = 1,
) -> ImageSource:
    """A source whose queries are items; the source itself if each picture is a query. UsageError if
    queries and gallery are one set."""
    if items is None:
        return source
    if same_set:
        raise UsageError("--query-group: with --same-set an item's pictures would find each other")
    return ImagesOfItems(source, list(items.values()), vectors_each)


def _joined(
    positions: np.ndarray, scores: np.ndarray, items: Sequence[Sequence[int]], join: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and scores (items, K), joined over the rows (Q, K) of each item."""
    depth = positions.shape[1]
    found = np.full((len(items), depth), -1, np.int64)
    found_scores = np.full(found.shape, np.nan)
    for i, pictures in enumerate(items):
        rows, values = positions[list(pictures)], scores[list(pictures)]
        there = rows >= 0
        known, at = np.unique(rows[there], return_inverse=True)
        every = np.full((len(pictures), len(known)), -np.inf)
        if join == "mean":
            last = np.where(there, values, np.inf).min(axis=1, initial=np.inf)
            every[:] = np.where(np.isfinite(last), last, -1.0)[:, None]
        every[np.nonzero(there)[0], at] = values[there]
        joined = every.max(axis=0) if join == "max" else every.mean(axis=0)
        order = np.lexsort((known, -joined))[:depth]
        found[i, : len(order)], found_scores[i, : len(order)] = known[order], joined[order]
    return found, found_scores
