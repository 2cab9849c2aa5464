"""Pixels → vectors: an embedder on its device, in its precision, compiled or not.

On a CPU a batch is processed in parts of a few images, each by one thread, as many at once as torch
has threads: the activations stay in the cache of the core, and no thread waits for another.
"""

import contextlib
import logging
import os
import shutil
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizsla import storage
from vizsla.embed.compute import PRECISIONS, Compute, part_size
from vizsla.errors import ModelError
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")

LOW_PRIORITY = 10  # added to the niceness of a thread: about a tenth of a busy core


class CompilingError(ModelError):
    """The network cannot be compiled."""


@dataclass
class PendingVectors:
    """Vectors that may still be being computed or copied."""

    vectors: Tensor
    copied: Any = None  # the CUDA event after the copy from a GPU

    def result(self) -> np.ndarray:
        """(B, D) float32; waits until they are complete."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.vectors.numpy()


class TorchRuntime:
    """`submit(pixels).result()`: (B, D) float32 unit vectors of (B, H, W, 3) uint8 pixels.

    Pixels are copied as bytes, a quarter of the size of floats, and converted on the device. On a
    GPU `submit` returns at once, so that the next batch can be copied in the meantime. Raises
    CompilingError at each batch if compiling was requested and fails.
    """

    def __init__(self, embedder: Embedder, compute: Compute) -> None:
        self.embedder, self.compute = embedder, compute
        self.device = torch.device(compute.device)
        self._forward: Callable[[Tensor], Tensor] | None = None  # made at the first batch

    def submit(self, pixels: Tensor) -> PendingVectors:
        """Starts to embed pixels (B, H, W, 3) uint8 on the CPU; they must not change until the
        result is complete."""
        if self._forward is None:  # here, since the embedder may be sent to another process before
            self.embedder.to(self.device).to(memory_format=torch.channels_last).eval()
            eager = self._eager()
            # kept only if it works: else a later batch would be computed eagerly, without a word
            self._forward = self._compiled(eager) if self.compute.compiled else eager
        vectors = self._run(self._forward, pixels)
        if self.device.type != "cuda":
            return PendingVectors(vectors.cpu())
        with torch.inference_mode():
            on_cpu = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            on_cpu.copy_(vectors, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            return PendingVectors(on_cpu, copied)

    def blank_batch(self) -> Tensor:
        """Pixels (B, H, W, 3) uint8 of black images."""
        return torch.zeros(
            (self.compute.batch_size, *self.embedder.preprocess.size, 3), dtype=torch.uint8
        )

    def _run(self, function: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return in_parts(function, pixels)
        with torch.inference_mode():
            return function(pixels.to(self.device, non_blocking=True))

    def _eager(self) -> Callable[[Tensor], Tensor]:
        embedder, kind = self.embedder, self.device.type
        precision = PRECISIONS[self.compute.precision]
        preprocess = embedder.preprocess
        mean = torch.tensor(preprocess.mean, device=self.device)[:, None, None]
        std = torch.tensor(preprocess.std, device=self.device)[:, None, None]

        def vectors(pixels: Tensor) -> Tensor:
            images = pixels.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)
            with torch.autocast(kind, precision, enabled=precision != torch.float32):
                found: Tensor = embedder(images)
            return found.float()

        # torch limits compilations of one code object: each runtime has its own copy
        return types.FunctionType(
            vectors.__code__.replace(), vectors.__globals__, "vectors", None, vectors.__closure__
        )

    def _compiled(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The compiled function, tried on a blank batch; CompilingError if that fails."""
        options: dict[str, Any] = {"freezing": True}  # weights become constants
        if self.compute.kind == "cuda":
            options = {"triton.cudagraphs": True}
        started = time.monotonic()
        try:
            _use_private_cache()
            with _quiet_compiler():
                compiled: Callable[[Tensor], Tensor] = torch.compile(
                    function, dynamic=False, options=options
                )
                part = self.compute.facts["part"]
                self._run(compiled, self.blank_batch()[:part])  # one part, or it compiles twice
        except Exception as error:  # a compiler may fail on a network in any way
            first = next(iter(str(error).strip().splitlines()), "")
            reason = f"{type(error).__name__}: {first[:200]}"
            raise CompilingError(f"{self.embedder.name} cannot be compiled ({reason})") from error
        log.info("compiled in %.0f s", time.monotonic() - started)
        return compiled


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
