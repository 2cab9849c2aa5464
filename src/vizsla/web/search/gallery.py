"""An index and the folder of its images → the state of both that one request works with.

Images are found by id only. An id is looked up in the index before it becomes a path; a path
that leads out of the folder, through a link for instance, is not served.
"""

import os
import stat
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from cachetools import LRUCache

from vizsla.errors import StorageError
from vizsla.search import index_files
from vizsla.search.filters import Filter
from vizsla.search.folder_index import FolderIndex
from vizsla.web.search.facets import (
    REPLACED,
    EvaluatedFilter,
    Facet,
    Labels,
    facets_of,
    labelled,
)

SAMPLE_SIZE = 4096  # vectors over which scores are standardised
MAX_MASKS = 32  # of filters that are remembered


@dataclass(frozen=True, eq=False)
class Gallery:
    """One state of an index. A change makes a new Gallery and leaves this one as it is.

    attributes: those of the index, with the labels that `labels` gives in place of its own.
    """

    index: FolderIndex
    root: Path
    ids: list[str]
    attributes: pa.Table
    version: str  # a different one after every change
    labels: Labels | None = None

    @staticmethod
    def open(index: FolderIndex, root: Path, labels: Labels | None = None) -> "Gallery":
        """The index as it is now; root: the folder of its images."""
        index = index.at_this_moment()
        ids, attributes = index.ids, index.attributes
        if labels is not None:
            attributes = labelled(attributes, labels(ids))
        real = Path(os.path.realpath(root))
        return Gallery(index, real, ids, attributes, index.version, labels)

    def with_index(self, index: FolderIndex) -> "Gallery":
        """Another state, with the same folder of images and the same labels."""
        return Gallery.open(index, self.root, self.labels)

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
        assert len(self.positions) == len(self.sample[:0]) + len(self)
        self.facets  # noqa: B018
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

    def search(
        self, vectors: np.ndarray, k: int, condition: Filter | None
    ) -> list[list[tuple[str, float]]]:
        """For each of (Q, D) unit vectors up to k results, (id, score), best first."""
        k = min(k, len(self.index))
        if k == 0:
            return [[] for _ in vectors]
        filter = None
        if condition is not None:
            filter = EvaluatedFilter(condition.conditions, condition.ids, self.mask(condition))
        ranking = self.index.search(vectors, k, filter, model_id=self.index.model_id)
        if ranking.gallery is not self.ids:  # the index has moved on to another state
            raise StorageError(REPLACED)
        assert ranking.scores is not None
        return [
            [
                (ranking.gallery[p], float(s))
                for p, s in zip(row.tolist(), scores.tolist(), strict=True)
                if p >= 0
            ]
            for row, scores in zip(ranking.positions, ranking.scores, strict=True)
        ]


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
    """A search that is computed together with others."""

    gallery: Gallery
    vector: np.ndarray
    k: int
    condition: Filter | None


def search_all(searches: list[Search]) -> list[list[tuple[str, float]]]:
    """The results of each search; those of one gallery and filter share one matrix product."""
    groups: dict[tuple[int, Filter | None], list[int]] = {}
    for i, one in enumerate(searches):
        groups.setdefault((id(one.gallery), one.condition), []).append(i)
    found: list[list[tuple[str, float]]] = [[] for _ in searches]
    for places in groups.values():
        first = searches[places[0]]
        k = max(searches[i].k for i in places)
        vectors = np.stack([searches[i].vector for i in places])
        rows = first.gallery.search(vectors, k, first.condition)
        for i, row in zip(places, rows, strict=True):
            found[i] = row[: searches[i].k]
    return found
