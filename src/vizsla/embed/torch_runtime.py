"""Pixels → vectors by torch, eagerly or compiled, and the threads in which a CPU does it.

On a CPU a batch is processed in parts of a few images, each by one thread, as many at once as torch
has threads: the activations stay in the cache of the core, and no thread waits for another.
"""

import contextlib
import logging
import os
import shutil
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vizsla import storage
from vizsla.embed.compute import PRECISIONS, Compute, part_size
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")

LOW_PRIORITY = 10  # added to the niceness of a thread: about a tenth of a busy core


Vectors = Callable[[Tensor], Tensor]  # (B, H, W, 3) uint8 → (B, D) float32 unit vectors


def eager(embedder: Embedder, compute: Compute) -> Vectors:
    """The embedder as it is, on its device, in its precision."""
    kind = compute.kind
    precision = PRECISIONS[compute.precision]
    preprocess = embedder.preprocess
    mean = torch.tensor(preprocess.mean, device=compute.device)[:, None, None]
    std = torch.tensor(preprocess.std, device=compute.device)[:, None, None]

    def vectors(pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            found: Tensor = embedder(images)
        return found.float()

    # torch limits compilations of one code object: each runtime has its own copy
    return types.FunctionType(
        vectors.__code__.replace(), vectors.__globals__, "vectors", None, vectors.__closure__
    )


def compiled(embedder: Embedder, compute: Compute) -> Vectors:
    """The same, compiled when it is first called; OSError without a compiler."""
    if missing := compiler_missing(compute.kind):
        raise OSError(missing)
    options: dict[str, Any] = {"freezing": True}  # weights become constants
    if compute.kind == "cuda":
        options = {"triton.cudagraphs": True}
    _use_private_cache()
    function: Vectors = torch.compile(eager(embedder, compute), dynamic=False, options=options)

    def vectors(pixels: Tensor) -> Tensor:
        with _quiet_compiler():
            return function(pixels)

    return vectors


# ── compiling ────────────────────────────────────────────────────────────────────────────────────


def compiler_missing(kind: str) -> str | None:
    """Why nothing can be compiled for this kind of device on this machine; None if it can."""
    if kind not in ("cpu", "cuda"):
        return f"there is no compiler for {kind}"
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
    if not any(shutil.which(name) for name in wanted):
        return f"no C++ compiler is installed (looked for {', '.join(wanted)})"
    return None


def _use_private_cache() -> None:
    """Sets torch's folder of compiled code, unless the user set one.

    It holds pickles, so only this user may read it, and it is not an artefact. A folder that torch
    itself chose, in the temporary files, does not count as set by the user.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    if chosen and not Path(chosen).name.startswith("torchinductor_"):
        return
    folder = storage.cache_folder() / "inductor"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid"):
        folder.chmod(0o700)  # PermissionError if it is another user's
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Silences the compiler's warnings about its own work."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


# ── threads of one core ──────────────────────────────────────────────────────────────────────────


def in_parts(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`function(images)` on a CPU, without gradients: computed in parts, several at once."""
    threads = torch.get_num_threads()
    run = torch.inference_mode()(function)
    size = part_size(len(images), threads)
    if size is None:
        return run(images)
    mapped = map if threads == 1 else _part_threads(threads).map
    return torch.cat(list(mapped(run, images.split(size))))


@cache
def _part_threads(n: int) -> ThreadPoolExecutor:
    return one_core_threads(n, "network")


def one_core_threads(n: int, name: str, *, low_priority: bool = False) -> ThreadPoolExecutor:
    """n threads, in each of which torch uses one core.

    low_priority: they run when other threads are idle (on Linux).
    """
    others = torch.get_num_threads()
    all_started = threading.Barrier(n + 1)

    def start() -> None:
        torch.get_num_threads()  # the first call in a thread sets the global number
        torch.set_num_threads(1)
        if low_priority and sys.platform == "linux":  # on which each thread has its own priority
            with contextlib.suppress(OSError):
                thread = threading.get_native_id()
                niceness = os.getpriority(os.PRIO_PROCESS, thread)
                os.setpriority(os.PRIO_PROCESS, thread, min(19, niceness + LOW_PRIORITY))
        all_started.wait()

    pool = ThreadPoolExecutor(n, name, initializer=start)
    for _ in range(n):
        pool.submit(int)
    all_started.wait()
    torch.set_num_threads(others)  # new threads start with the number that was set last
    return pool
