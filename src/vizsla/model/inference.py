"""Images → Embeddings: batch by batch through an Embedder, shard by shard to disk, resumable.

What is written depends on the images, the embedder and `compute_id` alone: a shard holds a whole
number of batches, every batch has one shape, and a broken image keeps its slot.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from vizsla import storage
from vizsla.data.batches import Batch, batches, choose_workers
from vizsla.data.imageset import ImageSet
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.embeddings import STORES, Embeddings, ShardWriter

log = logging.getLogger("vizsla.embed")

Progress = Callable[[int, int], None]  # (images done, images in all)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD_IMAGES = 1024  # what an interruption costs at most
MAX_PIXELS = 100_000_000
PIECE = 4096  # bytes


@dataclass(frozen=True)
class Compute:
    """How vectors are computed, every `auto` resolved. `id` says what is bit-equal."""

    device: str
    precision: str
    batch_size: int
    workers: int
    elsewhere: dict[str, Any] | None = None  # the facts of the machines that compute, if not here

    @property
    def facts(self) -> dict[str, Any]:
        """All that may change the last bits of a vector; the number of workers does not."""
        if self.elsewhere is not None:
            return self.elsewhere
        kind = torch.device(self.device).type
        return {
            "device": torch.cuda.get_device_name(self.device) if kind == "cuda" else kind,
            "machine": platform.machine(),
            "precision": self.precision,
            "compiled": False,
            "batch_size": self.batch_size,
            "threads": torch.get_num_threads(),
            "decoder": f"pillow {PIL.__version__}",
            "torch": torch.__version__,
            "numpy": np.__version__,
        }

    @property
    def id(self) -> str:
        facts = json.dumps(self.facts, sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


def resolve_compute(
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
) -> Compute:
    """Every `auto` resolved for this machine; UsageError for what it does not have."""
    device = _resolve_device(device)
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"precision={precision!r}: choose auto, {', '.join(PRECISIONS)}")
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: choose 1 or more")
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers: choose 1 or more")
    return Compute(
        device,
        "fp32" if precision == "auto" else precision,
        batch_size,
        workers or choose_workers(torch.device(device).type),
    )


def embed(
    images: ImageSet,
    embedder: Embedder,
    out: str | Path,
    *,
    compute: Compute | None = None,
    store: str = "fp32",
    shard_images: int = SHARD_IMAGES,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    progress: Progress | None = None,
    picture: Callable[[int], Image.Image] | None = None,
    engine: "Engine | None" = None,
) -> Embeddings:
    """Writes the embeddings of `images` into the folder `out` and returns them.

    Run again after an interruption, it goes on behind the last whole shard; with another model,
    other images or another `compute_id` it refuses (DataError), unless `overwrite`.
    Broken images are left out and listed in `Embeddings.broken`; DataError if all are broken.
    picture: gives the i-th picture instead of its file (see data/pictures.py).
    engine: where the shards are computed (default: here); it changes nothing that is written.
    """
    if len(images) == 0:
        raise DataError(f"{images.place} holds no images to embed")
    if store not in STORES:
        raise UsageError(f"store={store!r}: choose {' or '.join(STORES)}")
    compute = compute or resolve_compute()
    out = Path(out)
    with storage.locked(out):
        if overwrite:
            _clear(out)
        per_shard = _whole_batches(shard_images, compute.batch_size)
        about = {
            "model_id": embedder.model_id,
            "compute_id": compute.id,
            "compute": compute.facts,
            "images": fingerprint(images),
            "max_pixels": max_pixels,
            "shard_images": per_shard,
        }
        writer = ShardWriter(out, about, embedder.dim, store=store, total=len(images))
        done = writer.resume()
        if done:
            log.info("%s: going on behind image %d of %d", out, done, len(images))
        parts = [
            range(start, min(start + per_shard, len(images)))
            for start in range(done, len(images), per_shard)
        ]
        job = Job(images, embedder, compute, max_pixels, picture)
        for part in (engine or embed_here)(job, parts, progress):
            _write(part, images, writer, per_shard)
        writer.finish()
    embeddings = Embeddings.open(out)
    _report_broken(embeddings, images, out)
    return embeddings


# ── shard by shard ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Job:
    """What an engine is to embed, and how."""

    images: ImageSet
    embedder: Embedder
    compute: Compute
    max_pixels: int = MAX_PIXELS
    picture: Callable[[int], Image.Image] | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """One shard's images, computed: vectors (n, D); broken: position in the set → why."""

    images: range
    vectors: np.ndarray
    broken: dict[int, str]


Engine = Callable[[Job, Sequence[range], Progress | None], Iterator[Part]]  # in any order


def embed_here(job: Job, parts: Sequence[range], progress: Progress | None) -> Iterator[Part]:
    """The engine of one machine: part after part in this process."""
    for part in parts:
        yield embed_part(job, part, progress)


def embed_part(job: Job, part: range, progress: Progress | None = None) -> Part:
    """The function that every engine runs, wherever it does."""
    place_embedder(job.embedder, job.compute)
    vectors = np.zeros((len(part), job.embedder.dim), np.float32)
    broken: dict[int, str] = {}
    for batch in batches(
        job.images.file,
        job.embedder.preprocess,
        start=part.start,
        stop=part.stop,
        batch_size=job.compute.batch_size,
        workers=job.compute.workers,
        max_pixels=job.max_pixels,
        picture=job.picture,
    ):
        first = batch.first - part.start
        filled = slice(first, first + batch.filled)
        if len(batch.reasons) < batch.filled:
            found = embed_batch(job.embedder, batch.images, job.compute)
            vectors[filled] = found[: batch.filled]
        broken |= _broken_in(batch, vectors[filled])
        if progress:
            progress(batch.first + batch.filled, len(job.images))
    return Part(part, vectors, broken)


def place_embedder(embedder: Embedder, compute: Compute) -> None:
    embedder.to(compute.device).to(memory_format=torch.channels_last).eval()


def _write(part: Part, images: ImageSet, writer: ShardWriter, per_shard: int) -> None:
    good = [i for i in part.images if i not in part.broken]
    if part.broken:
        images.require_root()  # gone altogether, it would make all that follow broken
    writer.add(
        [images.ids[i] for i in good],
        part.vectors[[i - part.images.start for i in good]],
        images.subset(good).attributes,
        [(images.ids[i], reason) for i, reason in sorted(part.broken.items())],
        number=part.images.start // per_shard,
    )


def embed_batch(embedder: Embedder, images: torch.Tensor, compute: Compute) -> np.ndarray:
    """(B, D) float32 unit vectors of (B, 3, H, W) normalised images."""
    device = torch.device(compute.device)
    images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
    cast = compute.precision != "fp32"
    with (
        torch.inference_mode(),
        torch.autocast(device.type, PRECISIONS[compute.precision], enabled=cast),
    ):
        vectors = embedder(images)
    return vectors.float().cpu().numpy()


def _broken_in(batch: Batch, vectors: np.ndarray) -> dict[int, str]:
    """Position in the image set → why it has no vector."""
    broken = {batch.first + slot: reason for slot, reason in batch.reasons.items()}
    lengths = np.linalg.norm(vectors, axis=1)
    for slot in np.flatnonzero(~np.isclose(lengths, 1, atol=1e-3)):
        length = f"length {lengths[slot]:.3g}" if np.isfinite(lengths[slot]) else "not finite"
        broken.setdefault(batch.first + int(slot), f"the model gives it no direction ({length})")
    return broken


def _report_broken(embeddings: Embeddings, images: ImageSet, out: Path) -> None:
    if not embeddings.broken:
        return
    first = "; ".join(f"{name}: {reason}" for name, reason in embeddings.broken[:3])
    if len(embeddings) == 0:
        raise DataError(f"none of the {len(images)} images in {images.place} can be used: {first}")
    for name, reason in embeddings.broken:
        log.debug("broken: %s: %s", name, reason)
    more = f"; and {len(embeddings.broken) - 3} more" if len(embeddings.broken) > 3 else ""
    log.warning(
        "%d of %d images in %s are broken and left out (%s%s); all are listed in %s",
        len(embeddings.broken), len(images), images.place, first, more, out / "manifest.json",
    )  # fmt: skip


def fingerprint(images: ImageSet) -> str:
    """SHA-256 over ids, contents and attributes: what the vectors and their table are made from.

    Of a file's content its size and three pieces are read, from its start, middle and end.
    """
    digest = hashlib.sha256()
    for i, name in enumerate(images.ids):
        digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
        digest.update(_pieces(images.path(i)) if images.source is None else images.stamp(i))
    for column in images.attributes.column_names:
        digest.update(f"{column}\0".encode())
        for value in images.attributes[column].to_pylist():
            digest.update(f"{value!r}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _pieces(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            pieces = [str(size).encode()]
            for start in (0, size // 2, max(0, size - PIECE)):
                file.seek(start)
                pieces.append(file.read(PIECE))
    except OSError:
        return b"unreadable"
    return b"\0".join(pieces)


def _whole_batches(shard_images: int, batch_size: int) -> int:
    return max(1, -(-shard_images // batch_size)) * batch_size


def _clear(folder: Path) -> None:
    """Removes what `embed` writes there, and nothing else."""
    storage.remove(folder / "manifest.json", *folder.glob("shard-*.parquet"))


def _resolve_device(device: str) -> str:
    mps = torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device={device!r}: choose auto, cpu, cuda, cuda:1, … or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda, but torch sees no CUDA GPU here: use --device cpu")
    if kind == "mps" and not mps:
        raise UsageError("device=mps, but torch sees no Apple GPU here: use --device cpu")
    return device
