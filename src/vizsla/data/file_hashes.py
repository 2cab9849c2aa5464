"""Image files → a hash of each one's content, and a number that changes when the file does.

Of a file's content its size and three samples are hashed: from its start, middle and end.
"""

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import Any

from vizsla.errors import StorageError
from vizsla.processes import (
    ChildCrashedError,
    ChildTimeoutError,
    Message,
    PoolClosedError,
    ProcessPool,
    available_cores,
    serve_requests,
)
from vizsla.storage import open_regular

SAMPLE_BYTES = 4096
READ_WHOLE_BYTES = 16 * SAMPLE_BYTES  # a file no larger is read at once, which is quicker
MANY_FILES = 8192  # from here on child processes share the work
FILES_PER_REQUEST = 4096
REQUEST_TIMEOUT = 1800.0  # seconds
CANCEL_INTERVAL = 0.1  # seconds between two checks for `cancelled`
_UNREADABLE_CONTENT = b"unreadable"
UNREADABLE = hashlib.sha256(_UNREADABLE_CONTENT).digest()  # stands for what cannot be read

FileHash = tuple[bytes, int]  # 32 bytes, and `state_of` the file; UNREADABLE and 0


def state_of(found: os.stat_result) -> int:
    """Another number once a file is written to, or another one takes its place; never 0.

    Made from size and times, without the inode, which some network file systems reassign.
    """
    return hash((found.st_size, found.st_mtime_ns, found.st_ctime_ns)) or 1


def current_state(path: str) -> int:
    """`state_of` the file that is there now; 0 if there is none."""
    try:
        return state_of(os.stat(path))  # noqa: PTH116 (a Path takes as long to make)
    except (OSError, ValueError):
        return 0


def hash_files(paths: Sequence[str], *, cancelled: threading.Event | None = None) -> list[FileHash]:
    """Hash and state of each file; many files are shared among child processes.

    concurrent.futures.CancelledError soon after `cancelled` is set.
    """
    cancelled = cancelled or threading.Event()
    processes = min(8, available_cores() // 2)
    if len(paths) < MANY_FILES or processes < 2:
        return _hash_here(paths, cancelled)
    size = min(FILES_PER_REQUEST, -(-len(paths) // processes))
    parts = [paths[start : start + size] for start in range(0, len(paths), size)]
    with (
        ThreadPoolExecutor(processes) as threads,
        ProcessPool("vizsla.data.file_hashes", processes) as pool,
    ):
        tasks = [threads.submit(_hash_in_child, pool, part, cancelled) for part in parts]
        try:
            while wait(tasks, timeout=CANCEL_INTERVAL).not_done:
                if cancelled.is_set():
                    raise CancelledError
        except BaseException:
            cancelled.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return [found for task in tasks for found in task.result()]


def _hash_here(paths: Sequence[str], cancelled: threading.Event) -> list[FileHash]:
    hashes = []
    for path in paths:
        if cancelled.is_set():
            raise CancelledError
        hashes.append(hash_file(path))
    return hashes


def _hash_in_child(
    pool: ProcessPool, paths: Sequence[str], cancelled: threading.Event
) -> list[FileHash]:
    """In this process if the child fails."""
    try:
        reply, body = pool.run({"paths": paths}, timeout=REQUEST_TIMEOUT)
        digests = [body[start : start + 32] for start in range(0, len(body), 32)]
        return list(zip(digests, reply["states"], strict=True))
    except (ChildCrashedError, ChildTimeoutError, StorageError):
        return _hash_here(paths, cancelled)
    except PoolClosedError:
        raise CancelledError from None


def hash_file(path: str) -> FileHash:
    """Hash and state of one file; UNREADABLE and 0 for anything but a regular file."""
    content, state = _samples(path)
    return hashlib.sha256(content).digest(), state


def _samples(path: str) -> tuple[bytes, int]:
    try:
        handle = open_regular(path)
    except (OSError, ValueError):
        return _UNREADABLE_CONTENT, 0
    try:
        found = os.fstat(handle)
        size, state = found.st_size, state_of(found)
        if size <= READ_WHOLE_BYTES:
            content = os.read(handle, size + 1)
            size = len(content)
            samples = [content[start : start + SAMPLE_BYTES] for start in _sample_starts(size)]
        else:
            samples = []
            for start in _sample_starts(size):
                os.lseek(handle, start, os.SEEK_SET)
                samples.append(os.read(handle, SAMPLE_BYTES))
        return b"\0".join([str(size).encode(), *samples]), state
    except OSError:
        return _UNREADABLE_CONTENT, 0
    finally:
        os.close(handle)


def _sample_starts(size: int) -> tuple[int, int, int]:
    return 0, size // 2, max(0, size - SAMPLE_BYTES)


def _hash_requests(setup: dict[str, Any]) -> Any:
    def reply_to(request: dict[str, Any], body: bytes) -> Message:
        hashes = [hash_file(path) for path in request["paths"]]
        return {"states": [state for _, state in hashes]}, b"".join(h for h, _ in hashes)

    return reply_to


if __name__ == "__main__":
    serve_requests(_hash_requests)
