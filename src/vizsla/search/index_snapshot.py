"""What a search of an index in a folder sees: its files, and a structure read when it is needed."""

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from vizsla import storage
from vizsla.search import exact
from vizsla.search.ann import Allowed, Outside, Structure
from vizsla.search.exact import Rows
from vizsla.search.index_files import Stored


class Loaded:
    """The structure of an index, read when it is first needed."""

    def __init__(self, structure: Structure | None = None) -> None:
        self._structure = structure
        self._reading = threading.Lock()

    def of(self, stored: Stored) -> Structure | None:
        entry = stored.manifest.get("structure")
        if entry is None:
            return None
        with self._reading:
            if self._structure is None:
                path = stored.folder / entry["file"]
                storage.verify(path, entry["sha256"])  # it was opened some time ago, perhaps
                written, rows = in_file(entry), np.arange(entry["rows"])
                structure = Structure.load(path, stored.manifest["kind"], written)
                structure.add(Rows(stored.vectors), rows[written:])
                self._structure = structure
            return self._structure


@dataclass(frozen=True, eq=False)
class State:
    """What one search sees, whatever is added meanwhile."""

    stored: Stored
    loaded: Loaded
    device: str
    precision: str

    @cached_property
    def resident(self) -> Any:
        """The vectors on a GPU, where they fit."""
        return exact.on_device(self.stored.vectors, self.device, self.precision)

    @cached_property
    def outside(self) -> Outside:
        """What a search looks at one and all, beside the structure."""
        entry = self.stored.manifest["structure"]
        every = Outside.of(Rows(self.stored.vectors), entry["rows"], np.array(entry["apart"], int))
        return every.only(self.stored.alive)

    def allowed(self, rows: np.ndarray) -> Allowed | None:
        """These rows, of those that are not removed; None where none is left out."""
        if len(rows) == len(self.stored.ids):
            return None
        if len(rows) == len(self.rows):
            return self._alive
        mask = np.zeros(len(self.stored.ids), bool)
        mask[rows] = True
        return Allowed.of(mask, self.stored.manifest["structure"]["rows"])

    @cached_property
    def _alive(self) -> Allowed:
        return Allowed.of(self.stored.alive, self.stored.manifest["structure"]["rows"])

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of every gallery position."""
        return np.flatnonzero(self.stored.alive)

    @cached_property
    def position_of(self) -> np.ndarray:
        """The gallery position of every row; -1 for the removed, and for row -1."""
        positions = np.full(len(self.stored.ids) + 1, -1)
        positions[self.rows] = np.arange(len(self.rows))
        return positions

    @cached_property
    def ids(self) -> list[str]:
        if not len(self.stored.removed):
            return self.stored.ids
        return [self.stored.ids[row] for row in self.rows]

    @cached_property
    def attributes(self) -> pa.Table:
        if not len(self.stored.removed):
            return self.stored.attributes
        return self.stored.attributes.take(self.rows)

    def __len__(self) -> int:
        return len(self.stored.ids) - len(self.stored.removed)


def in_file(structure: dict[str, Any]) -> int:
    """How many of the rows, as they were written."""
    return int(structure.get("in_file", structure["rows"]))
