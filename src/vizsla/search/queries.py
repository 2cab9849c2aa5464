"""Queries as a user gives them (images, texts, vectors) → Embeddings, by the gallery's model."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from vizsla.data.decoded import upright
from vizsla.data.query_box import QueryBox
from vizsla.data.regions import BOX_COLUMNS
from vizsla.data.tiles import WHOLE, Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.vector_source import VectorSource
from vizsla.errors import DataError, UsageError
from vizsla.search import exact

if TYPE_CHECKING:
    from vizsla.model.embedder import Embedder

EXPECTED = (
    "an image (a path or a PIL image), a text, a list of these, Embeddings, or vectors (Q, D)"
)
PATH = re.compile(r"[/\\]|\.[a-zA-Z]\w{1,7}$")  # what makes a str look like a path, not like words


class QueryEncoder:
    """Queries as vectors of one gallery's model, which is opened when an image or a text comes."""

    def __init__(self, source: VectorSource, model_id: str, gallery: str) -> None:
        self.source, self.model_id, self.gallery = source, model_id, gallery
        self._embedder: Embedder | None = None

    @property
    def embedder(self) -> "Embedder":
        """The model that embedded the gallery. DataError: it is not recorded, or has changed."""
        if self._embedder is None:
            from vizsla.model.open_model import recorded_embedder

            self._embedder = recorded_embedder(self.source.model, self.model_id, self.gallery)
        return self._embedder

    def embeddings(
        self,
        queries: Any,
        model_id: str | None,
        *,
        same_set: bool,
        embedder: Any = None,
        box: QueryBox | None = None,
        tiles: Tiles | None = None,
    ) -> Embeddings:
        """(Q, D). embedder: used in place of the recorded one; it must be the same model.

        box: the part of each image that counts. tiles: of which images get a vector each."""
        items = None if isinstance(queries, Embeddings) else images_and_texts(queries)
        if box is not None and items is None:
            raise UsageError(f"box {box} is a part of an image, but the queries are vectors")
        if isinstance(queries, Embeddings):
            return queries
        if items is None:
            rows = queries if np.ndim(queries) != 1 else np.asarray(queries)[None]
            return exact.as_embeddings(rows, model_id or self.model_id, same_set=same_set)
        if embedder is not None:
            exact.require_comparable(embedder.model_id, self.model_id, embedder.dim, embedder.dim)
        return encoded(items, embedder or self.embedder, box, tiles)


def encoded(
    items: Sequence[Any],
    embedder: "Embedder",
    box: QueryBox | None = None,
    tiles: Tiles | None = None,
) -> Embeddings:
    """The vectors of images and texts. Their ids: paths and texts as written, else positions.

    box: the part of each image that counts; the columns BOX_COLUMNS have it in pixels. tiles: of
    which images, or their parts, get a vector each; UsageError for texts.
    """
    texts = [i for i, item in enumerate(items) if is_text(item)]
    images = [i for i in range(len(items)) if i not in {*texts}]
    if box is not None and texts:
        raise UsageError(f"box {box} is a part of an image, but {items[texts[0]]!r} is a text")
    if tiles is not None and texts:
        raise UsageError(
            f"query_tiles {tiles} are parts of an image, but {items[texts[0]]!r} is a text"
        )
    if tiles is not None:
        found, attributes = _of_tiles(items, embedder, box, tiles)
        root, ids = _named(items)
        return Embeddings(
            ids, found[:, 0], attributes, embedder.model_id, root=root, tiles=tiles,
            tile_vectors=found,
        )  # fmt: skip
    vectors = np.empty((len(items), embedder.dim), np.float32)
    attributes = pa.table({})
    if box is not None:
        parts, attributes = _of_tiles(items, embedder, box, None)
        vectors = parts[:, 0]
    elif images:
        vectors[images] = np.asarray(embedder.encode([items[i] for i in images]))
    if texts:
        vectors[texts] = np.asarray(embedder.encode_text([str(items[i]) for i in texts]).cpu())
    root, ids = _named(items)
    return Embeddings(ids, vectors, attributes, embedder.model_id, root=root)


def _of_tiles(
    images: Sequence[Any], embedder: "Embedder", box: QueryBox | None, tiles: Tiles | None
) -> tuple[np.ndarray, pa.Table]:
    """(Q, S, D) of the tiles of each image, or of this part of it, and where the part is in pixels.

    Without tiles S is 1."""
    rows, places = [], []
    for i, image in enumerate(images):
        whole = upright(image, i)
        if box is not None:
            places.append(box.pixels(whole.size))
            whole = whole.crop(places[-1])
        cut = [QueryBox(*part).cut(whole) for part in (tiles.boxes if tiles else (WHOLE,))]
        rows.append(np.asarray(embedder.encode(cut)))
    columns = zip(BOX_COLUMNS, np.array(places, np.float64).T, strict=True) if box else ()
    return np.stack(rows), pa.table(dict(columns))


def _named(items: Sequence[Any]) -> tuple[Path | None, list[str]]:
    """The id of each item: a path below the folder of all, a text as it is, else its position. And
    that folder, if all are files."""
    files = {i: Path(item) for i, item in enumerate(items) if isinstance(item, str | os.PathLike)}
    files = {i: path for i, path in files.items() if not is_text(str(path))}
    root = Path()
    if any(path.is_absolute() or ".." in path.parts for path in files.values()):
        root = Path(os.path.commonpath([path.absolute().parent for path in files.values()]))
        files = {i: path.absolute().relative_to(root) for i, path in files.items()}
    ids: dict[str, int] = {}
    for i, item in enumerate(items):
        name = files[i].as_posix() if i in files else item if isinstance(item, str) else str(i)
        ids[name if name not in ids else f"{name} ({i})"] = i
    return root if len(files) == len(items) else None, list(ids)


def images_and_texts(queries: Any) -> list[Any] | None:
    """Images and texts as a list; None for vectors. UsageError for anything else."""
    if isinstance(queries, str | os.PathLike | Image.Image):
        return [queries]
    if isinstance(queries, np.ndarray) or hasattr(queries, "__dlpack__"):
        is_image = isinstance(queries, np.ndarray) and queries.dtype == np.uint8
        return [queries] if is_image else None
    if not isinstance(queries, Sequence) or isinstance(queries, bytes):
        raise UsageError(f"queries is of type {type(queries).__name__}: expected {EXPECTED}")
    if all(isinstance(item, str | os.PathLike | Image.Image) for item in queries) and queries:
        return list(queries)
    if all(isinstance(item, Sequence | np.ndarray | float) and not isinstance(item, str)
           for item in queries):  # fmt: skip
        return None  # rows of numbers
    raise UsageError(f"queries is a list with items of other types: expected {EXPECTED}")


def is_text(item: Any) -> bool:
    """Whether it is a text: a str that names no file. DataError if it looks as if it should."""
    if not isinstance(item, str) or Path(item).is_file():
        return False
    if PATH.search(item):
        raise DataError(
            f"there is nothing at {item}: queries are embeddings, a folder of images, images, or "
            "words for a model that reads text"
        )
    return True
