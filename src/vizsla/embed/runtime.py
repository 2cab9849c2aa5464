"""Pixels → vectors by one of several runtimes, whose first vectors are held against torch's.

A runtime is a function of an embedder and a Compute that returns `Vectors`: pixels to unit vectors.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizsla.embed.compute import Compute, RuntimeFailed, part_size
from vizsla.embed.converted_runtimes import onnx, openvino
from vizsla.embed.torch_runtime import Vectors, compiled, eager, in_parts
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")

START: dict[str, Callable[[Embedder, Compute], Vectors]] = {
    "torch": eager,
    "compiled": compiled,
    "openvino": openvino,
    "onnx": onnx,
}
MIN_COSINE = {"fp32": 0.9999, "bf16": 0.99, "fp16": 0.99, "int8": 0.85}  # to torch's PRECISIONS


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


class Runtime:
    """`submit(pixels).result()`: (B, D) float32 unit vectors of (B, H, W, 3) uint8 pixels.

    Pixels are copied as bytes, a quarter of the size of floats, and converted on the device. On a
    GPU `submit` returns at once, so that the next batch can be copied in the meantime. Raises
    RuntimeFailed at the first batch if another runtime than torch fails there; after `use_torch`
    the same batch can be submitted again. images: how many were submitted so far.
    """

    def __init__(self, embedder: Embedder, compute: Compute) -> None:
        self.embedder, self.compute = embedder, compute
        self.device = torch.device(compute.device)
        self.images = 0
        self._vectors: Vectors | None = None  # made at the first batch

    def submit(self, pixels: Tensor) -> PendingVectors:
        """Starts to embed pixels (B, H, W, 3) uint8 on the CPU; they must not change until the
        result is complete."""
        if self._vectors is None:  # here, since the embedder may be sent to another process before
            self._vectors = self._started(pixels)
        self.images += len(pixels)
        vectors = self._run(self._vectors, pixels)
        if self.device.type != "cuda":
            return PendingVectors(vectors.cpu())
        with torch.inference_mode():
            on_cpu = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            on_cpu.copy_(vectors, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            return PendingVectors(on_cpu, copied)

    def use_torch(self, why: object) -> None:
        """Computes with torch from now on, in fp32 instead of int8, and logs why."""
        precision = "fp32" if self.compute.precision == "int8" else self.compute.precision
        log.warning("%s: continues with torch in %s", why, precision)
        self.compute = replace(self.compute, runtime="torch", precision=precision)
        self._vectors = None

    def blank_batch(self) -> Tensor:
        """Pixels (B, H, W, 3) uint8 of black images."""
        return torch.zeros(
            (self.compute.batch_size, *self.embedder.preprocess.size, 3), dtype=torch.uint8
        )

    def _run(self, function: Vectors, pixels: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return in_parts(function, pixels)
        with torch.inference_mode():
            return function(pixels.to(self.device, non_blocking=True))

    def _partly_noise(self, pixels: Tensor) -> Tensor:
        """A part of these pixels for each core, every other image replaced by noise.

        A black image would hide that a runtime flips, shifts or pads in another way. The parts have
        the shape of those that follow, or `compiled` would compile twice.
        """
        few, threads = pixels.clone(), torch.get_num_threads()
        if self.device.type == "cpu" and (part := part_size(len(pixels), threads)):
            few = few[: part * threads]
        rng = torch.Generator().manual_seed(0)
        few[::2] = torch.randint(0, 256, few[::2].shape, dtype=torch.uint8, generator=rng)
        return few

    def _started(self, pixels: Tensor) -> Vectors:
        """The runtime's function, tried on a few of these pixels and on noise."""
        self.embedder.to(self.device).to(memory_format=torch.channels_last).eval()
        name, compute = self.compute.runtime, self.compute
        if name == "torch":
            return eager(self.embedder, compute)
        started = time.monotonic()
        try:
            vectors = START[name](self.embedder, compute)
            few = self._partly_noise(pixels)
            found, expected = (
                self._run(one, few).double() for one in (vectors, eager(self.embedder, compute))
            )
            cosines = (found * expected).sum(1)[expected.norm(dim=1).isfinite()]
        except Exception as error:  # a converter or compiler may fail on a network in any way
            first = next(iter(str(error).strip().splitlines()), "")
            raise RuntimeFailed(
                f"{self.embedder.name} cannot be computed by {name} "
                f"({type(error).__name__}: {first[:200]})"
            ) from error
        if len(cosines) and not cosines.min() >= MIN_COSINE[compute.precision]:
            raise RuntimeFailed(
                f"{name} computes other vectors of {self.embedder.name} than torch (cosine "
                f"{cosines.min():.5f}, expected {MIN_COSINE[compute.precision]} or more)"
            )
        log.debug("%s: started in %.1f s", name, time.monotonic() - started)
        return vectors
