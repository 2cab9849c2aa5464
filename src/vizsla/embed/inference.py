"""Images → Embeddings: batch by batch through an Embedder, shard by shard to disk, resumable.

What is written depends on the images, the embedder and `compute_id` alone: a shard holds a whole
number of batches, every batch has one shape, and a broken image keeps its slot. Memory does not
grow with the number of images.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from vizsla import storage
from vizsla.data.batches import Batch, Loader, in_chunks
from vizsla.data.fingerprint import FileInspection, inspect_files
from vizsla.data.images import is_system_reason
from vizsla.data.imageset import ImageSet
from vizsla.data.listing import few
from vizsla.data.remote import PARALLEL_READS
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.cache import Fetched, VectorCache, space_of
from vizsla.embed.compilation import CompilingError
from vizsla.embed.compute import PRECISIONS as PRECISIONS
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings, ShardWriter
from vizsla.embed.shards import STORES
from vizsla.embed.torch_runtime import Network, Pending
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")

Progress = Callable[[int, int], None]  # (images done, images in all)
SHARD_IMAGES = 1024  # what an interruption costs at most
MAX_PIXELS = 100_000_000


# ── a whole set, into a folder ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Written:
    """What `write_embeddings` left in a folder, without the vectors."""

    folder: Path
    images: int  # that have a vector
    broken: list[tuple[str, str]]  # (id, why not)
    dim: int
    model_id: str
    compute: Compute


def embed(
    images: ImageSet,
    embedder: Embedder,
    out: str | Path,
    *,
    compute: Compute | None = None,
    network: Network | None = None,
    store: str = "fp32",
    shard_images: int = SHARD_IMAGES,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    picture: Callable[[int], Image.Image] | None = None,
    engine: "Engine | None" = None,
) -> Embeddings:
    """Writes the embeddings of `images` into the folder `out` and returns them, all in memory.

    The same as `write_embeddings`, which see, and `Embeddings.open`.
    """
    write_embeddings(
        images, embedder, out, compute=compute, network=network, store=store,
        shard_images=shard_images, max_pixels=max_pixels, overwrite=overwrite, cache=cache,
        progress=progress, picture=picture, engine=engine,
    )  # fmt: skip
    return Embeddings.open(out)


def write_embeddings(
    images: ImageSet,
    embedder: Embedder,
    out: str | Path,
    *,
    compute: Compute | None = None,
    network: Network | None = None,
    store: str = "fp32",
    shard_images: int = SHARD_IMAGES,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    picture: Callable[[int], Image.Image] | None = None,
    engine: "Engine | None" = None,
) -> Written:
    """Writes the embeddings of `images` into the folder `out`, shard by shard.

    Run again after an interruption, it goes on behind the last whole shard; with another model,
    other images or another `compute_id` it refuses (DataError), unless `overwrite`.
    Broken images are left out and listed in `broken`; DataError if all are broken.
    network: an open one to be used again, instead of `compute`. cache: a folder of vectors by the
    content of their files (see cache.py). picture: gives the i-th picture instead of its file
    (see data/pictures.py), and then nothing is cached. engine: where shards are computed (default:
    here); it changes nothing that is written.
    """
    if len(images) == 0:
        raise DataError(f"{images.location} holds no images to embed")
    if store not in STORES:
        raise UsageError(f"store={store!r}: choose {' or '.join(STORES)}")
    if network is None:
        compute = compute or resolve_compute(
            embedder=embedder, images=len(images), sample=None if picture else images.file
        )
        network = Network(embedder, compute)
    vectors = VectorCache(cache) if cache is not None and picture is None else None
    out = Path(out)
    with storage.locked(out):
        if overwrite:
            _clear(out)
        source = Source(images, max_pixels, picture, vectors)
        per_shard = whole_batches(shard_images, network.compute.batch_size)
        inspection = _Inspection(images, in_background=network.compute.kind == "cuda")
        writer = _writer(source, inspection, network, out, store, per_shard)
        done = writer.resume()
        if done:
            log.info("%s: going on behind image %d of %d", out, done, len(images))
        try:
            _write_from(
                done, source, inspection, network, writer, per_shard, engine or embed_here, progress
            )
        except CompilingError as error:
            if writer.done > done or done:  # nothing may be mixed
                raise
            log.warning("%s: goes on without compiling", error)
            network.compute = replace(network.compute, compiled=False)
            writer = _writer(source, inspection, network, out, store, per_shard)
            _write_from(
                0, source, inspection, network, writer, per_shard, engine or embed_here, progress
            )
        writer.finish()
    broken = [(name, why) for shard in writer.shards for name, why in shard["broken"]]
    written = Written(
        out, writer.done - len(broken), broken, embedder.dim, embedder.model_id, network.compute
    )
    _report_broken(written, images)
    return written


class _Inspection:
    """The fingerprint and the states of the files, taken once at the start of a job.

    in_background: while the first images are decoded already. That saves time beside a GPU; on a
    CPU both need all cores.
    """

    def __init__(self, images: ImageSet, *, in_background: bool) -> None:
        self._images, self._cancelled = images, threading.Event()
        self._result: Future[FileInspection] = Future()
        if in_background and images.source is None:
            threading.Thread(target=self._run, name="fingerprint", daemon=True).start()
        else:
            self._result.set_result(inspect_files(images))

    def result(self) -> FileInspection:
        """Waits for it."""
        return self._result.result()

    def cancel(self) -> None:
        """The result is not needed any more; whoever waits for it gets CancelledError."""
        self._cancelled.set()

    def _run(self) -> None:
        try:
            self._result.set_result(inspect_files(self._images, cancelled=self._cancelled))
        except BaseException as error:  # raised where the result is asked for
            self._result.set_exception(error)


def _writer(
    source: "Source",
    inspection: _Inspection,
    network: Network,
    out: Path,
    store: str,
    per_shard: int,
) -> ShardWriter:
    compute = network.compute
    about = {
        "model_id": network.embedder.model_id,
        "compute_id": compute.id,
        "compute": compute.facts,
        "max_pixels": source.max_pixels,
        "shard_images": per_shard,
    }
    return ShardWriter(
        out, lambda: {**about, "images": inspection.result().fingerprint}, network.embedder.dim,
        store=store, total=len(source.images),
    )  # fmt: skip


def _write_from(
    done: int,
    source: "Source",
    inspection: _Inspection,
    network: Network,
    writer: ShardWriter,
    per_shard: int,
    engine: "Engine",
    progress: Progress | None,
) -> None:
    total = len(source.images)
    ranges = [range(i, min(i + per_shard, total)) for i in range(done, total, per_shard)]
    report = (lambda count: progress(count, total)) if progress else None
    # Beside a GPU a shard is written while the next one is computed; a CPU would gain nothing.
    behind = ThreadPoolExecutor(1) if network.compute.kind == "cuda" else None
    writing: Future[None] | None = None
    with behind or nullcontext(), _cancelled_on_error(inspection):
        for positions, shard in engine(source, network, ranges, report):
            write = partial(
                _write, source, inspection, network, writer, positions, shard, per_shard
            )
            if behind is None:
                write()
                continue
            if writing is not None:
                writing.result()
            writing = behind.submit(write)
        if writing is not None:
            writing.result()


@contextmanager
def _cancelled_on_error(inspection: _Inspection) -> Iterator[None]:
    """Else the writer, which is waited for, would wait for the inspection."""
    try:
        yield
    except BaseException:
        inspection.cancel()
        raise


def _write(
    source: "Source",
    inspection: _Inspection,
    network: Network,
    writer: ShardWriter,
    positions: range,
    shard: "Shard",
    per_shard: int,
) -> None:
    """Writes a shard, and its new vectors into the cache, unless files changed meanwhile."""
    first_look = inspection.result()
    if source.picture is None:
        _require_readable_as_before(source.images, first_look, positions, shard.broken)
        part = slice(positions.start, positions.stop)
        require_unchanged(source.images, positions, first_look.states[part], shard)
    if source.cache is not None and shard.by_content:
        source.cache.put(_space(source, network), shard.by_content)
    writer.add(
        shard.ids, shard.vectors, shard.attributes, shard.broken,
        number=positions.start // per_shard,
    )  # fmt: skip


def _require_readable_as_before(
    images: ImageSet,
    first_look: FileInspection,
    positions: range,
    broken: list[tuple[str, str]],
) -> None:
    """DataError where images cannot be read that could be at the first look: they may come back."""
    if not broken:
        return
    images.require_available()  # else all that follow would be broken
    reasons = dict(broken)
    lost = [
        f"{images.ids[i]}: {reasons[images.ids[i]]}" for i in positions
        if is_system_reason(reasons.get(images.ids[i], "")) and i not in first_look.unreadable
    ]  # fmt: skip
    if lost:
        raise DataError(
            f"{len(lost)} of images {positions.start + 1} to {positions.stop} in {images.location} "
            f"could be read at the start, and not when they were embedded (first: {lost[0]}); what "
            "was embedded before them is kept. Run the same command again when they are back; on a "
            "cluster every machine must see them"
        )


def require_unchanged(
    images: ImageSet, positions: range, first_states: np.ndarray, shard: "Shard"
) -> None:
    """DataError where a file is not the one it was at the first look, `first_states` (n,).

    A file that was unreadable then (state 0) may be anything now, and one that is gone after it was
    read does no harm.
    """
    if shard.states_before is None or shard.states_after is None:  # read on other machines
        changed = images.states(positions) != first_states
    else:
        changed = shard.states_before != first_states
        changed |= (shard.states_after != first_states) & (shard.states_after != 0)
    found = np.flatnonzero(changed & (first_states != 0))
    if len(found):
        raise DataError(
            f"{len(found)} images in {images.location} changed while they were embedded (first: "
            f"{images.ids[positions[found[0]]]}); what was embedded before them is kept. Run the "
            "same command again when nothing changes them; with --overwrite if the new ones are to "
            "be used"
        )


# ── shards ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Source:
    """Where pictures come from. cache: their vectors may be known already."""

    images: ImageSet
    max_pixels: int = MAX_PIXELS
    picture: Callable[[int], Image.Image] | None = None
    cache: VectorCache | None = None

    def states(self, positions: Sequence[int]) -> np.ndarray:
        """(n,) of the files as they are now; zeros where pictures come from elsewhere."""
        if self.picture is not None:
            return np.zeros(len(positions), np.int64)
        return self.images.states(positions)


@dataclass(frozen=True)
class Shard:
    """ids and attributes of the n good images, (n, D) float32; and (id, reason) of the others.

    states_before, states_after: (N,) of all files, before the first of them was read and after the
    last; None where they were read on another machine, which may see other times.
    by_content: new vectors for the cache, by the SHA-256 of their files.
    """

    ids: list[str]
    vectors: np.ndarray
    attributes: pa.Table
    broken: list[tuple[str, str]]
    states_before: np.ndarray | None = None
    states_after: np.ndarray | None = None
    by_content: dict[bytes, np.ndarray] = field(default_factory=dict)


Engine = Callable[
    [Source, Network, Sequence[range], Callable[[int], None] | None],
    Iterator[tuple[range, Shard]],
]  # the shards of some ranges of positions, in any order


def embed_here(
    source: Source,
    network: Network,
    ranges: Sequence[range],
    progress: Callable[[int], None] | None,
) -> Iterator[tuple[range, Shard]]:
    """The engine of this process."""
    return zip(ranges, embed_shards(source, network, ranges, progress=progress), strict=True)


def embed_shards(
    source: Source,
    network: Network,
    ranges: Sequence[range],
    *,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Shard]:
    """The shard of every range of positions, in order. Whoever writes them makes the artefact.

    Decoding runs on from one shard into the next. progress: how many images are done.
    """
    compute = network.compute
    on_gpu = compute.kind == "cuda"
    waits = source.images.source is not None and source.images.source.is_remote
    fetched = Fetched(source.images.file)
    plain = source.images.source is None and source.cache is None
    with Loader(
        source.images.path_text if plain else fetched.take,
        network.embedder.preprocess.framing,
        batch_size=compute.batch_size,
        workers=max(compute.workers, PARALLEL_READS if waits else 0),
        max_pixels=source.max_pixels,
        picture=source.picture,
        ahead=2 if on_gpu or waits else 0,  # on a CPU both need all cores, and take turns
        processes=on_gpu and source.images.source is None,
        pinned=on_gpu,
    ) as loader:
        drafts: deque[_Draft] = deque()
        chunks = _chunks(source, network, ranges, drafts, fetched)
        for batch, vectors in _through(network, loader.batches(chunks)):
            if batch.filled:
                drafts[0].take(batch, vectors)
            if batch.filled and progress:
                progress(batch.positions[-1] + 1)
            while drafts and not drafts[0].waiting:
                yield drafts.popleft().shard(source, fetched)
    if progress and source.cache is not None and ranges:
        progress(ranges[-1].stop)


@dataclass
class _Draft:
    """A shard that is being filled."""

    positions: range
    vectors: np.ndarray  # (N, D)
    states_before: np.ndarray  # (N,) of the files
    waiting: int  # images that are still to be embedded
    broken: dict[int, str] = field(default_factory=dict)
    contents: dict[int, bytes | None] = field(default_factory=dict)  # only with a cache
    fresh: list[int] = field(default_factory=list)  # positions that were embedded now
    copies: dict[int, int] = field(default_factory=dict)  # of the same content: position → first

    def take(self, batch: Batch, vectors: np.ndarray) -> None:
        reasons = _without_direction(vectors) | batch.reasons
        self.broken |= {batch.positions[slot]: why for slot, why in reasons.items()}
        good = [slot for slot in range(batch.filled) if slot not in reasons]
        positions = [batch.positions[slot] for slot in good]
        self.vectors[[i - self.positions.start for i in positions]] = vectors[good]
        self.fresh += positions
        self.waiting -= batch.filled

    def shard(self, source: Source, fetched: Fetched) -> Shard:
        images, start = source.images, self.positions.start
        for i, first in self.copies.items():
            self.vectors[i - start] = self.vectors[first - start]
            if first in self.broken:
                self.broken[i] = self.broken[first]
        good = [i for i in self.positions if i not in self.broken]
        rows = self.vectors[[i - start for i in good]]
        broken = [(images.ids[i], reason) for i, reason in sorted(self.broken.items())]
        attributes = images.subset(good).attributes
        fresh = [i for i in self.fresh if i not in fetched.changed]
        by_content = {
            content: self.vectors[i - start]
            for i in fresh if (content := self.contents.get(i)) is not None
        }  # fmt: skip
        return Shard(
            [images.ids[i] for i in good], rows, attributes, broken,
            self.states_before, source.states(self.positions), by_content,
        )  # fmt: skip


def _chunks(
    source: Source,
    network: Network,
    ranges: Sequence[range],
    drafts: "deque[_Draft]",
    fetched: Fetched,
) -> Iterator[Sequence[int]]:
    """What is to be embedded, a batch at a time; opens the drafts that take the vectors."""
    dim, size = network.embedder.dim, network.compute.batch_size
    for positions in ranges:
        zeros = np.zeros((len(positions), dim), np.float32)
        draft = _Draft(positions, zeros, source.states(positions), len(positions))
        missing: Sequence[int] = positions
        if source.cache is not None:
            missing = _fill_from_cache(draft, source, network, fetched)
            draft.waiting = len(missing)
        drafts.append(draft)
        yield from in_chunks(missing, size)
        if not missing:
            yield ()  # wakes the reader, who takes the shard before the next one is opened


def _fill_from_cache(
    draft: _Draft, source: Source, network: Network, fetched: Fetched
) -> list[int]:
    """The positions whose vectors the cache does not hold."""
    assert source.cache is not None
    with ThreadPoolExecutor(max(network.compute.workers, PARALLEL_READS)) as pool:
        found = pool.map(fetched.content, draft.positions)
        draft.contents = dict(zip(draft.positions, found, strict=True))
    wanted = list({content for content in draft.contents.values() if content})
    known = source.cache.get(_space(source, network), wanted, network.embedder.dim)
    missing: list[int] = []
    first: dict[bytes, int] = {}
    for i, content in draft.contents.items():
        if content in known:
            draft.vectors[i - draft.positions.start] = known[content]
        elif content is None or first.setdefault(content, i) == i:
            missing.append(i)
        else:
            draft.copies[i] = first[content]
    fetched.drop(set(draft.positions) - set(missing))
    return missing


def _space(source: Source, network: Network) -> str:
    return space_of(network.embedder.model_id, network.compute.id, source.max_pixels)


def _through(network: Network, batches: Iterator[Batch]) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch with its vectors (B, D). Beside a GPU the next batch is sent before one is
    waited for."""
    behind: tuple[Batch, Pending | None] | None = None
    depth = 1 if network.compute.kind == "cuda" else 0
    for batch in batches:
        whole = len(batch.reasons) < batch.filled
        now = batch, network.submit(batch.pixels) if whole else None
        if depth:
            now, behind = behind, now  # type: ignore[assignment]
        if now is not None:
            yield now[0], _vectors(network, *now)
    if behind is not None:
        yield behind[0], _vectors(network, *behind)


def _vectors(network: Network, batch: Batch, pending: Pending | None) -> np.ndarray:
    if pending is None:  # nothing but broken images
        return np.zeros((batch.filled, network.embedder.dim), np.float32)
    return pending.result()[: batch.filled]


def _without_direction(vectors: np.ndarray) -> dict[int, str]:
    """slot → what is wrong with its vector, for those that are no unit vectors."""
    lengths = np.linalg.norm(vectors, axis=1)
    reasons = {}
    for slot in np.flatnonzero(~np.isclose(lengths, 1, atol=1e-3)):
        said = f"length {lengths[slot]:.3g}" if np.isfinite(lengths[slot]) else "not finite"
        reasons[int(slot)] = f"the model gives it no direction ({said})"
    return reasons


def _report_broken(written: Written, images: ImageSet) -> None:
    broken = written.broken
    if not broken:
        return
    first = "; ".join(f"{few([name])}: {reason}" for name, reason in broken[:3])
    if written.images == 0:
        if len(images) == 1:
            raise DataError(f"{images.ids[0]} cannot be used: {broken[0][1]}")
        raise DataError(
            f"none of the {len(images)} images in {images.location} can be used: {first}"
        )
    for name, reason in broken:
        log.debug("broken: %s: %s", name, reason)
    more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
    log.warning(
        "broken and left out: %d of %d images in %s (%s%s); all are listed in %s",
        len(broken), len(images), images.location, first, more, written.folder / "manifest.json",
    )  # fmt: skip


def whole_batches(shard_images: int, batch_size: int) -> int:
    return max(1, -(-shard_images // batch_size)) * batch_size


def _clear(folder: Path) -> None:
    """Removes what `embed` writes there, and nothing else."""
    storage.remove(folder / "manifest.json", *folder.glob("shard-*.parquet"))
