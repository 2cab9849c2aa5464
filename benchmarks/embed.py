"""Images a second from files to unit vectors: a plain loop, ours, and what the machine allows.

    python benchmarks/embed.py --photos ../shared/data/clothing/test/gallery --models mobilenetv2
    python benchmarks/embed.py --photos PHOTOS --side 1200         # photos as a camera makes them
    python benchmarks/embed.py --photos PHOTOS --scores ../shared  # and what the speed costs
    python benchmarks/embed.py --photos PHOTOS --runtimes torch openvino int8
    python benchmarks/embed.py --photos PHOTOS --memory 1000000    # memory, by generated ids
    python benchmarks/embed.py --photos PHOTOS --images 16384 --overhead  # as beside a fast GPU

The plain loop is what one writes with timm and a DataLoader: fp32, eager, a process for each core.
Ours is `write_embeddings` as `vizsla embed` calls it. The limit is 1 / (seconds of decoding +
seconds of the network by the fastest runtime), each measured separately with all cores; on a GPU,
which does both at once, the smaller of the two rates. All are measured in turn, round by round, and
medians are compared. If others use the machine too, compare processor seconds, with
OMP_NUM_THREADS=1 (waiting threads use some as well). Prints JSON; progress goes to standard error.
The time to start a runtime is reported separately. `--overhead` takes the path of a GPU (decoding
by processes, two batches in flight, shards written in parallel) with a network that takes no time:
the time lost besides decoding is also lost on a fast GPU, and can be measured without one.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from vizsla.data.batches import Loader, in_chunks
from vizsla.data.imageset import ImageSet
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute, RuntimeFailed
from vizsla.embed.inference import write_embeddings
from vizsla.embed.runtime import PendingVectors, Runtime
from vizsla.model.embedder import Embedder
from vizsla.processes import available_cores

PLAIN_BATCH = 32


class Files(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


def plain_loop(paths: list[Path], model: Any, transform: Any, device: str) -> np.ndarray:
    loader = torch.utils.data.DataLoader(
        Files(paths, transform), batch_size=PLAIN_BATCH, num_workers=available_cores(),
        pin_memory=device == "cuda",
    )  # fmt: skip
    found = []
    with torch.inference_mode():
        for images in loader:
            vectors = model(images.to(device))
            found.append(torch.nn.functional.normalize(vectors, dim=1).cpu())
    return torch.cat(found).numpy()


def plain_model(embedder: Embedder, device: str) -> tuple[Any, Any]:
    """timm's own model with the same weights and its own transform at the same size."""
    spec = embedder.backbone.spec
    size = embedder.preprocess.size[0]
    vit = {"img_size": size} if spec.architecture.startswith("vit") else {}
    model = timm.create_model(spec.architecture, num_classes=0, **vit)
    model.load_state_dict(embedder.backbone.network.state_dict())
    config = timm.data.resolve_model_data_config(model)
    crop = size / (embedder.preprocess.resize or size)
    transform = timm.data.create_transform(**{**config, "input_size": (3, size, size),
                                              "crop_pct": crop})  # fmt: skip
    return model.eval().to(device), transform


def measure(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    images = ImageSet.from_folder(folder)
    paths = [images.path(i) for i in range(len(images))]
    embedder = Embedder.build(name, weights=args.weights.get(name, "random"), pooling=args.pooling)
    compute = resolve_compute(
        device=args.device, precision=args.precision, runtime=args.runtime,
        batch_size=args.batch_size, workers=args.workers, embedder=embedder, images=len(images),
        sample=images.path,
    )  # fmt: skip
    say(f"{name}: {compute}")
    model, transform = plain_model(embedder, compute.kind)
    started_in: dict[str, float] = {}
    networks: dict[str, Runtime] = {}
    for runtime in {compute.runtime: None, **dict.fromkeys(args.runtimes)}:
        network = Runtime(embedder, computed_by(runtime, compute))
        started = time.monotonic()
        try:
            network.submit(network.blank_batch()).result()
        except RuntimeFailed as error:
            say(str(error))
            continue
        networks[runtime], started_in[runtime] = network, round(time.monotonic() - started, 1)
    network = networks[compute.runtime]
    few = paths[: 2 * PLAIN_BATCH]
    reference = plain_loop(few, model, transform, compute.kind)
    plan: dict[str, Callable[[], int]] = {
        "plain": lambda: len(plain_loop(paths[: args.plain_images or None], model, transform,
                                        compute.kind)),
        "ours": lambda: ours(images, embedder, network),
        "decoding": lambda: decoding(images, embedder, compute),
        **{runtime: partial(passes, one, args.passes) for runtime, one in networks.items()},
    }  # fmt: skip
    times: dict[str, list[float]] = {key: [] for key in plan}
    work_done: dict[str, list[float]] = {key: [] for key in plan}  # processor seconds an image
    for round_ in range(args.rounds):
        for key, work in plan.items():
            before, started = processor_seconds(), time.monotonic()
            count = work()
            times[key].append((time.monotonic() - started) / count)
            work_done[key].append((processor_seconds() - before) / count)
            say(f"{name} round {round_ + 1}: {key} {1 / times[key][-1]:.1f} images/s")
    with tempfile.TemporaryDirectory() as scratch:
        write_embeddings(images.subset(range(len(few))), embedder, Path(scratch) / "e",
                         runtime=network)  # fmt: skip
        from vizsla.embed.embeddings import Embeddings

        mine = Embeddings.open(Path(scratch) / "e").vectors
    seconds = {key: statistics.median(values) for key, values in times.items()}
    fastest = min(networks.keys() - {"int8"}, key=seconds.__getitem__)  # int8 only where asked for
    if compute.kind == "cuda":
        limit = min(1 / seconds["decoding"], 1 / seconds[fastest])
    else:
        limit = 1 / (seconds["decoding"] + seconds[fastest])
    cpu = {key: statistics.median(values) for key, values in work_done.items()}
    rates = {key: round(1 / value, 1) for key, value in seconds.items()}
    return {
        "model": name, **rates, "limit": round(limit, 1), "fastest": fastest,
        "ours / plain": round(seconds["plain"] / seconds["ours"], 2),
        "ours / limit": round(1 / seconds["ours"] / limit, 3),
        "processor ms an image": {key: round(1000 * value, 2) for key, value in cpu.items()},
        "plain / ours, processor time": round(cpu["plain"] / cpu["ours"], 2),
        "start and first pass (s)": started_in,
        "lowest cosine to the plain loop": round(float((mine * reference).sum(axis=1).min()), 5),
        "compute": dataclasses.asdict(network.compute),
    }  # fmt: skip


def computed_by(runtime: str, compute: Compute) -> Compute:
    """The same by another runtime; by `int8`, as OpenVINO computes in int8."""
    if runtime == "int8":
        return dataclasses.replace(compute, runtime="openvino", precision="int8")
    return dataclasses.replace(compute, runtime=runtime)


def processor_seconds() -> float:
    """Of this process and of its ended children: what else runs here hardly adds to it."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def ours(images: ImageSet, embedder: Embedder, network: Runtime) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        return write_embeddings(images, embedder, Path(scratch) / "e", runtime=network).images


def decoding(images: ImageSet, embedder: Embedder, compute: Compute) -> int:
    """The rate of the loader only, started as `embed` starts it."""
    with Loader(
        images.path, embedder.preprocess.framing, batch_size=compute.batch_size,
        workers=compute.workers, max_pixels=10**8, ahead=2 if compute.kind == "cuda" else 0,
        processes=compute.kind == "cuda",
    ) as loader:  # fmt: skip
        chunks = in_chunks(range(len(images)), compute.batch_size)
        return sum(batch.filled for batch in loader.batches(chunks))


class AsBesideAGpu(Compute):
    """This machine, used in the way of a GPU."""

    @property
    def kind(self) -> str:
        return "cuda"

    @property
    def facts(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}


class NoTime:
    """A network that answers at once."""

    def __init__(self, embedder: Embedder, compute: Compute) -> None:
        self.embedder, self.compute = embedder, compute
        rng = torch.Generator().manual_seed(0)
        found = torch.randn(compute.batch_size, embedder.dim, generator=rng)
        self._vectors = torch.nn.functional.normalize(found)

    def submit(self, pixels: torch.Tensor) -> PendingVectors:
        return PendingVectors(self._vectors)


def overhead(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What `ours` loses beside decoding alone where the network takes no time."""
    from vizsla.data.preprocess import Preprocess

    images = ImageSet.from_folder(folder)
    side = args.size
    framing = Preprocess((side, side), max(side, side * 8 // 7))
    embedder = Embedder.from_module(Colours(), framing, name="colours")
    size = 128 if args.batch_size == "auto" else int(args.batch_size)
    network: Any = NoTime(
        embedder, AsBesideAGpu("cpu", "fp32", size, args.workers or available_cores())
    )
    plan = {
        "ours": lambda: ours(images, embedder, network),
        "decoding": lambda: decoding(images, embedder, network.compute),
    }
    seconds: dict[str, list[float]] = {key: [] for key in plan}
    for round_ in range(args.rounds):
        for key, work in plan.items():
            started = time.monotonic()
            work()
            seconds[key].append(time.monotonic() - started)
            say(f"overhead round {round_ + 1}: {key} {len(images) / seconds[key][-1]:.1f} images/s")
    took = {key: statistics.median(values) for key, values in seconds.items()}
    rates = {key: round(len(images) / value, 1) for key, value in took.items()}
    return {**rates, "ours / decoding": round(took["decoding"] / took["ours"], 3),
            "lost (s)": round(took["ours"] - took["decoding"], 2)}  # fmt: skip


def passes(network: Runtime, count: int) -> int:
    """The network only, on pixels that are already in memory."""
    pixels = network.blank_batch()
    if network.compute.kind == "cuda":
        pixels = pixels.pin_memory()
    pending = [network.submit(pixels)]
    for _ in range(count - 1):
        pending.append(network.submit(pixels))
        pending.pop(0).result()
    pending.pop().result()
    return count * network.compute.batch_size


# ── photos ───────────────────────────────────────────────────────────────────────────────────────


def photos(source: Path, out: Path, n: int, side: int | None) -> Path:
    """n files: those of `source` unchanged, or mosaics of them with a shorter side of `side`."""
    found = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    out.mkdir(parents=True, exist_ok=True)
    distinct = min(n, 64) if side else n
    for i in range(n):
        target = out / f"{i:06}.jpg"
        if i >= distinct:
            os.link(out / f"{i % distinct:06}.jpg", target)
        elif side is None:
            target.write_bytes(found[i % len(found)].read_bytes())
        else:
            mosaic(found, i, side).save(target, quality=88)
    return out


def mosaic(found: list[Path], i: int, side: int) -> Image.Image:
    """As much detail in every pixel as a photo has that was not enlarged."""
    page = Image.new("RGB", (side * 4 // 3, side))
    rng = np.random.default_rng(i)
    for top in range(0, page.height, 200):
        for left in range(0, page.width, 200):
            tile = Image.open(found[rng.integers(len(found))]).convert("RGB")
            page.paste(tile.crop((0, 0, 200, 200)), (left, top))
    return page


# ── what the speed costs ─────────────────────────────────────────────────────────────────────────


def scores(shared: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """top-1 and mAP of MobileNetV2 with real weights, by every runtime, and as `auto` computes."""
    from vizsla import Truth, evaluate, rank
    from vizsla.data.data_folders import open_data
    from vizsla.embed.inference import embed

    weights = str(shared / "weights" / "mobilenetv2_100.safetensors")
    embedder = Embedder.build("mobilenetv2", weights=weights, pooling="gap")
    ways = {
        f"{precision}, {runtime}": resolve_compute(
            device=args.device, precision=precision, runtime=runtime
        )
        for precision in ("fp32", "bf16") for runtime in dict.fromkeys(("torch", *args.runtimes))
        if runtime != "int8" and (precision == "fp32" or runtime != "onnx")
    }  # fmt: skip
    known = open_data(shared / "data/clothing").gallery
    ways["auto"] = resolve_compute(
        device=args.device, embedder=embedder, images=len(known), sample=known.path
    )
    rows = []
    for name in ("clothing", "caltech101"):
        data = open_data(shared / "data" / name)
        truth = Truth.from_file(shared / "data" / name / "labels.csv")
        for way, compute in ways.items():
            with tempfile.TemporaryDirectory() as scratch:
                query, gallery = (
                    embed(part, embedder, Path(scratch) / role, compute=compute)
                    for role, part in (("query", data.query), ("gallery", data.gallery))
                )
            found = evaluate(rank(query, gallery), truth)
            rows.append({"data": name, "way": way, "precision": compute.precision,
                         "runtime": compute.runtime,
                         "top-1": round(found.mean("top_k_accuracy@1") or 0, 4),
                         "mAP": round(found.mean("map") or 0, 4)})  # fmt: skip
            say(str(rows[-1]))
    return rows


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


class Colours(torch.nn.Module):
    """(B, 3, H, W) → (B, 512): small enough that a million images take minutes."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(512, 3, generator=rng))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) @ self.weight.T


def memory(n: int) -> dict[str, Any]:
    """How much the process grows while n generated ids are embedded to 512 dimensions."""
    from vizsla.data.preprocess import Preprocess

    embedder = Embedder.from_module(Colours(), Preprocess((8, 8), 8), name="colours")
    pictures = [Image.new("RGB", (8, 8), (i * 5 % 256, i * 3 % 256, i % 256)) for i in range(256)]
    network = Runtime(embedder, resolve_compute(device="cpu", precision="fp32", batch_size=256))
    network.submit(network.blank_batch()).result()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        images = ImageSet(Path(scratch), [f"{i // 1000:04}/{i:07}.jpg" for i in range(n)])
        done = write_embeddings(
            images, embedder, Path(scratch) / "e", runtime=network, shard_images=8192,
            picture=lambda i: pictures[i % 256],
        )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"images": done.images, "before (MB)": before // 10**6,
            "highest (MB)": after // 10**6, "grown by (MB)": (after - before) // 10**6,
            "seconds": round(time.monotonic() - started)}  # fmt: skip


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast images are embedded.")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs to take photos from")
    parser.add_argument("--side", type=int, help="make mosaics with this shorter side")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--plain-images", type=int, default=0, help="fewer for the plain loop")
    parser.add_argument("--models", nargs="*", default=["mobilenetv2", "resnet50", "dinov2-s14"])
    parser.add_argument("--weights", nargs="*", default=[], help="model=FILE; else random")
    parser.add_argument("--pooling", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=4, help="batches of the network only")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--runtime", default="auto", help="of ours")
    parser.add_argument("--runtimes", nargs="*", default=["torch", "openvino"],
                        help="to compare; int8: OpenVINO in int8")  # fmt: skip
    parser.add_argument("--batch-size", default="auto")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--scores", type=Path, help="the folder with data/ and weights/")
    parser.add_argument("--overhead", action="store_true", help="with a network that takes no time")
    parser.add_argument("--size", type=int, default=224, help="of images, for --overhead")
    parser.add_argument("--memory", type=int, help="embed so many generated ids")
    args = parser.parse_args()
    if args.overhead and not args.photos:
        parser.error("--overhead needs --photos")
    args.weights = dict(word.split("=", 1) for word in args.weights)
    result: dict[str, Any] = {"torch": torch.__version__, "cores": available_cores()}
    if torch.cuda.is_available():
        result["gpu"] = torch.cuda.get_device_name()
    if args.photos:
        with tempfile.TemporaryDirectory() as scratch:
            folder = photos(args.photos, Path(scratch) / "photos", args.images, args.side)
            result["photos"] = f"{args.images}, shorter side {args.side or 'as they are'}"
            result["speed"] = []
            if args.overhead:
                result["overhead"] = overhead(folder, args)
            for name in [] if args.overhead else args.models:
                result["speed"].append(measure(name, folder, args))
                say(json.dumps(result["speed"][-1]))
    if args.scores:
        result["scores"] = scores(args.scores, args)
    if args.memory:
        result["memory"] = memory(args.memory)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
