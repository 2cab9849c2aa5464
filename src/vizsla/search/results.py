"""Nearest images → what a search gives: images or groups of them, alike or different."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.search.exact import GRID
from vizsla.search.groups import (
    Found,
    Grouping,
    ImageSource,
    ResultForm,
    first_images,
    nearest_groups,
    with_members,
)
from vizsla.search.ranking import Ranking


def pool_for(k: int) -> int:
    """How many of the best results `diversified` chooses k from."""
    return max(50, 5 * k)


def found_results(
    source: ImageSource,
    n_queries: int,
    k: int,
    form: ResultForm,
    *,
    available: int,
    first: Callable[[int], int] | None = None,
) -> Found:
    """The k best results of each query. available: how many images may be found.

    first: how many images to search for at first for so many groups.
    """
    pool = k if form.diverse is None else pool_for(k)
    if form.group_by is None:
        found = Found(*source.nearest(np.arange(n_queries), pool))
    else:
        found = nearest_groups(
            source, n_queries, pool, available=available, first=(first or first_images)(pool),
            best_two=source if form.group_score == "best-two" else None,
        )  # fmt: skip
    if form.diverse is not None:
        found = diversified(source, found, k, form.diverse)
    if form.per_group == 1:
        return found
    again = form.group_score == "best" and form.diverse is None
    return with_members(source, found, form.per_group, again=again)


def diversified(source: ImageSource, found: Found, k: int, diverse: float) -> Found:
    """k results of each query (Q, n) by maximal marginal relevance (Carbonell & Goldstein 1998).

    Each next one is that with the highest diverse * score - (1 - diverse) * its cosine with the
    most similar one chosen before; ties go to the higher score. diverse: 1 leaves the order as it
    is, 0 only avoids what is similar. The scores stay those with the query.
    """
    positions, scores = found.positions, found.scores
    chosen = np.full((len(positions), min(k, positions.shape[1])), -1, np.int64)  # columns
    for i, row in enumerate(positions):
        n = int((row >= 0).sum())
        grid = np.rint(source.vectors(row[:n]).astype(np.float64) * GRID)
        between = grid @ grid.T / GRID**2
        worth, nearest = diverse * scores[i, :n], np.zeros(n)
        for j in range(min(k, n)):
            at = int(np.argmax(worth - (1 - diverse) * nearest))
            chosen[i, j], worth[at] = at, -np.inf
            nearest = np.maximum(nearest, between[at]) if j else between[at]
    there = chosen >= 0
    few, values = (np.take_along_axis(a, np.maximum(chosen, 0), 1) for a in (positions, scores))
    return Found(np.where(there, few, -1), np.where(there, values, np.nan))


@dataclass(frozen=True, eq=False)
class ImagesOfRanking:
    """A ranking of the whole gallery as a source of images, such as a re-ranked one."""

    ranking: Ranking
    grouping: Grouping | None
    gallery: np.ndarray  # (G, D) unit rows

    def nearest(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource."""
        assert self.ranking.scores is not None
        return self.ranking.positions[queries, :n], self.ranking.scores[queries, :n]

    def codes(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        assert self.grouping is not None
        return self.grouping.codes[positions]

    def images(self, query: int, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource."""
        assert self.ranking.scores is not None
        row = self.ranking.positions[query]
        found = (row >= 0) & np.isin(self.codes(row), codes)
        return row[found], self.ranking.scores[query, found]

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        return self.gallery[positions]


def regrouped(ranking: Ranking, gallery: Embeddings, k: int, form: ResultForm) -> Ranking:
    """The k best results by a ranking that reaches over the whole gallery."""
    by = form.group_by
    if isinstance(by, str):
        by = Grouping.of(by, gallery.attributes)
    source = ImagesOfRanking(ranking, by, gallery.vectors)
    found = found_results(
        source,
        len(ranking),
        k,
        form,
        available=ranking.depth,
        first=None if by is None else by.first,
    )
    others = ranking.with_results(
        found.positions, found.scores, members=found.members, member_scores=found.member_scores,
        origin={"depth": k, **form.record()},
    )  # fmt: skip
    if ranking.best_tile is None:
        return others
    tiles = np.full((len(ranking), len(ranking.gallery)), -1, np.int8)
    rows, columns = np.nonzero(ranking.positions >= 0)
    tiles[rows, ranking.positions[rows, columns]] = ranking.best_tile[rows, columns]
    best_tile = np.take_along_axis(tiles, np.maximum(found.positions, 0), axis=1)
    best_tile = np.where(found.positions >= 0, best_tile, -1)
    return replace(others, tiles=ranking.tiles, best_tile=best_tile)
