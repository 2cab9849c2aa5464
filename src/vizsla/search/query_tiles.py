"""Several vectors of a query: the mean, over them, of their highest cosine with a tile of an image.

That is late interaction (MaxSim; Khattab and Zaharia, 2020) of few vectors. The mean orders images
as the sum does, and stays a cosine, whatever the number of vectors. An image that no tile of the
query has found among its nearest has at most the mean of the last scores of their lists. So each
tile searches for more images until the k-th result surely is above that (Fagin's threshold
algorithm): exact wherever the search of each tile is.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import Embeddings, about_tiles
from vizsla.errors import DataError, UsageError
from vizsla.search import exact
from vizsla.search.groups import MORE, ImageSource
from vizsla.search.ranking import Ranking, self_positions, tile_of, without_self

STEP = 2.0**-40  # scores are rounded to multiples of it, whose sums are exact in any order


class ScoredImages(ImageSource, Protocol):
    """A source that can also compare a query with given images."""

    def scored(self, query: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n,) of the best tiles of these images for one query, and their scores."""


def mean_over_tiles(scores: np.ndarray) -> np.ndarray:
    """(…,) float64: the mean of scores (S, …) of the S tiles of a query, in any order the same."""
    mean: np.ndarray = np.rint(scores / STEP).sum(axis=0) / len(scores) * STEP
    return mean


@dataclass(frozen=True, eq=False)
class ImagesByQueryTiles:
    """Searches for images by all tiles of a query; see groups.ImageSource.

    source: its queries are the tiles, the S of one query together. query_vectors_each: S.
    vectors_each: T, where a position p is that of a tile of image p // T. The tile that stands for
    an image is the one with the highest cosine with any tile of the query.
    """

    source: ScoredImages
    query_vectors_each: int
    vectors_each: int = 1

    def nearest(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource."""
        found = np.full((len(queries), n), -1, np.int64)
        scores = np.full((len(queries), n), np.nan)
        left, depth = np.arange(len(queries)), n
        while len(left) and n:
            lists, values = self.source.nearest(self._tiles(queries[left]).ravel(), depth)
            S, sure = self.query_vectors_each, np.zeros(len(left), bool)
            for i, row in enumerate(left):
                part = slice(i * S, (i + 1) * S)
                images = np.unique(lists[part][lists[part] >= 0] // self.vectors_each)
                best, means = self._joined(*self._scored(int(queries[row]), images))
                order = np.lexsort((best, -means))[:n]
                found[row, : len(order)], scores[row, : len(order)] = best[order], means[order]
                all_found = lists.shape[1] < depth or (lists[part] < 0).any()
                bound = -np.inf if all_found else mean_over_tiles(values[part, -1:])[0]
                sure[i] = all_found or means[order[-1]] > bound
            left, depth = left[~sure], depth * MORE
        width = int((found >= 0).sum(axis=1).max(initial=0))
        return found[:, :width], scores[:, :width]

    def codes(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        return self.source.codes(positions)

    def images(self, query: int, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource."""
        found = [self.source.images(tile, codes) for tile in self._tiles(np.array([query]))[0]]
        return self._joined(*map(np.stack, zip(*found, strict=True)))

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        return self.source.vectors(positions)

    def _tiles(self, queries: np.ndarray) -> np.ndarray:
        """(q, S) the places of these queries' tiles among the queries of the source."""
        S = self.query_vectors_each
        return queries[:, None] * S + np.arange(S)

    def _scored(self, query: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S, n) of each tile of the query and these images."""
        found = [
            self.source.scored(int(tile), images) for tile in self._tiles(np.array([query]))[0]
        ]
        positions, scores = map(np.stack, zip(*found, strict=True))
        return positions, scores

    @staticmethod
    def _joined(positions: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best tile (n,) of each image and its mean score, from those (S, n) of all tiles."""
        best = scores.argmax(axis=0)[None]
        return np.take_along_axis(positions, best, 0)[0], mean_over_tiles(scores)


def by_query_tiles(source: ScoredImages, query_vectors_each: int, vectors_each: int) -> ImageSource:
    """The source itself if a query has one vector."""
    if query_vectors_each == 1:
        return source
    return ImagesByQueryTiles(source, query_vectors_each, vectors_each)


def vectors_of_queries(queries: Embeddings, grids: str | None) -> tuple[np.ndarray, int]:
    """(Q·S, D) the vectors of these tiles of each query, and S; of whole pictures without grids.

    DataError: the queries have vectors of other tiles.
    """
    tiles = Tiles.of_query(grids)
    if tiles is None:
        return queries.vectors, 1
    if queries.tiles != tiles:
        raise DataError(
            f"query_tiles {tiles}: the queries have vectors of "
            f"{queries.tiles or 'whole pictures'}: embed them with these tiles, or give pictures"
        )
    return queries.all_vectors, len(tiles)


def repeated(values: np.ndarray | None, times: int) -> np.ndarray | None:
    """Values of queries (Q,), repeated for each of their tiles (Q·S,); None stays None."""
    return None if values is None else np.repeat(values, times)


def rank(queries: Embeddings, gallery: Embeddings, *, same_set: bool, device: str) -> Ranking:
    """The gallery ranked for queries with several vectors, by all scores: see `exact.rank`."""
    exact.require_comparable(queries.model_id, gallery.model_id, queries.dim, gallery.dim)
    assert queries.tiles is not None
    G, S, T = len(gallery), len(queries.tiles), len(gallery.tiles) if gallery.tiles else 1
    k = min(exact.default_depth(G), G - same_set)
    positions, scores = (np.empty((len(queries), k + same_set), kind) for kind in (np.int64, float))
    rows = queries.all_vectors.reshape(len(queries), S, -1)
    for part in exact.slices(len(queries), max(1, exact.rows_per_chunk(G * T) // S)):
        positions[part], scores[part] = _best(rows[part], gallery.all_vectors, T, k + same_set,
                                              device)  # fmt: skip
    if same_set:
        own = self_positions(queries.ids, gallery.ids)
        positions, scores = without_self(positions, scores, own, k, vectors_each=T)
    origin = {"model_id": gallery.model_id, "kind": "exact", "depth": k, "same_set": same_set,
              "query_tiles": str(queries.tiles)}  # fmt: skip
    return Ranking(
        queries.ids, gallery.ids, positions // T, scores, G,
        {**origin, **about_tiles(gallery.tiles)},
        query_root=queries.root, gallery_root=gallery.root, tiles=gallery.tiles,
        best_tile=None if T == 1 else tile_of(positions, T),
    )  # fmt: skip


def _best(
    queries: np.ndarray, gallery: np.ndarray, T: int, k: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the best tiles of the k best images, and the images' scores, both (q, k).

    queries: (q, S, D). gallery: (G·T, D), the T vectors of an image together."""
    q, S, D = queries.shape
    grid = exact.on_grid(queries.reshape(q * S, D), device)
    means, tiles = [], []
    for part in exact.slices(len(gallery), T * max(1, exact.rows_per_chunk(D) // T)):
        cosines = exact.exact_scores(grid, exact.on_grid(gallery[part], device))
        of_tile = cosines.view(q, S, -1, T).max(dim=3)  # (q, S, images)
        nearest = of_tile.values.max(dim=1).indices[:, None]
        tiles.append(of_tile.indices.gather(1, nearest)[:, 0].cpu().numpy())
        means.append(mean_over_tiles(of_tile.values.transpose(0, 1).cpu().numpy()))
    mean, tile = np.concatenate(means, axis=1), np.concatenate(tiles, axis=1)  # (q, G)
    order = np.argsort(-mean, axis=1, kind="stable")[:, :k]
    best = order * T + np.take_along_axis(tile, order, 1)
    return best, np.take_along_axis(mean, order, 1)


def require_plain_search(refine: str, accept: object) -> None:
    """UsageError if a search by tiles of the query is combined with what needs one vector of it."""
    why = ""
    if refine != "none":
        why = "--refine re-ranks for one vector of a query"
    elif accept is not None:
        why = "--accept decides by a calibration of whole pictures"
    if why:
        raise UsageError(f"{why}: leave it out, or --query-tiles")
