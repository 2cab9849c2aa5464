"""Images → batches of pixels, decoded by threads or child processes.

Threads if the network needs the processor too: Pillow releases the interpreter lock while it
decodes and resizes. Processes beside a GPU, as many cores then only decode (see decoding.py).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from PIL import Image
from torch import Tensor

from vizsla.data.decoding import ProcessDecoder, ThreadDecoder
from vizsla.data.resize import Framing, TiledFraming
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
        framing: Framing | TiledFraming,
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
        try:
            while True:
                while len(pending) <= self.ahead and (positions := next(waiting, None)) is not None:
                    ring = next(rings)
                    self._pixels[ring, len(positions) :] = 0
                    pending.append((ring, positions, self._decoder.submit(ring, positions)))
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
    """Page-locks the memory; False if that is not possible."""
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
