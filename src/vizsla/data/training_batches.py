"""Labelled images → the batches of each training step; and decoded images kept between epochs.

A step's images depend only on the seed and the step. Decoding costs as much as a small network, so
images that fit into memory are decoded once; those much larger than the network's input are kept
smaller.
"""

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet
from vizsla.errors import UsageError

STEPS_AHEAD = 2  # that are being prepared while one is used
ORDERS = ("plain", "balanced", "classes")


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The images in the batch of each step: a function of (seed, step), so it resumes anywhere.

    labels: (N,) class numbers. domains: (N,) numbers, or None. order "plain": all images in turn;
    "balanced": all classes in turn; "classes": P classes × `per_class` images, domains mixed.
    A batch is always full: a set smaller than a batch is repeated.
    label_sets: (U, C) bool, the labels that each class number stands for, if images have several;
    batches are then drawn by label.
    """

    labels: np.ndarray
    batch_size: int
    order: str = "plain"
    per_class: int = 4
    domains: np.ndarray | None = None
    seed: int = 0
    label_sets: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UsageError(f"batches {self.order!r}: choose one of {', '.join(ORDERS)}")
        if self.order == "classes" and not 1 < self.per_class <= self.batch_size // 2:
            raise UsageError(
                f"{self.per_class} images of a class in batches of {self.batch_size}: choose from "
                f"2 to {max(2, self.batch_size // 2)}, so that a batch holds two classes or more"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold as many images as the set does."""
        return max(1, -(-len(self.labels) // self.batch_size))

    @cached_property
    def members(self) -> list[np.ndarray]:
        """Positions of each class (or label, with `label_sets`) that has images."""
        if self.label_sets is not None:
            found = [np.flatnonzero(has_label[self.labels]) for has_label in self.label_sets.T]
            return [part for part in found if len(part)]
        order = np.argsort(self.labels, kind="stable")
        edges = np.flatnonzero(np.diff(self.labels[order])) + 1
        return [part for part in np.split(order, edges) if len(part)]

    def batch(self, step: int) -> np.ndarray:
        """(B,) positions."""
        if self.order == "classes":
            return self._class_batch(step)
        slots = range(step * self.batch_size, (step + 1) * self.batch_size)
        if self.order == "plain":
            return np.array([self._in_turn(slot, len(self.labels), 0) for slot in slots])
        return np.array([self._balanced(slot) for slot in slots])

    def _in_turn(self, slot: int, n: int, stream: int) -> int:
        """The slot-th number of an endless sequence of permutations of 0…n-1."""
        return int(_permutation(self.seed, stream, slot // n, n)[slot % n])

    def _balanced(self, slot: int) -> int:
        c = self._in_turn(slot, len(self.members), 1)
        members = self.members[c]
        return int(members[self._in_turn(slot // len(self.members), len(members), 2 + c)])

    def _class_batch(self, step: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, 21, step))
        P = min(self.batch_size // self.per_class, len(self.members))
        chosen = rng.choice(len(self.members), P, replace=False)
        each, rest = divmod(self.batch_size, P)  # few classes give more images each
        parts = [
            self._from_class(self.members[c], each + (i < rest), rng) for i, c in enumerate(chosen)
        ]
        return np.concatenate(parts)

    def _from_class(self, members: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
        """k images of one class, its domains in turn; repeated if the class has fewer."""
        shuffled = rng.permutation(members)
        if self.domains is not None:
            domains = self.domains[shuffled]
            turn = np.empty(len(domains), dtype=np.int64)  # 0 for the first of each domain, …
            for domain in np.unique(domains):
                turn[domains == domain] = np.arange((domains == domain).sum())
            shuffled = shuffled[np.argsort(turn, kind="stable")]
        return np.resize(shuffled, k)


@lru_cache(maxsize=4096)
def _permutation(seed: int, stream: int, turn: int, n: int) -> np.ndarray:
    return np.random.default_rng((seed, 20, stream, turn)).permutation(n)


def training_batches(
    picture: Callable[[int], Image.Image],
    augment: Callable[[Image.Image, np.random.Generator], Tensor],
    plan: BatchPlan,
    *,
    start: int,
    workers: int,
    part: slice = slice(None),
) -> Generator[tuple[Tensor, np.ndarray], None, None]:
    """Endless (images (B, 3, H, W), positions (B,)) from step `start` on.

    A step's images depend only on the seed and the step. part: the slots of the whole batch that
    this process embeds; positions are always those of the whole batch.
    """

    def read(step: int, slot: int, position: int) -> Tensor:
        return augment(picture(position), np.random.default_rng((plan.seed, 22, step, slot)))

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="augment") as pool:
        pending: deque[tuple[np.ndarray, list[Future[Tensor]]]] = deque()

        def submit(step: int) -> None:
            positions = plan.batch(step)
            slots = range(len(positions))[part]
            futures = [pool.submit(read, step, i, int(positions[i])) for i in slots]
            pending.append((positions, futures))

        try:
            for step in range(start, start + STEPS_AHEAD):
                submit(step)
            for step in itertools.count(start + STEPS_AHEAD):
                positions, futures = pending.popleft()
                submit(step)
                yield torch.stack([future.result() for future in futures]), positions
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# ── decoded images ───────────────────────────────────────────────────────────────────────────────

SHARE_OF_MEMORY = 0.25  # of the free memory may be filled with images


class ImageCache:
    """`cache[i]`: the i-th image of a set, RGB, its shorter side `short_side` at most.

    ImageError if an image cannot be read. Several threads may read at once.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        short_side: int | None = None,  # None: as they are
        max_bytes: int | None = None,  # None: a share of the free memory; 0 keeps nothing
        max_pixels: int = 100_000_000,
    ) -> None:
        self.images, self.short_side, self.max_pixels = images, short_side, max_pixels
        free = available_memory()
        self.free_bytes = (
            max_bytes if max_bytes is not None else int(SHARE_OF_MEMORY * (free or 2**30))
        )
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Image.Image:
        kept = self._kept.get(i)
        if kept is not None:
            return Image.fromarray(kept)
        picture = self._reduced(read_image(self.images.file(i), max_pixels=self.max_pixels))
        pixels = np.asarray(picture)
        with self._lock:
            if i not in self._kept and pixels.nbytes <= self.free_bytes:
                self._kept[i] = pixels
                self.free_bytes -= pixels.nbytes
        return picture

    def subset(self, images: ImageSet) -> "ImageCache":
        """A cache for some of the images, which keeps what is decoded already."""
        part = ImageCache(
            images,
            short_side=self.short_side,
            max_bytes=self.free_bytes,
            max_pixels=self.max_pixels,
        )
        position = {name: i for i, name in enumerate(self.images.ids)}
        part._kept = {
            i: self._kept[position[name]]
            for i, name in enumerate(images.ids)
            if position.get(name) in self._kept
        }
        return part

    def _reduced(self, picture: Image.Image) -> Image.Image:
        short = min(picture.size)
        if self.short_side is None or short <= self.short_side:
            return picture
        scale = self.short_side / short
        size = tuple(max(self.short_side, round(side * scale)) for side in picture.size)
        return picture.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=3.0)


def available_memory() -> int | None:
    """Bytes that a program can allocate without swapping; None if that is unknown."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _cgroup_memory())
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_memory() -> int:
    """Bytes that a container may still allocate; 2**62 without a limit."""
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        return 2**62
