"""Images → the same images with the columns of their EXIF, or grouped by time or place."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from vizsla.data.exif import COLUMNS, Exif, exif_table
from vizsla.data.images import read_header
from vizsla.data.imageset import ImageSet
from vizsla.data.occasions import places, sessions
from vizsla.errors import DataError, ImageError, UsageError

log = logging.getLogger("vizsla.splits")

NEEDED = {"time": ("taken",), "place": ("latitude", "longitude")}
READERS = 8  # threads


def with_exif(images: ImageSet) -> ImageSet:
    """The images with the columns taken (a time), camera, latitude and longitude of their EXIF;
    null where a file has none. A column of these names that is there already stays."""

    def read(i: int) -> Exif:
        try:
            return read_header(images.file(i)).exif
        except ImageError:  # found again, and listed, where the pixels are read
            return Exif()

    with ThreadPoolExecutor(READERS, thread_name_prefix="exif") as pool:
        table = exif_table(pool.map(read, range(len(images))))
    there = images.attributes.column_names
    return images.with_columns(table.select([name for name in COLUMNS if name not in there]))


def grouped_by(images: ImageSet, kind: str) -> ImageSet:
    """The images with a column `group`: the session (kind `time`) or the place in which they were
    taken, joined with the groups that they have.

    From the columns taken, or latitude and longitude, else from EXIF; images without get groups of
    their own. DataError if no image has any.
    """
    if kind not in NEEDED:
        raise UsageError(f"split by {kind!r}: choose {' or '.join(NEEDED)}")
    columns = NEEDED[kind]
    if not {*columns} <= {*images.attributes.column_names}:
        images = with_exif(images)
    kinds = pa.timestamp("us") if kind == "time" else pa.float64()
    values = [_values(images, name, kinds) for name in columns]
    found = sessions(values[0]) if kind == "time" else places(values[0], values[1])
    known = found >= 0
    if not known.any():
        raise DataError(
            f"--split-by {kind}: none of the {len(images)} images has {' and '.join(columns)}, "
            "neither in its EXIF nor in a column of the metadata file: leave it out"
        )
    number = _joined(found, _own_groups(images))
    what = "sessions" if kind == "time" else "places"
    log.info(
        "split by %s: %d of %d images are of %d %s",
        kind, known.sum(), len(images), found.max() + 1, what,
    )  # fmt: skip
    return images.with_attribute("group", [str(i) for i in number])


def _values(images: ImageSet, name: str, kind: pa.DataType) -> list[Any]:
    try:
        found: list[Any] = images.attributes[name].cast(kind).to_pylist()
    except pa.ArrowException as error:
        expected = "times" if pa.types.is_timestamp(kind) else "numbers"
        raise DataError(
            f"the column {name} of {images.location} holds no {expected}: {error}"
        ) from error
    return found


def _own_groups(images: ImageSet) -> list[str | None]:
    there = "group" in images.attributes.column_names
    return images.attributes["group"].to_pylist() if there else [None] * len(images)


def _joined(numbers: np.ndarray, groups: list[str | None]) -> np.ndarray:
    """(N,): a number for all images that a chain of shared numbers and shared groups joins."""
    keys = [*(f"n{n}" if n >= 0 else None for n in numbers), *(g and f"g{g}" for g in groups)]
    rows = [i % len(numbers) for i, key in enumerate(keys) if key is not None]
    ids = np.unique([key for key in keys if key is not None], return_inverse=True)[1]
    n = len(numbers) + ids.max(initial=-1) + 1
    links = sparse.coo_matrix((np.ones(len(rows)), (rows, len(numbers) + ids)), (n, n))
    joined: np.ndarray = sparse.csgraph.connected_components(links, directed=False)[1]
    return joined[: len(numbers)]
