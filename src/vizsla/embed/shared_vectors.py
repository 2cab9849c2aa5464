"""Vectors that several runs share: one pass for several poolings, and the features of trainings.

Vectors of files go into the cache by content (cache.py). What a training computes of pictures in
its memory has no file behind it: that is kept as whole folders, found again by what they are made
of. Files are linked where the disk can, else copied; none is ever changed in place.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vizsla.data.fingerprint import fingerprint
from vizsla.data.imageset import ImageSet
from vizsla.embed.cache import VectorCache, content_of, space_of
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import read_manifest
from vizsla.embed.inference import (
    MAX_PIXELS,
    SHARD_IMAGES,
    Progress,
    Shard,
    Source,
    embed_shards,
    require_unchanged,
    whole_batches,
)
from vizsla.embed.shards import MANIFEST
from vizsla.embed.torch_runtime import Network
from vizsla.errors import UsageError, VizslaError
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")

TOGETHER = ("gap", "gem", "max")  # poolings of one feature map
PARTS = 4  # parts of a joint vector, each of length 1/2, so that its own length is 1


def key_of(embedder: Embedder, images: ImageSet, compute: Compute, **more: Any) -> str:
    """The name of embeddings in a cache. more: what else decides what is embedded."""
    parts = [embedder.model_id, compute.id, fingerprint(images), more]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def lent(folder: Path, cache: str | Path | None, key: str) -> Iterator[None]:
    """Inside, `folder` holds the cache's embeddings of that key; behind it, the cache has them.

    Without a cache, or where it holds nothing yet, `folder` stays as it is.
    """
    if cache is None:
        yield
        return
    kept = Path(cache) / key
    if _is_complete(kept) and not (folder / MANIFEST).exists():
        log.info("%s: embedded before, taken over", folder.name)
        _link(kept, folder)
    yield
    if _is_complete(folder) and not kept.exists():
        _link(folder, kept)


def _is_complete(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except VizslaError:
        return False
    return True


def _link(source: Path, target: Path) -> None:
    """The manifest comes last: until it is there, the folder counts as empty."""
    target.mkdir(parents=True, exist_ok=True)
    names = [shard["file"] for shard in read_manifest(source)["shards"]]
    for name in [*names, MANIFEST]:
        (target / name).unlink(missing_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source / name, target / name)


# ── one pass for several poolings ────────────────────────────────────────────────────────────────


def embed_together(
    images: ImageSet,
    embedders: Sequence[Embedder],
    cache: str | Path,
    *,
    compute: Compute,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> None:
    """Fills the cache with the vectors of embedders that differ in their pooling alone.

    One pass of the first one's backbone serves all; each vector is bit for bit what its own
    embedder gives without compiling. At most 4, of gap, gem and max pooling.
    """
    if compute.compiled:
        raise UsageError("one pass for several poolings is not compiled: give --compile off")
    kept = VectorCache(cache)
    network = Network(_Joint(embedders), compute)  # type: ignore[arg-type]  # all that is asked of it
    per_shard = whole_batches(SHARD_IMAGES, compute.batch_size)
    for start in range(0, len(images), per_shard):
        positions = range(start, min(start + per_shard, len(images)))
        states = images.states(positions)
        contents = [content_of(images.file(i)) for i in positions]
        spaces = [space_of(e.model_id, compute.id, max_pixels) for e in embedders]
        if not _all_known(kept, spaces, embedders, contents):
            part = images.subset(positions)
            (shard,) = embed_shards(Source(part, max_pixels), network, [range(len(part))])
            require_unchanged(part, range(len(part)), states, shard)
            _keep_parts(kept, spaces, embedders, dict(zip(part.ids, contents, strict=True)), shard)
        if progress:
            progress(positions.stop, len(images))


def _all_known(
    kept: VectorCache,
    spaces: Sequence[str],
    embedders: Sequence[Embedder],
    contents: Sequence[bytes | None],
) -> bool:
    wanted = list({content for content in contents if content})
    return all(
        len(kept.get(space, wanted, embedder.dim)) == len(wanted)
        for space, embedder in zip(spaces, embedders, strict=True)
    )


def _keep_parts(
    kept: VectorCache,
    spaces: Sequence[str],
    embedders: Sequence[Embedder],
    content: dict[str, bytes | None],
    shard: Shard,
) -> None:
    """Takes the joint vectors apart. Doubling is exact: a power of two."""
    start = 0
    for space, embedder in zip(spaces, embedders, strict=True):
        own = shard.vectors[:, start : start + embedder.dim] * 2
        start += embedder.dim
        named = zip((content[name] for name in shard.ids), own, strict=True)
        kept.put(space, {key: vector for key, vector in named if key is not None})


class _Joint(nn.Module):
    """Several poolings of one backbone as one embedder: their unit vectors, halved, in a row."""

    def __init__(self, embedders: Sequence[Embedder]) -> None:
        super().__init__()
        self.backbone = embedders[0].backbone
        self.heads = nn.ModuleList(embedders)
        self.preprocess = embedders[0].preprocess
        self.filling = PARTS - len(embedders)
        self.dim = sum(embedder.dim for embedder in embedders) + self.filling

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone.features(images)
        heads: Any = self.heads
        parts = [head.project(head.pool(features)) * 0.5 for head in heads]
        filling = torch.full((len(images), self.filling), 0.5, device=images.device)
        return torch.cat([*parts, filling], dim=1)
