"""Vectors that several runs share: whole embeddings folders, and one pass for several poolings.

Vectors of files are cached by content (cache.py). Vectors of a training's images in memory have
no file: they are cached as embeddings folders, by a hash of what they were computed from. Files are
hard-linked if the disk supports it, else copied, and never changed in place.
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
from vizsla.data.images import MAX_PIXELS
from vizsla.data.imageset import ImageSet
from vizsla.embed.cache import VectorCache, content_hash, space_key
from vizsla.embed.compute import Compute
from vizsla.embed.compute_shards import (
    EmbeddingInput,
    Shard,
    embed_shards,
    require_unchanged,
    whole_batches,
)
from vizsla.embed.embeddings import read_manifest
from vizsla.embed.inference import SHARD_IMAGES, Progress
from vizsla.embed.runtime import Runtime
from vizsla.embed.shards import MANIFEST
from vizsla.errors import UsageError, VizslaError
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")

JOINT_POOLINGS = ("gap", "gem", "max")  # poolings of one feature map
PARTS = 4  # of a joint vector, each of length 1/2, so that the joint vector has length 1


def embeddings_key(embedder: Embedder, images: ImageSet, compute: Compute, **settings: Any) -> str:
    """The name of an embeddings folder in a cache. settings: all else that vectors depend on."""
    parts = [embedder.model_id, compute.id, fingerprint(images), settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def cached_embeddings(folder: Path, cache: str | Path | None, key: str) -> Iterator[None]:
    """Context: on entry, embeddings with this key are copied from the cache into `folder`; on exit,
    from `folder` into the cache, if they are complete and the cache lacks them."""
    if cache is None:
        yield
        return
    cached = Path(cache) / key
    if _is_complete(cached) and not (folder / MANIFEST).exists():
        log.info("%s: taken from the cache", folder.name)
        _link(cached, folder)
    yield
    if _is_complete(folder) and not cached.exists():
        _link(folder, cached)


def _is_complete(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except VizslaError:
        return False
    return True


def _link(source: Path, target: Path) -> None:
    """Links or copies embeddings, the manifest last: without it a folder counts as empty."""
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
    """Fills the cache with the vectors of up to 4 embedders that differ only in their pooling (gap,
    gem, max), by one pass through the backbone of the first.

    Each vector is bit-equal to that of its embedder by the same runtime, torch.
    """
    if compute.runtime != "torch":
        raise UsageError(f"one pass for several poolings needs torch, not {compute.runtime}")
    vector_cache = VectorCache(cache)
    joint: Any = _JointPoolings(embedders)  # has all that a runtime needs of an embedder
    runtime = Runtime(joint, compute)
    spaces = [space_key(e.model_id, compute.id, max_pixels) for e in embedders]
    per_shard = whole_batches(SHARD_IMAGES, compute.batch_size)
    for start in range(0, len(images), per_shard):
        positions = range(start, min(start + per_shard, len(images)))
        states = images.states(positions)
        contents = [content_hash(images.file(i)) for i in positions]
        if not _all_cached(vector_cache, spaces, embedders, contents):
            part = images.subset(positions)
            (shard,) = embed_shards(EmbeddingInput(part, max_pixels), runtime, [range(len(part))])
            require_unchanged(part, range(len(part)), states, shard)
            by_id = dict(zip(part.ids, contents, strict=True))
            _put_parts(vector_cache, spaces, embedders, by_id, shard)
        if progress:
            progress(positions.stop, len(images))


def _all_cached(
    cache: VectorCache,
    spaces: Sequence[str],
    embedders: Sequence[Embedder],
    contents: Sequence[bytes | None],
) -> bool:
    wanted = list({content for content in contents if content})
    return all(
        len(cache.get(space, wanted, embedder.dim)) == len(wanted)
        for space, embedder in zip(spaces, embedders, strict=True)
    )


def _put_parts(
    cache: VectorCache,
    spaces: Sequence[str],
    embedders: Sequence[Embedder],
    content: dict[str, bytes | None],
    shard: Shard,
) -> None:
    """Splits joint vectors and stores the parts. Doubling them is exact."""
    start = 0
    for space, embedder in zip(spaces, embedders, strict=True):
        vectors = shard.vectors[:, start : start + embedder.dim] * 2
        start += embedder.dim
        named = zip((content[name] for name in shard.ids), vectors, strict=True)
        cache.put(space, {key: vector for key, vector in named if key is not None})


class _JointPoolings(nn.Module):
    """Several poolings of one backbone as one embedder: their unit vectors, halved and joined."""

    def __init__(self, embedders: Sequence[Embedder]) -> None:
        super().__init__()
        self.backbone = embedders[0].backbone
        self.embedders = nn.ModuleList(embedders)
        self.preprocess = embedders[0].preprocess
        self.padding = PARTS - len(embedders)
        self.dim = sum(embedder.dim for embedder in embedders) + self.padding

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone.features(images)
        embedders: Any = self.embedders
        parts = [e.project(e.pool(features)) * 0.5 for e in embedders]
        padding = torch.full((len(images), self.padding), 0.5, device=images.device)
        return torch.cat([*parts, padding], dim=1)
