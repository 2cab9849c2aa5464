"""Options → a Compute in which every `auto` is resolved: by the hardware, and by a few batches."""

import dataclasses
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vizsla import storage
from vizsla.data.batches import choose_workers
from vizsla.embed.compute import IMAGES_PER_CORE, PRECISIONS, Compute, Sample, has_fast_bf16
from vizsla.embed.precision_check import cosine_change
from vizsla.embed.torch_runtime import TorchRuntime, compiler_missing
from vizsla.errors import StorageError, UsageError
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")

COMPILING = ("auto", "on", "off")
CPU_BATCH = 32  # or more, so that each core has a part
GPU_BATCHES = (16, 512)  # from the smallest to the largest
MAX_COSINE_CHANGE = 0.001  # on average, by half precision
SHARE_OF_GPU = 0.4  # of its free memory may be used by a batch
COMPILE_SECONDS = 60  # that compiling takes, about
MIN_COMPILED_IMAGES = 512
COMPILE_GAIN = {"cpu": 0.05, "cuda": 0.3}  # share of the network's time that it saves


def resolve_compute(
    *,
    device: str = "auto",
    precision: str = "auto",
    compiling: str = "off",
    batch_size: int | str = "auto",
    workers: int | None = None,
    embedder: Embedder | None = None,
    images: int = 0,
    sample: Sample | None = None,
    written: Mapping[str, Any] | None = None,
) -> Compute:
    """A Compute for this machine, every `auto` resolved; UsageError for what the machine lacks.

    embedder, images: the model and the number of images; they decide whether compiling is worth it
    and the batch size on a GPU. Without an embedder the fastest precision is chosen.
    sample: the i-th image, as `read_image` takes it. A few images show whether half precision
    changes the cosines of this model; without a sample and an earlier measurement, fp32 is chosen.
    written: the facts of an earlier run that is continued; its choices replace every `auto`.
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
    if compiling == "off" or (compiling == "auto" and images < MIN_COMPILED_IMAGES):
        return compute
    if missing := compiler_missing(compute.kind):
        log.warning("not compiled: %s", missing)
        return compute
    if (
        compiling == "auto"
        and embedder is not None
        and not compiling_pays(compute, embedder, images)
    ):
        return compute
    return dataclasses.replace(compute, compiled=True)


def written_compute(folder: str | Path) -> dict[str, Any] | None:
    """The facts that the embeddings in `folder`, complete or not, were computed with, if any."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        return None
    try:
        facts = storage.read_sealed_json(path).get("compute")
    except StorageError:  # reported by the caller that resumes there
        return None
    return facts if isinstance(facts, dict) else None


def _precision(
    embedder: Embedder | None,
    device: str,
    images: int,
    sample: Sample | None,
) -> str:
    """The fastest precision of the hardware that hardly changes the cosines of this model."""
    if not has_fast_bf16(device):
        return "fp32"
    if embedder is None:
        return "bf16"
    candidates = ("bf16", "fp16") if torch.device(device).type == "cuda" else ("bf16",)
    for precision in candidates:
        change = cosine_change(embedder, device, precision, images, sample)
        if change is None:
            log.debug("fp32: too few images to measure the effect of %s", precision)
            break
        if change <= MAX_COSINE_CHANGE:
            return precision
        log.debug(
            "fp32: %s would change the cosines of these images by %.4f on average, more than %.4f",
            precision, change, MAX_COSINE_CHANGE,
        )  # fmt: skip
    return "fp32"


def compiling_pays(compute: Compute, embedder: Embedder, images: int) -> bool:
    """Whether compiling saves more time than it takes, estimated from an eager batch; logs why."""
    saved = images * _seconds_per_image(embedder, compute) * COMPILE_GAIN[compute.kind]
    log.info(
        "%s: for %d images compiling saves about %.0f s and takes %d s",
        "compiled" if saved > COMPILE_SECONDS else "not compiled", images, saved, COMPILE_SECONDS,
    )  # fmt: skip
    return saved > COMPILE_SECONDS


def _seconds_per_image(embedder: Embedder, compute: Compute) -> float:
    """By the faster of two eager batches: other programs can only slow them down."""
    runtime = TorchRuntime(embedder, compute)
    blank = runtime.blank_batch()
    runtime.submit(blank).result()
    times = []
    for _ in range(2):
        started = time.monotonic()
        runtime.submit(blank).result()
        times.append(time.monotonic() - started)
    return min(times) / len(blank)


def _batch_size(embedder: Embedder | None, device: str, precision: str) -> int:
    """On a GPU the largest power of two that needs at most SHARE_OF_GPU of its free memory."""
    if torch.device(device).type != "cuda" or embedder is None:
        return max(CPU_BATCH, IMAGES_PER_CORE * torch.get_num_threads())
    smallest, largest = GPU_BATCHES
    peaks = []
    for size in (smallest, 2 * smallest):
        runtime = TorchRuntime(embedder, Compute(device, precision, size, 1))
        torch.cuda.reset_peak_memory_stats(device)
        runtime.submit(runtime.blank_batch()).result()
        peaks.append(torch.cuda.max_memory_allocated(device))
    image_bytes = max(1, (peaks[1] - peaks[0]) // smallest)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    size = smallest
    while size < largest and 2 * size * image_bytes <= SHARE_OF_GPU * free:
        size *= 2
    log.info("batches of %d images (%.1f MB for each image)", size, image_bytes / 1e6)
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
