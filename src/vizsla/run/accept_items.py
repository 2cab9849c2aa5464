"""A gallery with several pictures of some items → the Calibration of --accept, without other data.

Some pictures are queries, others the gallery, and whole items are absent: as in a run's training
part (data/absent_classes.py).
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vizsla.data.absent_classes import FEWEST_CLASSES, draws_with_absent_classes
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target
from vizsla.data.tables import ITEM_COLUMNS, item_column_in, value_text
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.run.accepting import Accept
from vizsla.score.calibration import SURE, Calibration
from vizsla.score.calibration_draws import at_most, judged_draws
from vizsla.search import exact
from vizsla.search.filters import no_attribute
from vizsla.workspace import is_run

log = logging.getLogger("vizsla.run")

MOST_IMAGES = 20_000  # of a gallery, that are learned from


def learns_from_items(accept: Accept, gallery: Any) -> bool:
    """Whether no calibration is named, and the gallery is no run, which has its own."""
    return accept.file is None and not (isinstance(gallery, str | Path) and is_run(gallery))


def calibration_of_items(
    gallery: Embeddings,
    accept: Accept,
    *,
    column: str | None = None,
    source: str = "the gallery",
    seed: int = 0,
) -> Calibration:
    """Learned on the gallery's own images: the scores between pictures of one item and of others.

    column: names the item of each image; by default the label, else one that is called product,
    item, …. The verdict is logged. UsageError: there is no such column, or images have tiles.
    DataError: too few items have two pictures.
    """
    if gallery.tiles is not None:
        raise UsageError(
            "--accept learns from whole pictures, and this gallery has vectors of tiles: index it "
            "without --tiles, or leave out --accept"
        )
    column = column or _column_of(gallery, accept)
    if column not in gallery.attributes.column_names:
        raise no_attribute(column, gallery.attributes.column_names)
    values = gallery.attributes[column].to_pylist()
    rows = np.array([i for i, value in enumerate(values) if value is not None], np.int64)
    items = pa.array([value_text(values[i]) for i in rows], pa.string())
    images = ImageSet(
        gallery.root or Path(), [gallery.ids[i] for i in rows], pa.table({"label": items})
    )
    counts = np.unique(items.to_numpy(zero_copy_only=False).astype(str), return_counts=True)[1]
    several = int((counts > 1).sum())
    if several < FEWEST_CLASSES:
        raise DataError(
            f"--accept learns from items with two pictures or more, by the column {column}, and "
            f"{several} of the {len(counts)} in {source} have so many: give {FEWEST_CLASSES} or "
            "more, better hundreds, or the file of a calibration"
        )
    if len(images) > MOST_IMAGES:
        log.warning(
            "--accept is learned among %d of the %d images: among all, more of what is accepted "
            "may be wrong", MOST_IMAGES, len(images),
        )  # fmt: skip
        images = at_most(images, MOST_IMAGES, seed=seed)
    most = int(counts.max())  # so the draws have all pictures of three quarters of the items
    draws = draws_with_absent_classes(
        images, Target(gallery=most * len(counts), per_class=most), seed=seed
    )
    found = judged_draws([gallery], images, draws).calibration(
        sure=accept.sure or SURE, source=f"{source}, by the column {column}"
    )
    found = dataclasses.replace(found, class_column=column)
    if found.cutoff is None:
        near = ", ".join(most_similar_items(gallery, images))
        advice = near and (
            f"; the most similar images of different items are {near}: if two of them show one "
            f"item, give both the same {column}, or remove the copy (`vizsla check FOLDER --table "
            f"FILE --group-by {column}`)"
        )
        log.warning("by %s: %s%s", column, found.verdict, advice)
    else:
        log.info("by %s: %s", column, found.verdict)
    return found


def most_similar_items(gallery: Embeddings, images: ImageSet, n: int = 3) -> list[str]:
    """The n pairs of images of two items with the highest cosine, as text."""
    vectors = gallery.of_images(images.ids).vectors
    items = np.array(images.labels)
    found, scores = exact.top_k(vectors, vectors, min(20, len(vectors)))
    a, column = np.nonzero(items[found] != items[:, None])
    b = found[a, column]
    pairs = {
        (-float(scores[i, k]), min(i, j), max(i, j))
        for i, j, k in zip(a.tolist(), b.tolist(), column.tolist(), strict=True)
    }
    return [
        f"{images.ids[i]} and {images.ids[j]} ({-score:.2f})" for score, i, j in sorted(pairs)[:n]
    ]


def _column_of(gallery: Embeddings, accept: Accept) -> str:
    """The column that says which images show one item."""
    columns = gallery.attributes.column_names
    column = "label" if "label" in columns else item_column_in(columns)
    if column is None:
        known = f"has only {', '.join(columns)}" if columns else "came without a table"
        raise UsageError(
            f"--accept {accept.sure:g} learns from images that show one item, and needs a column "
            f"that says which do: label, or one of {', '.join(ITEM_COLUMNS)}; the gallery {known}. "
            "Name it by --group-by COLUMN (in `search`), index with --table FILE, or give a "
            f"calibration (--accept runs/ID@{accept.sure:g})"
        )
    return column
