"""What was asked for → a Compute in which every `auto` is resolved, once.

Nothing is computed here but a few batches, to measure what they cost.
"""

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
from vizsla.embed.compilation import compiler_missing
from vizsla.embed.compute import PART, PRECISIONS, Compute, Sample, has_fast_bf16
from vizsla.embed.precision_check import cosine_change
from vizsla.embed.torch_runtime import Network
from vizsla.errors import StorageError, UsageError
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")

COMPILING = ("auto", "on", "off")
CPU_BATCH = 32  # at least: a part for each core
GPU_BATCHES = (16, 512)  # the smallest and the largest that `auto` chooses
MAX_COSINE_CHANGE = 0.001  # on average, for `auto` to choose half precision
SHARE_OF_GPU = 0.4  # of what is free may be filled by a batch
COMPILE_SECONDS = 60  # what compiling costs, about
COMPILE_FROM = 512  # images; fewer are never worth it
COMPILE_GAIN = {"cpu": 0.05, "cuda": 0.3}  # of the time in the network


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
    """Every `auto` resolved for this machine; UsageError for what it does not have.

    embedder, images: what is to be embedded, and how many; they decide whether compiling pays and
    how large a batch is on a GPU. Without an embedder the fastest precision is taken.
    sample: the i-th image, as `read_image` takes it. A few of them show whether half precision
    keeps the cosines of this network; without a sample, and where nothing is known from an earlier
    call, fp32 is taken.
    written: the facts of an earlier run that is resumed; its choices replace every `auto`.
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
    if compiling == "off" or (compiling == "auto" and images < COMPILE_FROM):
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
    embedder: Embedder | None,
    device: str,
    images: int,
    sample: Sample | None,
) -> str:
    """The fastest that the hardware has and that keeps the cosines of this network."""
    if not has_fast_bf16(device):
        return "fp32"
    if embedder is None:
        return "bf16"
    candidates = ("bf16", "fp16") if torch.device(device).type == "cuda" else ("bf16",)
    for precision in candidates:
        change = cosine_change(embedder, device, precision, images, sample)
        if change is None:
            log.debug("fp32: too few images to measure what %s changes", precision)
            break
        if change <= MAX_COSINE_CHANGE:
            return precision
        log.debug(
            "fp32: %s would change the cosines of these images by %.4f on average, more than %.4f",
            precision, change, MAX_COSINE_CHANGE,
        )  # fmt: skip
    return "fp32"


def compiling_pays(compute: Compute, embedder: Embedder, images: int) -> bool:
    """Whether compiling saves more time than it takes, measured on an eager batch; logs why."""
    saved = images * _seconds_per_image(embedder, compute) * COMPILE_GAIN[compute.kind]
    log.info(
        "%s: for %d images it would save about %.0f s, and takes %d s",
        "compiled" if saved > COMPILE_SECONDS else "not compiled", images, saved, COMPILE_SECONDS,
    )  # fmt: skip
    return saved > COMPILE_SECONDS


def _seconds_per_image(embedder: Embedder, compute: Compute) -> float:
    """The shorter of two eager batches: what else runs on the machine only adds to it."""
    network = Network(embedder, compute)
    blank = network.blank()
    network.submit(blank).result()
    times = []
    for _ in range(2):
        started = time.monotonic()
        network.submit(blank).result()
        times.append(time.monotonic() - started)
    return min(times) / len(blank)


def _batch_size(embedder: Embedder | None, device: str, precision: str) -> int:
    """On a GPU the largest power of two that fills SHARE_OF_GPU of its free memory, measured."""
    if torch.device(device).type != "cuda" or embedder is None:
        return max(CPU_BATCH, PART * torch.get_num_threads())
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
