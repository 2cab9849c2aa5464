"""Fine-tuning against the frozen model and an ordinary recipe, on the test parts of two data sets.

    python benchmarks/finetune.py table  -o finetune.json    frozen / ordinary / ours, three seeds
    python benchmarks/finetune.py views  -o finetune.json    ours, each image also mirrored
    python benchmarks/finetune.py third  -o finetune.json    ours in a third of the ordinary's time
    python benchmarks/finetune.py safety -o finetune.json    6 losses × {1, 4} minutes × 3 seeds
    python benchmarks/finetune.py head   -o finetune.json    a head on vectors that are there
    python benchmarks/finetune.py show   -o finetune.json    all tables from what is in the file

`--images N` trains on N images in place of minutes, on whatever device there is: a GPU can then say
what a budget on a slow processor would give (docs/measured.md has the numbers). `--interpolation
bilinear` resizes images by another filter than the model's own; give it a file of its own (-o).

Every job's figures go into the file as they come; a job that is there is not run again. The test
part is embedded and scored after all choices are made, and decides nothing.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vizsla import storage
from vizsla.data.data_folders import DataFolders, open_data
from vizsla.data.images import read_image
from vizsla.data.splits import class_codes, held_out, target_of
from vizsla.data.tables import labels_for, read_labels
from vizsla.data.training_batches import BatchPlan, training_batches
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.inference import embed
from vizsla.model.embedder import Embedder
from vizsla.options import TuneConfig
from vizsla.score.evaluate import evaluate
from vizsla.score.truth import Truth
from vizsla.search import exact
from vizsla.train.augment import augmenter
from vizsla.train.optimizer import freeze_norms
from vizsla.train.training import fine_tune

SETS = {"caltech101": "new-classes", "clothing": "seen-classes"}
SAFETY = ("cross-entropy", "arcface", "triplet", "supcon", "multi-similarity", "proxy-anchor")
WEIGHTS = "weights/mobilenetv2_100.safetensors"

Figures = dict[str, float]


class Bench:
    """The shared data, and a file of figures by job."""

    def __init__(
        self, shared: Path, out: Path, images: int | None = None, interpolation: str | None = None
    ) -> None:
        self.shared, self.out, self.images = shared, out, images
        self.interpolation = interpolation
        self.found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}

    def data(self, name: str) -> DataFolders:
        return open_data(self.shared / "data" / name)

    def embedder(self, views: str = "none") -> Embedder:
        built = Embedder.build("mobilenetv2", weights=self.shared / WEIGHTS, pooling="gap")
        if self.interpolation:
            built = built.with_interpolation(self.interpolation)
        return built.with_views(views)

    def once(self, job: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a job, made now or earlier; with the load that the machine had."""
        if job not in self.found:
            print(f"{job} …", flush=True)
            load = os.getloadavg()[0]
            self.found[job] = {**work(), "load_before": round(load, 1)}
            storage.write_json(self.out, self.found)
            print(f"{job}: {self.found[job]}", flush=True)
        found: dict[str, Any] = self.found[job]
        return found


def score(embedder: Embedder, data: DataFolders) -> Figures:
    """Top-1 and mAP on the test part, fp32."""
    assert data.labels_file is not None
    table = read_labels(data.labels_file)
    with tempfile.TemporaryDirectory() as folder:
        query, gallery = (
            embed(images, embedder, Path(folder) / role, compute=resolve_compute(precision="fp32"))
            for role, images in (("query", data.query), ("gallery", data.gallery))
        )
    truth = Truth.from_lists(
        data.query.ids, labels_for(data.query.ids, table, "query"),
        data.gallery.ids, labels_for(data.gallery.ids, table, "gallery"),
    )  # fmt: skip
    scores = evaluate(exact.rank(query, gallery), truth)
    return {"top1": scores.mean("top_k_accuracy@1") or 0.0, "map": scores.mean("map") or 0.0}


def frozen(bench: Bench, name: str, views: str = "none") -> dict[str, Any]:
    job = "frozen" if views == "none" else f"frozen {views}"
    return bench.once(f"{job} {name}", lambda: score(bench.embedder(views), bench.data(name)))


def ours(
    bench: Bench,
    name: str,
    seed: int,
    seconds: float,
    job: str,
    views: str = "none",
    **options: Any,
) -> dict[str, Any]:
    """`vizsla train` with its defaults for such a data set, within `seconds` in all."""

    def work() -> dict[str, Any]:
        data = bench.data(name)
        assert data.training is not None
        settings = {"validate_on": SETS[name], "budget": seconds, "seed": seed, **options}
        config = TuneConfig.from_options(settings)
        target = target_of(data.query, data.gallery)
        if bench.images:
            training = len(held_out(data.training, config, target).training)
            epochs = bench.images * seconds / 240 / training
            config = TuneConfig.from_options({**settings, "budget": None, "epochs": epochs})
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            embedder = bench.embedder(views)
            result = fine_tune(data.training, embedder, config, folder, target=target)
            took = time.monotonic() - started
            return {
                **score(result.embedder, data),
                "seconds": round(took, 1),
                "kept": result.kept.name,
                "steps": result.steps,
                "images_per_second": round(result.images_per_second, 1),
                "candidates": [c.row() for c in result.candidates],
            }

    return bench.once(f"{job} {name} seed {seed} {seconds:g} s", work)


def ordinary(bench: Bench, name: str, seed: int, seconds: float) -> dict[str, Any]:
    """All weights, cross-entropy, AdamW 5e-5, batch 32 as 8 × 4, random cuts and mirroring, fp32,
    batch norms frozen; images decoded again each time. `seconds` of training only."""

    def work() -> dict[str, Any]:
        data = bench.data(name)
        images = data.training
        assert images is not None
        torch.manual_seed(seed)
        embedder, labels = bench.embedder(), class_codes(images)
        classifier = nn.Linear(embedder.dim, int(labels.max()) + 1)
        weights = [*embedder.parameters(), *classifier.parameters()]
        for p in weights:
            p.requires_grad_(True)
        optimiser = torch.optim.AdamW(weights, 5e-5)
        plan = BatchPlan(labels, 32, order="classes", per_class=4, seed=seed)
        stream = training_batches(
            lambda i: read_image(images.path(i)),
            augmenter("light", embedder.preprocess),
            plan,
            start=0,
            workers=1,
        )
        embedder.to(memory_format=torch.channels_last).train()
        freeze_norms(embedder)
        started, steps = time.monotonic(), 0
        for batch, positions in stream:
            if time.monotonic() - started > seconds:
                break
            vectors = embedder.pooled(batch.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(
                classifier(vectors), torch.as_tensor(labels[positions])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
        stream.close()
        return {**score(embedder.eval(), data), "seconds": seconds, "steps": steps}

    return bench.once(f"ordinary {name} seed {seed} {seconds:g} s", work)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def run_table(bench: Bench, sets: list[str], seeds: list[int]) -> None:
    for name in sets:
        frozen(bench, name)
        for seed in seeds:
            ours(bench, name, seed, 240, "ours")
        for seed in seeds:
            ordinary(bench, name, seed, 240)


def run_views(bench: Bench, sets: list[str], seeds: list[int]) -> None:
    for name in sets:
        frozen(bench, name, "flip")
        for seed in seeds:
            ours(bench, name, seed, 240, "ours, flip", "flip")


def run_third(bench: Bench, sets: list[str], seeds: list[int]) -> None:
    for name in sets:
        for seed in seeds:
            ordinary(bench, name, seed, 240)
            ours(bench, name, seed, 80, "ours")


def run_safety(bench: Bench, sets: list[str], seeds: list[int], minutes: list[float]) -> None:
    for minute in minutes:
        for seed in seeds:
            for loss in SAFETY:
                for name in sets:
                    ours(bench, name, seed, 60 * minute, f"safety {loss}", loss=loss)


def run_head(bench: Bench) -> None:
    """The second run finds the vectors on disk: what is left is the head and the choice."""

    def work() -> dict[str, Any]:
        data = bench.data("clothing")
        assert data.training is not None
        options = {"finetune": "head", "validate_on": "seen-classes"}
        times = []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                started = time.monotonic()
                config = TuneConfig.from_options(options)
                fine_tune(data.training, bench.embedder(), config, folder)
                times.append(round(time.monotonic() - started, 1))
                for state in Path(folder).glob("heads/*"):
                    state.unlink()
        return {"images": len(data.training), "with_embedding": times[0], "after": times[1]}

    bench.once("head clothing", work)


def show(bench: Bench) -> None:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job, figures in bench.found.items():
        if "map" not in figures:
            print(f"{job}: {figures}")
            continue
        kind, name, seconds = _parts(job)
        groups.setdefault((name, f"{kind} {seconds}".strip()), []).append(figures)
    print(f"\n{'data':<12}{'what':<32}{'runs':>5}{'top-1':>16}{'mAP':>16}{'seconds':>9}  kept")
    for (name, what), runs in sorted(groups.items()):
        tops, maps = ([run[key] for run in runs] for key in ("top1", "map"))
        took = max(run.get("seconds", 0) for run in runs)
        kept = ", ".join(dict.fromkeys(run["kept"] for run in runs if "kept" in run))
        print(
            f"{name:<12}{what:<32}{len(runs):>5}{_spread(tops):>16}{_spread(maps):>16}"
            f"{took:>9.1f}  {kept}"
        )
    _show_safety(bench)


def _show_safety(bench: Bench) -> None:
    runs = {job: f for job, f in bench.found.items() if job.startswith("safety")}
    below = []
    for job, figures in runs.items():
        base = bench.found.get(f"frozen {_parts(job)[1]}")
        if base and figures["kept"] != "frozen" and figures["top1"] < base["top1"]:
            below.append((job, figures["top1"] - base["top1"], figures["map"] - base["map"]))
    if runs:
        worse = sum(gain < -0.01 for _, gain, _ in below)
        print(
            f"\n{len(runs)} safety runs; {len(below)} kept models have a lower top-1 than frozen,"
        )
        print(f"{worse} of them by more than one query in a hundred:")
        for job, top1, mean in sorted(below, key=lambda row: row[1]):
            print(f"  {job:<50} top-1 {top1:+.3f}  mAP {mean:+.3f}")


def _parts(job: str) -> tuple[str, str, str]:
    """`safety arcface caltech101 seed 0 60 s` → what, data set, time."""
    name = next(name for name in SETS if name in job)
    kind, _, rest = job.partition(f" {name}")
    return kind, name, rest.split(" ", 3)[3] if rest.count(" ") >= 3 else ""


def _spread(values: list[float]) -> str:
    mean = float(np.mean(values))
    return f"{mean:.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["table", "views", "third", "safety", "head", "show"])
    parser.add_argument("-o", "--out", type=Path, default=Path("finetune.json"))
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", default="1,4")
    parser.add_argument("--images", type=int, help="Train on as many as 4 minutes would.")
    parser.add_argument("--interpolation", help="resize by another one than the model's own")
    options = parser.parse_args()
    bench = Bench(options.shared, options.out, options.images, options.interpolation)
    sets = options.sets.split(",")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for name in sets:
        frozen(bench, name)
    if options.what == "table":
        run_table(bench, sets, seeds)
    elif options.what == "views":
        run_views(bench, sets, seeds)
    elif options.what == "third":
        run_third(bench, sets, seeds)
    elif options.what == "safety":
        run_safety(bench, sets, seeds, [float(m) for m in options.minutes.split(",")])
    elif options.what == "head":
        run_head(bench)
    show(bench)


if __name__ == "__main__":
    main()
