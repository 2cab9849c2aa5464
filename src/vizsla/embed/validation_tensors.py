"""Validation images kept as pixels, to be embedded by many candidate models.

Pooled vectors of the last few backbones are kept: another projection on one costs nothing.
"""

import hashlib
import logging
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from vizsla.data.batches import Loader, in_chunks
from vizsla.data.images import MAX_PIXELS
from vizsla.data.imageset import ImageSet
from vizsla.data.training_batches import ImageCache, available_memory
from vizsla.embed.compute import Compute, RuntimeFailed
from vizsla.embed.runtime import Runtime
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.train")

SHARE_OF_MEMORY = 0.15  # of the free memory may be used by pixels
MAX_BACKBONES = 8  # whose pooled vectors are kept


class ValidationImages:
    """`vectors(embedder)`: (N, D) float32 unit vectors of the images; zeros for broken ones."""

    def __init__(self, images: ImageSet, compute: Compute, *, max_pixels: int = MAX_PIXELS) -> None:
        self.images, self.compute, self.max_pixels = images, compute, max_pixels
        self.broken: dict[int, str] = {}
        self._pixels: list[Tensor] | None = None  # in batches, if they fit
        self._prepared_for: str | None = None
        self._pooled: dict[str, Tensor] = {}

    def vectors(self, embedder: Embedder) -> np.ndarray:
        """(N, D) float32 unit vectors; zeros for broken images."""
        key = _backbone_id(embedder)
        if key not in self._pooled:
            while len(self._pooled) >= MAX_BACKBONES:
                self._pooled.pop(next(iter(self._pooled)))
            self._pooled[key] = self._embedded(embedder)
        pooled = self._pooled[key].to(self.compute.device)
        with torch.inference_mode():
            vectors = embedder.project(pooled).float().cpu().numpy()
        vectors[list(self.broken)] = 0
        return vectors

    def _embedded(self, embedder: Embedder) -> Tensor:
        """(N, C) float32, on the CPU."""
        return pooled_vectors(embedder, self._batches(embedder), self.compute)[: len(self.images)]

    def _batches(self, embedder: Embedder) -> list[Tensor]:
        """Pixels of all images, (B, H, W, 3) uint8 each; kept if memory allows."""
        prepared_for = str(embedder.preprocess.framing)
        if self._pixels is not None and self._prepared_for == prepared_for:
            return self._pixels
        found = []
        with Loader(
            self.images.path,
            embedder.preprocess.framing,
            batch_size=self.compute.batch_size,
            workers=self.compute.workers,
            max_pixels=self.max_pixels,
        ) as loader:
            chunks = in_chunks(range(len(self.images)), self.compute.batch_size)
            for batch in loader.batches(chunks):
                broken = {batch.positions[slot]: why for slot, why in batch.reasons.items()}
                self.broken |= broken
                found.append(batch.pixels.clone())  # the loader writes the next one there
        if len(self.broken) == len(self.images):
            raise DataError(f"none of the {len(self.images)} held-out images can be read")
        size = sum(t.nbytes for t in found)
        if size <= SHARE_OF_MEMORY * (available_memory() or 2**31):
            self._pixels, self._prepared_for = found, prepared_for
        return found


def pooled_vectors(embedder: Embedder, batches: Iterable[Tensor], compute: Compute) -> Tensor:
    """Pooled vectors of length 1, (N, C) float32 on the CPU, of batches of pixels; by torch if
    another runtime fails."""
    network = Runtime(embedder.without_projection(), compute)
    found = []
    for pixels in batches:
        try:
            vectors = network.submit(pixels).result()
        except RuntimeFailed as error:
            network.use_torch(error)
            vectors = network.submit(pixels).result()
        found.append(vectors)
    return torch.from_numpy(np.concatenate(found))


def pooled_of(
    pictures: ImageCache,
    chosen: np.ndarray,
    embedder: Embedder,
    compute: Compute,
    *,
    max_pixels: int,
) -> np.ndarray:
    """Pooled vectors of length 1, (n, C), of the chosen images."""
    with Loader(
        pictures.images.path,
        embedder.preprocess.framing,
        batch_size=compute.batch_size,
        workers=compute.workers,
        max_pixels=max_pixels,
        picture=pictures.__getitem__,
    ) as loader:
        chunks = in_chunks([int(i) for i in chosen], compute.batch_size)
        pixels = (batch.pixels[: batch.filled] for batch in loader.batches(chunks))
        return pooled_vectors(embedder, pixels, compute).numpy()


def _backbone_id(embedder: Embedder) -> str:
    """A hash of all weights and settings that pooled vectors depend on."""
    digest = hashlib.sha256(f"{embedder.preprocess.to_dict()} {embedder.views}".encode())
    for part in (embedder.backbone, embedder.pool):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
