"""ImageSet + Embedder → Embeddings: an embeddings folder, written shard by shard, resumable.

What is written depends only on the images, the embedder and the compute_id. Memory does not grow
with the number of images.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from vizsla import storage
from vizsla.data.fingerprint import FileInspection, inspect_files
from vizsla.data.images import MAX_PIXELS, is_system_reason
from vizsla.data.imageset import ImageSet
from vizsla.data.listing import few
from vizsla.data.tiles import Tiles
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.cache import VectorCache
from vizsla.embed.compute import Compute, RuntimeFailed
from vizsla.embed.compute_shards import (
    EmbeddingInput,
    Engine,
    Shard,
    cache_space,
    embed_here,
    require_unchanged,
    whole_batches,
)
from vizsla.embed.embeddings import Embeddings, ShardWriter, about_tiles
from vizsla.embed.runtime import Runtime
from vizsla.embed.shards import STORES
from vizsla.embed.vector_source import VectorSource
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.progress import reporting

log = logging.getLogger("vizsla.embed")

Progress = Callable[[int, int], None]  # (images done, images in total)
SHARD_IMAGES = 1024  # by default; an interruption loses at most one shard
MOST_NAMED = 50  # broken images in a message that names no list of them


@dataclass(frozen=True)
class WrittenEmbeddings:
    """What `write_embeddings` wrote, without the vectors."""

    folder: Path
    images: int  # with a vector
    broken: list[tuple[str, str]]  # (id, reason)
    dim: int
    model_id: str
    compute: Compute


def embed(
    images: ImageSet,
    embedder: Embedder,
    out: str | Path,
    *,
    compute: Compute | None = None,
    runtime: Runtime | None = None,
    store: str = "fp32",
    shard_images: int = SHARD_IMAGES,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    cache: str | Path | None = None,
    progress: Progress | bool | None = None,
    picture: Callable[[int], Image.Image] | None = None,
    engine: Engine | None = None,
    only_whole: bool = False,
    query_tiles: Tiles | None = None,
    kept: bool = True,
) -> Embeddings:
    """The embeddings of `images`, in memory, after they were written into the folder `out`.

    progress: True shows a bar, False none; None (the default) shows one in a notebook only.
    A function is called with (images done, images in total). Other arguments and errors as for
    `write_embeddings`.
    """
    given = None if progress is None or isinstance(progress, bool) else progress
    asked = progress if isinstance(progress, bool) else None
    with reporting(False if given else asked) as bar:
        write_embeddings(
            images, embedder, out, compute=compute, runtime=runtime, store=store,
            shard_images=shard_images, max_pixels=max_pixels, overwrite=overwrite, cache=cache,
            progress=given or (bar and partial(bar, "embedding")), picture=picture, engine=engine,
            only_whole=only_whole, query_tiles=query_tiles, kept=kept,
        )  # fmt: skip
    return Embeddings.open(out, root=images.folder)


def write_embeddings(
    images: ImageSet,
    embedder: Embedder,
    out: str | Path,
    *,
    compute: Compute | None = None,
    runtime: Runtime | None = None,
    store: str = "fp32",
    shard_images: int = SHARD_IMAGES,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    picture: Callable[[int], Image.Image] | None = None,
    engine: Engine | None = None,
    only_whole: bool = False,
    query_tiles: Tiles | None = None,
    kept: bool = True,
) -> WrittenEmbeddings:
    """Writes the embeddings of `images` into the folder `out`, shard by shard.

    After an interruption the same call continues after the last complete shard; with another model,
    other images or another compute_id it raises DataError, unless `overwrite`. Broken images are
    left out and listed in `broken`; DataError if all are broken.
    runtime: an existing one to use instead of `compute`. cache: a folder of vectors, keyed by the
    content of their files (see cache.py). picture: gives the i-th image instead of its file; no
    cache is then used.
    engine: where shards are computed (default: here); what is written does not depend on it.
    only_whole: one vector of each image, also where the embedder makes tiles: as for queries.
    query_tiles: in place of the embedder's; the model_id stays that of the gallery.
    kept: False if the folder is deleted afterwards: then no message names it.
    """
    if len(images) == 0:
        raise DataError(f"{images.location} holds no images to embed")
    if store not in STORES:
        raise UsageError(f"store={store!r}: choose {' or '.join(STORES)}")
    if runtime is None:
        compute = compute or resolve_compute(
            embedder=embedder, images=len(images), sample=None if picture else images.file
        )
        runtime = Runtime(embedder, compute)
    vectors = VectorCache(cache) if cache is not None and picture is None else None
    tiles = query_tiles or (None if only_whole else embedder.tiles)
    source, out = EmbeddingInput(images, max_pixels, picture, vectors, tiles), Path(out)
    with storage.locked(out):
        if overwrite:
            storage.remove(out / "manifest.json", *out.glob("shard-*.parquet"))
        job = _Job(source, runtime, engine or embed_here, out, store, shard_images, progress)
        writer = job.run()
        model_id = embedder.model_id
        VectorSource(
            embedder.source, str(images.folder.absolute()) if images.folder else None
        ).save(out, model_id)
    broken = [(name, why) for shard in writer.shards for name, why in shard["broken"]]
    count = writer.done - len(broken)
    if broken:
        _report_broken(broken, images, out if kept else None, all_broken=count == 0)
    return WrittenEmbeddings(out, count, broken, embedder.dim, model_id, runtime.compute)


class _Job:
    """Computes the missing shards of an embeddings folder and writes them."""

    def __init__(
        self,
        source: EmbeddingInput,
        runtime: Runtime,
        engine: Engine,
        out: Path,
        store: str,
        shard_images: int,
        progress: Progress | None,
    ) -> None:
        self.source, self.runtime, self.engine, self.out = source, runtime, engine, out
        self.store, self.progress = store, progress
        batch = source.images_per_batch(runtime.compute.batch_size)
        self.images_per_shard = whole_batches(shard_images, batch)
        self.inspection = _Inspection(source.images, in_background=runtime.compute.kind == "cuda")

    def run(self) -> ShardWriter:
        writer = self._writer()
        start = writer.resume()
        if 0 < start < writer.total:
            log.info("%s: continues after image %d of %d", self.out, start, writer.total)
        try:
            if self.source.tiles is not None:
                self._say_cost_of_tiles(writer.total - start)
            self._write_shards(writer, start)
        except RuntimeFailed as error:
            writer = self._with_torch(writer, start, error)
            self._write_shards(writer, 0)
        writer.finish()
        return writer

    def _say_cost_of_tiles(self, images: int) -> None:
        """Logs the memory and the time that tiles take; the time after one batch was computed."""
        each = self.source.vectors_each
        size = images * each * self.runtime.embedder.dim * STORES[self.store].itemsize
        cost = f"{size / 2**20:.0f} MiB of vectors, {each} times as many as of whole images"
        pictures = images * each
        if images and self.engine is embed_here:
            blank = self.runtime.blank_batch()
            self.runtime.submit(blank).result()  # which starts the runtime
            began = time.monotonic()
            self.runtime.submit(blank).result()
            minutes = (time.monotonic() - began) / len(blank) * pictures / 60
            cost += f"; the network takes about {minutes:.1f} minutes"
        log.info(
            "tiles %s: %d vectors for each of %d images: %s", self.source.tiles, each, images, cost
        )

    def _with_torch(self, writer: ShardWriter, start: int, error: RuntimeFailed) -> ShardWriter:
        """Starts over with torch: vectors of two runtimes are not mixed.

        RuntimeFailed if an earlier run computed some vectors.
        """
        if start:
            in_int8 = self.runtime.compute.precision == "int8"
            self.inspection.cancel()
            raise RuntimeFailed(
                f"{error}. In {self.out}, {start} images were embedded by "
                f"{self.runtime.compute.runtime}: continue where it works, or start over with "
                f"--overwrite {'--precision fp32' if in_int8 else '--runtime torch'}"
            ) from error
        again = f"; {writer.done} images are embedded again" if writer.done else ""
        storage.remove(self.out / "manifest.json", *self.out.glob("shard-*.parquet"))
        self.runtime.use_torch(f"{error}{again}")
        return self._writer()

    def _writer(self) -> ShardWriter:
        embedder, compute = self.runtime.embedder, self.runtime.compute
        about = {
            "model_id": embedder.model_id,
            "compute_id": compute.id,
            "compute": compute.facts,
            "max_pixels": self.source.max_pixels,
            "shard_images": self.images_per_shard,
            **about_tiles(self.source.tiles),
        }
        return ShardWriter(
            self.out,
            lambda: {**about, "images": self.inspection.result().fingerprint},
            embedder.dim,
            store=self.store,
            total=len(self.source.images),
        )

    def _write_shards(self, writer: ShardWriter, start: int) -> None:
        total, size, progress = writer.total, self.images_per_shard, self.progress
        ranges = [range(i, min(i + size, total)) for i in range(start, total, size)]
        report = (lambda count: progress(count, total)) if progress else None
        # With a GPU a shard is written while the next one is computed; a CPU would gain nothing.
        thread = ThreadPoolExecutor(1) if self.runtime.compute.kind == "cuda" else None
        writing: Future[None] | None = None
        with thread or nullcontext():
            try:
                for positions, shard in self.engine(self.source, self.runtime, ranges, report):
                    write = partial(self._write_shard, writer, positions, shard)
                    if thread is None:
                        write()
                        continue
                    if writing is not None:
                        writing.result()
                    writing = thread.submit(write)
                if writing is not None:
                    writing.result()
            except RuntimeFailed:
                raise  # the job continues with torch
            except BaseException:
                self.inspection.cancel()  # else the thread that waits for it would not end
                raise

    def _write_shard(self, writer: ShardWriter, positions: range, shard: Shard) -> None:
        """Writes a shard, and its new vectors into the cache, unless files have changed."""
        inspection = self.inspection.result()
        if self.source.picture is None:
            _require_still_readable(self.source.images, inspection, positions, shard.broken)
            states = inspection.states[positions.start : positions.stop]
            require_unchanged(self.source.images, positions, states, shard)
        if self.source.cache is not None and shard.by_content:
            self.source.cache.put(cache_space(self.source, self.runtime), shard.by_content)
        writer.add(
            shard.ids, shard.vectors, shard.attributes, shard.broken,
            number=positions.start // self.images_per_shard,
        )  # fmt: skip


class _Inspection:
    """The fingerprint and the states of the files, once at the start of a job.

    in_background: while the first images are decoded. That saves time with a GPU; on a CPU both
    need all cores.
    """

    def __init__(self, images: ImageSet, *, in_background: bool) -> None:
        self._images, self._cancelled = images, threading.Event()
        self._result: Future[FileInspection] = Future()
        if in_background and images.source is None:
            threading.Thread(target=self._run, name="fingerprint", daemon=True).start()
        else:
            self._result.set_result(inspect_files(images))

    def result(self) -> FileInspection:
        """The inspection; waits until it is complete."""
        return self._result.result()

    def cancel(self) -> None:
        """Stops the inspection; whoever waits for it gets CancelledError."""
        self._cancelled.set()

    def _run(self) -> None:
        try:
            self._result.set_result(inspect_files(self._images, cancelled=self._cancelled))
        except BaseException as error:  # raised by `result`
            self._result.set_exception(error)


def _require_still_readable(
    images: ImageSet, inspection: FileInspection, positions: range, broken: list[tuple[str, str]]
) -> None:
    """DataError if images that were readable at the start no longer are: they may come back."""
    if not broken:
        return
    images.require_available()  # else all following images would be broken
    reasons = dict(broken)
    lost = [
        f"{images.ids[i]}: {reasons[images.ids[i]]}" for i in positions
        if is_system_reason(reasons.get(images.ids[i], "")) and i not in inspection.unreadable
    ]  # fmt: skip
    if lost:
        raise DataError(
            f"{len(lost)} of images {positions.start + 1} to {positions.stop} in {images.location} "
            f"were readable at the start but not when they were embedded (first: {lost[0]}); what "
            "was embedded before them is kept. Run the same command again when they are back; on a "
            "cluster every machine must see them"
        )


def _report_broken(
    broken: list[tuple[str, str]], images: ImageSet, out: Path | None, *, all_broken: bool
) -> None:
    """Logs the broken images, and where all are listed, else their names; DataError if all are."""
    first = "; ".join(f"{few([name])}: {reason}" for name, reason in broken[:3])
    if all_broken and len(images) == 1:
        raise DataError(f"{images.ids[0]} cannot be used: {broken[0][1]}")
    if all_broken:
        raise DataError(
            f"none of the {len(images)} images in {images.location} can be used: {first}"
        )
    for name, reason in broken:
        log.debug("broken: %s: %s", name, reason)
    more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
    where = "" if out is None else f"; all are listed in {out / 'manifest.json'}"
    if out is None and more:
        more = f"; and {few([name for name, _ in broken[3:]], MOST_NAMED)}"
    log.warning(
        "broken and left out: %d of %d images in %s (%s%s)%s",
        len(broken), len(images), images.location, first, more, where,
    )  # fmt: skip
