"""An index and the folder of its pictures → what one request sees of them, while it lasts.

Pictures are found by id alone. An id is looked up among the index's own, and only then becomes a
path; a path that leads out of the folder, by a link for instance, is no picture.
"""

import contextlib
import os
import stat
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vizsla.errors import StorageError
from vizsla.search import index_files
from vizsla.search.filters import Filter
from vizsla.search.folder_index import FolderIndex
from vizsla.web.search.attributes import REPLACED, Known, Labels, labelled
from vizsla.web.search.filters import Facet, facets_of

SAMPLE = 4096  # vectors over which scores are standardised
MASKS = 32  # of conditions, remembered


@dataclass(frozen=True, eq=False)
class Gallery:
    """One state of an index. Changes give a new Gallery and leave this one as it is.

    attributes: the index's, with what `labels` tells in place of its own labels.
    """

    index: FolderIndex
    root: Path
    ids: list[str]
    attributes: pa.Table
    version: str  # another one after every change
    labels: Labels | None = None

    @staticmethod
    def of(index: FolderIndex, root: Path, labels: Labels | None = None) -> "Gallery":
        index = index.at_this_moment()
        ids, attributes = index.ids, index.attributes
        if labels is not None:
            attributes = labelled(attributes, labels(ids))
        real = Path(os.path.realpath(root))
        return Gallery(index, real, ids, attributes, index.version, labels)

    def followed_by(self, index: FolderIndex) -> "Gallery":
        """Another state, of the same pictures' folder and labels."""
        return Gallery.of(index, self.root, self.labels)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    @cached_property
    def sample(self) -> np.ndarray:
        """(≤ 4096, D) float32: gallery vectors, evenly drawn."""
        n = len(self)
        rows = np.arange(n) if n <= SAMPLE else np.linspace(0, n - 1, SAMPLE).astype(np.int64)
        return self.index.vectors(rows)

    def warm_up(self) -> None:
        """What the first request would have to wait for; pages of the vectors come into memory.

        StorageError where its files are gone meanwhile, replaced by another state's.
        """
        assert len(self.place) == len(self.sample[:0]) + len(self)
        self.facets  # noqa: B018
        if len(self):
            self.search(self.sample[:1], 1, None)

    # ── what it knows of an image ────────────────────────────────────────────────────────────────

    def vector(self, name: str) -> np.ndarray:
        """(D,) float32; KeyError for an id that is not there."""
        return self.index.vectors(np.array([self.place[name]]))[0]

    def described(self, name: str) -> dict[str, Any]:
        """label and attributes, as JSON has them."""
        place = self.place.get(name)
        if place is None:  # added, or removed, a moment ago
            return {"label": None, "attributes": {}}
        row = self.attributes.slice(place, 1).to_pylist()[0] if self.attributes.num_columns else {}
        return {
            "label": _plain(row.pop("label", None)),
            "attributes": {key: _plain(value) for key, value in row.items()},
        }

    def path(self, name: str) -> Path | None:
        """The picture's file; None where there is none below the folder, or no such id."""
        if name not in self.place:
            return None
        return inside(self.root, name)

    @cached_property
    def facets(self) -> list[Facet]:
        return facets_of(self.attributes)

    # ── searching ────────────────────────────────────────────────────────────────────────────────

    def spread(self, vector: np.ndarray) -> float:
        """The standard deviation of a vector's scores over the gallery."""
        return float(np.std(self.sample @ np.asarray(vector, np.float32)))

    @cached_property
    def _masks(self) -> OrderedDict[Filter, np.ndarray]:
        return OrderedDict()

    def allowed(self, condition: Filter) -> np.ndarray:
        """(G,) bool: the images that may be found; remembered for the latest conditions."""
        found = self._masks.get(condition)
        if found is None:
            found = condition.mask(self.ids, self.attributes)
            self._masks[condition] = found
            while len(self._masks) > MASKS:
                with contextlib.suppress(KeyError):  # another thread was here
                    self._masks.popitem(last=False)
        return found

    def search(
        self, vectors: np.ndarray, k: int, condition: Filter | None
    ) -> list[list[tuple[str, float]]]:
        """For each of (Q, D) unit vectors the k best, (id, score); fewer where there are fewer."""
        k = min(k, len(self.index))
        if k == 0:
            return [[] for _ in vectors]
        known = None
        if condition is not None:
            known = Known(condition.conditions, condition.ids, self.allowed(condition))
        ranking = self.index.search(vectors, k, known, model_id=self.index.model_id)
        if ranking.gallery is not self.ids:  # another state's answer, under this one's name
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


def inside(root: Path, name: str) -> Path | None:
    """The regular file root/name, unless that is, or leads, outside of `root` (a real path)."""
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
    """As JSON has it; NaN and infinity are unknown there."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def version_of(folder: Path) -> str:
    """Of the index that lies in the folder now, as `Gallery.version`."""
    return index_files.version_of(index_files.read_manifest(folder))


@dataclass(frozen=True, eq=False)
class Search:
    """One of those that are answered together."""

    gallery: Gallery
    vector: np.ndarray
    k: int
    condition: Filter | None


def search_all(searches: list[Search]) -> list[list[tuple[str, float]]]:
    """Those of one gallery and one filter as one product of matrices."""
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
