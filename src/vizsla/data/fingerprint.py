"""What a set of images looks like on disk, as one number: it changes when an image does."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vizsla.storage import open_regular

if TYPE_CHECKING:
    from vizsla.data.imageset import ImageSet

PIECE = 4096  # bytes
READ_WHOLE = 16 * PIECE  # what is no larger is read at once, which is quicker
MANY = 8192  # files from which on processes share the reading, where there are cores for them
SHARE = 65536  # files that a process takes at most
WAIT = 1800  # seconds that a process may take for its files
NOTHING = b"unreadable"  # stands for the content of what cannot be read
UNREADABLE = hashlib.sha256(NOTHING).digest()


@dataclass(frozen=True)
class Seen:
    """fingerprint: of the whole set. unreadable: positions of files that could not be read."""

    fingerprint: str
    unreadable: frozenset[int]


def fingerprint(images: "ImageSet") -> str:
    """SHA-256 over ids, contents and attributes: what the vectors and their table are made from.

    Of a file's content its size and three pieces are read, from its start, middle and end.
    """
    return seen(images).fingerprint


def seen(images: "ImageSet") -> Seen:
    """The same, and what could not be read."""
    digest = hashlib.sha256()
    if images.source is None:
        contents = digests([images.where(i) for i in range(len(images))])
    else:
        contents = [images.stamp(i) for i in range(len(images))]
    for name, content in zip(images.ids, contents, strict=True):
        digest.update(f"{name}\0".encode("utf-8", "surrogateescape") + content)
    for column in images.attributes.column_names:
        digest.update(f"{column}\0".encode())
        for value in images.attributes[column].to_pylist():
            digest.update(f"{value!r}\n".encode("utf-8", "surrogateescape"))
    missing = frozenset(i for i, content in enumerate(contents) if content == UNREADABLE)
    return Seen(digest.hexdigest(), missing)


def digests(paths: Sequence[str]) -> list[bytes]:
    """Of each file 32 bytes. A decoder takes ten times as long, but all cores at once."""
    processes = min(8, cores() // 2)
    if len(paths) < MANY or processes < 2:
        return [_digest(path) for path in paths]
    size = min(SHARE, -(-len(paths) // processes))
    parts = [paths[start : start + size] for start in range(0, len(paths), size)]
    with ThreadPoolExecutor(processes) as pool:
        return [digest for part in pool.map(_elsewhere, parts) for digest in part]


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _elsewhere(paths: Sequence[str]) -> list[bytes]:
    """The same by another process; by this one where that fails."""
    with suppress(OSError, ValueError, TypeError, subprocess.SubprocessError):
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(paths), capture_output=True, text=True, check=False, timeout=WAIT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
        found = [bytes.fromhex(line) for line in done.stdout.split()]
        if done.returncode == 0 and len(found) == len(paths):
            return found
    return [_digest(path) for path in paths]


def is_readable(path: str) -> bool:
    return _digest(path) != UNREADABLE


def _digest(path: str) -> bytes:
    return hashlib.sha256(_pieces(path)).digest()


def _pieces(path: str) -> bytes:
    try:
        handle = open_regular(path)
    except (OSError, ValueError):
        return NOTHING
    try:
        size = os.fstat(handle).st_size
        if size <= READ_WHOLE:
            content = os.read(handle, size + 1)
            pieces = [content[start : start + PIECE] for start in _starts(len(content))]
            return b"\0".join([str(len(content)).encode(), *pieces])
        pieces = [str(size).encode()]
        for start in _starts(size):
            os.lseek(handle, start, os.SEEK_SET)
            pieces.append(os.read(handle, PIECE))
        return b"\0".join(pieces)
    except OSError:
        return NOTHING
    finally:
        os.close(handle)


def _starts(size: int) -> tuple[int, int, int]:
    return 0, size // 2, max(0, size - PIECE)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, BrokenPipeError):
        print("\n".join(_digest(path).hex() for path in json.load(sys.stdin)))
