"""A model and a gallery → answers. Knows no HTTP; safe to use from many threads.

An answer is made from one state of the gallery, taken once at its start: replacing the index is
one assignment, and whoever is being answered meanwhile goes on with the state that they began with.
"""

import hashlib
import io
import logging
import os
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from vizsla import storage
from vizsla.errors import DataError, ImageError, UsageError, VizslaError
from vizsla.model.embeddings import Embeddings
from vizsla.output.why import overlaid
from vizsla.search.filters import Filter
from vizsla.search.index import FolderIndex
from vizsla.web.serve_decoder import Decoder
from vizsla.web.serve_gallery import Gallery, parse_filter, version_of
from vizsla.web.serve_metrics import Metrics
from vizsla.web.serve_model import Batcher, Model
from vizsla.web.serve_pictures import (
    EXTENSIONS,
    SIDES,
    Thumbnails,
    Upload,
    Uploads,
    media_type,
    name_of,
)
from vizsla.web.serve_query import Asked, Examples, query_vector

log = logging.getLogger("vizsla.serve")

SEARCHES_AT_ONCE = 32
TEXTS_KEPT, WHYS_KEPT = 1000, 100
WATCHED_EVERY = 1.0  # s
WHY_SIDE = 448  # px
ADDED = "added"  # the folder, below the gallery's, of what came in over the API
LONGEST_NAME = 100  # characters


class NotThere(VizslaError):
    """An id that the gallery does not have, or an upload that is no longer kept."""


@dataclass(frozen=True)
class Found:
    """One result. label, attributes: as JSON has them."""

    id: str
    score: float
    label: Any
    attributes: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Answer:
    """uploads: the names of the pictures that were sent along, for a link to this search."""

    results: list[Found]
    uploads: list[str]
    gallery: Gallery


class Engine:
    def __init__(
        self,
        model: Model,
        gallery: Gallery,
        decoder: Decoder,
        *,
        metrics: Metrics | None = None,
        thumbnails: Thumbnails | None = None,
        watched: bool = False,  # another process may replace the index in its folder
        at_close: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.gallery, self.decoder = model, gallery, decoder
        self.metrics = metrics or Metrics()
        self.uploads = Uploads()
        self.thumbnails = thumbnails or Thumbnails(decoder)
        self._searches: Batcher[_Search, list[tuple[str, float]]] = Batcher(
            _search_all, most=SEARCHES_AT_ONCE, wait=0.0
        )
        self._text = lru_cache(TEXTS_KEPT)(lambda words: model.text(words).result())
        self._whys: OrderedDict[tuple[str, str, str], tuple[bytes, bytes]] = OrderedDict()
        self._why_lock = threading.Lock()
        self._changing = threading.RLock()
        self._closed = threading.Event()
        self._at_close = at_close
        self.metrics.gallery_size(len(gallery))
        if watched:
            threading.Thread(target=self._watch, name="serve-watch", daemon=True).start()

    def warm_up(self) -> None:
        self.model.warm_up()
        self.gallery.warm_up()

    def close(self, *, keep_decoder: bool = False) -> None:
        self._closed.set()
        self._searches.close()
        self.model.close()
        if not keep_decoder:
            self.decoder.close()
        if self._at_close is not None:
            self._at_close()

    # ── searching ────────────────────────────────────────────────────────────────────────────────

    def answer(self, asked: Asked, files: Sequence[bytes] = ()) -> Answer:
        """files: pictures sent along, beside what `asked` names."""
        gallery = self.gallery
        condition = parse_filter(asked.filter, gallery.attributes)
        uploads = self.upload(files)
        vector = self._vector(asked, uploads, gallery)
        found = self._searches.submit(_Search(gallery, vector, asked.k, condition)).result()
        results = [Found(name, score, **gallery.described(name)) for name, score in found]
        return Answer(results, [upload.name for upload in uploads], gallery)

    def upload(self, files: Sequence[bytes]) -> list[Upload]:
        """Decoded, embedded and kept for a while; ImageError for what is no picture."""
        known = {name_of(data): data for data in files}
        kept = {name: self.uploads.get(name) for name in known}
        framing, side = self.model.framing, SIDES["large"]
        decoding = {
            name: self.decoder.decode(data, framing=framing, jpeg_side=side)
            for name, data in known.items()
            if kept[name] is None
        }
        embedding: dict[str, Future[np.ndarray]] = {}
        for name, future in decoding.items():
            pixels = future.result().pixels
            assert pixels is not None
            embedding[name] = self.model.image(pixels)
        for name, vectors in embedding.items():
            decoded = decoding[name].result()
            assert decoded.pixels is not None and decoded.jpeg is not None
            vector = with_direction(vectors.result())
            kept[name] = Upload(name, decoded.size, vector, decoded.pixels, decoded.jpeg)
            self.uploads.add(kept[name])  # type: ignore[arg-type]
        return [found for name in known if (found := kept[name]) is not None]

    def text_vector(self, words: str) -> np.ndarray:
        if not self.model.reads_text:
            raise UsageError(
                f"{self.model.name} reads no text: send a picture, or serve a CLIP, SigLIP or PE "
                "model"
            )
        return with_direction(self._text(words))

    def random(self, k: int, seed: int, filter: Sequence[str] = ()) -> tuple[list[Found], Gallery]:
        """Some pictures to start with; the same for a seed."""
        gallery = self.gallery
        condition = parse_filter(filter, gallery.attributes)
        names: Sequence[str] = gallery.ids
        if condition is not None:
            mask = condition.mask(gallery.ids, gallery.attributes)
            names = [gallery.ids[i] for i in np.flatnonzero(mask)]
        drawn = random.Random(seed).sample(names, min(k, len(names)))
        nan = float("nan")
        return [Found(name, nan, **gallery.described(name)) for name in drawn], gallery

    def _vector(self, asked: Asked, uploads: Sequence[Upload], gallery: Gallery) -> np.ndarray:
        def of_ids(names: Sequence[str]) -> list[np.ndarray]:
            unknown = [name for name in names if name not in gallery.place]
            if unknown:
                raise NotThere(f"the gallery has no image {unknown[0][:200]!r}")
            return [gallery.vector(name) for name in names]

        def of_uploads(names: Sequence[str]) -> list[np.ndarray]:
            return [self.kept_upload(name).vector for name in names]

        examples = Examples(
            images=[*(u.vector for u in uploads), *of_uploads(asked.query), *of_ids(asked.id)],
            not_images=[*of_uploads(asked.not_query), *of_ids(asked.not_id)],
            texts=[self.text_vector(asked.text)] if asked.text else [],
            not_texts=[self.text_vector(asked.not_text)] if asked.not_text else [],
            right=of_ids(asked.right),
            wrong=of_ids(asked.wrong),
        )
        if asked.is_empty and not uploads:
            raise UsageError("nothing to search with: send an image, an id of the gallery, or text")
        return query_vector(
            examples,
            gallery.spread,
            image_weight=asked.image_weight,
            text_weight=asked.text_weight,
        )

    def kept_upload(self, name: str) -> Upload:
        found = self.uploads.get(name)
        if found is None:
            raise NotThere(
                "the picture behind this link is no longer kept: the server forgets uploads when "
                "it is started anew, or when many others came. Search with it again"
            )
        return found

    # ── why ──────────────────────────────────────────────────────────────────────────────────────

    def why(self, asked: Asked, result: str) -> tuple[bytes, bytes]:
        """Two JPEGs, the first picture that was asked with and a result: what is alike glows.

        NotThere where no picture was asked with.
        """
        gallery = self.gallery
        if asked.query:
            name, pixels = asked.query[0], self.kept_upload(asked.query[0]).pixels
        elif asked.id:
            name, pixels = asked.id[0], self._pixels(gallery, asked.id[0])
        else:
            raise NotThere("where pictures are alike is only shown for a search with a picture")
        key = (name, result, gallery.version)
        with self._why_lock:  # both halves are asked for at once: the second finds the first's
            if key not in self._whys:
                self._whys[key] = self._explained(pixels, self._pixels(gallery, result))
                while len(self._whys) > WHYS_KEPT:
                    self._whys.popitem(last=False)
            return self._whys[key]

    def _explained(self, query: np.ndarray, result: np.ndarray) -> tuple[bytes, bytes]:
        found = self.model.explain(query, result)
        densities = [heat * heat.size for heat in (found.query, found.result)]
        highest = max(float(heat.max()) for heat in densities)
        drawn = [
            _glowing(pixels, heat, highest)
            for pixels, heat in zip((query, result), densities, strict=True)
        ]
        return drawn[0], drawn[1]

    def _pixels(self, gallery: Gallery, name: str) -> np.ndarray:
        path = self.picture(name, gallery)
        pixels = self.decoder.decode(path, framing=self.model.framing).result().pixels
        assert pixels is not None
        return pixels

    def picture(self, name: str, gallery: Gallery | None = None) -> Path:
        """The file of an id; NotThere where the gallery has none."""
        path = (gallery or self.gallery).path(name)
        if path is None:
            raise NotThere("the gallery has no such image, or its file is not there")
        return path

    # ── changing the gallery ─────────────────────────────────────────────────────────────────────

    def add(
        self, data: bytes, *, name: str = "", attributes: Mapping[str, str] | None = None
    ) -> str:
        """The new image's id: its file lies in the folder `added` below the gallery's.

        DataError for what does not fit, ImageError for what is no picture.
        """
        kind = media_type(data[:16])
        (upload,) = self.upload([data])
        if kind is None:
            raise ImageError("only JPEG, PNG, WebP and GIF can be added")
        name = f"{ADDED}/{_file_name(name) or upload.name[:16]}{EXTENSIONS[kind]}"
        with self._changing:
            gallery = self.gallery
            file = gallery.root / name
            if name in gallery.place or file.exists():
                raise DataError(f"the gallery has an image {name!r} already")
            row = _row(attributes or {}, gallery.attributes)
            new = Embeddings([name], upload.vector[None], row, self.model.model_id)
            if Path(os.path.realpath(file.parent)) != gallery.root / ADDED:
                raise DataError(f"the folder {ADDED} leads out of the gallery's")
            storage.write_bytes(file, data)
            try:
                index = gallery.index.at_this_moment()  # a search under way keeps the old one
                index.add(new)
            except BaseException:
                file.unlink(missing_ok=True)
                raise
            self._replace(Gallery.of(index, gallery.root))
        return name

    def remove(self, name: str) -> None:
        """Takes an image out of the gallery. Only files that came in over the API are deleted."""
        with self._changing:
            gallery = self.gallery
            if name not in gallery.place:
                raise NotThere("the gallery has no such image")
            path = gallery.path(name)
            index = gallery.index.at_this_moment()
            index.remove([name])
            self._replace(Gallery.of(index, gallery.root))
            if path is not None and name.startswith(f"{ADDED}/"):
                path.unlink(missing_ok=True)

    def reload(self) -> bool:
        """Takes over the index that lies in the folder now; whether it was another one.

        It is opened, checked and warmed before it takes the old one's place. DataError where it
        holds another model's vectors: the old one stays.
        """
        with self._changing:
            before = self.gallery
            folder = before.index.folder
            if version_of(folder) == before.version:
                return False
            index = FolderIndex.load(folder)
            if index.model_id != self.model.model_id:
                raise DataError(
                    f"the new index holds vectors of model {index.model_id}, this server's is "
                    f"{self.model.model_id}: the old one stays"
                )
            after = Gallery.of(index, before.root)
            after.warm_up()
            self._replace(after)
            log.info("the index was replaced: %d images", len(after))
            return True

    def _replace(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.metrics.gallery_size(len(gallery))

    def _watch(self) -> None:
        refused = ""
        while not self._closed.wait(WATCHED_EVERY):
            version = "no manifest"
            try:
                version = version_of(self.gallery.index.folder)
                if version not in (self.gallery.version, refused):
                    self.reload()
            except Exception as error:  # whatever lies there now, the old one goes on
                if version != refused:
                    log.warning("the index cannot be replaced: %s", error)
                refused = version


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class _Search:
    gallery: Gallery
    vector: np.ndarray
    k: int
    condition: Filter | None


def _search_all(searches: list[_Search]) -> list[list[tuple[str, float]]]:
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


def with_direction(vector: np.ndarray) -> np.ndarray:
    if not np.isclose(float(np.linalg.norm(vector)), 1, atol=1e-3):
        raise ImageError("the model gives it no direction")
    return vector


def _glowing(pixels: np.ndarray, heat: np.ndarray, highest: float) -> bytes:
    picture = Image.fromarray(pixels)
    scale = WHY_SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    file = io.BytesIO()
    overlaid(picture.resize(size), heat, highest).save(file, "JPEG", quality=90)
    return file.getvalue()


def _file_name(name: str) -> str:
    """A name without folders and extension, in characters that every file system takes."""
    stem = name.replace("\\", "/").rpartition("/")[2]
    stem = stem.rpartition(".")[0] or stem
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stem)
    safe = safe.strip("-")[:LONGEST_NAME]
    return safe if safe == stem else f"{safe}-{_digest(stem)}".strip("-") if stem else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def _row(attributes: Mapping[str, str], known: pa.Table) -> pa.Table:
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
