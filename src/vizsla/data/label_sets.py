"""A label that stands for several, or for a path in a hierarchy → which labels share one.

Several labels of an image are one text, such as `dog¦pet`; the levels of a hierarchy are parted by
`/`, as in `animal/dog/vizsla`. Knows no images, ranks or metrics.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

SEPARATOR = "¦"  # between the labels of one image
LEVELS = "/"  # between the levels of one label


def labels_in(label: str | None) -> list[str]:
    """The labels that one text stands for: `dog¦pet` → dog, pet; none for None."""
    parts = (label or "").split(SEPARATOR)
    return [part.strip() for part in parts if part.strip()]


def join_labels(labels: Iterable[str | None]) -> str | None:
    """One text for several labels, each once, in the order of the alphabet; None without any."""
    return SEPARATOR.join(sorted({label for label in labels if label})) or None


def split_labels(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """The labels of a column of text that are parted by another separator, such as `|`."""
    values = column.unique()
    found = [value and join_labels(part.strip() for part in value.split(separator))
             for value in values.to_pylist()]  # fmt: skip
    return pa.chunked_array([pa.array(found, pa.string()).take(pc.index_in(column, values))])


def are_sets(labels: Iterable[str | None]) -> bool:
    """Whether any of the texts stands for several labels."""
    return any(label is not None and SEPARATOR in label for label in labels)


def distinct_labels(labels: Iterable[str | None]) -> set[str]:
    """Every single label that occurs."""
    return {one for label in set(labels) for one in labels_in(label)}


def share_a_label(queries: Sequence[str], gallery: Sequence[str]) -> np.ndarray:
    """(Q, G) bool: whether two images have the same label, or share one of several."""
    if are_sets(queries) or are_sets(gallery):
        return SharedLabels(queries, gallery).relevant(np.arange(len(queries)))
    same: np.ndarray = np.array(queries)[:, None] == np.array(gallery)[None]
    return same


class SharedLabels:
    """Which of Q labels share one with which of G labels, and how many levels they have in common.

    level: labels are paths, and share one if their first `level` parts are equal, or all of them.
    None: labels are whole.
    """

    def __init__(
        self,
        queries: Sequence[str | None],
        gallery: Sequence[str | None],
        level: int | None = None,
    ) -> None:
        texts = list(dict.fromkeys(gallery))
        code = {text: i for i, text in enumerate(texts)}
        self.codes = np.array([code[text] for text in gallery], np.int64)  # (G,) into `texts`
        self._shared = _tables(queries, texts, [level])[0]
        depth = max((len(p.split(LEVELS)) for t in texts for p in labels_in(t)), default=0)
        # Two labels have d levels in common if their first d parts are equal and are d parts.
        self._depths = [] if level is None else _tables(queries, texts, range(1, depth + 1), True)

    def relevant(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, G) bool: whether these queries share a label with each image of the gallery."""
        return _product(self._shared, rows)[:, self.codes]

    def depths(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, G) int64: levels that the nearest two labels have in common; needs a level."""
        found = np.zeros((len(rows), self._shared[1].shape[0]), np.int64)
        for table in self._depths:
            found += _product(table, rows)
        return found[:, self.codes]


_Table = tuple[sparse.csr_matrix, sparse.csr_matrix]  # (Q, L) and (U, L): who has which label


def _tables(
    queries: Sequence[str | None],
    texts: Sequence[str | None],
    levels: Iterable[int | None],
    whole: bool = False,
) -> list[_Table]:
    """whole: only paths that are as long as the level."""
    tables = []
    for level in levels:
        sides = [[_at_level(text, level, whole) for text in side] for side in (queries, texts)]
        code = {
            key: i for i, key in enumerate(sorted({k for s in sides for keys in s for k in keys}))
        }
        tables.append((_membership(sides[0], code), _membership(sides[1], code)))
    return tables


def _at_level(text: str | None, level: int | None, whole: bool) -> set[str]:
    paths = (label.split(LEVELS) for label in labels_in(text))
    return {LEVELS.join(path[:level]) for path in paths if not whole or len(path) >= (level or 0)}


def _membership(keys: Sequence[Collection[str]], code: dict[str, int]) -> sparse.csr_matrix:
    columns = [code[key] for row in keys for key in row]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in keys])])
    ones = np.ones(len(columns), np.int32)
    return sparse.csr_matrix((ones, columns, starts), shape=(len(keys), max(1, len(code))))


def _product(table: _Table, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    shared: np.ndarray = (table[0][rows] @ table[1].T).toarray() > 0
    return shared
