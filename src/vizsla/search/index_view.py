"""One state of an index in a folder, as a search sees it: rows and queries → the nearest rows."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vizsla.search import ann, exact, tiles
from vizsla.search.ann import Allowed, Structure, Unindexed
from vizsla.search.exact import Rows
from vizsla.search.groups import Found, Grouping, ResultForm
from vizsla.search.index_files import Snapshot
from vizsla.search.index_structure import read_structure
from vizsla.search.items import source_of_items
from vizsla.search.query_tiles import by_query_tiles
from vizsla.search.ranking import without_self
from vizsla.search.results import found_results


class LazyStructure:
    """The structure of an index, read from its file when it is first needed."""

    def __init__(self, structure: Structure | None = None) -> None:
        self._structure = structure
        self._reading = threading.Lock()

    def of(self, snapshot: Snapshot) -> Structure | None:
        """The structure over the rows of `snapshot`; None if the index has none."""
        if snapshot.manifest.get("structure") is None:
            return None
        with self._reading:
            if self._structure is None:
                self._structure = read_structure(snapshot)
            return self._structure


@dataclass(frozen=True, eq=False)
class View:
    """What one search sees, whatever is added or removed meanwhile."""

    snapshot: Snapshot
    lazy_structure: LazyStructure
    device: str
    precision: str

    @property
    def structure(self) -> Structure | None:
        """The structure of the index; None if it has none."""
        return self.lazy_structure.of(self.snapshot)

    def nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, k) int64 and exact scores (Q, k) float64 of the k nearest vectors, best first.

        allowed: (G,) bool by gallery position, the images that a filter leaves; None: all.
        """
        if k == 0:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0))
        snapshot, structure = self.snapshot, self.structure
        rows = self._rows(allowed)
        if (
            structure is None
            or len(rows) < ann.EXACT_BELOW * len(snapshot) * snapshot.vectors_each
            or len(rows) < 4 * ann.candidates_for(k)
        ):
            return self.exactly(queries, k, rows)
        entry = snapshot.manifest["structure"]
        found, scores = ann.nearest(
            structure, Rows(snapshot.vectors), queries, k,
            covered=entry["rows"], unindexed=self._unindexed,
            effort=entry["effort"], candidates=entry["candidates"], allowed=self._allowed(rows),
        )  # fmt: skip
        unsure = np.flatnonzero(found[:, k - 1] < 0)
        if len(unsure):
            found[unsure], scores[unsure] = self.exactly(queries[unsure], k, rows)
        return found, scores

    def ranked(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None, self_at: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gallery positions (Q, ≤k) and exact scores, best first; -1 and nan after the last.

        With T tiles position p is tile p % T of image p // T, and an image is given once, by its
        best tile. self_at: (Q,) each query's own image, which is left out; None: none is.
        """
        T = self.snapshot.vectors_each
        available = len(self.snapshot) if allowed is None else int(allowed.sum())
        n = min(k + (self_at is not None), available)
        if T == 1:
            rows, scores = self.nearest(queries, n, allowed)
            positions = self.snapshot.position_of[rows]
        elif n and self.structure is None and tiles.DEEP * n >= available:
            of_tiles = self._rows(allowed)
            gallery = Rows(self.snapshot.vectors, of_tiles, self._resident)
            found, scores = exact.top_k_of_tiles(queries, gallery, T, n, device=self.device)
            positions = self._positions_of_tiles(of_tiles[found])
        else:
            positions, scores = tiles.best_tiles(
                lambda chosen, m: self._nearest_tiles(queries[chosen], m, allowed),
                len(queries), n, T, available=available * T,
            )  # fmt: skip
        if self_at is None:
            return positions, scores
        return without_self(positions, scores, self_at, k, vectors_each=T)

    def _rows(self, allowed: np.ndarray | None) -> np.ndarray:
        """The rows of all vectors that may be found."""
        snapshot = self.snapshot
        if allowed is None:
            return snapshot.vector_rows
        return snapshot.vector_rows_of(snapshot.rows[allowed])

    def _nearest_tiles(
        self, queries: np.ndarray, n: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        rows, scores = self.nearest(queries, n, allowed)
        return self._positions_of_tiles(rows), scores

    def _positions_of_tiles(self, rows: np.ndarray) -> np.ndarray:
        T = self.snapshot.vectors_each
        return self.snapshot.position_of[rows // T] * T + rows % T

    @cached_property
    def _groupings(self) -> dict[str, Grouping]:
        return {}

    def grouping(self, column: str) -> Grouping:
        """Which images are one group by an attribute. DataError: there is no such attribute."""
        if column not in self._groupings:
            self._groupings[column] = Grouping.of(column, self.snapshot.attributes)
        return self._groupings[column]

    def search(
        self,
        queries: np.ndarray,
        k: int,
        form: ResultForm,
        allowed: np.ndarray | None,
        self_at: np.ndarray | None,
        items: Mapping[str, Sequence[int]] | None = None,
        query_vectors_each: int = 1,
    ) -> Found:
        """The k best results of each query, or of each item; see Index.search. The other arguments
        as `ranked` has them. query_vectors_each: S of a query's tiles; queries are (Q·S, D)."""
        by = form.group_by
        grouping = self.grouping(by) if isinstance(by, str) else by
        images = ImagesOfView(self, queries, allowed, self_at, grouping)
        source = source_of_items(
            by_query_tiles(images, query_vectors_each, self.snapshot.vectors_each),
            items,
            same_set=self_at is not None,
            vectors_each=self.snapshot.vectors_each,
        )
        return found_results(
            source, len(queries) // query_vectors_each if items is None else len(items), k, form,
            available=len(self.snapshot) if allowed is None else int(allowed.sum()),
            first=None if grouping is None else grouping.first,
        )  # fmt: skip

    def exactly(
        self, queries: np.ndarray, k: int, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `nearest`, by comparing each query with all of these rows."""
        gallery = Rows(self.snapshot.vectors, rows, self._resident)
        found, scores = exact.top_k(
            queries, gallery, k, device=self.device, precision=self.precision
        )
        return rows[found], scores

    @cached_property
    def _resident(self) -> Any:
        """The vectors on a GPU, if they fit."""
        return exact.on_device(self.snapshot.vectors, self.device, self.precision)

    @cached_property
    def _unindexed(self) -> Unindexed:
        """The rows that every search compares one by one, because the structure lacks them."""
        entry = self.snapshot.manifest["structure"]
        gallery, held_out = Rows(self.snapshot.vectors), np.array(entry["held_out"], int)
        return Unindexed.of(gallery, entry["rows"], held_out).only(self.snapshot.alive_vectors)

    def _allowed(self, rows: np.ndarray) -> Allowed | None:
        """These rows, of those that are not removed; None if none is left out."""
        if len(rows) == len(self.snapshot.vectors):
            return None
        if len(rows) == len(self.snapshot.vector_rows):
            return self._all_allowed
        mask = np.zeros(len(self.snapshot.vectors), bool)
        mask[rows] = True
        return Allowed.of(mask, self.snapshot.manifest["structure"]["rows"])

    @cached_property
    def _all_allowed(self) -> Allowed:
        return Allowed.of(self.snapshot.alive_vectors, self.snapshot.manifest["structure"]["rows"])


@dataclass(frozen=True, eq=False)
class ImagesOfView:
    """Searches a view for images; see groups.ImageSource. Positions are as of `View.ranked`."""

    view: View
    queries: np.ndarray
    allowed: np.ndarray | None
    self_at: np.ndarray | None
    grouping: Grouping | None

    def nearest(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource."""
        self_at = None if self.self_at is None else self.self_at[queries]
        return self.view.ranked(self.queries[queries], n, self.allowed, self_at)

    def codes(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        assert self.grouping is not None
        return self.grouping.codes[positions // self._vectors_each]

    def images(self, query: int, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource."""
        assert self.grouping is not None
        found = [self.grouping.images(code) for code in codes]
        positions = np.concatenate([np.empty(0, np.int64), *found])
        if self.allowed is not None:
            positions = positions[self.allowed[positions]]
        if self.self_at is not None:
            positions = positions[positions != self.self_at[query]]
        return self.scored(query, positions)

    def scored(self, query: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ScoredImages."""
        T = self._vectors_each
        places = self.view.snapshot.vector_rows_of(images)  # as if none were removed
        scores = exact.rescored(self.queries[query : query + 1], self._gallery, places[None])[0]
        best = scores.reshape(-1, T).argmax(axis=1)
        return images * T + best, scores.reshape(-1, T).max(axis=1)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        return self._gallery[positions]

    @property
    def _vectors_each(self) -> int:
        return self.view.snapshot.vectors_each

    @property
    def _gallery(self) -> Rows:
        return Rows(self.view.snapshot.vectors, self.view.snapshot.vector_rows)
