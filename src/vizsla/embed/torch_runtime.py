"""Pixels → vectors: an embedder on its device, in its precision, compiled or not.

On a CPU a batch goes through in parts of a few images, each by one thread, as many at once as torch
has threads: what a layer makes then stays in its core's cache, and no thread waits for another.
"""

import contextlib
import os
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizsla.embed.compilation import compiled
from vizsla.embed.compute import PRECISIONS, Compute, part_size
from vizsla.model.embedder import Embedder

NICE = 10  # of threads that give way: about a tenth of a busy core


@dataclass
class Pending:
    """Vectors on their way."""

    vectors: Tensor
    done: Any = None  # the event that ends the copy from a GPU

    def result(self) -> np.ndarray:
        """(B, D) float32."""
        if self.done is not None:
            self.done.synchronize()
        return self.vectors.numpy()


class Network:
    """`submit(pixels).result()`: (B, D) float32 unit vectors of (B, H, W, 3) uint8 pixels.

    Pixels travel as bytes, a quarter of what floats are, and become numbers where the network is.
    On a GPU `submit` returns at once, so the next batch can be sent meanwhile.
    Raises CompilingError at the first batch, where it is to be compiled and cannot be.
    """

    def __init__(self, embedder: Embedder, compute: Compute) -> None:
        self.embedder, self.compute = embedder, compute
        self.device = torch.device(compute.device)
        self._pass: Callable[[Tensor], Tensor] | None = None

    def submit(self, pixels: Tensor) -> Pending:
        """pixels: (B, H, W, 3) uint8 on the CPU, unchanged until the result is there."""
        vectors = self._through(self._ready(), pixels)
        if self.device.type != "cuda":
            return Pending(vectors.cpu())
        with torch.inference_mode():
            landed = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            landed.copy_(vectors, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            return Pending(landed, done)

    def blank(self) -> Tensor:
        """A batch of black pictures."""
        return torch.zeros(
            (self.compute.batch_size, *self.embedder.preprocess.size, 3), dtype=torch.uint8
        )

    def _ready(self) -> Callable[[Tensor], Tensor]:
        """On its device, and compiled, when the first batch comes: it may come elsewhere."""
        if self._pass is None:
            self.embedder.to(self.device).to(memory_format=torch.channels_last).eval()
            self._pass = self._eager()
            if self.compute.compiled:
                self._pass = compiled(
                    self._pass, self.embedder, self.compute, self.blank(), self._through
                )
        return self._pass

    def _through(self, function: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
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

        # torch counts compilations by code object: each network has its own
        return types.FunctionType(
            vectors.__code__.replace(), vectors.__globals__, "vectors", None, vectors.__closure__
        )


def in_parts(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What `function` makes of images on a CPU, without gradients: part by part, side by side."""
    threads = torch.get_num_threads()

    def one(part: Tensor) -> Tensor:
        with torch.inference_mode():
            return function(part)

    size = part_size(len(images), threads)
    if size is None:
        return one(images)
    parts = images.split(size)
    run = map if threads == 1 else _workers(threads).map
    return torch.cat(list(run(one, parts)))


@cache
def _workers(n: int) -> ThreadPoolExecutor:
    return one_core_threads(n, "network")


def one_core_threads(n: int, name: str, *, gives_way: bool = False) -> ThreadPoolExecutor:
    """n threads, to each of which torch gives one core.

    gives_way: the system runs them when others leave it time (on Linux).
    """
    others = torch.get_num_threads()
    all_started = threading.Barrier(n + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread's first call gives it the number of all: not later
        torch.set_num_threads(1)
        if gives_way and sys.platform == "linux":  # where a thread has a priority of its own
            with contextlib.suppress(OSError):
                thread = threading.get_native_id()
                before = os.getpriority(os.PRIO_PROCESS, thread)
                os.setpriority(os.PRIO_PROCESS, thread, min(19, before + NICE))
        all_started.wait()

    pool = ThreadPoolExecutor(n, name, initializer=start)
    for _ in range(n):
        pool.submit(int)
    all_started.wait()
    torch.set_num_threads(others)  # what was set last is also what threads to come begin with
    return pool
