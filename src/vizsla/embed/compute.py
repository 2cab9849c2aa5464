"""How vectors are computed: device, precision, runtime, batch size, decoder."""

import contextlib
import hashlib
import importlib
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features

from vizsla.data.resize import REDUCED
from vizsla.errors import ModelError

Sample = Callable[[int], Path | bytes]  # the i-th image, as `read_image` takes it
PRECISIONS = {  # in which torch computes; for int8, what OpenVINO's vectors are compared with
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,
}
RUNTIMES = {"torch": None, "compiled": None, "openvino": "openvino", "onnx": "onnxruntime"}
PACKAGES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxruntime", "onnxscript")}
INT8_RANGES = Path(__file__).with_name("int8_ranges.json")  # read by quantisation.py
IMAGES_PER_CORE = 4  # at once: the activations of more do not fit its cache


class RuntimeFailed(ModelError):
    """This runtime cannot compute the network here, or computes other vectors than torch."""


@dataclass(frozen=True)
class Compute:
    """How vectors are computed, every `auto` resolved. Vectors with one `id` are bit-equal.

    remote_facts: the facts of the machines that compute, if not this one.
    """

    device: str
    precision: str
    batch_size: int
    workers: int
    runtime: str = "torch"
    remote_facts: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """cpu, cuda or mps."""
        return torch.device(self.device).type

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that may change the last bits of a vector; the number of workers does not.

        The decoder is here and not in the model_id: it changes less than saving a photo again as
        JPEG, so vectors of different decoders may be compared, but are not bit-equal. RuntimeFailed
        if this machine lacks the runtime.
        """
        if self.remote_facts is not None:
            return {**self.remote_facts, "runtime": self.runtime}
        kind, threads = self.kind, torch.get_num_threads()
        part = part_size(self.batch_size, threads) if kind == "cpu" else None
        package = RUNTIMES[self.runtime]
        return {
            "device": torch.cuda.get_device_name(self.device) if kind == "cuda" else kind,
            "machine": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability() if kind == "cpu" else None,
            "precision": self.precision,
            "runtime": self.runtime,
            **({package: runtime_package(self.runtime).__version__} if package else {}),
            **({"ranges": ranges_digest()} if self.precision == "int8" else {}),
            "batch_size": self.batch_size,
            "part": part,
            "threads": 1 if part else threads,
            "decoder": decoder_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }

    @property
    def id(self) -> str:
        """16 hex digits, the compute_id: a hash of the facts."""
        facts = json.dumps(self.facts, sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


def runtime_package(runtime: str) -> Any:
    """The module that computes `openvino` or `onnx`; RuntimeFailed if it cannot be imported.

    Importing OpenVINO and each conversion report to its makers, unless the package
    `openvino_telemetry` cannot be imported: then OpenVINO uses a class that does nothing.
    """
    name = RUNTIMES[runtime]
    if name == "openvino" and name not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(str(name))
    except Exception as error:  # a damaged package may fail in any way
        raise RuntimeFailed(
            f"the runtime {runtime} is not installed here ({error}): "
            f"pip install {' '.join(PACKAGES[runtime])}"
        ) from error


@cache
def ranges_digest() -> str:
    """16 hex digits that identify the file of ranges by which networks are computed in int8."""
    return hashlib.sha256(INT8_RANGES.read_bytes()).hexdigest()[:16]


def part_size(n: int, threads: int) -> int | None:
    """How many of n images each thread of a CPU takes through the network on its own.

    None with fewer images than threads: all threads then work on all images together.
    """
    return min(IMAGES_PER_CORE, -(-n // threads)) if n >= threads else None


def processor() -> str:
    """The model of this machine's CPU, as far as the system names it."""
    with contextlib.suppress(OSError):  # Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def decoder_version() -> str:
    """Versions of Pillow and the JPEG library, and how JPEGs are reduced."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"pillow {PIL.__version__}, jpeg {jpeg}, reduced {REDUCED} in place"


def has_exact_int8() -> bool:
    """Whether the CPU adds up products of 8-bit numbers in 32 bits (VNNI), not in 16, where sums
    are cut off."""
    with contextlib.suppress(OSError):  # Linux
        if "avx_vnni" in Path("/proc/cpuinfo").read_text().split():
            return True
    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def has_fast_bf16(device: str) -> bool:
    """Whether the device has hardware for bfloat16: tensor cores, or instructions of the CPU."""
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
