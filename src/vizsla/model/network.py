"""Pixels → vectors: an embedder on its device, in its precision, compiled or not."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizsla.model.compiling import compiled
from vizsla.model.compute import PRECISIONS, Compute
from vizsla.model.embedder import Embedder


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
        with torch.inference_mode():
            vectors = self._ready()(pixels.to(self.device, non_blocking=True))
            if self.device.type != "cuda":
                return Pending(vectors.cpu())
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
                self._pass = compiled(self._pass, self.embedder, self.compute, self.blank())
        return self._pass

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
