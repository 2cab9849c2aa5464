"""A condition that no image meets → a sentence with the values that there are."""

import difflib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from vizsla.data.listing import few
from vizsla.data.tables import value_text

MOST_COMPARED = 1_000  # different values: the most frequent ones
NEAREST = 3
FEW_VALUES = 10  # of which all are named, the nearest first


def unmet_hint(condition: str, wanted: Sequence[str], column: pa.ChunkedArray) -> str:
    """Such as `no image has category=canon; nearest values: cameras, cases, coats`. For numbers,
    days and times it names the lowest and the highest value.

    condition: as it is written. wanted: the texts that it allows. column: the values of all images.
    """
    known = column.drop_null()
    if pa.types.is_dictionary(known.type):
        known = known.cast(known.type.value_type)
    said = f"no image has {few([condition])}"
    if len(known) == 0:
        return f"{said}: none has a value there"
    if pa.types.is_floating(known.type):
        known = known.filter(pc.is_finite(known))
    if not (pa.types.is_string(known.type) or pa.types.is_large_string(known.type)):
        if pa.types.is_boolean(known.type) or pa.types.is_nested(known.type) or not len(known):
            return said
        ends = pc.min_max(known).as_py()
        return f"{said}; its values are from {value_text(ends['min'])} to {value_text(ends['max'])}"
    if not wanted:
        return said
    counts = sorted(pc.value_counts(known).to_pylist(), key=lambda pair: -pair["counts"])
    values = [pair["values"] for pair in counts[:MOST_COMPARED]]
    each = len(values) if len(values) <= FEW_VALUES else max(1, NEAREST // len(wanted))
    near = [one for value in wanted for one in nearest_values(value, values, each)]
    return f"{said}; nearest values: {few([*dict.fromkeys(near)], FEW_VALUES)}"


def nearest_values(wanted: str, values: Sequence[str], n: int) -> list[str]:
    """Up to n of the values: those that contain the text first, whatever the case, then those
    that share most letters with it."""
    folded = wanted.strip().casefold()
    holds = [value for value in values if folded and folded in value.casefold()]
    others = {value.casefold(): value for value in values if value not in holds}
    found = difflib.get_close_matches(folded, others, n, 0.0)
    return [*holds, *(others[name] for name in found)][:n]
