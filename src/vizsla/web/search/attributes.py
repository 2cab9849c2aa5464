"""The attributes of an index → those that are served, and those of an image that is added.

Knows tables and conditions; no pictures, no requests.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from vizsla.errors import DataError, StorageError
from vizsla.search.filters import Filter

Labels = Callable[[Sequence[str]], Sequence[str | None]]  # of ids; None where it tells none
REPLACED = "the index was replaced while it was read: ask again"


@dataclass(frozen=True, eq=False)
class Known(Filter):
    """A condition that has been looked at: the attributes may be others than the index's own."""

    allowed: np.ndarray | None = None

    def mask(self, ids: Sequence[str], attributes: pa.Table) -> np.ndarray:
        if self.allowed is None or len(self.allowed) != len(ids):
            raise StorageError(REPLACED)
        return self.allowed


def labelled(attributes: pa.Table, labels: Sequence[str | None]) -> pa.Table:
    """The labels in place of the table's own, which stay where they tell none."""
    columns = {name: attributes[name] for name in attributes.column_names}
    own = columns["label"].to_pylist() if "label" in columns else [None] * len(labels)
    merged = [
        label if label is not None or had is None else str(had)
        for label, had in zip(labels, own, strict=True)
    ]
    return pa.table({**columns, "label": pa.array(merged, pa.string())})


def row_of(attributes: Mapping[str, str], known: pa.Table) -> pa.Table:
    """One row with the gallery's columns; DataError for other columns or values."""
    unknown = [name for name in attributes if name not in known.column_names]
    if unknown:
        names = ", ".join(known.column_names) or "none"
        raise DataError(f"the gallery has no attribute {unknown[0][:60]!r}: it has {names}")
    columns = {}
    for column in known.column_names:
        kind = known[column].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        try:
            value = attributes.get(column)
            columns[column] = pa.array(
                [None if value is None else pa.scalar(value).cast(kind)], kind
            )
        except (ValueError, pa.ArrowException) as error:  # UnicodeEncodeError too
            raise DataError(f"{column} holds {kind}, not {attributes[column][:60]!r}") from error
    return pa.table(columns)
