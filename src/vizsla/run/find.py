"""A photo or words, and a folder → the nearest images in it, without any set-up.

The folder's vectors are kept in the user's cache as an index. A file beside it records the state in
which each image was embedded: only images that were added or changed since are embedded again.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from vizsla import storage
from vizsla.choose.tile_choice import NONE
from vizsla.data.imageset import ImageSet
from vizsla.data.query_box import QueryBox
from vizsla.data.splits import AUTO
from vizsla.data.tiles import Tiles
from vizsla.embed.auto_compute import compute_of
from vizsla.embed.cache import shared_cache
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.errors import DataError, StorageError
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import load_embedder
from vizsla.options import FindOptions, ModelChoice
from vizsla.output.notebook_view import show
from vizsla.progress import LOADING, Report, waiting
from vizsla.run.tile_choice import embedder_with_chosen_tiles
from vizsla.search.folder_index import FolderIndex
from vizsla.search.index_files import is_index
from vizsla.search.queries import encoded, is_text
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.search")

STATES, FORM = "states.json", "found/1"


@dataclass(frozen=True)
class FoundImages:
    """A ranking of a folder's images, and the images with the columns of its metadata file."""

    ranking: Ranking
    images: ImageSet

    def attributes_of(self, ids: Sequence[str]) -> pa.Table:
        """The columns of these images, a row each."""
        row_of = {name: i for i, name in enumerate(self.images.ids)}
        return self.images.subset(row_of[name] for name in ids).attributes


def find(
    query: Any, folder: str | Path, options: FindOptions, progress: Report | None = None
) -> FoundImages:
    """The images of a folder that are nearest to a photo (a path or a PIL image) or to words.

    options.labels: a table whose columns the found images get.
    DataError: there is no such photo; the folder has no images; the model reads no text.
    """
    listed = ImageSet.from_folder(folder, follow_links=options.follow_links)
    if len(listed) == 0:
        raise DataError(f"{folder} holds no images")
    if options.labels:
        listed = listed.with_labels_file(options.labels)
    images = replace(listed, attributes=pa.table({}))  # they may change while the images do not
    words = is_text(query)
    place = _place(images, options)
    with waiting(progress, LOADING):
        embedder = load_embedder(options, seed=options.seed, tiles_later=True)
    if words and not embedder.reads_text:
        raise DataError(
            f"there is no file {query}, and {embedder.name} reads no text: give a photo, or a "
            "CLIP, SigLIP or PE model with --model"
        )
    box = QueryBox.of(options.box)
    tiles = Tiles.of_query(options.query_tiles)
    vector = encoded([query], embedder, box, tiles)  # first, since the photo may be unreadable
    with storage.locked(place):
        if options.tiles == AUTO:
            embedder = _with_chosen_tiles(place, listed, embedder, options, progress)
            vector = replace(vector, model_id=embedder.model_id)
        index = _updated_index(place, images, embedder, options, progress)
    k = min(options.top_k, len(index))
    return FoundImages(index.search(vector, k, query_tiles=options.query_tiles), listed)


def _with_chosen_tiles(
    place: Path,
    images: ImageSet,
    embedder: Embedder,
    options: FindOptions,
    progress: Report | None,
) -> Embedder:
    """The embedder with the tiles that the folder's index has, or that its labels prefer if there
    is no index yet."""
    with contextlib.suppress(StorageError, DataError):
        if is_index(place / "index"):
            return embedder.with_tiles(
                str(FolderIndex.load(place / "index").view.snapshot.tiles or NONE)
            )
    return embedder_with_chosen_tiles(
        embedder, images, options, partial(compute_of, options, images=images),
        seed=options.seed, max_pixels=options.max_pixels, progress=progress,
    )  # fmt: skip


def _place(images: ImageSet, options: FindOptions) -> Path:
    """The folder of the cache for these images and this model."""
    choice = {f.name: getattr(options, f.name) for f in fields(ModelChoice)}
    table = options.labels if options.tiles == AUTO else None  # whose labels choose the tiles
    known = json.dumps([os.path.realpath(images.root), choice, options.seed, table])
    cache = Path(options.cache) if options.cache else storage.cache_folder()
    return cache / "found" / hashlib.sha256(known.encode()).hexdigest()[:16]


def _updated_index(
    place: Path,
    images: ImageSet,
    embedder: Embedder,
    options: FindOptions,
    progress: Report | None,
) -> FolderIndex:
    """The index of the images as they are now."""
    index, known = _earlier(place, embedder.model_id)
    now = dict(zip(images.ids, images.states(range(len(images))).tolist(), strict=True))
    new = [i for i, name in enumerate(images.ids) if known.get(name) != now[name]]
    gone = [name for name in (index.ids if index else ()) if known.get(name) != now.get(name)]
    if index is not None and len(gone) == len(index):
        index, new = None, list(range(len(images)))
    if index is None:
        shutil.rmtree(place / "index", ignore_errors=True)
    elif gone:
        index.remove(gone)
    if new:
        found = _embedded(
            images.subset(new), embedder, options, progress, may_fail=index is not None
        )
        if index is None:
            assert found is not None
            index = FolderIndex.build(found, place / "index", kind="exact")
        elif found is not None:
            index.add(found)
    assert index is not None
    if new or gone:
        content = {"form": FORM, "model_id": embedder.model_id, "states": now}
        storage.write_sealed_json(place / STATES, content)
    return index


def _earlier(place: Path, model_id: str) -> tuple[FolderIndex | None, dict[str, int]]:
    """The index that an earlier call left, and the state in which it saw each image; none if it is
    damaged, or of another model."""
    with contextlib.suppress(StorageError, DataError):
        if is_index(place / "index") and (place / STATES).is_file():
            found = storage.read_sealed_json(place / STATES)
            index = FolderIndex.load(place / "index")
            if (found.get("form"), found.get("model_id")) == (FORM, index.model_id):
                return (index, found["states"]) if index.model_id == model_id else (None, {})
    return None, {}


def _embedded(
    images: ImageSet,
    embedder: Embedder,
    options: FindOptions,
    progress: Report | None,
    *,
    may_fail: bool,
) -> Embeddings | None:
    """Their vectors; None if none can be read and `may_fail`."""
    compute = compute_of(options, embedder, images)
    with tempfile.TemporaryDirectory(prefix="vizsla-find-") as scratch:
        try:
            return embed(
                images, embedder, scratch, compute=compute, max_pixels=options.max_pixels,
                progress=progress and partial(progress, "embedding"), kept=False,
                cache=shared_cache(options.cache, len(images)),
            )  # fmt: skip
        except DataError as error:
            if not may_fail:
                raise
            log.warning("%s", error)
            return None


def sheet(ranking: Ranking, folder: str | Path, out: Path) -> Path:
    """Writes a page that shows the query and what was found; words are shown as a picture."""
    root = ranking.query_root
    if root is None:
        text = Image.new("RGB", (480, 480), "white")
        font = ImageFont.load_default(40)
        ImageDraw.Draw(text).multiline_text((20, 20), ranking.queries[0], "black", font=font)
        root = out.parent
        (root / ranking.queries[0]).parent.mkdir(parents=True, exist_ok=True)
        text.save(root / ranking.queries[0], format="PNG")
    return show(ranking, images=(root, Path(folder)), k=ranking.depth).save(out)
