"""An index and the folder of its images → the state of both that one request works with.

Images are found by id only. An id is looked up in the index before it becomes a path; a path
that leads out of the folder, through a link for instance, is not served.
"""

import os
import stat
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from cachetools import LRUCache

from vizsla.data.tiles import Box, Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import StorageError
from vizsla.search import index_files
from vizsla.search.filters import Filter
from vizsla.search.folder_index import FolderIndex
from vizsla.search.groups import Grouping, ResultForm
from vizsla.search.ranking import Ranking
from vizsla.web.search.facets import (
    REPLACED,
    Columns,
    EvaluatedFilter,
    Facet,
    facets_of,
    with_columns,
)

SAMPLE_SIZE = 4096  # vectors over which scores are standardised
MAX_MASKS = 32  # of filters that are remembered
IMAGES = ResultForm()  # each image is a result


@dataclass(frozen=True)
class Hit:
    """One result. of_group: the best images of its group, with scores. size: how many images the
    group has. box: the part that was found, where images have tiles; see Ranking.box."""

    id: str
    score: float
    of_group: tuple[tuple[str, float], ...] = ()
    size: int | None = None
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class Gallery:
    """One state of an index. A change makes a new Gallery and leaves this one as it is.

    attributes: those of the index, with the columns that `columns` gives in place of its own.
    """

    index: FolderIndex
    root: Path
    ids: list[str]
    attributes: pa.Table
    version: str  # a different one after every change
    columns: Columns | None = None

    @staticmethod
    def open(index: FolderIndex, root: Path, columns: Columns | None = None) -> "Gallery":
        """The index as it is now; root: the folder of its images."""
        index = index.at_this_moment()
        ids, attributes = index.ids, index.attributes
        if columns is not None:
            attributes = with_columns(attributes, columns(ids))
        real = Path(os.path.realpath(root))
        return Gallery(index, real, ids, attributes, index.version, columns)

    def with_index(self, index: FolderIndex) -> "Gallery":
        """Another state, with the same folder of images and the same table."""
        return Gallery.open(index, self.root, self.columns)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def positions(self) -> dict[str, int]:
        """{id: its row}."""
        return {name: i for i, name in enumerate(self.ids)}

    @cached_property
    def sample(self) -> np.ndarray:
        """(≤ 4096, D) float32: gallery vectors, evenly drawn."""
        n = len(self)
        rows = (
            np.arange(n)
            if n <= SAMPLE_SIZE
            else np.linspace(0, n - 1, SAMPLE_SIZE).astype(np.int64)
        )
        return self.index.vectors(rows)

    def warm_up(self) -> None:
        """Computes what the first request would wait for, and reads the vectors into memory.

        StorageError if the files of this state have been replaced.
        """
        _ = self.positions, self.sample, self.facets  # computed when first used
        if len(self):
            self.search(self.sample[:1], 1, None)

    # ── images ──────────────────────────────────────────────────────────────────────────────────

    def vector(self, name: str) -> np.ndarray:
        """(D,) float32; KeyError for an unknown id."""
        return self.index.vectors(np.array([self.positions[name]]))[0]

    def described(self, name: str) -> dict[str, Any]:
        """{"label": …, "attributes": …} with values as JSON has them."""
        position = self.positions.get(name)
        if position is None:  # added or removed a moment ago
            return {"label": None, "attributes": {}}
        row = (
            self.attributes.slice(position, 1).to_pylist()[0] if self.attributes.num_columns else {}
        )
        return {
            "label": _plain(row.pop("label", None)),
            "attributes": {key: _plain(value) for key, value in row.items()},
        }

    def path(self, name: str) -> Path | None:
        """The image's file; None for an unknown id, or without a file inside the folder."""
        if name not in self.positions:
            return None
        return file_inside(self.root, name)

    @cached_property
    def facets(self) -> list[Facet]:
        """The attributes to filter by."""
        return facets_of(self.attributes)

    # ── searching ────────────────────────────────────────────────────────────────────────────────

    def spread(self, vector: np.ndarray) -> float:
        """The standard deviation of a vector's scores over the gallery."""
        return float(np.std(self.sample @ np.asarray(vector, np.float32)))

    @cached_property
    def _masks(self) -> "LRUCache[Filter, np.ndarray]":
        return LRUCache(MAX_MASKS)

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    def mask(self, condition: Filter) -> np.ndarray:
        """(G,) bool: the images that the filter lets through; the latest masks are remembered."""
        with self._lock:
            mask = self._masks.get(condition)
        if mask is None:
            mask = condition.mask(self.ids, self.attributes)
            with self._lock:
                self._masks[condition] = mask
        return mask

    @cached_property
    def _groupings(self) -> dict[str, Grouping]:
        return {}

    def grouping(self, column: str) -> Grouping:
        """Which images are one group by an attribute. DataError: there is no such attribute."""
        if column not in self._groupings:
            self._groupings[column] = Grouping.of(column, self.attributes)
        return self._groupings[column]

    @cached_property
    def group_columns(self) -> list[str]:
        """The attributes to group by: those of which several images have one value."""
        return [facet.column for facet in self.facets if _repeats(self.attributes[facet.column])]

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        condition: Filter | None,
        form: ResultForm = IMAGES,
        items: Mapping[str, Sequence[int]] | None = None,
        tiles: Tiles | None = None,
    ) -> list[list[Hit]]:
        """For each of (Q, D) unit vectors, or each item, up to k results, best first.

        items: see Index.search. tiles: the vectors are those of the tiles of one query.
        """
        k = min(k, len(self.index))
        if k == 0:
            return [[] for _ in (vectors if items is None else items)]
        filter = None
        if condition is not None:
            filter = EvaluatedFilter(condition.conditions, condition.ids, self.mask(condition))
        queries: np.ndarray | Embeddings = vectors
        if tiles is not None:
            queries = Embeddings(
                ["query"], vectors[:1], pa.table({}), self.index.model_id, tiles=tiles,
                tile_vectors=vectors[None],
            )  # fmt: skip
        ranking = self.index.search(
            queries, k, filter, group_by=form.group_by, per_group=form.per_group,
            group_score=form.group_score, diverse=form.diverse, model_id=self.index.model_id,
            items=items, query_tiles=str(tiles) if tiles else None,
        )  # fmt: skip
        if ranking.gallery is not self.ids:  # the index has moved on to another state
            raise StorageError(REPLACED)
        grouping = form.group_by if isinstance(form.group_by, Grouping) else None
        allowed = None if condition is None else self.mask(condition)
        return [_hits(ranking, i, grouping, allowed) for i in range(len(ranking))]


def _hits(
    ranking: Ranking, i: int, grouping: Grouping | None, allowed: np.ndarray | None
) -> list[Hit]:
    """The results of one query. allowed: the images that count in the size of a group."""
    assert ranking.scores is not None
    hits = []
    for j, at in enumerate(ranking.positions[i].tolist()):
        if at < 0:
            break
        of_group: tuple[tuple[str, float], ...] = ()
        size = None
        if grouping is not None:
            group = grouping.images(grouping.codes[at])
            size = len(group) if allowed is None else int(allowed[group].sum())
        if ranking.members is not None and ranking.member_scores is not None:
            pairs = zip(ranking.members[i, j].tolist(), ranking.member_scores[i, j], strict=True)
            of_group = tuple((ranking.gallery[p], float(s)) for p, s in pairs if p >= 0)
        score, box = float(ranking.scores[i, j]), ranking.box(i, j)
        hits.append(Hit(ranking.gallery[at], score, of_group, size, box))
    return hits


def _repeats(column: pa.ChunkedArray) -> bool:
    """Whether several images have the same value; never for a column of fractions."""
    if pa.types.is_floating(column.type):
        return False
    known = column.drop_null()
    return bool(len(known.unique()) < len(known))


def file_inside(root: Path, name: str) -> Path | None:
    """The regular file root/name; None if it is, or leads, outside of `root` (a real path)."""
    if "\0" in name:
        return None
    real = os.path.realpath(root / name)
    if not real.startswith(str(root).rstrip(os.sep) + os.sep):
        return None
    try:
        regular = stat.S_ISREG(os.stat(real, follow_symlinks=False).st_mode)  # noqa: PTH116
    except OSError:
        return None
    return Path(real) if regular else None


def _plain(value: Any) -> Any:
    """A value as JSON has it, with null for NaN and infinity."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def version_of(folder: Path) -> str:
    """`Gallery.version` of the index that is in the folder now."""
    return index_files.version_of(index_files.read_manifest(folder))


@dataclass(frozen=True, eq=False)
class Search:
    """A search that is computed together with others.

    vectors: (n, D); of several, a result's score is its highest for any of them. tiles: of the one
    query whose parts these are; a result's score is then the mean of their highest.
    """

    gallery: Gallery
    vectors: np.ndarray
    k: int
    condition: Filter | None
    form: ResultForm = IMAGES
    tiles: Tiles | None = None


def search_all(searches: list[Search]) -> list[list[Hit]]:
    """The results of each search; those of one gallery, filter and form share one matrix product.

    With `diverse` the results depend on k, so then only searches with the same k share it.
    """
    groups: dict[tuple[int, Filter | None, ResultForm, int | None], list[int]] = {}
    found: list[list[Hit]] = [[] for _ in searches]
    for i, one in enumerate(searches):
        if one.tiles is not None:
            [found[i]] = one.gallery.search(
                one.vectors, one.k, one.condition, one.form, tiles=one.tiles
            )
            continue
        k = None if one.form.diverse is None else one.k
        groups.setdefault((id(one.gallery), one.condition, one.form, k), []).append(i)
    for places in groups.values():
        first = searches[places[0]]
        k = max(searches[i].k for i in places)
        vectors = np.concatenate([searches[i].vectors for i in places])
        ends = np.cumsum([0, *(len(searches[i].vectors) for i in places)]).tolist()
        items = {str(i): range(*ends[i : i + 2]) for i in range(len(places))}
        rows = first.gallery.search(
            vectors, k, first.condition, first.form, items if len(vectors) > len(places) else None
        )
        for i, row in zip(places, rows, strict=True):
            found[i] = row[: searches[i].k]
    return found
