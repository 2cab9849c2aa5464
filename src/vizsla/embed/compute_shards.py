"""Positions in an image set → shards of vectors in memory. Knows nothing of what is written.

A vector depends only on the image, the embedder and the compute_id: a shard has a whole number of
batches, all batches have one shape, and a broken image keeps its slot.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from PIL import Image

from vizsla.data.batches import Batch, Loader, in_chunks
from vizsla.data.images import MAX_PIXELS
from vizsla.data.imageset import ImageSet
from vizsla.data.remote import PARALLEL_READS
from vizsla.data.resize import Framing, TiledFraming
from vizsla.data.tiles import Tiles
from vizsla.embed.cache import FetchedImages, VectorCache, space_key
from vizsla.embed.runtime import PendingVectors, Runtime
from vizsla.errors import DataError


@dataclass(frozen=True)
class EmbeddingInput:
    """Where images come from: the files, or `picture` in place of them.

    cache: vectors of files that were embedded before. tiles: the T parts of each image that get a
    vector; None: one vector of the whole image.
    """

    images: ImageSet
    max_pixels: int = MAX_PIXELS
    picture: Callable[[int], Image.Image] | None = None
    cache: VectorCache | None = None
    tiles: Tiles | None = None

    @property
    def vectors_each(self) -> int:
        """T, the vectors of an image."""
        return len(self.tiles) if self.tiles else 1

    def images_per_batch(self, batch_size: int) -> int:
        """How many images fit into a batch with all their tiles; at least one."""
        return max(1, batch_size // self.vectors_each)

    def framing(self, framing: Framing) -> Framing | TiledFraming:
        """How an image becomes pixels, by the framing of a network."""
        return TiledFraming(framing, self.tiles.boxes) if self.tiles else framing

    def states(self, positions: Sequence[int]) -> np.ndarray:
        """(n,) states of the files now; zeros if images are not read from files."""
        if self.picture is not None:
            return np.zeros(len(positions), np.int64)
        return self.images.states(positions)


@dataclass(frozen=True)
class Shard:
    """ids and attributes of the n good images, (n, T·D) float32; (id, reason) of the broken ones.

    states_before, states_after: (N,) of all files, before the first of them was read and after the
    last; None if they were read on another machine, which may see other times.
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
    [EmbeddingInput, Runtime, Sequence[range], Callable[[int], None] | None],
    Iterator[tuple[range, Shard]],
]  # the shards of some ranges of positions, in any order


def embed_here(
    source: EmbeddingInput,
    runtime: Runtime,
    ranges: Sequence[range],
    progress: Callable[[int], None] | None,
) -> Iterator[tuple[range, Shard]]:
    """The engine that computes in this process: each range with its shard, in order."""
    return zip(ranges, embed_shards(source, runtime, ranges, progress=progress), strict=True)


def embed_shards(
    source: EmbeddingInput,
    runtime: Runtime,
    ranges: Sequence[range],
    *,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Shard]:
    """The shard of each range of positions, in order. progress: called with the images done.

    The images of the next shard are decoded while one is completed.
    """
    compute = runtime.compute
    on_gpu = compute.kind == "cuda"
    is_remote = source.images.source is not None and source.images.source.is_remote
    fetched = FetchedImages(source.images.file)
    only_paths = source.images.source is None and source.cache is None
    with Loader(
        source.images.path_text if only_paths else fetched.take,
        source.framing(runtime.embedder.preprocess.framing),
        batch_size=source.images_per_batch(compute.batch_size),
        workers=max(compute.workers, PARALLEL_READS if is_remote else 0),
        max_pixels=source.max_pixels,
        picture=source.picture,
        ahead=2 if on_gpu or is_remote else 0,  # on a CPU decoding and network each need all cores
        processes=on_gpu and source.images.source is None,
        pinned=on_gpu,
    ) as loader:
        drafts: deque[_Draft] = deque()
        chunks = _chunks(source, runtime, ranges, drafts, fetched)
        for batch, vectors in _with_vectors(runtime, loader.batches(chunks), source.vectors_each):
            if batch.filled:
                drafts[0].add(batch, vectors, runtime.embedder.dim)
            if batch.filled and progress:
                progress(batch.positions[-1] + 1)
            while drafts and not drafts[0].remaining:
                yield drafts.popleft().shard(source, fetched)
    if progress and source.cache is not None and ranges:
        progress(ranges[-1].stop)


@dataclass
class _Draft:
    """A shard that is not complete."""

    positions: range
    vectors: np.ndarray  # (N, T·D)
    states_before: np.ndarray  # (N,) of the files
    remaining: int  # images that are still to be embedded
    broken: dict[int, str] = field(default_factory=dict)
    contents: dict[int, bytes | None] = field(default_factory=dict)  # hashes, only with a cache
    embedded: list[int] = field(default_factory=list)  # positions not from the cache
    copies: dict[int, int] = field(default_factory=dict)  # of the same content: position → first

    def add(self, batch: Batch, vectors: np.ndarray, dim: int) -> None:
        reasons = _not_unit_vectors(vectors, dim) | batch.reasons
        self.broken |= {batch.positions[slot]: why for slot, why in reasons.items()}
        good = [slot for slot in range(batch.filled) if slot not in reasons]
        positions = [batch.positions[slot] for slot in good]
        self.vectors[[i - self.positions.start for i in positions]] = vectors[good]
        self.embedded += positions
        self.remaining -= batch.filled

    def shard(self, source: EmbeddingInput, fetched: FetchedImages) -> Shard:
        images, start = source.images, self.positions.start
        for i, first in self.copies.items():
            self.vectors[i - start] = self.vectors[first - start]
            if first in self.broken:
                self.broken[i] = self.broken[first]
        good = [i for i in self.positions if i not in self.broken]
        rows = self.vectors[[i - start for i in good]]
        broken = [(images.ids[i], reason) for i, reason in sorted(self.broken.items())]
        attributes = images.subset(good).attributes
        by_content = {
            content: self.vectors[i - start]
            for i in self.embedded
            if i not in fetched.changed and (content := self.contents.get(i)) is not None
        }
        return Shard(
            [images.ids[i] for i in good], rows, attributes, broken,
            self.states_before, source.states(self.positions), by_content,
        )  # fmt: skip


def _chunks(
    source: EmbeddingInput,
    runtime: Runtime,
    ranges: Sequence[range],
    drafts: "deque[_Draft]",
    fetched: FetchedImages,
) -> Iterator[Sequence[int]]:
    """The positions of each batch to embed; appends the drafts that receive the vectors."""
    width = source.vectors_each * runtime.embedder.dim
    size = source.images_per_batch(runtime.compute.batch_size)
    for positions in ranges:
        zeros = np.zeros((len(positions), width), np.float32)
        draft = _Draft(positions, zeros, source.states(positions), len(positions))
        missing: Sequence[int] = positions
        if source.cache is not None:
            missing = _fill_from_cache(draft, source, runtime, fetched)
            draft.remaining = len(missing)
        drafts.append(draft)
        yield from in_chunks(missing, size)
        if not missing:
            yield ()  # an empty batch, so that the complete shard is taken before the next is begun


def _fill_from_cache(
    draft: _Draft, source: EmbeddingInput, runtime: Runtime, fetched: FetchedImages
) -> list[int]:
    """The positions whose vectors are not in the cache, without copies of others."""
    assert source.cache is not None
    with ThreadPoolExecutor(max(runtime.compute.workers, PARALLEL_READS)) as pool:
        found = pool.map(fetched.content, draft.positions)
        draft.contents = dict(zip(draft.positions, found, strict=True))
    wanted = list({content for content in draft.contents.values() if content})
    width = source.vectors_each * runtime.embedder.dim
    known = source.cache.get(cache_space(source, runtime), wanted, width)
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


def cache_space(source: EmbeddingInput, runtime: Runtime) -> str:
    """The space of these vectors in the cache (see `space_key`)."""
    space = space_key(runtime.embedder.model_id, runtime.compute.id, source.max_pixels)
    return f"{space} {source.tiles}" if source.tiles else space


def _with_vectors(
    runtime: Runtime, batches: Iterator[Batch], vectors_each: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch with its vectors (B, T·D). On a GPU a batch is sent before the vectors of the one
    before are waited for."""
    width, size = vectors_each * runtime.embedder.dim, runtime.embedder.preprocess.size
    waiting: deque[tuple[Batch, PendingVectors | None]] = deque()
    ahead = 1 if runtime.compute.kind == "cuda" else 0

    def next_one() -> tuple[Batch, np.ndarray]:
        batch, pending = waiting.popleft()
        if pending is None:
            return batch, np.zeros((batch.filled, width), np.float32)
        return batch, pending.result().reshape(-1, width)[: batch.filled]

    for batch in batches:
        all_broken = len(batch.reasons) == batch.filled
        pictures = batch.pixels.view(-1, *size, 3)  # (B·T, H, W, 3)
        waiting.append((batch, None if all_broken else runtime.submit(pictures)))
        if len(waiting) > ahead:
            yield next_one()
    while waiting:
        yield next_one()


def _not_unit_vectors(vectors: np.ndarray, dim: int) -> dict[int, str]:
    """Slot → what is wrong with a vector, for those whose T vectors are not all unit vectors."""
    lengths = np.linalg.norm(vectors.reshape(len(vectors), -1, dim), axis=2)  # (B, T)
    reasons: dict[int, str] = {}
    for slot, tile in np.argwhere(~np.isclose(lengths, 1, atol=1e-3)):
        found = lengths[slot, tile]
        length = f"length {found:.3g}" if np.isfinite(found) else "not finite"
        what = f"tile {tile}" if tile else "it"
        reasons.setdefault(int(slot), f"the model gives {what} no direction ({length})")
    return reasons


def whole_batches(shard_images: int, batch_size: int) -> int:
    """`shard_images` rounded up to a multiple of the batch size."""
    return max(1, -(-shard_images // batch_size)) * batch_size


def require_unchanged(
    images: ImageSet, positions: range, first_states: np.ndarray, shard: Shard
) -> None:
    """DataError if files changed since they had `first_states` (n,).

    A file that was unreadable then (state 0) may have any state now, and one that disappeared after
    it was read does no harm.
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
            "same command again when they do not change any more, with --overwrite to use the new "
            "images"
        )
