"""Files → pixels in memory that is used again, by threads or by processes. Imports no torch.

Work is handed out in runs of a few images, so that handing it out costs little. What comes back is
only why an image is broken; the pixels lie in `memory` already.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from vizsla.data.resize import Framing
from vizsla.errors import ImageError, StorageError
from vizsla.storage import storage_error

RUN = 4  # images that a thread or process takes at once
Reasons = list[str | None]  # None: the image is whole


class ThreadDecoder:
    """memory: (rings, B, H, W, 3) uint8. path: where the i-th image lies, or its content."""

    def __init__(
        self,
        path: Callable[[int], str | Path | bytes],
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
    """The same by processes, for many cores. A decoder that crashes costs its image alone.

    Images must be files. They are programs of their own and not copies of this one, so whoever
    calls need not be written for it; they end when their input does, and so with this process,
    however it ends.
    """

    def __init__(
        self,
        path: Callable[[int], str | Path | bytes],
        framing: Framing,
        shape: tuple[int, ...],
        workers: int,
        max_pixels: int,
    ) -> None:
        self._path = path
        self._shared = _SharedMemory(shape)
        self.memory = self._shared.pixels
        task = {"file": self._shared.name, "shape": shape, "max_pixels": max_pixels}
        self._task = json.dumps({**task, "framing": asdict(framing)})
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._run = max(1, min(2 * RUN, shape[1] // workers))
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        try:
            for _ in range(workers):  # all start at once, and nobody waits for them yet
                self._all.append(_Worker(self._task, self._shared))
                self._free.put(self._all[-1])
        except BaseException:
            self.close()
            raise

    def submit(self, ring: int, positions: Sequence[int]) -> list[Future[Reasons]]:
        paths = [str(self._path(i)) for i in positions]
        return [
            self._pool.submit(self._read, ring, start, paths[start : start + self._run])
            for start in range(0, len(paths), self._run)
        ]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in self._all:
            worker.end()
        del self.memory
        self._shared.close()

    def _read(self, ring: int, start: int, paths: list[str]) -> Reasons:
        worker = self._free.get()
        try:
            found = worker.ask(ring, start, paths)
            if found is not None:
                return found
            self._all.remove(worker)
            worker.end()
            worker = _Worker(self._task, self._shared)
            self._all.append(worker)
        finally:
            self._free.put(worker)
        if len(paths) == 1:
            return ["the decoder crashed on it"]
        return [self._read(ring, start + i, [path])[0] for i, path in enumerate(paths)]


class _Worker:
    """One decoding process, spoken to in lines of JSON."""

    def __init__(self, task: str, shared: "_SharedMemory") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vizsla.data.decoding", task],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            pass_fds=shared.handed_on,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip

        self._started = False

    def _wait(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise StorageError("a decoding process did not start: see its message above")
        self._started = True

    def ask(self, ring: int, start: int, paths: list[str]) -> Reasons | None:
        """None where the process is gone; StorageError where it never came."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if not self._started:
            self._wait()
        with suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps([ring, start, paths]) + "\n")
            reasons: Reasons = json.loads(self._process.stdout.readline())
            return reasons
        return None

    def end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        self._process.kill()  # nothing of what it does outlives its memory
        self._process.wait()


class _SharedMemory:
    """Pixels that several processes see: a file, in memory where the system has a folder for it.

    Where a process can be handed an open file, its name is gone at once: nothing stays behind,
    however this process ends.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        ram = Path("/dev/shm")
        roomy = ram.is_dir() and shutil.disk_usage(ram).free > 2 * size
        self._handle, path = tempfile.mkstemp(prefix="vizsla-", dir=ram if roomy else None)
        self._path = Path(path)
        self.name: int | str = path
        self.handed_on: tuple[int, ...] = ()
        try:
            if os.name == "posix":
                self._path.unlink()
                self.name, self.handed_on = self._handle, (self._handle,)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._handle, 0, size)  # full now, not in the middle
            else:
                os.truncate(self._handle, size)
        except OSError as error:
            self.close()
            raise storage_error("write", self._path, error) from error
        with os.fdopen(os.dup(self._handle), "r+b") as file:
            self.pixels: np.ndarray = np.memmap(file, np.uint8, "r+", shape=shape)

    def close(self) -> None:
        self.pixels = np.empty(0, np.uint8)
        with suppress(OSError):
            os.close(self._handle)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _into(slot: np.ndarray, pixels: Callable[[], np.ndarray]) -> str | None:
    try:
        slot[...] = pixels()
    except ImageError as error:
        return str(error)
    return None


# ── inside a decoding process ────────────────────────────────────────────────────────────────────


def _decode_for(task: str) -> None:
    """Lines of [ring, slot of the first, paths] come in, lines of reasons go out."""
    told = json.loads(task)
    where = told["file"]
    memory: np.ndarray
    with open(where, "r+b") as file:  # noqa: PTH123 (a number, or a path on Windows)
        memory = np.memmap(file, np.uint8, "r+", shape=tuple(told["shape"]))
    framing = Framing(**{**told["framing"], "size": tuple(told["framing"]["size"])})
    print("ready", flush=True)
    for line in sys.stdin:
        ring, start, paths = json.loads(line)
        reasons = []
        for slot, path in enumerate(paths, start):

            def pixels(path: str = path) -> np.ndarray:
                return framing.read(path, max_pixels=told["max_pixels"])

            reasons.append(_into(memory[ring, slot], pixels))
        print(json.dumps(reasons), flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, BrokenPipeError):  # the one who asks says what is to be said
        _decode_for(sys.argv[1])
