"""Memory that is freed → back to the system, where the C library (glibc) would keep it.

glibc gives every thread an arena of its own. What one thread frees, another one cannot use, and a
small block that is still in use keeps the free memory below it. A server with some forty threads,
whose index is replaced, would hold a gigabyte of freed memory. Does nothing elsewhere.
"""

import ctypes
import sys

ARENA_MAX = -8  # the number of this parameter of mallopt
ARENAS = 2


def limit_arenas() -> None:
    """Limits the arenas that all threads share from now on; existing ones stay."""
    library = _glibc()
    if library is not None:
        library.mallopt(ARENA_MAX, ARENAS)


def release_freed_memory() -> None:
    """Gives freed memory back. It takes some milliseconds, in which no thread gets memory."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
