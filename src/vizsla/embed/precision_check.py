"""How much half precision changes the cosines of a network, measured on a few real images.

Where channels differ by orders of magnitude (MobileNetV2), 8 bits of mantissa change cosines by
hundredths, and close neighbours swap places.
"""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from vizsla import storage
from vizsla.embed.compute import Compute, Sample
from vizsla.embed.torch_runtime import Network
from vizsla.errors import ImageError, StorageError
from vizsla.model.embedder import Embedder

SAMPLE_SIZE = 8  # distinct images
MAX_TRIED = 24  # images read to find them


def cosine_change(
    embedder: Embedder,
    device: str,
    precision: str,
    images: int = 0,
    sample: Sample | None = None,
) -> float | None:
    """The mean change of the cosines between a few images; None with fewer than two.

    Measured once per model and kind of machine on SAMPLE_SIZE images and kept in the cache folder;
    a measurement on fewer is not kept.
    """
    place = _place(embedder, device, precision)
    with contextlib.suppress(StorageError, TypeError, KeyError, ValueError):
        return float(storage.read_json(place)["cosine_change"])
    pixels = _pixels(embedder, images, sample) if sample else []
    if len(pixels) < 2:
        return None
    batch = torch.from_numpy(np.stack(pixels))
    whole, half = (
        Network(embedder, Compute(device, p, len(batch), 1)).submit(batch).result()
        for p in ("fp32", precision)
    )
    changes = np.abs(whole @ whole.T - half @ half.T)
    change = float(changes[~np.eye(len(changes), dtype=bool)].mean())  # not of an image with itself
    if not np.isfinite(change):
        change = 2.0  # more than two cosines can differ
    if len(pixels) < SAMPLE_SIZE:
        return change
    with contextlib.suppress(StorageError):  # a read-only cache folder costs time, nothing else
        storage.write_json(place, {"name": embedder.name, "cosine_change": change})
    return change


def sample_positions(images: int) -> list[int]:
    """Positions spread over the set, read until SAMPLE_SIZE distinct images are found."""
    spread = np.linspace(0, images - 1, min(images, MAX_TRIED)).astype(int)
    return list(dict.fromkeys(spread.tolist()))


def _pixels(embedder: Embedder, images: int, sample: Sample) -> list[np.ndarray]:
    """Of distinct readable images, spread over the set."""
    found: dict[bytes, np.ndarray] = {}
    for i in sample_positions(images):
        with contextlib.suppress(ImageError):
            pixels = embedder.preprocess.framing.read(sample(i))
            found[pixels.tobytes()] = pixels
        if len(found) == SAMPLE_SIZE:
            break
    return list(found.values())


def _place(embedder: Embedder, device: str, precision: str) -> Path:
    facts = {**Compute(device, precision, 1, 1).facts, "part": None, "threads": None}
    text = json.dumps([embedder.model_id, facts], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    return storage.cache_folder() / "half-precision" / f"{name}.json"
