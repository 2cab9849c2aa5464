"""A model and a gallery → answers. Knows no HTTP; safe to use from many threads.

An answer is made from one state of the gallery, taken once at its start: replacing the index is
one assignment, and whoever is being answered meanwhile goes on with the state that they began with.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, ImageError, StorageError, UsageError, VizslaError
from vizsla.search.folder_index import FolderIndex
from vizsla.web.search.attributes import row_of
from vizsla.web.search.batching_model import Batcher, Model, Texts
from vizsla.web.search.decoder import Busy, Closed, Decoded, Decoder
from vizsla.web.search.filters import parse_filter
from vizsla.web.search.gallery import Gallery, Search, search_all, version_of
from vizsla.web.search.prometheus import Metrics
from vizsla.web.search.query import Asked, Examples, query_vector
from vizsla.web.search.similarity_maps import Drawn, Job, Whys, glowing
from vizsla.web.search.thumbnails import (
    EXTENSIONS,
    PREVIEW,
    Thumbnails,
    Upload,
    Uploads,
    media_type,
    name_of,
    safe_name,
)

log = logging.getLogger("vizsla.serve")

SEARCHES_AT_ONCE = 32
WATCHED_EVERY, REFUSED_FOR = 1.0, 30.0  # s; then a state that was refused is tried again
CHANGE_SECONDS, CHANGE_AGAIN = 5.0, 0.1  # that a change waits for another process; between tries
ADDED = "added"  # the folder, below the gallery's, of what came in over the API


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
        own_decoder: Decoder | None = None,
        watched: bool = False,  # another process may replace the index in its folder
        at_close: Callable[[], None] | None = None,
    ) -> None:
        """decoder: for what comes in. own_decoder: for the gallery's pictures, which are trusted
        to be as large as they are; default: the same.
        """
        self.model, self.gallery, self.decoder = model, gallery, decoder
        self.own_decoder = own_decoder or decoder
        self.metrics = metrics or Metrics()
        self.uploads = Uploads()
        self.thumbnails = thumbnails or Thumbnails(self.own_decoder)
        self._searches: Batcher[Search, list[tuple[str, float]]] = Batcher(
            search_all, most=SEARCHES_AT_ONCE, wait=0.0
        )
        self._texts = Texts(model)
        self.whys = Whys(model.aside())
        self._changing = threading.RLock()
        self._closed = threading.Event()
        self._at_close = at_close
        self.metrics.gallery_size(len(gallery))
        if watched:
            threading.Thread(target=self._watch, name="serve-watch", daemon=True).start()

    def warm_up(self) -> None:
        self.model.warm_up()
        self.gallery.warm_up()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def close(self, *, keep_decoder: bool = False) -> None:
        """Whoever is being answered, or asks from now on, gets Closed."""
        self._closed.set()
        self.whys.close()
        if not keep_decoder:
            self.decoder.close()
            self.own_decoder.close()
        self._searches.close()
        self.model.close()
        if self._at_close is not None:
            self._at_close()

    # ── searching ────────────────────────────────────────────────────────────────────────────────

    def answer(self, asked: Asked, files: Sequence[bytes] = ()) -> Answer:
        """files: pictures sent along, beside what `asked` names."""
        self._require_open()
        gallery = self.gallery
        condition = parse_filter(asked.filter, gallery.attributes)
        if condition is not None:
            gallery.allowed(condition)  # looked at here, and not in the one thread of all searches
        uploads = self.upload(files, shown=False)
        vector = self._vector(asked, uploads, gallery)
        found = self._searches.submit(Search(gallery, vector, asked.k, condition)).result()
        results = [Found(name, score, **gallery.described(name)) for name, score in found]
        return Answer(results, [upload.name for upload in uploads], gallery)

    def upload(self, files: Sequence[bytes], *, shown: bool = True) -> list[Upload]:
        """Decoded, embedded and kept for a while, each once; ImageError for what is no picture.

        shown: people will see it large, so a JPEG is kept that is worth it.
        """
        self._require_open()
        known = {name_of(data): data for data in files}
        kept = {name: self.uploads.get(name) for name in known}
        missing = [
            name for name, one in kept.items() if one is None or (shown and not one.is_large)
        ]
        decoding = self._decoding([known[name] for name in missing], shown)
        decoded = [future.result() for future in decoding]
        vectors = self.model.images([one.pixels for one in decoded if one.pixels is not None])
        for name, one, vector in zip(missing, decoded, vectors, strict=True):
            assert one.pixels is not None and one.jpeg is not None
            upload = Upload(
                name, one.size, with_direction(vector.result()), one.pixels, one.jpeg, shown
            )
            self.uploads.add(upload)
            kept[name] = upload
        return [found for name in known if (found := kept[name]) is not None]

    def _decoding(self, files: Sequence[bytes], shown: bool) -> "list[Future[Decoded]]":
        """All under way; none of them where one finds no place."""
        begun: list[Future[Decoded]] = []
        try:
            for data in files:
                begun.append(
                    self.decoder.decode(
                        data, framing=self.model.framing, jpeg_side=PREVIEW, large=shown
                    )
                )
        except (Busy, Closed):
            for future in begun:
                future.cancel()
            raise
        return begun

    def embed(self, files: Sequence[bytes], texts: Sequence[str]) -> list[np.ndarray]:
        """The vectors of pictures, then of texts, each kind through the model together."""
        found = {one.name: one.vector for one in self.upload(files, shown=False)}
        return [*(found[name_of(data)] for data in files), *self.text_vectors(texts)]

    def text_vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """(D,) each; UsageError where the model reads no text."""
        if not texts:
            return []
        self._require_open()
        if not self.model.reads_text:
            raise UsageError(
                f"{self.model.name} reads no text: send a picture, or serve a CLIP, SigLIP or PE "
                "model"
            )
        return [with_direction(vector) for vector in self._texts.vectors(texts)]

    def _require_open(self) -> None:
        if self.is_closed:
            raise Closed

    def random(self, k: int, seed: int, filter: Sequence[str] = ()) -> tuple[list[Found], Gallery]:
        """Some pictures to start with; the same for a seed."""
        gallery = self.gallery
        condition = parse_filter(filter, gallery.attributes)
        names: Sequence[str] = gallery.ids
        if condition is not None:
            names = [gallery.ids[i] for i in np.flatnonzero(gallery.allowed(condition))]
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
            texts=self.text_vectors([asked.text] if asked.text else []),
            not_texts=self.text_vectors([asked.not_text] if asked.not_text else []),
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

    def why(self, asked: Asked, result: str) -> Job:
        """Two JPEGs on their way: the first picture that was asked with, and a result; what makes
        them alike glows. Whoever asked tells `self.whys.leave(job)` at last.

        NotThere where no picture was asked with; Busy where many others wait.
        """
        gallery = self.gallery
        found = self.picture(result, gallery)
        query: Upload | Path
        if asked.query:
            query = self.kept_upload(asked.query[0])
        elif asked.id:
            query = self.picture(asked.id[0], gallery)
        else:
            raise NotThere("where pictures are alike is only shown for a search with a picture")

        def drawn() -> Drawn:
            first = query.pixels if isinstance(query, Upload) else self._pixels(query)
            second = self._pixels(found)
            return glowing(first, second, self.model.explain(first, second))

        try:
            name = query.name if isinstance(query, Upload) else Thumbnails.tag(query)
            key = (name, Thumbnails.tag(found))
        except OSError as error:
            raise NotThere("its file is gone") from error
        return self.whys.ask(key, drawn)

    def _pixels(self, path: Path) -> np.ndarray:
        pixels = self.own_decoder.decode(path, framing=self.model.framing).result().pixels
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
    ) -> tuple[str, str]:
        """The new image's id, and the state of the index that has it.

        Its file lies in the folder `added` below the gallery's. DataError for what does not fit,
        ImageError for what is no picture.
        """
        kind = media_type(data[:16])
        (upload,) = self.upload([data], shown=False)
        if kind is None:
            raise ImageError("only JPEG, PNG, WebP and GIF can be added")
        name = f"{ADDED}/{safe_name(name) or upload.name[:16]}{EXTENSIONS[kind]}"

        def put(gallery: Gallery, index: FolderIndex) -> None:
            file = gallery.root / name
            if name in gallery.place or file.exists():
                raise DataError(f"the gallery has an image {name!r} already")
            row = row_of(attributes or {}, index.attributes)
            new = Embeddings([name], upload.vector[None], row, self.model.model_id)
            if Path(os.path.realpath(file.parent)) != gallery.root / ADDED:
                raise DataError(f"the folder {ADDED} leads out of the gallery's")
            storage.write_bytes(file, data)
            try:
                index.add(new)
            except BaseException:
                file.unlink(missing_ok=True)
                raise

        return name, self._change(put)

    def remove(self, name: str) -> str:
        """Takes an image out of the gallery; the state of the index without it.

        Only files that came in over the API are deleted.
        """

        def take(gallery: Gallery, index: FolderIndex) -> None:
            if name not in gallery.place:
                raise NotThere("the gallery has no such image")
            path = gallery.path(name)
            index.remove([name])
            if path is not None and name.startswith(f"{ADDED}/"):
                path.unlink(missing_ok=True)

        return self._change(take)

    def _change(self, change: Callable[[Gallery, FolderIndex], None]) -> str:
        """`change` gets what is served now, and an index of the same state to change.

        Another process that writes meanwhile is waited for, and what it has left is changed.
        """
        until = time.monotonic() + CHANGE_SECONDS
        with self._changing:
            while True:
                self._require_open()
                gallery = self.gallery
                index = gallery.index.at_this_moment()  # a search under way keeps the old one
                try:
                    change(gallery, index)
                    break
                except StorageError:
                    if self.reload():
                        continue
                    if time.monotonic() > until:
                        raise
                self._closed.wait(CHANGE_AGAIN)
            self._replace(gallery.followed_by(index))
            return self.gallery.version

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
            after = before.followed_by(index)
            self._replace(after)
            log.info("the index was replaced: %d images", len(after))
            return True

    def _replace(self, gallery: Gallery) -> None:
        """Warm before it is asked: what is counted anew would else be counted by a request."""
        gallery.warm_up()
        self.gallery = gallery
        self.metrics.gallery_size(len(gallery))

    def _watch(self) -> None:
        refused, until = "", 0.0
        while not self._closed.wait(WATCHED_EVERY):
            version = "no manifest"
            try:
                version = version_of(self.gallery.index.folder)
                known = version == refused and time.monotonic() < until
                if version != self.gallery.version and not known:
                    self.reload()
            except Exception as error:  # whatever lies there now, the old one goes on
                if version != refused:
                    log.warning("the index cannot be replaced: %s", error)
                refused, until = version, time.monotonic() + REFUSED_FOR


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def with_direction(vector: np.ndarray) -> np.ndarray:
    if not np.isclose(float(np.linalg.norm(vector)), 1, atol=1e-3):
        raise ImageError("the model gives it no direction")
    return vector
