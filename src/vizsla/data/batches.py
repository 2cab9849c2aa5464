"""Images → batches of pixels, decoded by threads or child processes; and batches to train on.

Threads where the network needs the processor too: Pillow releases the interpreter lock while it
decodes and resizes. Processes beside a GPU, where many cores only decode (see decoding.py).
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vizsla.data.decoding import ProcessDecoder, ThreadDecoder
from vizsla.data.resize import Framing
from vizsla.errors import UsageError
from vizsla.processes import available_cores

AHEAD = 2  # batches being decoded while one is in use


@dataclass(frozen=True)
class Batch:
    """pixels: (B, H, W, 3) uint8; a broken or missing image keeps its slot, filled with zeros.

    The memory of `pixels` is reused: it is valid until the next batch but one is requested.
    positions: of the images in the first slots; the last batch is padded to B.
    reasons: why an image is broken, by slot.
    """

    pixels: Tensor
    positions: Sequence[int]
    reasons: dict[int, str]

    @property
    def filled(self) -> int:
        """How many slots hold an image, or stand for a broken one."""
        return len(self.positions)


class Loader:
    """Images by position → batches of one shape. Keeps its threads or processes while open.

    file: the i-th image, a path or its content. picture: gives the i-th image decoded, instead.
    ahead: how many batches are decoded while one is in use; 0 takes turns with the network.
    processes: decode in child processes, not in threads. pinned: in page-locked memory, which a GPU
    copies by itself.
    """

    def __init__(
        self,
        file: Callable[[int], str | Path | bytes],
        framing: Framing,
        *,
        batch_size: int,
        workers: int,
        max_pixels: int,
        picture: Callable[[int], Image.Image] | None = None,
        ahead: int = AHEAD,
        processes: bool = False,
        pinned: bool = False,
    ) -> None:
        self.batch_size, self.ahead = batch_size, ahead
        shape = (ahead + 3, batch_size, *framing.size, 3)  # two more are in use by the network
        self._decoder: ThreadDecoder | ProcessDecoder
        if processes and picture is None:
            self._decoder = ProcessDecoder(file, framing, shape, workers, max_pixels)
        else:
            self._decoder = ThreadDecoder(file, framing, shape, workers, max_pixels, picture)
        self._pixels = torch.from_numpy(self._decoder.memory)
        self._pinned = pinned and _pin(self._pixels)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._pinned:
            _unpin(self._pixels)
        del self._pixels
        self._decoder.close()

    def batches(self, chunks: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """A batch for every chunk of positions, in order. A chunk holds B positions at most."""
        rings, waiting = itertools.cycle(range(len(self._pixels))), iter(chunks)
        pending: deque[tuple[int, Sequence[int], list[Future[list[str | None]]]]] = deque()

        def submit_next() -> None:
            positions = next(waiting, None)
            if positions is not None:
                ring = next(rings)
                self._pixels[ring, len(positions) :] = 0
                pending.append((ring, positions, self._decoder.submit(ring, positions)))

        try:
            for _ in range(self.ahead):
                submit_next()
            while True:
                submit_next()
                if not pending:
                    return
                ring, positions, futures = pending.popleft()
                reasons = itertools.chain.from_iterable(future.result() for future in futures)
                broken = {slot: why for slot, why in enumerate(reasons) if why is not None}
                for slot in broken:
                    self._pixels[ring, slot] = 0
                yield Batch(self._pixels[ring], positions, broken)
        finally:  # the caller may stop early: what has not begun is dropped
            for _, _, futures in pending:
                for future in futures:
                    future.cancel()


def in_chunks(positions: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive parts of at most `size` positions."""
    for start in range(0, len(positions), size):
        yield positions[start : start + size]


def _pin(pixels: Tensor) -> bool:
    """Page-locks the memory; False where that is not possible."""
    if not torch.cuda.is_available():
        return False
    return int(torch.cuda.cudart().cudaHostRegister(pixels.data_ptr(), pixels.nbytes, 0)) == 0


def _unpin(pixels: Tensor) -> None:
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaHostUnregister(pixels.data_ptr())


def choose_workers(device_type: str) -> int:
    """How many threads or processes decode: one a core, at most 64; beside a GPU one core is left
    to feed it."""
    cores = available_cores()
    return max(1, min(64, cores if device_type == "cpu" else cores - 1))


# ── batches to train on ──────────────────────────────────────────────────────────────────────────

ORDERS = ("plain", "balanced", "classes")


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The images in the batch of each step: a function of (seed, step), so it resumes anywhere.

    labels: (N,) class numbers. domains: (N,) numbers, or None. order "plain": all images in turn;
    "balanced": all classes in turn; "classes": P classes × `per_class` images, domains mixed.
    A batch is always full: a set smaller than a batch is repeated.
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
        """Batches that hold as many images as the set does."""
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
        """k images of one class, its domains in turn; repeated where the class has fewer."""
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
            for step in range(start, start + AHEAD):
                submit(step)
            for step in itertools.count(start + AHEAD):
                positions, futures = pending.popleft()
                submit(step)
                yield torch.stack([future.result() for future in futures]), positions
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
