"""Nearest tiles → nearest images: of several vectors of an image, the best one counts (MaxSim).

The tiles of an image are a group (see groups.py), so more of them are searched for until there are
enough images. Tile t of the image at position p has the position p · T + t.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vizsla.search.groups import first_images, nearest_groups

DEEP = 4  # an exact search for a quarter of all images compares all tiles at once
# queries (q,), n → positions (q, ≤n) of the nearest tiles, -1 after the last, and scores
NearestTiles = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def best_tiles(
    nearest: NearestTiles, n_queries: int, k: int, vectors_each: int, *, available: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each query, by the positions and scores (Q, ≤k) of their best tiles;
    fewer only if there are fewer. available: how many tiles may be found."""
    if k == 0:
        return np.empty((n_queries, 0), np.int64), np.empty((n_queries, 0), np.float32)
    certain = (k - 1) * vectors_each + 1  # tiles that are of k images in any case
    found = nearest_groups(
        _Tiles(nearest, vectors_each), n_queries, k, available=available,
        first=min(certain, first_images(k)),
    )  # fmt: skip
    return found.positions, found.scores


@dataclass(frozen=True)
class _Tiles:
    """See groups.Nearest: tiles in the place of images, images in the place of groups."""

    find: NearestTiles
    vectors_each: int

    def nearest(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """See Nearest."""
        return self.find(queries, n)

    def codes(self, positions: np.ndarray) -> np.ndarray:
        """See Nearest."""
        return positions // self.vectors_each
