"""Uploaded bytes, or a file of the gallery → pixels, in a child process that may crash.

A decoder cannot be stopped from outside while it runs in a thread, and a bug in one can end the
whole process. So images are decoded by a few child processes (vizsla.processes) with a limit on
memory; one that takes too long is killed, and another takes its place.

`python -m vizsla.web.search.decoder` is such a child.
"""

import contextlib
import functools
import io
import math
import threading
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizsla.data.images import Reduced, read_header, read_image, read_reduced
from vizsla.data.query_box import QueryBox
from vizsla.data.resize import Framing, Framings, framing_from
from vizsla.errors import DataError, ImageError
from vizsla.processes import (
    ChildCrashedError,
    ChildTimeoutError,
    Message,
    PoolClosedError,
    ProcessPool,
    serve_requests,
)

PROCESSES = 2
SECONDS = 10.0  # for one image
WAITING = 64  # images that may wait; more are refused
TOO_MANY = "too many images wait: try again in a moment"
JPEG_QUALITY = 88
MEMORY_PER_PIXEL, MIN_MEMORY = 40, 2**30  # bytes of address space that a child may use


class Busy(Exception):
    """Too much of one kind waits already. seconds: after which one may ask again."""

    def __init__(self, message: str = TOO_MANY, *, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds


class Closed(Exception):
    """The server is shutting down: there will be no answer."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


@dataclass(frozen=True, eq=False)
class Decoded:
    """size: of the whole upright image, or of the part that was asked for.

    pixels: for the model. jpeg: for display.
    """

    size: tuple[int, int]
    pixels: np.ndarray | None  # (H, W, 3) uint8
    jpeg: bytes | None


class Decoder:
    """`decode(…)` → Future of Decoded, or of ImageError with the reason in plain words; DataError
    if the image is sound, but the part that was asked for lies beyond it."""

    def __init__(
        self,
        *,
        max_pixels: int,
        processes: int = PROCESSES,
        seconds: float = SECONDS,
        waiting: int = WAITING,
        memory_limit: int | None = None,
        low_priority: bool = False,
    ) -> None:
        """memory_limit: bytes of address space of a child; default: enough for max_pixels.

        low_priority: children run when other processes leave them time.
        """
        self.max_pixels, self.seconds, self.waiting = max_pixels, seconds, waiting
        self.pool = ProcessPool(
            "vizsla.web.search.decoder",
            processes,
            setup={"max_pixels": max_pixels},
            memory_limit=memory_limit or MIN_MEMORY + MEMORY_PER_PIXEL * max_pixels,
            low_priority=low_priority,
        )
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="serve-decoder")
        self._lock = threading.Lock()
        self._pending: set[Future[Decoded]] = set()
        self._closed = False

    def decode(
        self,
        source: bytes | Path,
        *,
        framing: Framing | Framings | None = None,
        jpeg_side: int | None = None,
        large: bool = True,
        part: QueryBox | None = None,
    ) -> "Future[Decoded]":
        """framing: asks for `pixels`; jpeg_side: for a JPEG whose sides are at most that.

        large: False allows a smaller JPEG where the model needs fewer pixels, in half the time.
        part: of the image, in place of the whole. Raises Busy at once if too many wait, Closed
        after `close`.
        """
        request: dict[str, Any] = {"jpeg_side": jpeg_side, "large": large}
        if part is not None:
            request["part"] = part.numbers
        if framing is not None:
            request["framing"] = asdict(framing)
        future: Future[Decoded] = Future()
        with self._lock:
            if self._closed:
                raise Closed
            if len(self._pending) >= self.waiting:
                raise Busy
            self._pending.add(future)
            self._threads.submit(self._decode, future, request, source)
        return future

    def close(self) -> None:
        """All that wait get Closed at once."""
        with self._lock:
            self._closed = True
            waiting, self._pending = self._pending, set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for future in waiting:
            fail(future, Closed())
        self.pool.close()

    def _decode(
        self, future: "Future[Decoded]", request: dict[str, Any], source: bytes | Path
    ) -> None:
        """Ends the future with what a child replies."""
        try:
            if future.done():
                return
            if isinstance(source, Path):
                reply = self.pool.run({**request, "path": str(source)}, timeout=self.seconds)
            else:
                reply = self.pool.run(request, source, timeout=self.seconds)
            succeed(future, _decoded(*reply))
        except PoolClosedError:
            fail(future, Closed())
        except ChildTimeoutError:
            fail(future, ImageError(f"it takes more than {self.seconds:g} s to unpack"))
        except (ChildCrashedError, ValueError, KeyError, TypeError):
            fail(future, ImageError("its content makes the decoder fail"))
        except BaseException as error:
            fail(future, error)
        finally:
            with self._lock:
                self._pending.discard(future)


def _decoded(reply: dict[str, Any], body: bytes) -> Decoded:
    """What a child replied, which may be anything; an error if it could not decode."""
    if reply["error"] is not None:
        raise (DataError if reply.get("is_sound") else ImageError)(str(reply["error"]))
    width, height = map(int, reply["size"])
    n_jpeg = int(reply["jpeg"])
    pixels = None
    if reply["shape"] is not None:
        rows, columns = map(int, reply["shape"])
        pixels = np.array(np.frombuffer(body[n_jpeg:], np.uint8)).reshape(rows, columns, 3)
    return Decoded((width, height), pixels, body[:n_jpeg] or None)


def succeed(future: "Future[Any]", result: Any) -> None:
    """Does nothing if the future has ended already: cancelled, or closed in the meantime."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def fail(future: "Future[Any]", error: BaseException) -> None:
    """As `succeed`, with an error."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


# ── inside a child process ───────────────────────────────────────────────────────────────────────


def _reply_to(max_pixels: int, request: dict[str, Any], body: bytes) -> Message:
    source, side, part = request.get("path", body), request["jpeg_side"], request.get("part")
    framing = framing_from(request["framing"]) if "framing" in request else None
    try:
        least = side if framing is None else framing.least_side  # as `embed` reads it
        found = read_reduced(source, max_pixels=max_pixels, at_least=None if part else least)
        if part:
            found = Reduced.of(QueryBox(*part).cut(found.image))
        pixels, image = None if framing is None else framing.of_reduced(found), found.image
        if (
            side
            and request["large"]
            and framing is not None
            and not part
            and max(image.size) < side
        ):
            image = _larger(source, image, side, max_pixels)
        jpeg = _as_jpeg(image, side) if side else b""
    except DataError as error:  # of the image, or of the part
        return {"error": str(error), "is_sound": not isinstance(error, ImageError)}, b""
    except MemoryError:
        return {"error": "not enough memory to unpack it"}, b""
    shape = None if pixels is None else pixels.shape[:2]
    reply = {"error": None, "size": found.whole, "jpeg": len(jpeg), "shape": shape}
    return reply, jpeg + (b"" if pixels is None else pixels.tobytes())


def _larger(source: str | bytes, small: Image.Image, side: int, max_pixels: int) -> Image.Image:
    """The picture for display, if a JPEG was decoded at a smaller size for the model."""
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
    small.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


if __name__ == "__main__":
    serve_requests(lambda setup: functools.partial(_reply_to, setup["max_pixels"]))
