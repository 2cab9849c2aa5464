"""Options → a Compute in which every `auto` is resolved: by the hardware, and by a few batches."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vizsla import storage
from vizsla.data.batches import choose_workers
from vizsla.data.imageset import ImageSet
from vizsla.embed.compute import (
    IMAGES_PER_CORE,
    PACKAGES,
    PRECISIONS,
    RUNTIMES,
    Compute,
    RuntimeFailed,
    Sample,
    has_exact_int8,
    has_fast_bf16,
    processor,
)
from vizsla.embed.converted_runtimes import COMPUTES_IN, installed
from vizsla.embed.precision_check import cosine_change
from vizsla.embed.quantisation import why_not_int8
from vizsla.embed.runtime import Runtime
from vizsla.embed.torch_runtime import compiler_missing
from vizsla.errors import StorageError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.options import ComputeChoice

log = logging.getLogger("vizsla.embed")

CPU_BATCH = 32  # or more, so that each core has a part
GPU_BATCHES = (16, 512)  # from the smallest to the largest
MAX_COSINE_CHANGE = 0.001  # on average, by half precision
SHARE_OF_GPU = 0.4  # of its free memory may be used by a batch
MIN_IMAGES = 128  # with fewer no other runtime than torch is considered
SHARE_OF_TIMING = 0.125  # of the images: at most so many are timed with torch
MIN_PASSES, MAX_PASSES = 2, 3  # of a batch: the first one also starts the runtime
# Before it is measured: seconds to start a runtime, and the share of torch's time that it saves.
EXPECTED = {
    "cpu": {"openvino": (3.0, 0.5), "onnx": (20.0, 0.4)},
    "cuda": {"compiled": (60.0, 0.3)},
}


def resolve_compute(
    *,
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "auto",
    batch_size: int | str = "auto",
    workers: int | None = None,
    embedder: Embedder | None = None,
    images: int = 0,
    sample: Sample | None = None,
    written: Mapping[str, Any] | None = None,
) -> Compute:
    """A Compute for this machine, every `auto` resolved; UsageError for what the machine lacks.

    embedder, images: the model and the number of images; they decide about the runtime, and the
    batch size on a GPU. Without an embedder the fastest precision is chosen.
    sample: the i-th image, as `read_image` takes it. A few images show whether half precision
    changes the cosines of this model; without a sample and an earlier measurement, fp32 is chosen.
    written: the facts of an earlier run that is continued; its choices replace every `auto`.
    """
    earlier = dict(written or {})
    device = _resolve_device(device)
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"precision={precision!r}: choose auto, {', '.join(PRECISIONS)}")
    if runtime not in ("auto", *RUNTIMES):
        raise UsageError(f"runtime={runtime!r}: choose auto, {', '.join(RUNTIMES)}")
    if runtime in EXPECTED["cpu"] and torch.device(device).type != "cpu":
        raise UsageError(f"the runtime {runtime} computes on a CPU, not on {device}: choose torch")
    if batch_size != "auto" and not re.fullmatch("0*[1-9][0-9]{0,5}", str(batch_size), re.ASCII):
        raise UsageError(f"batch size {batch_size}: choose 1 to 999999, or auto")
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers: choose 1 or more")
    if runtime in PACKAGES and not installed(runtime):
        raise UsageError(
            f"the runtime {runtime} is not installed here: pip install "
            f"{' '.join(PACKAGES[runtime])}, or choose --runtime auto"
        )
    if precision == "int8" and runtime == "auto":
        runtime = "openvino"
    if runtime == "auto" and installed(earlier.get("runtime", "auto")):
        runtime = earlier.get("runtime", "auto")
    wanted = earlier.get("precision") if precision == "auto" else precision
    if wanted == "int8" and (why := _why_not_int8(embedder, device)):
        if precision == "int8":
            raise UsageError(why)
        log.warning("these vectors are not computed in int8 as the others were: %s", why)
        earlier.pop("precision")
    if precision == "auto":
        precision = earlier.get("precision") or (
            "fp32" if runtime == "onnx" else _precision(embedder, device, images, sample)
        )
    if precision not in COMPUTES_IN.get(runtime, PRECISIONS):
        other = "openvino" if precision == "int8" else "torch"
        raise UsageError(
            f"the runtime {runtime} computes in {' or '.join(COMPUTES_IN[runtime])}, not in "
            f"{precision}: choose --runtime {other}, or another --precision"
        )
    if batch_size == "auto":
        batch_size = earlier.get("batch_size") or _batch_size(embedder, device, precision)
    compute = Compute(
        device, precision, int(batch_size), workers or choose_workers(torch.device(device).type)
    )
    if runtime == "auto":
        runtime = "torch" if embedder is None else fastest_runtime(embedder, compute, images)
    return dataclasses.replace(compute, runtime=runtime)


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


def fastest_runtime(embedder: Embedder, compute: Compute, images: int, *, starts: int = 1) -> str:
    """The installed runtime that embeds so many images soonest, its start included; logs why.

    starts: how often it has to start, which it does for every change of the weights.
    Each is timed once for a kind of machine and of network, and only where it is expected to save
    more than it takes to time and to start it; the times are kept in the cache folder.
    """
    versions = _candidates(compute) if images >= MIN_IMAGES else {}
    if not versions:
        return "torch"
    path, times = _known_times(embedder, compute, versions)
    batch = min(compute.batch_size, (compute.facts["part"] or 16) * torch.get_num_threads())
    passes = min(MAX_PASSES, int(SHARE_OF_TIMING * images) // batch)
    if "torch" not in times and passes < MIN_PASSES:
        return "torch"
    passes = max(MIN_PASSES, passes)

    def measure(runtime: str) -> None:
        found = _timed(embedder, dataclasses.replace(compute, runtime=runtime), batch, passes)
        if found is None:
            del versions[runtime]
            return
        times[runtime] = found
        with contextlib.suppress(StorageError):  # without a writable cache it is measured again
            storage.write_json(path, {"name": embedder.name, "times": times})

    def seconds_saved(runtime: str) -> float:
        if runtime in times:
            start, image = times[runtime]
            return by_torch - images * image - starts * start
        start, share = EXPECTED[compute.kind][runtime]
        timing = start + passes * batch * times["torch"][1]  # it starts once more, to be timed
        return by_torch * share - starts * start - timing

    if "torch" not in times:
        measure("torch")
    by_torch = images * times["torch"][1]
    while versions:
        best = max(versions, key=seconds_saved)
        saved = seconds_saved(best)
        if saved > 0 and best not in times and compute.kind != "cuda":
            measure(best)
            continue
        if saved <= 0:
            log.debug("torch: for %d images %s would save no time", images, best)
            return "torch"
        log.debug("%s: saves %.0f s of %.0f s for %d images", best, saved, by_torch, images)
        return best
    return "torch"


def _candidates(compute: Compute) -> dict[str, Any]:
    """Runtimes beside torch that this machine has, and the versions of their packages."""
    found = {}
    for name in EXPECTED.get(compute.kind, {}):
        if not _lacking(name, compute):
            try:
                facts = dataclasses.replace(compute, runtime=name).facts
            except RuntimeFailed as error:  # a damaged package
                log.info("%s", error)
            else:
                found[name] = facts.get(RUNTIMES[name] or "torch")
    return found


def _lacking(runtime: str, compute: Compute) -> bool:
    if runtime == "compiled":
        return compiler_missing(compute.kind) is not None
    return not installed(runtime) or compute.precision not in COMPUTES_IN[runtime]


def _known_times(
    embedder: Embedder, compute: Compute, versions: Mapping[str, Any]
) -> tuple[Path, dict[str, list[float]]]:
    """The file of this kind of network and machine and these versions, and what was timed there."""
    kind = [
        embedder.backbone.spec.name, sum(p.numel() for p in embedder.parameters()),
        list(embedder.preprocess.size), str(embedder.views), processor(), dict(versions),
        {**compute.facts, "threads": torch.get_num_threads(), "batch_size": None},
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:24]
    path = storage.cache_folder() / "runtimes" / f"{name}.json"
    with contextlib.suppress(StorageError, TypeError, KeyError, ValueError):
        known = storage.read_json(path)["times"]
        return path, {name: [float(start), float(image)] for name, (start, image) in known.items()}
    return path, {}


def _timed(embedder: Embedder, compute: Compute, batch: int, passes: int) -> list[float] | None:
    """Seconds to start, and for each image after that; None if this runtime fails, and logs why."""
    runtime = Runtime(embedder, compute)
    few = runtime.blank_batch()[:batch]
    times, used = [time.monotonic()], time.process_time()
    for _ in range(passes):
        try:
            runtime.submit(few).result()
        except RuntimeFailed as error:
            log.info("not chosen: %s", error)
            return None
        times.append(time.monotonic())
        used = time.process_time() - used if len(times) == 2 else used
    start, *later = np.diff(times)
    return [min(float(start), used), float(min(later)) / len(few)]  # others may use the cores


def _why_not_int8(embedder: Embedder | None, device: str) -> str | None:
    """Why nothing, or not this embedder, is computed in int8 here; None if it can be."""
    if torch.device(device).type != "cpu":
        return (
            f"int8 is computed on a CPU, not on {device}: choose --device cpu, or --precision bf16"
        )
    if not installed("openvino"):
        return f"int8 is computed by OpenVINO: pip install {' '.join(PACKAGES['openvino'])}"
    if not has_exact_int8():
        return (
            "int8 needs a CPU with VNNI instructions, which this one lacks: choose --precision fp32"
        )
    return None if embedder is None else why_not_int8(embedder)


def _batch_size(embedder: Embedder | None, device: str, precision: str) -> int:
    """On a GPU the largest power of two that needs at most SHARE_OF_GPU of its free memory."""
    if torch.device(device).type != "cuda" or embedder is None:
        return max(CPU_BATCH, IMAGES_PER_CORE * torch.get_num_threads())
    smallest, largest = GPU_BATCHES
    peaks = []
    for size in (smallest, 2 * smallest):
        runtime = Runtime(embedder, Compute(device, precision, size, 1))
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


def compute_of(choice: ComputeChoice, embedder: Embedder, images: ImageSet) -> Compute:
    """The Compute that these options give for embedding these images; see `resolve_compute`."""
    return resolve_compute(
        device=choice.device, precision=choice.precision, runtime=choice.runtime,
        batch_size=choice.batch_size, workers=choice.workers, embedder=embedder,
        images=len(images), sample=images.file,
    )  # fmt: skip


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
