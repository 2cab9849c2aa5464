"""Whether a network bears half precision: by how much it moves the cosines of a few real images.

Some do not: where channels differ by orders of magnitude (MobileNetV2), 8 bits of mantissa move
cosines by hundredths, and neighbours that stand close change places.
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

LOOKED_AT = 8  # images that differ
TRIED = 24  # images, to find so many


def moved_scores(
    embedder: Embedder,
    device: str,
    precision: str,
    images: int = 0,
    sample: Sample | None = None,
) -> float | None:
    """The mean change of the cosines between a few images; None where it is not known.

    Found out once for each model and kind of machine, on LOOKED_AT images, and remembered; fewer
    (two at least) speak for themselves alone.
    """
    place = _place(embedder, device, precision)
    with contextlib.suppress(StorageError, TypeError, KeyError, ValueError):
        return float(storage.read_json(place)["moved"])
    pixels = _pixels(embedder, images, sample) if sample else []
    if len(pixels) < 2:
        return None
    batch = torch.from_numpy(np.stack(pixels))
    whole, half = (
        Network(embedder, Compute(device, p, len(batch), 1)).submit(batch).result()
        for p in ("fp32", precision)
    )
    change = np.abs(whole @ whole.T - half @ half.T)
    moved = float(change[~np.eye(len(change), dtype=bool)].mean())  # of one with itself it is 1
    if not np.isfinite(moved):
        moved = 2.0  # more than two cosines can differ
    if len(pixels) < LOOKED_AT:
        return moved
    with contextlib.suppress(StorageError):  # a read-only cache folder costs time, nothing else
        storage.write_json(place, {"name": embedder.name, "moved": moved})
    return moved


def tried(images: int) -> list[int]:
    """The positions that are looked at, until LOOKED_AT images were found that differ."""
    spread = np.linspace(0, images - 1, min(images, TRIED)).astype(int)
    return list(dict.fromkeys(spread.tolist()))


def _pixels(embedder: Embedder, images: int, sample: Sample) -> list[np.ndarray]:
    """Of readable images that differ, spread over the set."""
    found: dict[bytes, np.ndarray] = {}
    for i in tried(images):
        with contextlib.suppress(ImageError):
            pixels = embedder.preprocess.framing.read(sample(i))
            found[pixels.tobytes()] = pixels
        if len(found) == LOOKED_AT:
            break
    return list(found.values())


def _place(embedder: Embedder, device: str, precision: str) -> Path:
    facts = {**Compute(device, precision, 1, 1).facts, "part": None, "threads": None}
    text = json.dumps([embedder.model_id, facts], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    return storage.cache_folder() / "bearing" / f"{name}.json"
