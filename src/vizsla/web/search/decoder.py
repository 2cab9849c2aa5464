"""Bytes of a stranger, or a file of the gallery → pixels, in a process that may die of it.

A decoder cannot be stopped from outside while it runs in a thread, and a bug in one can end the
whole process. So pictures are decoded by a few child processes with a limit on memory; one that
takes too long is ended and started anew. Parent and child speak JSON and plain bytes, no pickle:
a child that a picture has taken over can lie about pixels, and no more.

`python -m vizsla.web.search.decoder` is such a child.
"""

import contextlib
import io
import json
import math
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from PIL import Image

from vizsla.data.images import read_header, read_image, read_reduced
from vizsla.data.resize import Framing
from vizsla.errors import ImageError

PROCESSES = 2
SECONDS = 10.0  # for one picture
STARTING_SECONDS = 60.0  # for a child's first answer, which waits for its imports
WAITING = 64  # pictures that may wait; more are refused
TOO_MANY = "too many pictures wait: try again in a moment"
QUALITY = 88  # of the JPEGs
BYTES_A_PIXEL, BYTES_AT_LEAST = 40, 2**30  # of address space that a child may take
NICE = 10  # of processes that give way: about a tenth of a busy core
LARGEST_ANSWER = 2**28  # bytes


class Busy(Exception):
    """Too much of one kind waits already. seconds: after which one may ask again."""

    def __init__(self, message: str = TOO_MANY, *, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds


class Closed(Exception):
    """Asked of what has ended, or ended while it was asked: there will be no answer."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


@dataclass(frozen=True, eq=False)
class Decoded:
    """size: of the upright picture, which a large JPEG may be unpacked smaller than.

    pixels: as the model sees it. jpeg: for people.
    """

    size: tuple[int, int]
    pixels: np.ndarray | None  # (H, W, 3) uint8
    jpeg: bytes | None


class Decoder:
    """`decode(…)` → Future of Decoded, or of ImageError with the reason in plain words."""

    def __init__(
        self,
        *,
        max_pixels: int,
        processes: int = PROCESSES,
        seconds: float = SECONDS,
        waiting: int = WAITING,
        room: int | None = None,
        gives_way: bool = False,
    ) -> None:
        """room: bytes of address space of a process; default: BYTES_A_PIXEL for every pixel.

        gives_way: the system runs the processes when others leave it time.
        """
        self.max_pixels, self.seconds, self.waiting = max_pixels, seconds, waiting
        self._children: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        if room is None:
            room = BYTES_AT_LEAST + BYTES_A_PIXEL * max_pixels
        self._all = [_Child(max_pixels, room, gives_way) for _ in range(processes)]
        for child in self._all:
            self._children.put(child)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="serve-decoder")
        self._lock = threading.Lock()
        self._pending: set[Future[Decoded]] = set()
        self._closed = False

    def decode(
        self,
        source: bytes | Path,
        *,
        framing: Framing | None = None,
        jpeg_side: int | None = None,
        large: bool = True,
    ) -> "Future[Decoded]":
        """framing: asks for `pixels`; jpeg_side: for a JPEG whose sides are at most that.

        large: the JPEG is as large as that wherever the picture is; else it may be smaller, where
        the model needs less: that takes half the time.
        Raises Busy at once where too many wait, Closed after `close`.
        """
        about: dict[str, Any] = {"jpeg_side": jpeg_side, "large": large}
        if framing is not None:
            about["framing"] = asdict(framing)
        future: Future[Decoded] = Future()
        with self._lock:
            if self._closed:
                raise Closed
            if len(self._pending) >= self.waiting:
                raise Busy
            self._pending.add(future)
            self._threads.submit(self._decode, future, about, source)
        return future

    def close(self) -> None:
        """Whoever waits gets Closed at once."""
        with self._lock:
            self._closed = True
            waiting, self._pending = self._pending, set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for future in waiting:
            fail(future, Closed())
        for child in self._all:
            child.stop()

    def _decode(
        self, future: "Future[Decoded]", about: dict[str, Any], source: bytes | Path
    ) -> None:
        child = self._children.get()
        try:
            if not future.done():
                succeed(future, child.ask(about, source, self.seconds))
        except BaseException as error:
            fail(future, error)
        finally:
            self._children.put(child)
            with self._lock:
                self._pending.discard(future)


def succeed(future: "Future[Any]", result: Any) -> None:
    """Nothing happens where it has ended already: cancelled, or closed meanwhile."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def fail(future: "Future[Any]", error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


# ── the parent's side ────────────────────────────────────────────────────────────────────────────


class _Child:
    """One process, started when it is first needed and again after it has died."""

    def __init__(self, max_pixels: int, room: int, gives_way: bool) -> None:
        self.limits = [str(int(one)) for one in (max_pixels, room, gives_way)]
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, about: dict[str, Any], source: bytes | Path, seconds: float) -> Decoded:
        body = b"" if isinstance(source, Path) else source
        if isinstance(source, Path):
            about = {**about, "path": str(source)}
        out_of_time = threading.Event()
        try:
            process = self._running()
            with _limited(process, seconds) as out_of_time:
                _send(process, about, body)
                answer, body = _received(process)
            return _decoded(answer, body)
        except ImageError:
            raise
        except (OSError, EOFError, ValueError, KeyError, TypeError, struct.error):
            self.stop()  # it was ended, it crashed, or it no longer says what it should
            if out_of_time.is_set():
                raise ImageError(f"it takes more than {seconds:g} s to unpack") from None
            raise ImageError("its content makes the decoder fail") from None

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.process is not None and self.process.poll() is not None:
            self.stop()
        if self.process is None:
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
            ours = {name: text for name, text in os.environ.items() if "TOKEN" not in name.upper()}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vizsla.web.search.decoder", *self.limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**ours, **threads},
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children
            )
            with _limited(self.process, STARTING_SECONDS):
                _received(self.process)  # it says that it is there
        return self.process


@contextlib.contextmanager
def _limited(process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[threading.Event]:
    """Ends the process, and so whoever waits for it, unless the block is done in time."""
    out_of_time = threading.Event()

    def end() -> None:
        out_of_time.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield out_of_time
    finally:
        timer.cancel()


def _send(process: "subprocess.Popen[bytes]", about: dict[str, Any], body: bytes) -> None:
    assert process.stdin is not None
    head = json.dumps(about).encode()
    process.stdin.write(struct.pack(">II", len(head), len(body)) + head)
    process.stdin.write(body)  # not copied
    process.stdin.flush()


def _received(process: "subprocess.Popen[bytes]") -> tuple[dict[str, Any], bytes]:
    assert process.stdout is not None
    n_head, n_body = struct.unpack(">II", _read(process.stdout, 8))
    if n_head + n_body > LARGEST_ANSWER:
        raise ValueError("the answer is too large")
    return json.loads(_read(process.stdout, n_head)), _read(process.stdout, n_body)


def _read(pipe: IO[bytes], n_bytes: int) -> bytes:
    data = pipe.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data


def _decoded(answer: dict[str, Any], body: bytes) -> Decoded:
    if answer["error"] is not None:
        raise ImageError(str(answer["error"]))
    width, height = map(int, answer["size"])
    n_jpeg = int(answer["jpeg"])
    pixels = None
    if answer["shape"] is not None:
        rows, columns = map(int, answer["shape"])
        pixels = np.array(np.frombuffer(body[n_jpeg:], np.uint8)).reshape(rows, columns, 3)
    return Decoded((width, height), pixels, body[:n_jpeg] or None)


def _framed(about: dict[str, Any], body: bytes) -> bytes:
    head = json.dumps(about).encode()
    return struct.pack(">II", len(head), len(body)) + head + body


# ── the child's side ─────────────────────────────────────────────────────────────────────────────


def work(limits: list[int], incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Answers until its input ends."""
    max_pixels, room, gives_way = limits
    _limit_itself(room)
    if gives_way and hasattr(os, "nice"):
        os.nice(NICE)
    outgoing.write(_framed({}, b""))
    outgoing.flush()
    while head := incoming.read(8):
        n_head, n_body = struct.unpack(">II", head)
        about, body = json.loads(incoming.read(n_head)), incoming.read(n_body)
        outgoing.write(_answer(about, body, max_pixels))
        outgoing.flush()


def _limit_itself(room: int) -> None:
    """Little memory, no files, no core dumps; Windows knows none of these limits."""
    try:
        import resource
    except ImportError:
        return
    for limit, value in (
        (resource.RLIMIT_AS, room),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (value, value))


def _answer(about: dict[str, Any], body: bytes, max_pixels: int) -> bytes:
    source, side = about.get("path", body), about["jpeg_side"]
    framing = Framing(**about["framing"]) if "framing" in about else None
    try:
        least = side if framing is None else framing.least_side  # as `embed` reads it
        found = read_reduced(source, max_pixels=max_pixels, at_least=least)
        pixels, image = None if framing is None else framing.of_reduced(found), found.image
        if side and about["large"] and framing is not None and max(image.size) < side:
            image = _larger(source, image, side, max_pixels)
        jpeg = _as_jpeg(image, side) if side else b""
    except ImageError as error:
        return _framed({"error": str(error)}, b"")
    except MemoryError:
        return _framed({"error": "not enough memory to unpack it"}, b"")
    shape = None if pixels is None else pixels.shape[:2]
    answer = {"error": None, "size": image.size, "jpeg": len(jpeg), "shape": shape}
    return _framed(answer, jpeg + (b"" if pixels is None else pixels.tobytes()))


def _larger(source: str | bytes, small: Image.Image, side: int, max_pixels: int) -> Image.Image:
    """The same picture for people, where a JPEG was unpacked smaller than that for the model."""
    if read_header(source, max_pixels=max_pixels).format not in ("JPEG", "MPO"):
        return small
    short = math.ceil(side * min(small.size) / max(small.size))
    return read_image(source, max_pixels=max_pixels, at_least=short)


def _as_jpeg(image: Image.Image, side: int) -> bytes:
    wide, high = image.size
    scale = min(1.0, side / max(wide, high))
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    small = image if size == image.size else image.resize(size, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


if __name__ == "__main__":
    work([int(word) for word in sys.argv[1:4]], sys.stdin.buffer, sys.stdout.buffer)
