"""Images on disk → batches of tensors, decoded by threads while the network works.

Threads and not processes: Pillow lets go of the interpreter while it decodes and resizes, so two
threads decode nearly twice as fast as one, without copies, forks or a second start of torch.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vizsla.data.images import read_image
from vizsla.errors import ImageError, UsageError

AHEAD = 2  # batches being decoded while one is in use


@dataclass(frozen=True)
class Batch:
    """images: (B, 3, H, W) float32; a broken or missing image keeps its slot, filled with zeros.

    first: the position of the first slot in the image set. reasons: why, for each broken slot.
    filled: how many of the B slots stand for an image (the last batch is padded to B).
    """

    images: Tensor
    first: int
    filled: int
    reasons: dict[int, str]


def batches(
    paths: Sequence[Path | bytes] | Callable[[int], Path | bytes],
    transform: Callable[[Image.Image], Tensor],
    *,
    start: int,
    stop: int,
    batch_size: int,
    workers: int,
    max_pixels: int,
    picture: Callable[[int], Image.Image] | None = None,
) -> Iterator[Batch]:
    """Batches of the images start…stop-1, in order, all of one shape.

    picture: gives the i-th picture instead of its file, from a memory for instance.
    """
    path_of = paths if callable(paths) else paths.__getitem__

    def opened(i: int) -> Image.Image:
        return picture(i) if picture else read_image(path_of(i), max_pixels=max_pixels)

    def read(i: int) -> Tensor | str:
        try:
            return transform(opened(i))
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode") as pool:
        pending: deque[tuple[int, list[Future[Tensor | str]]]] = deque()
        firsts = iter(range(start, stop, batch_size))

        def submit_next() -> None:
            first = next(firsts, None)
            if first is not None:
                slots = range(first, min(first + batch_size, stop))
                pending.append((first, [pool.submit(read, i) for i in slots]))

        try:
            for _ in range(AHEAD):
                submit_next()
            while pending:
                first, futures = pending.popleft()
                submit_next()
                yield _collate(first, [future.result() for future in futures], batch_size)
        finally:  # the reader may stop early: what waits is dropped, what runs is soon done
            pool.shutdown(wait=False, cancel_futures=True)


def _collate(first: int, slots: list[Tensor | str], batch_size: int) -> Batch:
    good = [(i, slot) for i, slot in enumerate(slots) if isinstance(slot, Tensor)]
    reasons = {i: slot for i, slot in enumerate(slots) if isinstance(slot, str)}
    shape = good[0][1].shape if good else torch.Size((3, 1, 1))
    images = torch.zeros((batch_size, *shape))  # (B, 3, H, W)
    for i, slot in good:
        images[i] = slot
    return Batch(images, first, len(slots), reasons)


def choose_workers(device_type: str) -> int:
    """Decoding threads: on a CPU the network needs cores too, a GPU waits for decoding alone."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    return max(1, min(16, cores if device_type != "cpu" else cores // 2))


# ── batches to train on ──────────────────────────────────────────────────────────────────────────

ORDERS = ("plain", "balanced", "classes")


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Which images make up the batch of a step: a function of (seed, step), so it resumes anywhere.

    labels: (N,) class numbers. domains: (N,) numbers, or None. order "plain": all images in turn;
    "balanced": all classes in turn; "classes": P classes × `per_class` images, domains mixed.
    A batch is always full: a set smaller than one comes round more than once.
    """

    labels: np.ndarray
    batch_size: int
    order: str = "plain"
    per_class: int = 4
    domains: np.ndarray | None = None
    seed: int = 0

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
        return max(1, -(-len(self.labels) // self.batch_size))

    @cached_property
    def members(self) -> list[np.ndarray]:
        """Positions of each class that has images."""
        order = np.argsort(self.labels, kind="stable")
        edges = np.flatnonzero(np.diff(self.labels[order])) + 1
        return [part for part in np.split(order, edges) if len(part)]

    def batch(self, step: int) -> np.ndarray:
        """(B,) positions."""
        if self.order == "classes":
            return self._of_classes(step)
        slots = range(step * self.batch_size, (step + 1) * self.batch_size)
        if self.order == "plain":
            return np.array([self._in_turn(slot, len(self.labels), 0) for slot in slots])
        return np.array([self._of_balanced(slot) for slot in slots])

    def _in_turn(self, slot: int, n: int, stream: int) -> int:
        """The slot-th number of an endless row of permutations of 0…n-1."""
        return int(_permutation(self.seed, stream, slot // n, n)[slot % n])

    def _of_balanced(self, slot: int) -> int:
        c = self._in_turn(slot, len(self.members), 1)
        members = self.members[c]
        return int(members[self._in_turn(slot // len(self.members), len(members), 2 + c)])

    def _of_classes(self, step: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, 21, step))
        P = min(self.batch_size // self.per_class, len(self.members))
        chosen = rng.choice(len(self.members), P, replace=False)
        each, left = divmod(self.batch_size, P)  # where classes are few they give more images
        parts = [
            self._of_one(self.members[c], each + (i < left), rng) for i, c in enumerate(chosen)
        ]
        return np.concatenate(parts)

    def _of_one(self, members: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
        """k images of one class, its domains in turn; again from the start where it has fewer."""
        shuffled = rng.permutation(members)
        if self.domains is not None:
            own = self.domains[shuffled]
            turn = np.empty(len(own), dtype=np.int64)  # the how-manieth of its domain
            for domain in np.unique(own):
                turn[own == domain] = np.arange((own == domain).sum())
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

    The same step gives the same pictures, whatever came before. part: the slots of the joint batch
    that this process embeds; positions are always those of the joint batch.
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
            for step in range(start, start + AHEAD):
                submit(step)
            for step in itertools.count(start + AHEAD):
                positions, futures = pending.popleft()
                submit(step)
                yield torch.stack([future.result() for future in futures]), positions
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
