"""What vectors are computed with: device, precision, compiled or not, batch size, decoder."""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features

from vizsla.data.resize import REDUCED

Sample = Callable[[int], Path | bytes]  # the i-th image, as `read_image` takes it
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PART = 4  # images that one core takes through a network at once: more leave its cache


@dataclass(frozen=True)
class Compute:
    """How vectors are computed, every `auto` resolved. `id` says what is bit-equal."""

    device: str
    precision: str
    batch_size: int
    workers: int
    compiled: bool = False
    elsewhere: dict[str, Any] | None = None  # the facts of the machines that compute, if not here

    @property
    def kind(self) -> str:
        """cpu, cuda or mps."""
        return torch.device(self.device).type

    @property
    def facts(self) -> dict[str, Any]:
        """All that may change the last bits of a vector; the number of workers does not.

        The decoder is here and not in the model_id: what it changes is less than a photo saved
        again as JPEG would, so its vectors may be compared, and are not bit-equal.
        """
        if self.elsewhere is not None:
            return {**self.elsewhere, "compiled": self.compiled}
        kind, threads = self.kind, torch.get_num_threads()
        part = part_size(self.batch_size, threads) if kind == "cpu" else None
        return {
            "device": torch.cuda.get_device_name(self.device) if kind == "cuda" else kind,
            "machine": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability() if kind == "cpu" else None,
            "precision": self.precision,
            "compiled": self.compiled,
            "batch_size": self.batch_size,
            "part": part,
            "threads": 1 if part else threads,
            "decoder": decoder(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }

    @property
    def id(self) -> str:
        facts = json.dumps(self.facts, sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


def part_size(n: int, threads: int) -> int | None:
    """How many of n images a CPU's threads take through a network each by itself.

    None: all threads work on all images together, since there would not be one for each.
    """
    return min(PART, -(-n // threads)) if n >= threads else None


def decoder() -> str:
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"pillow {PIL.__version__}, jpeg {jpeg}, reduced {REDUCED} in place"


def has_fast_bf16(device: str) -> bool:
    """Tensor cores, or a processor's own instructions for it."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return False
    cpu: Any = torch.cpu
    return any(
        bool(getattr(cpu, name, bool)())
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
