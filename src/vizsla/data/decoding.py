"""Image files → pixels in a memory that is reused, by threads or by child processes. No torch.

Images are distributed a few at a time, which keeps the overhead low. A worker writes pixels
straight into `memory` and returns only why an image is broken.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizsla.data.resize import Framing, Framings, TiledFraming, framing_from
from vizsla.errors import ImageError
from vizsla.processes import (
    ChildCrashedError,
    ChildTimeoutError,
    Message,
    ProcessPool,
    serve_requests,
)
from vizsla.storage import storage_error

IMAGES_PER_TASK = 4
TASK_TIMEOUT = 600.0  # seconds for one task of a child process
Reasons = list[str | None]  # why each image is broken; None if it is not


class ThreadDecoder:
    """Decodes in threads. memory: (slots, B, H, W, 3) uint8, one batch of B images in each slot.

    file: the i-th image, a path or its content. picture: gives the i-th image decoded, instead.
    """

    def __init__(
        self,
        file: Callable[[int], str | Path | bytes],
        framing: Framing | TiledFraming,
        shape: tuple[int, ...],
        workers: int,
        max_pixels: int,
        picture: Callable[[int], Image.Image] | None = None,
    ) -> None:
        self.memory = np.zeros(shape, np.uint8)
        self._file, self._framing, self._max_pixels = file, framing, max_pixels
        self._picture = picture
        self._threads = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")
        self._images_per_task = IMAGES_PER_TASK if shape[1] >= IMAGES_PER_TASK * workers else 1

    def submit(self, slot: int, positions: Sequence[int]) -> list[Future[Reasons]]:
        """Starts to decode a batch into memory[slot]; a future for every few images, in order."""
        size = self._images_per_task
        return [
            self._threads.submit(self._decode, slot, first, positions[first : first + size])
            for first in range(0, len(positions), size)
        ]

    def close(self) -> None:
        """Waits for the images being decoded; those not begun are dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _decode(self, slot: int, first: int, positions: Sequence[int]) -> Reasons:
        return [
            _reason_if_broken(self.memory[slot, row], lambda i=i: self._pixels(i))  # type: ignore[misc]
            for row, i in enumerate(positions, first)
        ]

    def _pixels(self, i: int) -> np.ndarray:
        if self._picture is not None:
            return self._framing.pixels(self._picture(i))
        return self._framing.read(self._file(i), max_pixels=self._max_pixels)


class ProcessDecoder:
    """The same in child processes, for many cores. Images must be files.

    A decoder that crashes or hangs loses only its image.
    """

    def __init__(
        self,
        file: Callable[[int], str | Path | bytes],
        framing: Framing | TiledFraming,
        shape: tuple[int, ...],
        workers: int,
        max_pixels: int,
    ) -> None:
        self._file = file
        self._shared = _SharedMemory(shape)
        self.memory = self._shared.pixels
        setup = {
            "memory": self._shared.name,
            "shape": shape,
            "max_pixels": max_pixels,
            "framing": asdict(framing),
        }
        self.pool = ProcessPool(
            "vizsla.data.decoding", workers, setup=setup,
            inherited_files=self._shared.inherited_files,
        )  # fmt: skip
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._images_per_task = max(1, min(2 * IMAGES_PER_TASK, shape[1] // workers))
        try:
            self.pool.start()
        except BaseException:
            self.close()
            raise

    def submit(self, slot: int, positions: Sequence[int]) -> list[Future[Reasons]]:
        """Starts to decode a batch into memory[slot]; a future for every few images, in order."""
        paths, size = [str(self._file(i)) for i in positions], self._images_per_task
        return [
            self._threads.submit(self._decode, slot, first, paths[first : first + size])
            for first in range(0, len(paths), size)
        ]

    def close(self) -> None:
        """Ends the child processes, whatever they are doing, and gives the memory back."""
        self.pool.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        del self.memory
        self._shared.close()

    def _decode(self, slot: int, first: int, paths: list[str]) -> Reasons:
        request = {"slot": slot, "first": first, "paths": paths}
        try:
            reply, _ = self.pool.run(request, timeout=TASK_TIMEOUT)
            reasons: Reasons = reply["broken"]
            return reasons
        except (ChildCrashedError, ChildTimeoutError) as error:
            if len(paths) > 1:  # which of them was it?
                return [self._decode(slot, first + n, [path])[0] for n, path in enumerate(paths)]
            if isinstance(error, ChildTimeoutError):
                return [f"decoding it takes more than {TASK_TIMEOUT:g} s"]
            return ["the decoder crashed on it"]


class _SharedMemory:
    """Pixels that several processes see: a file, in memory if the system has a folder for that.

    If a child process can inherit an open file, its name is deleted at once: nothing is left
    behind, however this process ends.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        ram = Path("/dev/shm")
        fits = ram.is_dir() and shutil.disk_usage(ram).free > 2 * size
        self._descriptor, path = tempfile.mkstemp(prefix="vizsla-", dir=ram if fits else None)
        self._path = Path(path)
        self.name: int | str = path
        self.inherited_files: tuple[int, ...] = ()
        try:
            if os.name == "posix":
                self._path.unlink()
                self.name, self.inherited_files = self._descriptor, (self._descriptor,)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, size)  # a full disk shows now, not later
            else:
                os.truncate(self._descriptor, size)
        except OSError as error:
            self.close()
            raise storage_error("write", self._path, error) from error
        self.pixels = _mapped(os.dup(self._descriptor), shape)

    def close(self) -> None:
        self.pixels = np.empty(0, np.uint8)
        with suppress(OSError):
            os.close(self._descriptor)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _mapped(file: int | str, shape: tuple[int, ...]) -> np.ndarray:
    """The content of a file (a descriptor, which is closed, or a path) as a uint8 array."""
    with open(file, "r+b") as opened:  # noqa: PTH123 (may be a descriptor)
        pixels: np.ndarray = np.memmap(opened, np.uint8, "r+", shape=shape)
        return pixels


def _reason_if_broken(row: np.ndarray, pixels: Callable[[], np.ndarray]) -> str | None:
    """Fills `row` (H, W, 3), or says why it cannot."""
    try:
        row[...] = pixels()
    except ImageError as error:
        return str(error)
    return None


# ── inside a child process ───────────────────────────────────────────────────────────────────────


def _decode_requests(setup: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Message]:
    memory = _mapped(setup["memory"], tuple(setup["shape"]))
    framing = framing_from(setup["framing"])
    assert not isinstance(framing, Framings)

    def reply_to(request: dict[str, Any], body: bytes) -> Message:
        rows = memory[request["slot"], request["first"] :]
        reasons = [
            _reason_if_broken(row, lambda p=path: framing.read(p, max_pixels=setup["max_pixels"]))  # type: ignore[misc]
            for row, path in zip(rows, request["paths"], strict=False)
        ]
        return {"broken": reasons}, b""

    return reply_to


if __name__ == "__main__":
    serve_requests(_decode_requests)
