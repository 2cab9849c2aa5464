"""What vectors are computed with: device, precision, compiled or not, batch size, decoder.

Every `auto` is resolved here, once, and written down; nothing is computed here but a few batches to
see what they cost.
"""

import hashlib
import json
import logging
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import torch
from PIL import features

from vizsla import storage
from vizsla.data.batches import choose_workers
from vizsla.data.resize import REDUCED
from vizsla.errors import StorageError, UsageError

if TYPE_CHECKING:
    from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")

Sample = Callable[[int], Path | bytes]  # the i-th image, as `read_image` takes it
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILING = ("auto", "on", "off")
CPU_BATCH = 32  # at least: a part for each core
PART = 4  # images that one core takes through a network at once: more leave its cache
GPU_BATCHES = (16, 512)  # the smallest and the largest that `auto` chooses
MOVED = 0.001  # by how much half precision may move a cosine on average, to be chosen by `auto`
SHARE_OF_GPU = 0.4  # of what is free may be filled by a batch


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


def resolve_compute(
    *,
    device: str = "auto",
    precision: str = "auto",
    compiling: str = "off",
    batch_size: int | str = "auto",
    workers: int | None = None,
    embedder: "Embedder | None" = None,
    images: int = 0,
    sample: Sample | None = None,
    written: Mapping[str, Any] | None = None,
) -> Compute:
    """Every `auto` resolved for this machine; UsageError for what it does not have.

    embedder and images (how many there are to embed) decide whether compiling pays, and how large
    a batch is on a GPU. sample: the i-th image, as `read_image` takes it; by a few of them it is
    seen whether the network bears half precision, unless that is known from earlier; where it is
    not, fp32 is taken. Without an embedder whatever is fast is taken. written: the
    facts of an earlier run that goes on; its choices stand for every `auto`.
    """
    earlier = written or {}
    device = _resolve_device(device)
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"precision={precision!r}: choose auto, {', '.join(PRECISIONS)}")
    if compiling not in COMPILING:
        raise UsageError(f"compile={compiling!r}: choose {', '.join(COMPILING)}")
    if batch_size != "auto" and not re.fullmatch("0*[1-9][0-9]{0,5}", str(batch_size), re.ASCII):
        raise UsageError(f"batch size {batch_size}: choose 1 to 999999, or auto")
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers: choose 1 or more")
    if precision == "auto":
        precision = earlier.get("precision") or _precision(embedder, device, images, sample)
    if batch_size == "auto":
        batch_size = earlier.get("batch_size") or _batch_size(embedder, device, precision)
    compute = Compute(
        device, precision, int(batch_size), workers or choose_workers(torch.device(device).type)
    )
    if compiling == "auto" and "compiled" in earlier:
        compiling = "on" if earlier["compiled"] else "off"
    if compiling == "off":
        return compute
    from vizsla.embed.compilation import pays

    if not pays(compute, embedder, images, asked=compiling == "on"):
        return compute
    return Compute(compute.device, precision, int(batch_size), compute.workers, compiled=True)


def written_compute(folder: str | Path) -> dict[str, Any] | None:
    """The facts that the embeddings in `folder`, finished or not, were computed with."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        return None
    try:
        facts = storage.read_sealed_json(path).get("compute")
    except StorageError:  # whoever goes on there will say so
        return None
    return facts if isinstance(facts, dict) else None


def _precision(
    embedder: "Embedder | None",
    device: str,
    images: int,
    sample: Sample | None,
) -> str:
    """The fastest that the hardware has and the network bears."""
    if not has_fast_bf16(device):
        return "fp32"
    if embedder is None:
        return "bf16"
    from vizsla.embed.precision_check import moved_scores

    candidates = ("bf16", "fp16") if torch.device(device).type == "cuda" else ("bf16",)
    for precision in candidates:
        moved = moved_scores(embedder, device, precision, images, sample)
        if moved is None:
            log.debug("in fp32: too few images to see whether the network bears %s", precision)
            break
        if moved <= MOVED:
            return precision
        log.debug(
            "computed in full precision: %s would move the cosines of these images by %.4f on "
            "average, more than %.4f",
            precision, moved, MOVED,
        )  # fmt: skip
    return "fp32"


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


def _batch_size(embedder: "Embedder | None", device: str, precision: str) -> int:
    """On a GPU the largest power of two that fills SHARE_OF_GPU of its free memory, measured."""
    if torch.device(device).type != "cuda" or embedder is None:
        return max(CPU_BATCH, PART * torch.get_num_threads())
    from vizsla.embed.torch_runtime import Network

    smallest, largest = GPU_BATCHES
    peaks = []
    for size in (smallest, 2 * smallest):
        network = Network(embedder, Compute(device, precision, size, 1))
        torch.cuda.reset_peak_memory_stats(device)
        network.submit(network.blank()).result()
        peaks.append(torch.cuda.max_memory_allocated(device))
    each = max(1, (peaks[1] - peaks[0]) // smallest)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    size = smallest
    while size < largest and 2 * size * each <= SHARE_OF_GPU * free:
        size *= 2
    log.info("batches of %d images (%.1f MB each)", size, each / 1e6)
    return size


def _resolve_device(device: str) -> str:
    mps = torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind = device.split(":")[0]
    if not re.fullmatch("(cpu|cuda|mps)(:[0-9]{1,3})?", device):
        raise UsageError(f"device={device!r}: choose auto, cpu, cuda, cuda:1, … or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda, but torch sees no CUDA GPU here: use --device cpu")
    if kind == "mps" and not mps:
        raise UsageError("device=mps, but torch sees no Apple GPU here: use --device cpu")
    return device
