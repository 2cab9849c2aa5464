"""Files → pixels in memory that is used again, by threads or by processes. Imports no torch.

Work is handed out in runs of a few images, so that handing it out costs little. What comes back is
only why an image is broken; the pixels lie in `memory` already.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import connection, parent_process
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
from PIL import Image

from vizsla.data.framing import Framing
from vizsla.errors import ImageError

RUN = 4  # images that a thread or process takes at once
Reasons = list[str | None]  # None: the image is whole


class ThreadDecoder:
    """memory: (rings, B, H, W, 3) uint8."""

    def __init__(
        self,
        path: Callable[[int], Path],
        framing: Framing,
        shape: tuple[int, ...],
        workers: int,
        max_pixels: int,
        picture: Callable[[int], Image.Image] | None = None,
    ) -> None:
        self.memory = np.zeros(shape, np.uint8)
        self._path, self._framing, self._max_pixels = path, framing, max_pixels
        self._picture = picture
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")
        self._run = RUN if shape[1] >= RUN * workers else 1

    def submit(self, ring: int, positions: Sequence[int]) -> list[Future[Reasons]]:
        """One future for each run of images, in order."""
        return [
            self._pool.submit(self._read, ring, start, positions[start : start + self._run])
            for start in range(0, len(positions), self._run)
        ]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, ring: int, start: int, positions: Sequence[int]) -> Reasons:
        return [
            _into(self.memory[ring, slot], lambda i=i: self._pixels(i))  # type: ignore[misc]
            for slot, i in enumerate(positions, start)
        ]

    def _pixels(self, i: int) -> np.ndarray:
        if self._picture is not None:
            return self._framing.pixels(self._picture(i))
        return self._framing.read(self._path(i), max_pixels=self._max_pixels)


class ProcessDecoder:
    """The same by processes; they end with this one, however it ends."""

    def __init__(
        self,
        path: Callable[[int], Path],
        framing: Framing,
        shape: tuple[int, ...],
        workers: int,
        max_pixels: int,
    ) -> None:
        self._path = path
        self._shared = SharedMemory(create=True, size=int(np.prod(shape)))
        self.memory: np.ndarray = np.ndarray(shape, np.uint8, self._shared.buf)
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(self._shared.name, shape, framing, max_pixels),
        )
        self._run = max(1, min(RUN * 2, shape[1] // workers))

    def submit(self, ring: int, positions: Sequence[int]) -> list[Future[Reasons]]:
        paths = [str(self._path(i)) for i in positions]
        return [
            self._pool.submit(_read_files, ring, start, paths[start : start + self._run])
            for start in range(0, len(paths), self._run)
        ]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        del self.memory
        with suppress(BufferError):  # somebody still looks at the last batch
            self._shared.close()
        self._shared.unlink()


def _into(slot: np.ndarray, pixels: Callable[[], np.ndarray]) -> str | None:
    try:
        slot[...] = pixels()
    except ImageError as error:
        return str(error)
    return None


# ── inside a decoding process ────────────────────────────────────────────────────────────────────

_mine: "tuple[SharedMemory, np.ndarray, Framing, int] | None" = None


def _start(name: str, shape: tuple[int, ...], framing: Framing, max_pixels: int) -> None:
    global _mine
    threading.Thread(target=_end_with_parent, daemon=True).start()
    shared = SharedMemory(name=name)
    memory: np.ndarray = np.ndarray(shape, np.uint8, shared.buf)
    _mine = shared, memory, framing, max_pixels


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _read_files(ring: int, start: int, paths: Sequence[str]) -> Reasons:
    assert _mine is not None  # _start ran before
    _, memory, framing, max_pixels = _mine
    return [
        _into(memory[ring, slot], lambda path=path: framing.read(path, max_pixels=max_pixels))  # type: ignore[misc]
        for slot, path in enumerate(paths, start)
    ]
