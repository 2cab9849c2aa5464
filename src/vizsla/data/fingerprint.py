"""What a set of images looks like on disk, as one number: it changes when an image does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vizsla.data.file_state import state_of
from vizsla.storage import open_regular

if TYPE_CHECKING:
    import numpy as np

    from vizsla.data.imageset import ImageSet

PIECE = 4096  # bytes
READ_WHOLE = 16 * PIECE  # what is no larger is read at once, which is quicker
MANY = 8192  # files from which on processes share the reading, where there are cores for them
SHARE = 65536  # files that a process takes at most
WAIT = 1800  # seconds that a process may take for its files
GLANCE = 0.1  # seconds after which it is seen whether anybody still waits
NOTHING = b"unreadable"  # stands for the content of what cannot be read
UNREADABLE = hashlib.sha256(NOTHING).digest()


@dataclass(frozen=True)
class Seen:
    """fingerprint: of the whole set. unreadable: positions of files that could not be read.

    states: (N,) int64, what `state_of` said of each file when it was looked at.
    """

    fingerprint: str
    unreadable: frozenset[int]
    states: "np.ndarray"


def fingerprint(images: "ImageSet") -> str:
    """SHA-256 over ids, contents and attributes: what the vectors and their table are made from.

    Of a file's content its size and three pieces are read, from its start, middle and end.
    """
    return seen(images).fingerprint


def seen(images: "ImageSet", stop: threading.Event | None = None) -> Seen:
    """The same, and what could not be read; GivenUpError soon after `stop` is set."""
    import numpy as np  # the processes of `looked_at` start sooner without it

    digest = hashlib.sha256()
    if images.source is None:
        looks = looked_at([images.where(i) for i in range(len(images))], stop)
        contents = [content for content, _ in looks]
        states = np.array([state for _, state in looks], np.int64)
    else:
        states = images.states(range(len(images)), now=False)
        contents = [images.stamp(i) for i in range(len(images))]
    for name, content in zip(images.ids, contents, strict=True):
        digest.update(f"{name}\0".encode("utf-8", "surrogateescape") + content)
    for column in images.attributes.column_names:
        digest.update(f"{column}\0".encode())
        for value in images.attributes[column].to_pylist():
            digest.update(f"{value!r}\n".encode("utf-8", "surrogateescape"))
    missing = frozenset(i for i, content in enumerate(contents) if content == UNREADABLE)
    return Seen(digest.hexdigest(), missing, states)


Look = tuple[bytes, int]  # what stands for a file's content, and its state; 0 if unreadable


class GivenUpError(Exception):
    """Nobody waits for what was asked any more."""


def looked_at(paths: Sequence[str], stop: threading.Event | None = None) -> list[Look]:
    """Of each file 32 bytes and its state. A decoder takes ten times as long, but all cores.

    GivenUpError soon after `stop` is set.
    """
    stop = stop or threading.Event()
    processes = min(8, cores() // 2)
    if len(paths) < MANY or processes < 2:
        return _here(paths, stop)
    size = min(SHARE, -(-len(paths) // processes))
    parts = [paths[start : start + size] for start in range(0, len(paths), size)]
    pool = ThreadPoolExecutor(processes)
    try:
        found = pool.map(lambda part: _elsewhere(part, stop), parts)
        return [look for part in found for look in part]
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _here(paths: Sequence[str], stop: threading.Event) -> list[Look]:
    looks = []
    for path in paths:
        if stop.is_set():
            raise GivenUpError
        looks.append(_look(path))
    return looks


def _elsewhere(paths: Sequence[str], stop: threading.Event) -> list[Look]:
    """The same by another process; by this one where that fails."""
    with suppress(OSError, ValueError, TypeError, subprocess.SubprocessError):
        said = _answer(json.dumps(paths), stop)
        words = [line.split() for line in said.splitlines()]
        found = [(bytes.fromhex(digest), int(state)) for digest, state in words]
        if len(found) == len(paths):
            return found
    return _here(paths, stop)


def _answer(asked: str | None, stop: threading.Event) -> str:
    """What this file, run as a program, says to it; GivenUpError soon after `stop` is set."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    with process:
        try:
            begun = time.monotonic()
            while time.monotonic() - begun < WAIT:
                if stop.is_set():
                    raise GivenUpError
                try:
                    return process.communicate(asked, timeout=GLANCE)[0]
                except subprocess.TimeoutExpired:
                    asked = None  # it goes on with what it was told first
            raise subprocess.TimeoutExpired(process.args, WAIT)
        finally:
            process.kill()


def _look(path: str) -> Look:
    pieces, state = _pieces(path)
    return hashlib.sha256(pieces).digest(), state


def _pieces(path: str) -> Look:
    try:
        handle = open_regular(path)
    except (OSError, ValueError):
        return NOTHING, 0
    try:
        found = os.fstat(handle)
        size, state = found.st_size, state_of(found)
        if size <= READ_WHOLE:
            content = os.read(handle, size + 1)
            pieces = [content[start : start + PIECE] for start in _starts(len(content))]
            return b"\0".join([str(len(content)).encode(), *pieces]), state
        pieces = [str(size).encode()]
        for start in _starts(size):
            os.lseek(handle, start, os.SEEK_SET)
            pieces.append(os.read(handle, PIECE))
        return b"\0".join(pieces), state
    except OSError:
        return NOTHING, 0
    finally:
        os.close(handle)


def _starts(size: int) -> tuple[int, int, int]:
    return 0, size // 2, max(0, size - PIECE)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, BrokenPipeError):
        for path in json.load(sys.stdin):
            content, state = _look(path)
            print(content.hex(), state)
