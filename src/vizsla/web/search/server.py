"""A run, an index or a folder of images → a search page and an API. `vizsla serve` calls this.

The server answers at once with a page of progress, while a thread loads, embeds and indexes the
gallery. Searches are answered once this is done and warmed up.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vizsla import storage
from vizsla.data.data_folders import open_data
from vizsla.data.fingerprint import fingerprint
from vizsla.data.image_sources import image_set
from vizsla.data.imageset import ImageSet
from vizsla.data.tables import (
    attributes_for,
    labels_from_pattern,
    read_labels,
    require_columns,
)
from vizsla.embed.auto_compute import resolve_compute, written_compute
from vizsla.embed.cache import shared_cache
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings, is_embeddings, source_of
from vizsla.embed.inference import embed
from vizsla.embed.vector_source import VectorSource
from vizsla.errors import DataError, ModelError, UsageError, VizslaError
from vizsla.model.open_model import load_embedder, recorded_embedder
from vizsla.options import DEFAULT_BACKBONE, GalleryOptions
from vizsla.run import finished_run
from vizsla.run.accept_items import calibration_of_items, learns_from_items
from vizsla.run.accepting import Accept
from vizsla.run.config import recorded_config
from vizsla.run.joint_search import JointSearch
from vizsla.score.calibration import Calibration
from vizsla.search.folder_index import FolderIndex
from vizsla.search.index_files import is_index, read_manifest
from vizsla.web.search.facets import Columns, with_columns
from vizsla.workspace import is_run, open_run

if TYPE_CHECKING:
    from vizsla.web.search.decoder import Decoder
    from vizsla.web.search.engine import Engine
    from vizsla.web.search.joint_model import JointModel
    from vizsla.web.search.service import ServerState

log = logging.getLogger("vizsla.serve")

GALLERY_MAX_PIXELS, GALLERY_SECONDS = 400_000_000, 30.0  # of an image of the gallery, to decode
GALLERY_DECODER_BYTES = 6 * 2**30  # of memory for one of them
LOOPBACK = ("127.", "::1")


@dataclass(frozen=True)
class GallerySource:
    """What is served, from the command line. Nothing is read before `prepare`.

    path: a run, an index, embeddings, or a folder or table of images.
    """

    path: Path
    options: GalleryOptions = field(default_factory=GalleryOptions)

    @property
    def name(self) -> str:
        """What is searched, for a title: of a run its data, else the folder."""
        path = (
            Path(open_run(self.path).config["options"]["data"]) if is_run(self.path) else self.path
        )
        return path.resolve().name

    @property
    def images(self) -> Path | None:
        """The folder of the gallery's images, if it was given or is recorded with the vectors."""
        return self.recorded.root if self.options.images is None else Path(self.options.images)

    @property
    def recorded(self) -> VectorSource:
        """What an index or embeddings record of their model and images."""
        if self.kind == "index":
            return VectorSource.load(self.path, read_manifest(self.path)["model_id"])
        return source_of(self.path) if self.kind == "embeddings" else VectorSource()

    @property
    def kind(self) -> str:
        """run, index, embeddings or images."""
        if is_run(self.path):
            return "run"
        if is_index(self.path):
            return "index"
        return "embeddings" if is_embeddings(self.path) else "images"

    @property
    def calibration(self) -> Calibration | None:
        """What decides which results are accepted; None if nothing does, or if it is to be learned
        from the gallery."""
        accept = self.accept
        if accept is None or learns_from_items(accept, self.path):
            return None
        return accept.load(self.path)

    @property
    def accept(self) -> Accept | None:
        """What --accept says."""
        return None if self.options.accept is None else Accept.parse(self.options.accept)

    def check(self) -> None:
        """UsageError or DataError for what is wrong before anything is loaded."""
        _ = self.calibration
        if not self.path.exists():
            raise DataError(
                f"{self.path} does not exist: give a run, an index, or a folder of images"
            )
        kind = self.kind
        if kind in ("index", "embeddings"):
            recorded = self.recorded
            known = {"model": self.options.model or recorded.model, "images": self.images}
            missing = [f"--{name}" for name, value in known.items() if value is None]
            if missing:
                raise UsageError(
                    f"{self.path} is an {kind if kind == 'index' else 'embeddings folder'}: give "
                    f"{' and '.join(missing)}, the model that made its vectors and the folder of "
                    "its images"
                )
        if kind == "images" and self.images is not None:
            raise UsageError("--images belongs to a run or an index: a folder has its images")
        if self.images is not None and not self.images.is_dir():
            raise DataError(f"{self.images} is not a folder: give the one with the images")


@dataclass(frozen=True)
class Started:
    """The address of the server that has started. token: only if it was made now."""

    url: str
    token: str | None = None


def serve(
    source: GallerySource,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allow_changes: bool = False,
    allow_hosts: tuple[str, ...] = (),
    per_minute: float = 600.0,
    max_k: int = 200,
    body_bytes: int = 16 * 2**20,
    title: str = "",
    started: Callable[[Started], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Runs the server until SIGINT or SIGTERM; SIGHUP reloads the index.

    token: every request then needs it. allow_changes: without `token`, a token is made that only
    changes need. started: called with the address once the server listens.
    """
    import faiss  # noqa: F401  (the limit on threads applies to libraries that are loaded)
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    from vizsla.web.search.app import create_app
    from vizsla.web.search.freed_memory import limit_arenas
    from vizsla.web.search.service import Limits, ServerState
    from vizsla.web.shell.access import Access
    from vizsla.web.shell.http import listen, make_server, url_of
    from vizsla.web.shell.tokens import chosen, hashed, new_token

    source.check()
    limit_arenas()
    token_hash = hashed(chosen(token)) if token else None
    made = new_token() if allow_changes and token_hash is None else None
    change_hash = (token_hash or hashed(made or "")) if allow_changes else None
    state = ServerState()
    with listen(host, port) as bound:
        is_local = bound.getsockname()[0].startswith(LOOPBACK)
        hosts = frozenset(name.lower() for name in allow_hosts)
        app = create_app(
            state,
            limits=Limits(per_minute=per_minute, k=max_k, body_bytes=body_bytes),
            access=Access(
                token_hash, change_hash, hosts if is_local and token_hash is None else None
            ),
            title=title or f"Search {source.name}",
            columns=source.options.show,
        )
        server = make_server(app)
        failed: list[Exception] = []
        thread = threading.Thread(
            target=_prepare_in_thread, args=(source, state, server, failed, progress), daemon=True
        )
        thread.start()
        if started is not None:
            started(Started(url_of(bound), made))
        # OpenBLAS threads spin for a while after each product, and would take a core from the model
        with _reload_on_hangup(state), threadpool_limits(1, user_api="blas"):
            server.run([bound])
        if state.engine is not None:
            state.engine.close()
        if failed:
            raise failed[0]


def _prepare_in_thread(
    source: GallerySource,
    state: "ServerState",
    server: Any,
    failed: list[Exception],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Runs `prepare`. An error stops the server, and `serve` raises it."""
    try:
        state.engine = prepare(source, state, progress)
        log.info("ready: %d images", len(state.engine.gallery))
    except Exception as error:
        state.stage, state.error = "failed", str(error)
        if not isinstance(error, VizslaError):
            log.debug("the server could not start", exc_info=True)
        failed.append(error)
        server.should_exit = True


# ── preparing ────────────────────────────────────────────────────────────────────────────────────


def prepare(
    source: GallerySource,
    state: "ServerState",
    progress: Callable[[str, int, int], None] | None = None,
) -> "Engine":
    """Loads, embeds and indexes the gallery and warms everything up; `state` has the progress."""
    from vizsla.web.search.batching_model import Model
    from vizsla.web.search.engine import Engine
    from vizsla.web.search.gallery import Gallery

    source.check()
    kind = source.kind
    alone = kind != "run" or source.options.model is not None
    joint = None if alone else JointSearch.of(source.path)
    model = source.options.model or (str(source.path) if kind == "run" else DEFAULT_BACKBONE)

    def report(done: int, total: int) -> None:
        state.stage, state.done, state.total = "embedding", done, total
        if progress:
            progress("embedding", done, total)

    calibration = source.calibration
    learns = source.accept is not None and calibration is None

    def learned(vectors: Embeddings) -> Calibration:
        assert source.accept is not None
        return calibration_of_items(vectors, source.accept, source=str(source.path))

    index, temporary, columns = None, None, None
    served: Model | JointModel
    root: Path | None
    if joint is not None:
        served, embeddings, root = _joint(source, joint, state.metrics.count_batch)
    elif source.options.model is None and source.recorded.model is not None:
        embedder = recorded_embedder(source.recorded.model, None, str(source.path))
    else:
        embedder = load_embedder(replace(source.options, model=model))
    if kind == "index":
        index, root = FolderIndex.load(source.path), source.images
        calibration = _for_searches(calibration, index.model_id)
        _require_same_model(index.model_id, embedder.model_id, source)
        columns = _columns_of(source)  # in place of the index's own, each time that it is opened
        compute = _compute(source, embedder, index.ids, root)
        if learns:
            embeddings = index.embeddings()
            if columns is not None:
                added = columns(embeddings.ids)
                attributes = with_columns(embeddings.attributes, added)
                embeddings = replace(embeddings, attributes=attributes)
            calibration = learned(embeddings)
    else:
        if joint is None:
            embeddings, root, compute = _embeddings(source, kind, embedder, report)
            _require_same_model(embeddings.model_id, embedder.model_id, source)
        calibration = _for_searches(calibration, embeddings.model_id, joint)
        if learns:
            calibration = learned(embeddings)
        state.stage = "indexing"
        temporary = tempfile.TemporaryDirectory(prefix="vizsla-served-")
        index = FolderIndex.build(embeddings, temporary.name)
    assert root is not None
    state.stage = "warming"
    decoder, gallery_decoder = decoders(source.options.max_pixels)
    if joint is None:
        served = Model(embedder, compute, on_batch=state.metrics.count_batch)
    engine = Engine(
        served,
        Gallery.open(index, root, columns),
        decoder,
        gallery_decoder=gallery_decoder,
        watch=temporary is None,
        at_close=None if temporary is None else temporary.cleanup,
        calibration=calibration,
    )
    known = engine.gallery.attributes.column_names
    try:
        require_columns(source.options.show, known)
    except DataError:
        engine.close()
        raise
    engine.warm_up()
    return engine


def _joint(
    source: GallerySource, joint: JointSearch, on_batch: Callable[[int], None]
) -> "tuple[JointModel, Embeddings, Path]":
    """The models of a joint run as one, the gallery's vectors with labels, and its folder."""
    from vizsla.web.search.batching_model import Model
    from vizsla.web.search.joint_model import JointModel

    embeddings, root, _ = _stored(source, "run")
    models: list[Model] = []
    for member in joint.members:
        embedder = load_embedder(replace(source.options, model=str(member.run.folder)))
        written = member.run.folder / "embeddings" / "gallery"
        compute = _compute(source, embedder, embeddings.ids, root, written)
        models.append(Model(embedder, compute, on_batch=None if models else on_batch))
    joint.log_how()
    model = JointModel(
        models, joint.weights, embeddings.model_id, joint.fusion.method, joint.projection
    )
    return model, embeddings, root


def decoders(max_pixels: int) -> "tuple[Decoder, Decoder]":
    """One for uploads, and one for the gallery's images, which may be larger.

    The second has a lower priority, so that searches do not wait for thumbnails.
    """
    from vizsla.web.search.decoder import Decoder

    for_gallery = Decoder(
        max_pixels=max(max_pixels, GALLERY_MAX_PIXELS),
        seconds=GALLERY_SECONDS,
        memory_limit=GALLERY_DECODER_BYTES,
        low_priority=True,
    )
    return Decoder(max_pixels=max_pixels), for_gallery


def _require_same_model(vectors: str, model: str, source: GallerySource) -> None:
    if vectors != model:
        raise ModelError(
            f"the vectors were made by model {vectors}, but {source.options.model or source.path} "
            f"is model {model}: give the one that made them"
        )


def _for_searches(
    calibration: Calibration | None, model_id: str, joint: JointSearch | None = None
) -> Calibration | None:
    """The calibration of the cosines that order results; DataError if it is for other scores."""
    if calibration is None:
        return None
    return calibration.for_scores_of({"model_id": model_id, **(joint.origin if joint else {})})


def _compute(
    source: GallerySource,
    embedder: Any,
    ids: Sequence[str],
    root: Path | None,
    embedded: Path | None = None,
) -> Compute:
    """How queries are embedded: as the gallery was, or in bf16 if its images allow it."""
    return resolve_compute(
        device=source.options.device, precision=source.options.precision,
        runtime=source.options.runtime, embedder=embedder,
        images=len(ids) if root else 0, sample=(lambda i: root / ids[i]) if root else None,
        written=written_compute(embedded) if embedded else None,
    )  # fmt: skip


def _embeddings(
    source: GallerySource, kind: str, embedder: Any, report: Callable[[int, int], None]
) -> tuple[Embeddings, Path, Compute]:
    """The gallery's vectors with labels, the folder of its images, and how to embed queries."""
    if kind == "images":
        images = image_set(
            source.path, labels=source.options.labels, labels_from=source.options.labels_from,
            class_folders=source.options.class_folders, follow_links=source.options.follow_links,
        )  # fmt: skip
        compute = _compute(source, embedder, images.ids, images.root)
        return _embedded(images, embedder, compute, report), images.root, compute
    found, root, folder = _stored(source, kind)
    return found, root, _compute(source, embedder, found.ids, root, folder)


def _stored(source: GallerySource, kind: str) -> tuple[Embeddings, Path, Path]:
    """Stored vectors with labels; the folder of their images, and their own."""
    if kind == "run":
        folder = source.path / "embeddings" / "gallery"
        root = source.images or open_data(recorded_config(source.path).data).gallery.root
    else:
        assert source.images is not None
        folder, root = source.path, source.images
    found = Embeddings.open(folder)
    columns = _columns_of(source)
    if columns is not None:
        added = columns(found.ids)
    elif kind == "run":
        added = _labels_of_run(source.path, found.ids)
    else:
        return found, root, folder
    return replace(found, attributes=with_columns(found.attributes, added)), root, folder


def _embedded(
    images: ImageSet, embedder: Any, compute: Any, report: Callable[[int, int], None]
) -> Embeddings:
    """The images' vectors, kept in the user's cache: the next start is quick, and an interrupted
    one resumes."""
    place = f"{os.path.realpath(images.root)}|{embedder.model_id}"
    folder = storage.cache_folder() / "served" / hashlib.sha256(place.encode()).hexdigest()[:16]
    key = hashlib.sha256(f"{fingerprint(images)}|{compute.id}".encode()).hexdigest()[:16]
    if folder.is_dir():
        for other in folder.iterdir():  # of an earlier content of the folder
            if other.name != key:
                shutil.rmtree(other, ignore_errors=True)
    report(0, len(images))
    return embed(
        images, embedder, folder / key, compute=compute, progress=report,
        cache=shared_cache(None, len(images)),
    )  # fmt: skip


def _labels_of_run(folder: Path, ids: list[str]) -> pa.Table:
    """The column `label`; no columns if the run has no truth."""
    try:
        truth = finished_run.truth_of_run(folder)
    except VizslaError as error:
        log.warning("the run's labels cannot be read (%s): results have no labels", error)
        return pa.table({})
    return pa.table({} if truth is None else _label_column(map(truth.gallery.get, ids)))


def _columns_of(source: GallerySource) -> Columns | None:
    """A function that reads the columns of --table, or the labels of --labels-from, for ids; None
    if neither is given."""
    path, pattern = source.options.labels, source.options.labels_from
    if path is not None:
        return lambda ids: _columns_in(path, ids)
    if pattern is not None:
        return lambda ids: pa.table(_label_column(labels_from_pattern(ids, pattern)))
    return None


def _columns_in(path: str, ids: Sequence[str]) -> pa.Table:
    table = read_labels(path)
    columns = [name for name in table.column_names if name not in ("file", "role")]
    return attributes_for(ids, table, "gallery", columns=columns)


def _label_column(labels: Iterable[str | None]) -> dict[str, pa.Array]:
    return {"label": pa.array(labels, pa.string())}


@contextlib.contextmanager
def _reload_on_hangup(state: "ServerState") -> Iterator[None]:
    if not hasattr(signal, "SIGHUP") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def reload() -> None:
        try:
            if state.engine is not None:
                state.engine.reload()
        except VizslaError as error:
            log.warning("the index cannot be replaced: %s", error)

    def hangup(*_: object) -> None:
        threading.Thread(target=reload, daemon=True).start()

    before = signal.signal(signal.SIGHUP, hangup)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
