"""How much half precision changes the cosines of a model, measured on a few real images.

If channels differ by orders of magnitude (MobileNetV2), bfloat16 changes cosines by hundredths,
enough to reorder close neighbours.
"""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from vizsla import storage
from vizsla.embed.compute import Compute, Sample
from vizsla.embed.runtime import Runtime
from vizsla.errors import ImageError, StorageError
from vizsla.model.embedder import Embedder

SAMPLE_SIZE = 8  # distinct images
MAX_READ = 24  # images read to find them


def cosine_change(
    embedder: Embedder,
    device: str,
    precision: str,
    images: int = 0,
    sample: Sample | None = None,
) -> float | None:
    """The mean change of the cosines between a few images; None with fewer than two.

    Measured once for each model and kind of machine, and stored in the cache folder if it was on
    SAMPLE_SIZE images.
    """
    path = _cache_path(embedder, device, precision)
    with contextlib.suppress(StorageError, TypeError, KeyError, ValueError):
        return float(storage.read_json(path)["cosine_change"])
    pixels = _pixels(embedder, images, sample) if sample else []
    if len(pixels) < 2:
        return None
    batch = torch.from_numpy(np.stack(pixels))
    whole, half = (
        Runtime(embedder, Compute(device, p, len(batch), 1)).submit(batch).result()
        for p in ("fp32", precision)
    )
    changes = np.abs(whole @ whole.T - half @ half.T)
    change = float(changes[~np.eye(len(changes), dtype=bool)].mean())  # without the diagonal
    if not np.isfinite(change):
        change = 2.0  # the most that two cosines can differ by
    if len(pixels) < SAMPLE_SIZE:
        return change
    with contextlib.suppress(StorageError):  # without a writable cache it is measured again
        storage.write_json(path, {"name": embedder.name, "cosine_change": change})
    return change


def sample_positions(images: int) -> list[int]:
    """Up to MAX_READ positions, spread over the set."""
    spread = np.linspace(0, images - 1, min(images, MAX_READ)).astype(int)
    return list(dict.fromkeys(spread.tolist()))


def _pixels(embedder: Embedder, images: int, sample: Sample) -> list[np.ndarray]:
    """Pixels of up to SAMPLE_SIZE distinct readable images, spread over the set."""
    found: dict[bytes, np.ndarray] = {}
    for i in sample_positions(images):
        with contextlib.suppress(ImageError):
            pixels = embedder.preprocess.framing.read(sample(i))
            found[pixels.tobytes()] = pixels
        if len(found) == SAMPLE_SIZE:
            break
    return list(found.values())


def _cache_path(embedder: Embedder, device: str, precision: str) -> Path:
    facts = {**Compute(device, precision, 1, 1).facts, "part": None, "threads": None}
    text = json.dumps([embedder.model_id, facts], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    return storage.cache_folder() / "half-precision" / f"{name}.json"
