"""Training images → vectors of the frozen backbone, kept on disk, within a share of the budget.

Where reading everything would take too long, a part of the images, drawn by class, goes on: a
network is trained on an image more slowly than it reads one, so it would not get to the others.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vizsla.data.image_cache import ImageCache
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import class_codes
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import read_manifest
from vizsla.embed.inference import Source, embed, embed_shards
from vizsla.embed.torch_runtime import Network
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.train import checkpoint
from vizsla.train.batch_gradient import Processes
from vizsla.train.loop import Budget

log = logging.getLogger("vizsla.train")

READING = 0.25  # of a budget, at most
TIMED = 2  # batches by which the speed is estimated, behind one that warms up
FEATURES, PART, DECISION = "features", "features-part", "reading"  # folders


@dataclass(frozen=True, eq=False)
class Read:
    """images: those that could be read, of those there was time for. vectors: theirs, (N, C).

    broken: (id, reason). left_out: how many there was no time for.
    """

    images: ImageSet
    vectors: np.ndarray
    broken: list[tuple[str, str]]
    left_out: int = 0


def read_features(
    pictures: ImageCache,
    embedder: Embedder,
    out: Path,
    *,
    compute: Compute,
    budget: Budget,
    seed: int,
    about: dict[str, str],
    processes: Processes,
    progress: Callable[[int, int], None],
) -> Read:
    """Vectors without the embedder's projection. budget: of the whole training.

    DataError where fewer than two classes can be read. Other processes than the first wait for it.
    """
    own, embedder.projection = embedder.projection, torch.nn.Identity()
    network = Network(embedder, compute)
    try:
        if processes.rank > 0:
            processes.wait()
        wanted = len(pictures)
        if budget.seconds is not None:
            decided = 0
            if processes.rank == 0:
                decided = _decided(pictures, network, out, budget, about)
            wanted = round(processes.from_first(decided))
        part = part_of(pictures, wanted, seed)
        found = embed(
            part.images,
            embedder,
            out / (FEATURES if wanted == len(pictures) else PART),
            network=network,
            max_pixels=pictures.max_pixels,
            picture=part.__getitem__,
            progress=progress,
        )
        if processes.rank == 0:
            processes.wait()
    finally:
        embedder.projection = own
    images = part.images
    if found.broken:
        images = images.without({name for name, _ in found.broken})
        if len(set(images.labels or [])) < 2:
            raise DataError("without the broken images fewer than 2 classes are left")
    return Read(images, found.vectors, found.broken, len(pictures) - wanted)


def part_of(pictures: ImageCache, n: int, seed: int) -> ImageCache:
    """n of them, of every class its share; the same ones for the same n and seed."""
    if n >= len(pictures):
        return pictures
    chosen = drawn_by_class(class_codes(pictures.images), n, seed)
    return pictures.subset(pictures.images.subset(chosen))


def drawn_by_class(codes: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n,) positions, rising. codes: (N,) class numbers.

    Two images of every class first, as long as they last, then of every class its share.
    """
    rng = np.random.default_rng((seed, 41))
    shuffled = rng.permutation(len(codes))
    order = shuffled[np.argsort(codes[shuffled], kind="stable")]
    own = codes[order]
    sizes = np.bincount(codes)
    turn = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[own]  # the how-manieth of its class
    rank = np.where(turn < 2, rng.permutation(len(sizes))[own] - len(sizes), turn / sizes[own])
    return np.sort(order[np.argsort(rank, kind="stable")[:n]])


def _decided(
    pictures: ImageCache, network: Network, out: Path, budget: Budget, about: dict[str, str]
) -> int:
    """How many images are read: decided once, so that an interrupted run goes on with the same."""
    known = checkpoint.load_state(out / DECISION, about=about)
    if known is None:
        known = {"images": len(pictures)}
        if not _read_before(out / FEATURES):
            known["images"] = _affordable(pictures, network, budget)
        checkpoint.save_state(out / DECISION, known, about=about)
    return int(known["images"])


def _read_before(folder: Path) -> bool:
    try:
        return bool(read_manifest(folder))
    except DataError:
        return False


def _affordable(pictures: ImageCache, network: Network, budget: Budget) -> int:
    """How many images can be read in the share READING, estimated from the time that a few take."""
    assert budget.seconds is not None
    batch = network.compute.batch_size
    few = np.linspace(0, len(pictures) - 1, (1 + TIMED) * batch).astype(int)
    if len(pictures) <= 2 * len(few):
        return len(pictures)
    source = Source(
        pictures.images.subset(few),
        pictures.max_pixels,
        lambda i: pictures[int(few[i])],
    )
    started = budget.clock()
    for _ in embed_shards(source, network, [range(batch)]):
        pass
    warm = budget.clock()
    for _ in embed_shards(source, network, [range(batch, len(few))]):
        pass
    speed = TIMED * batch / max(1e-9, budget.clock() - warm)
    left = READING * budget.seconds - (budget.clock() - started)
    return int(np.clip(speed * left, len(few), len(pictures)))
