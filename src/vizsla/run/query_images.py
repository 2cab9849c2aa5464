"""Query images, or a part of each → Embeddings, by the runtime that embeds galleries."""

import dataclasses
import tempfile
from functools import partial

import numpy as np
import pyarrow as pa
from PIL import Image

from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet
from vizsla.data.query_box import QueryBox
from vizsla.data.regions import BOX_COLUMNS
from vizsla.data.tiles import Tiles
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.progress import Report


def embedded_images(
    images: ImageSet,
    embedder: Embedder,
    *,
    device: str,
    progress: Report | None,
    box: QueryBox | None = None,
    tiles: Tiles | None = None,
) -> Embeddings:
    """The vectors of images with their attributes; broken ones are left out.

    box: the part of each image that counts; the columns BOX_COLUMNS have it in pixels. tiles: of
    which an image, or its part, gets a vector each. DataError: the box reaches beyond an image.
    """
    places: dict[str, tuple[int, int, int, int]] = {}

    def part(i: int) -> Image.Image:
        assert box is not None
        whole = read_image(images.path(i))
        try:
            places[images.ids[i]] = box.pixels(whole.size)
        except DataError as error:
            raise DataError(f"{images.ids[i]}: {error}") from error
        return whole.crop(places[images.ids[i]])

    with tempfile.TemporaryDirectory(prefix="vizsla-queries-") as folder:
        compute = resolve_compute(
            device=device, embedder=embedder, images=len(images), sample=images.file
        )
        if compute.kind == "cpu":  # a lone query is not one of 32
            compute = dataclasses.replace(compute, batch_size=min(len(images), compute.batch_size))
        found = embed(
            images, embedder, folder, compute=compute, only_whole=True, query_tiles=tiles,
            progress=progress and partial(progress, "embedding"), kept=False,
            picture=None if box is None else part,
        )  # fmt: skip
    if box is None:
        return found
    sides = np.array([places[name] for name in found.ids], np.float64).T  # (4, Q)
    known = {name: found.attributes[name] for name in found.attributes.column_names}
    parts = dict(zip(BOX_COLUMNS, map(pa.array, sides), strict=True))
    return dataclasses.replace(found, attributes=pa.table({**known, **parts}))
