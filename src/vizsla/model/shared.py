"""Embeddings that several runs share: found again by what they are made of, and made together.

A cache is a folder of embeddings' folders. Files are linked where the disk can, else copied; none
is ever changed in place, so a run may be deleted or go on by itself.
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

import numpy as np
import torch
from torch import Tensor, nn

from vizsla.data.imageset import ImageSet
from vizsla.errors import VizslaError
from vizsla.model.embedder import Embedder
from vizsla.model.embeddings import MANIFEST, Embeddings, ShardWriter, read_manifest
from vizsla.model.inference import MAX_PIXELS, Compute, Progress, embed, fingerprint

log = logging.getLogger("vizsla.embed")

TOGETHER = ("gap", "gem", "max")  # poolings of one feature map
OF_A_WRITER = ("form", "dim", "store", "total", "complete", "done", "shards")
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
    """Fills the cache with the embeddings of embedders that differ in their pooling alone.

    One pass of the first one's backbone serves all; each vector is bit for bit what its own
    embedder gives. At most 4, of gap, gem and max pooling.
    """
    keys = [key_of(e, images, compute, max_pixels=max_pixels) for e in embedders]
    wanted = [
        (e, k) for e, k in zip(embedders, keys, strict=True) if not (Path(cache) / k).exists()
    ]
    if len(wanted) < 2:
        return  # one alone is embedded by its run
    joint = _Joint([embedder for embedder, _ in wanted])
    whole = Path(cache) / f"joint-{hashlib.sha256(''.join(keys).encode()).hexdigest()[:16]}"
    found = embed(
        images, joint, whole,  # type: ignore[arg-type]  # all that `embed` asks of an embedder
        compute=compute, max_pixels=max_pixels, progress=progress,
    )  # fmt: skip
    about = read_manifest(whole)
    start = 0
    for embedder, key in wanted:
        vectors = found.vectors[:, start : start + embedder.dim] * 2  # exact: a power of two
        start += embedder.dim
        _write(Path(cache) / key, found, vectors, {**about, "model_id": embedder.model_id})
    shutil.rmtree(whole)


def _write(folder: Path, found: Embeddings, vectors: np.ndarray, about: dict[str, Any]) -> None:
    """As `embed` would have written it, so that it takes it over as its own."""
    header = {key: value for key, value in about.items() if key not in OF_A_WRITER}
    writer = ShardWriter(folder, header, vectors.shape[1], total=about["total"])
    start = 0
    for shard in about["shards"]:
        rows = slice(start, start + shard["rows"])
        start = rows.stop
        attributes = found.attributes.slice(rows.start, shard["rows"])
        broken = [(name, reason) for name, reason in shard["broken"]]
        writer.add(found.ids[rows], vectors[rows], attributes, broken)
    writer.finish()


class _Joint(nn.Module):
    """Several poolings of one backbone as one embedder: their unit vectors, halved, in a row."""

    def __init__(self, embedders: Sequence[Embedder]) -> None:
        super().__init__()
        self.backbone = embedders[0].backbone
        self.heads = nn.ModuleList(embedders)
        self.preprocess = embedders[0].preprocess
        self.filling = PARTS - len(embedders)
        self.dim = sum(embedder.dim for embedder in embedders) + self.filling
        self.model_id = "+".join(embedder.model_id for embedder in embedders)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone.features(images)
        heads: Any = self.heads
        parts = [head.finished(head.pool(features)) * 0.5 for head in heads]
        filling = torch.full((len(images), self.filling), 0.5, device=images.device)
        return torch.cat([*parts, filling], dim=1)
