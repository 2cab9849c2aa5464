"""A model and a gallery → answers to searches. Knows no HTTP; safe to use from many threads.

Each answer comes from one state of the gallery, taken at its start. Replacing the index is one
assignment, and running searches keep the state that they started with.
"""

import io
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.data.images import read_image
from vizsla.data.query_box import QueryBox
from vizsla.data.tiles import Box, Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.local_features import Sift, opencv
from vizsla.errors import (
    DataError,
    ImageError,
    MissingExtraError,
    StorageError,
    UsageError,
    VizslaError,
)
from vizsla.output.matched_points import labelled_pair
from vizsla.score.calibration import Calibration, in_words
from vizsla.score.match_model import LISTED
from vizsla.search.folder_index import FolderIndex
from vizsla.search.groups import ResultForm
from vizsla.web.search.batching_model import Batcher, Model, Ready, TextCache
from vizsla.web.search.decoder import Busy, Closed, Decoded, Decoder
from vizsla.web.search.facets import parse_filter, row_of
from vizsla.web.search.freed_memory import release_freed_memory
from vizsla.web.search.gallery import Gallery, Hit, Search, search_all, version_of
from vizsla.web.search.joint_model import JointModel
from vizsla.web.search.models import SearchRequest
from vizsla.web.search.query_vector import Examples, query_vector
from vizsla.web.search.similarity_maps import SIDE as POINTS_SIDE
from vizsla.web.search.similarity_maps import Job, MapQueue, Maps, draw_maps
from vizsla.web.search.thumbnails import (
    EXTENSIONS,
    MAX_FILE_BYTES,
    UPLOAD_SIDE,
    Thumbnails,
    Upload,
    Uploads,
    media_type,
    safe_name,
    upload_name,
)

log = logging.getLogger("vizsla.serve")

MAX_SEARCH_BATCH = 32  # searches in one matrix product
WATCH_SECONDS = 1.0  # between two looks at the folder of the index
RELEASES = 3  # looks after a change, at each of which freed memory goes back to the system
REFUSED_SECONDS = 30.0  # after which a state that was refused is tried again
CHANGE_SECONDS, CHANGE_RETRY_SECONDS = 5.0, 0.1  # that a change waits for another process
ADDED = "added"  # the folder, inside the gallery's, of images that came over the API


class NotFound(VizslaError):
    """An unknown id, or an upload that is no longer kept."""


@dataclass(frozen=True)
class Found:
    """One result. label, attributes: as JSON has them. score: NaN of random images.

    probability: that it shows the same as the image searched with; accepted: whether that is
    enough. None where nothing was decided. of_group, size, box: see gallery.Hit.
    """

    id: str
    score: float
    label: Any
    attributes: dict[str, Any]
    of_group: tuple[tuple[str, float], ...] = ()
    size: int | None = None
    probability: float | None = None
    accepted: bool | None = None
    box: Box | None = None

    @property
    def chance(self) -> str | None:
        """The probability in words."""
        return None if self.probability is None else in_words(self.probability)


@dataclass(frozen=True, eq=False)
class Answer:
    """The results of a search. uploads: names of the images sent along. hints: if the filter is the
    reason that there are no results, its conditions that no image meets."""

    results: list[Found]
    uploads: list[str]
    gallery: Gallery
    hints: Sequence[str] = ()


def decided(
    results: Sequence[Found],
    calibration: Calibration,
    listed: Sequence[float],
    length: float = 1.0,
    first_label: object = None,
) -> list[Found]:
    """The results with their probabilities, and whether each is accepted.

    listed: the scores of the first images of the search. length: of the mean of the vectors of the
    images searched with, so that scores times this are means of their scores. first_label: the
    class of the first image.
    """
    scores = np.array([[found.score for found in results]]) * length
    chances, accepted = calibration.decided(scores, np.array([listed]) * length, [first_label])
    return [
        replace(found, probability=float(chance), accepted=bool(yes))
        for found, chance, yes in zip(results, chances[0], accepted[0], strict=True)
    ]


def _vectors_of(names: Sequence[str], gallery: Gallery) -> list[np.ndarray]:
    """(D,) each; NotFound if the gallery lacks one of them."""
    unknown = [name for name in names if name not in gallery.positions]
    if unknown:
        raise NotFound(f"the gallery has no image {unknown[0][:200]!r}")
    return [gallery.vector(name) for name in names]


class Engine:
    """Searches, embeds, explains and changes a gallery."""

    def __init__(
        self,
        model: Model | JointModel,
        gallery: Gallery,
        decoder: Decoder,
        *,
        thumbnails: Thumbnails | None = None,
        gallery_decoder: Decoder | None = None,
        watch: bool = False,
        at_close: Callable[[], None] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """decoder: for uploads. gallery_decoder: for the gallery's images, which may be larger;
        by default the same. watch: follow changes that other processes make to the index.
        calibration: decides what is accepted of a search by one image.
        """
        self.model, self.gallery, self.decoder = model, gallery, decoder
        self.gallery_decoder = gallery_decoder or decoder
        self.calibration = calibration
        self.uploads = Uploads()
        self.thumbnails = thumbnails or Thumbnails(self.gallery_decoder)
        self._searches: Batcher[Search, list[Hit]] = Batcher(
            search_all, max_batch=MAX_SEARCH_BATCH, wait=0.0
        )
        self._texts = TextCache(model)
        self.map_queue = MapQueue(model.background_thread())
        self._changing = threading.RLock()
        self._closed = threading.Event()
        self._at_close = at_close
        threading.Thread(target=self._watch, args=(watch,), name="serve-watch", daemon=True).start()

    def warm_up(self) -> None:
        """Does in advance what the first requests would wait for."""
        self.model.warm_up()
        self.gallery.warm_up()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def close(self, *, keep_decoder: bool = False) -> None:
        """Requests under way and new ones get Closed. keep_decoder: its owner closes it."""
        self._closed.set()
        self.map_queue.close()
        if not keep_decoder:
            self.decoder.close()
            self.gallery_decoder.close()
        self._searches.close()
        self.model.close()
        if self._at_close is not None:
            self._at_close()

    # ── searching ────────────────────────────────────────────────────────────────────────────────

    def answer(self, search: SearchRequest, files: Sequence[bytes] = ()) -> Answer:
        """The results of a search. files: images sent along, besides those that it names.

        UsageError or DataError for what does not fit, NotFound for an unknown id.
        """
        self._require_open()
        gallery = self.gallery
        condition = parse_filter(search.filter, gallery.attributes)
        if condition is not None:
            gallery.mask(condition)  # here, and not in the single thread of all searches
        form = ResultForm(
            gallery.grouping(search.group_by) if search.group_by else None, search.per_group,
            search.group_score, None if search.diverse == 1 else search.diverse,
        )  # fmt: skip
        uploads = self.upload(files, large=False)
        part = self.query_part(search, files)
        images = self._images(search, uploads, part, gallery)
        tiles = Tiles.of_query(search.query_tiles)
        if tiles is None:
            vectors = self._vectors(search, images, gallery)
        else:
            vectors = self._tile_vectors(search, tiles, files)
        calibration = self.calibration if search.is_decidable and images else None
        grouped = form.group_by is not None
        k = search.k if grouped or calibration is None else max(search.k, LISTED)
        searched = self._searches.submit(Search(gallery, vectors, k, condition, form, tiles))
        listed = searched
        if calibration is not None and grouped:
            listed = self._searches.submit(Search(gallery, vectors, LISTED, condition))
        hits = searched.result()[: search.k]
        results = [
            Found(hit.id, hit.score, **gallery.described(hit.id), of_group=hit.of_group,
                  size=hit.size, box=hit.box)
            for hit in hits
        ]  # fmt: skip
        if calibration is not None:
            length = float(np.linalg.norm(np.mean(images, axis=0, dtype=np.float64)))
            first = listed.result()
            described = gallery.described(first[0].id) if first else {"attributes": {}}
            columns = {**described["attributes"], "label": described.get("label")}
            results = decided(
                results, calibration, [hit.score for hit in first], length,
                first_label=columns.get(calibration.class_column),
            )  # fmt: skip
        hints = () if results or condition is None else condition.unmet(gallery.attributes)
        return Answer(results, [upload.name for upload in uploads], gallery, hints)

    def upload(self, files: Sequence[bytes], *, large: bool = True) -> list[Upload]:
        """Decodes, embeds and keeps images, each once; ImageError if it is not an image.

        large: the JPEG that is kept is large enough to be shown large.
        """
        self._require_open()
        known = {upload_name(data): data for data in files}
        kept = {name: self.uploads.get(name) for name in known}
        missing = [
            name for name, one in kept.items() if one is None or (large and not one.is_large)
        ]
        decoding = self._start_decoding([known[name] for name in missing], large)
        new = self._embedded_uploads(
            missing, [future.result() for future in decoding], large,
            files=[known[name] for name in missing],
        )  # fmt: skip
        kept |= {upload.name: upload for upload in new}
        return [found for name in known if (found := kept[name]) is not None]

    def _embedded_uploads(
        self,
        names: Sequence[str],
        decoded: Sequence[Decoded],
        large: bool = True,
        *,
        files: Sequence[bytes | None] | None = None,
    ) -> list[Upload]:
        """Decoded images with their vectors, which are kept from now on, and files of a usual size
        as well."""
        vectors: Sequence[Ready] = self.model.images(
            [one.pixels for one in decoded if one.pixels is not None]
        )
        found = []
        for name, one, vector, file in zip(
            names, decoded, vectors, files or [None] * len(names), strict=True
        ):
            assert one.pixels is not None and one.jpeg is not None
            upload = Upload(
                name, one.size, with_direction(vector.result()), one.pixels, one.jpeg, large,
                file if file and len(file) <= MAX_FILE_BYTES else None,
            )  # fmt: skip
            self.uploads.add(upload)
            found.append(upload)
        return found

    def _start_decoding(self, files: Sequence[bytes], large: bool) -> "list[Future[Decoded]]":
        """A future for each file; if one of them is refused, none is decoded."""
        started: list[Future[Decoded]] = []
        try:
            for data in files:
                started.append(
                    self.decoder.decode(
                        data, framing=self.model.framing, jpeg_side=UPLOAD_SIDE, large=large
                    )
                )
        except (Busy, Closed):
            for future in started:
                future.cancel()
            raise
        return started

    def embed(self, files: Sequence[bytes], texts: Sequence[str]) -> list[np.ndarray]:
        """(D,) float32 each: of the images, then of the texts."""
        found = {one.name: one.vector for one in self.upload(files, large=False)}
        return [*(found[upload_name(data)] for data in files), *self.text_vectors(texts)]

    def text_vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """(D,) float32 each; UsageError if the model does not read text."""
        if not texts:
            return []
        self._require_open()
        if not self.model.reads_text:
            raise UsageError(
                f"{self.model.name} does not read text: send an image, or serve a CLIP, SigLIP or "
                "PE model"
            )
        return [with_direction(vector) for vector in self._texts.vectors(texts)]

    def _require_open(self) -> None:
        if self.is_closed:
            raise Closed

    def random(self, k: int, seed: int, filter: Sequence[str] = ()) -> list[Found]:
        """Up to k random images of the gallery, the same for the same seed."""
        gallery = self.gallery
        condition = parse_filter(filter, gallery.attributes)
        names: Sequence[str] = gallery.ids
        if condition is not None:
            names = [gallery.ids[i] for i in np.flatnonzero(gallery.mask(condition))]
        drawn = random.Random(seed).sample(names, min(k, len(names)))
        nan = float("nan")
        return [Found(name, nan, **gallery.described(name)) for name in drawn]

    def _images(
        self,
        search: SearchRequest,
        uploads: Sequence[Upload],
        part: Upload | None,
        gallery: Gallery,
    ) -> list[np.ndarray]:
        """(D,) each: of the images that results should be like."""
        if part is not None:
            return [part.vector]
        kept = [self.kept_upload(name).vector for name in search.query]
        return [*(u.vector for u in uploads), *kept, *_vectors_of(search.id, gallery)]

    def _vectors(
        self, search: SearchRequest, images: list[np.ndarray], gallery: Gallery
    ) -> np.ndarray:
        """(n, D): one to search for, or with `query_join=max` one of each of the images."""
        examples = Examples(
            images=images,
            not_images=[
                *(self.kept_upload(name).vector for name in search.not_query),
                *_vectors_of(search.not_id, gallery),
            ],
            texts=self.text_vectors([search.text] if search.text else []),
            not_texts=self.text_vectors([search.not_text] if search.not_text else []),
            right=_vectors_of(search.right, gallery),
            wrong=_vectors_of(search.wrong, gallery),
        )
        if search.is_empty and not images:
            raise UsageError("nothing to search with: send an image, an id of the gallery, or text")
        each = [examples]
        if search.query_join == "max" and len(examples.images) > 1:
            each = [replace(examples, images=[image]) for image in examples.images]
        vectors = [
            query_vector(
                one, gallery.spread, image_weight=search.image_weight,
                text_weight=search.text_weight,
            ) for one in each
        ]  # fmt: skip
        return np.stack([self.model.searched(vector, gallery.sample) for vector in vectors])

    def query_part(self, search: SearchRequest, files: Sequence[bytes] = ()) -> Upload | None:
        """The part of the image searched with that the search has a box for, kept as an upload of
        its own; None without a box. files: images sent along. UsageError: not one image."""
        box = search.part
        if box is None:
            return None
        if search.examples(len(files)) != 1:
            raise UsageError(
                f"box {box} is a part of one image to search with, but there are "
                f"{search.examples(len(files))}: send one image, or leave box out"
            )
        source, whole, size = self._only_image(search, files)
        if size is not None:
            box = box.in_fractions_of(size)
        name = upload_name(f"{whole} {len(files)} {box}".encode())
        kept = self.uploads.get(name)
        if kept is not None:
            return kept
        decoder = self.decoder if isinstance(source, bytes) else self.gallery_decoder
        decoding = decoder.decode(
            source, framing=self.model.framing, jpeg_side=UPLOAD_SIDE, part=box
        )
        return self._embedded_uploads([name], [decoding.result()])[0]

    def _only_image(
        self, search: SearchRequest, files: Sequence[bytes]
    ) -> tuple[bytes | Path, str, tuple[int, int] | None]:
        """The one image searched with, a name that changes with it, and the size of an upload, of
        which a smaller copy may be all that is kept."""
        if files:
            return files[0], upload_name(files[0]), None
        if search.query:
            upload = self.kept_upload(search.query[0])
            return upload.file or upload.jpeg, upload.name, upload.size
        path = self.picture(search.id[0])
        return path, Thumbnails.tag(path), None

    def _tile_vectors(
        self, search: SearchRequest, tiles: Tiles, files: Sequence[bytes]
    ) -> np.ndarray:
        """(S, D) of the tiles of the one image searched with, or of its part. UsageError: there is
        more to search with, or the gallery is that of several models."""
        if not search.is_one_image(len(files)):
            raise UsageError(
                f"query_tiles {tiles} are parts of one image to search with, without words, marks "
                "or others: send one image, or leave query_tiles out"
            )
        if isinstance(self.model, JointModel):
            raise UsageError(
                "query_tiles is for a gallery of one model, and several have made this one: leave "
                "it out"
            )
        whole = self.query_part(search, files)
        source = whole.jpeg if whole is not None else self._only_image(search, files)[0]
        decoder = self.decoder if isinstance(source, bytes) else self.gallery_decoder
        decoding = [
            decoder.decode(source, framing=self.model.framing, part=QueryBox(*box))
            for box in tiles.boxes
        ]
        pixels = [found.pixels for one in decoding if (found := one.result()).pixels is not None]
        return np.stack([with_direction(one.result()) for one in self.model.images(pixels)])

    def kept_upload(self, name: str) -> Upload:
        """The upload of this name; NotFound if it is no longer kept."""
        found = self.uploads.get(name)
        if found is None:
            raise NotFound(
                "this uploaded image is no longer kept: the server forgets uploads when it "
                "restarts, and after many others. Upload it again"
            )
        return found

    # ── similarity maps ──────────────────────────────────────────────────────────────────────────

    def similarity_maps(self, search: SearchRequest, result: str) -> Job:
        """A job that draws heat maps of the first image searched with and of a result.

        The caller ends with `self.map_queue.leave(job)`. NotFound if the search has no image;
        Busy if too many jobs wait.
        """
        query, found = self._pair(search, result)

        def draw() -> Maps:
            first = query.pixels if isinstance(query, Upload) else self._pixels(query)
            second = self._pixels(found)
            shown = self.model.shown(first), self.model.shown(second)
            return draw_maps(*shown, self.model.explain(first, second))

        try:
            name = query.name if isinstance(query, Upload) else Thumbnails.tag(query)
            key = (name, Thumbnails.tag(found))
        except OSError as error:
            raise NotFound("the file of this image is gone") from error
        return self.map_queue.submit(key, draw)

    def _pair(self, search: SearchRequest, result: str) -> tuple[Upload | Path, Path]:
        """The first image searched with, or the part of it, and the result. NotFound if the search
        has none."""
        gallery = self.gallery
        found = self.picture(result, gallery)
        part = self.query_part(search)
        if part is not None:
            return part, found
        if search.query:
            return self.kept_upload(search.query[0]), found
        if search.id:
            return self.picture(search.id[0], gallery), found
        raise NotFound("a comparison with a result needs a search with an image")

    def matching_points(self, search: SearchRequest, result: str, *, narrow: bool) -> bytes:
        """A PNG of the first image searched with and of a result, with lines between the points
        that match. narrow: for a phone, which shows it at less than half its size. NotFound if the
        search has no image, or without OpenCV."""
        try:
            opencv()
        except MissingExtraError as error:
            raise NotFound(str(error)) from error
        query, found = self._pair(search, result)
        jpegs = [
            query.jpeg if isinstance(query, Upload) else self.thumbnails.get(query, "large"),
            self.thumbnails.get(found, "large"),
        ]
        images = [read_image(jpeg) for jpeg in jpegs]  # our own JPEGs, of at most 1280 px
        drawn = labelled_pair(
            images[0], images[1], Sift(), box=POINTS_SIDE, text_size=32 if narrow else 15
        )
        file = io.BytesIO()
        drawn.save(file, "PNG")
        return file.getvalue()

    def _pixels(self, path: Path) -> np.ndarray:
        pixels = self.gallery_decoder.decode(path, framing=self.model.framing).result().pixels
        assert pixels is not None
        return pixels

    def picture(self, name: str, gallery: Gallery | None = None) -> Path:
        """The file of an image; NotFound for an unknown id, or if the file is gone."""
        path = (gallery or self.gallery).path(name)
        if path is None:
            raise NotFound("the gallery has no such image, or its file is gone")
        return path

    # ── changing the gallery ─────────────────────────────────────────────────────────────────────

    def add(
        self, data: bytes, *, name: str = "", attributes: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        """Adds an image; its id, and the state of the index that has it.

        The file is written into the folder `added` inside the gallery's. DataError for attributes
        that do not fit or a gallery of tiles, ImageError if it is not an image.
        """
        kind = media_type(data[:16])
        (upload,) = self.upload([data], large=False)
        if kind is None:
            raise ImageError("only JPEG, PNG, WebP and GIF can be added")
        name = f"{ADDED}/{safe_name(name) or upload.name[:16]}{EXTENSIONS[kind]}"

        def put(gallery: Gallery, index: FolderIndex) -> None:
            if index.view.snapshot.tiles is not None:
                raise DataError(
                    "this gallery has vectors of parts of its images, which the server does not "
                    "make: add images with `vizsla index add`"
                )
            file = gallery.root / name
            if name in gallery.positions or file.exists():
                raise DataError(f"the gallery already has an image {name!r}")
            row = row_of(attributes or {}, index.attributes)
            new = Embeddings([name], upload.vector[None], row, self.model.model_id)
            if Path(os.path.realpath(file.parent)) != gallery.root / ADDED:
                raise DataError(f"the folder {ADDED} leads out of the gallery's folder")
            storage.write_bytes(file, data)
            try:
                index.add(new)
            except BaseException:
                file.unlink(missing_ok=True)
                raise

        return name, self._change(put)

    def remove(self, name: str) -> str:
        """Removes an image from the index; the state of the index without it.

        Its file is deleted only if it was added over the API.
        """

        def take(gallery: Gallery, index: FolderIndex) -> None:
            if name not in gallery.positions:
                raise NotFound("the gallery has no such image")
            path = gallery.path(name)
            index.remove([name])
            if path is not None and name.startswith(f"{ADDED}/"):
                path.unlink(missing_ok=True)

        return self._change(take)

    def _change(self, change: Callable[[Gallery, FolderIndex], None]) -> str:
        """Applies `change` to a copy of the index; the new state of the index.

        Waits for another process that is writing, and then changes the index that it wrote.
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
                self._closed.wait(CHANGE_RETRY_SECONDS)
            self._replace(gallery.with_index(index))
            return self.gallery.version

    def reload(self) -> bool:
        """Serves the index that is in the folder now; whether it was another state.

        It is opened, checked and warmed up before it replaces the old one. DataError if it
        holds vectors of another model: the old one stays.
        """
        with self._changing:
            before = self.gallery
            folder = before.index.folder
            if version_of(folder) == before.version:
                return False
            index = FolderIndex.load(folder)
            if index.model_id != self.model.model_id:
                raise DataError(
                    f"the new index holds vectors of model {index.model_id}, but this server's "
                    f"model is {self.model.model_id}: the old one stays"
                )
            after = before.with_index(index)
            self._replace(after)
            log.info("the index was replaced: %d images", len(after))
            return True

    def _replace(self, gallery: Gallery) -> None:
        """Warms it up first, so that no request waits for that."""
        gallery.warm_up()
        self.gallery = gallery

    def _watch(self, follow: bool) -> None:
        """Follows changes by other processes, and gives back the memory of earlier states.

        Searches under way still hold these states for a while.
        """
        refused, until, version, releases = "", 0.0, self.gallery.version, 0
        while not self._closed.wait(WATCH_SECONDS):
            if follow:
                refused, until = self._follow(refused, until)
            if version != self.gallery.version:
                version, releases = self.gallery.version, RELEASES
            if releases:
                release_freed_memory()
                releases -= 1

    def _follow(self, refused: str, until: float) -> tuple[str, float]:
        """Reloads the index if it has changed; the state that is refused, and until when."""
        version = "no manifest"
        try:
            version = version_of(self.gallery.index.folder)
            is_refused = version == refused and time.monotonic() < until
            if version != self.gallery.version and not is_refused:
                self.reload()
        except Exception as error:  # whatever is there now, the old one stays
            if version != refused:
                log.warning("the index cannot be replaced: %s", error)
            return version, time.monotonic() + REFUSED_SECONDS
        return refused, until


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def with_direction(vector: np.ndarray) -> np.ndarray:
    """The vector, if it has length 1; ImageError if the model gave it no direction."""
    if not np.isclose(float(np.linalg.norm(vector)), 1, atol=1e-3):
        raise ImageError("the model gives it a vector without direction")
    return vector
