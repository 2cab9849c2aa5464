"""Freed memory goes back to the system: each test in a process of its own, as it changes one."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc only")

ARENAS = """
import ctypes, io, re, sys, tempfile, threading
from vizsla.web.search.freed_memory import limit_arenas
if sys.argv[1] == "limited":
    limit_arenas()
met = threading.Barrier(17)
def use_memory():
    kept = bytearray(5000)
    met.wait(); met.wait()
threads = [threading.Thread(target=use_memory) for _ in range(16)]
[thread.start() for thread in threads]
met.wait()
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(library.fopen(file.name.encode(), b"w"))
    library.malloc_info(0, stream)
    library.fclose(stream)
    print(file.read().decode().count("<heap nr"))
met.wait()
"""
RELEASED = """
import sys
from vizsla.web.search.freed_memory import release_freed_memory
def resident():
    line = next(one for one in open("/proc/self/status") if one.startswith("VmRSS"))
    return int(line.split()[1]) // 1024
blocks = [bytearray(b"x" * 50_000) for _ in range(6000)]  # 300 MB
full = resident()
blocks = blocks[99::100]  # the last block too: it keeps all below it
if sys.argv[1] == "released":
    release_freed_memory()
print(full - resident())
"""


def printed(program: str, word: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program, word], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_many_threads_share_two_arenas() -> None:
    assert printed(ARENAS, "as usual") > 3
    assert printed(ARENAS, "limited") <= 3  # one more that may have existed before


def test_what_was_freed_is_released() -> None:
    assert printed(RELEASED, "as usual") < 100
    assert printed(RELEASED, "released") > 200  # MiB
