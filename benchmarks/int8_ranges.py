"""Training photos → the ranges of activations by which networks are computed in int8.

    python benchmarks/int8_ranges.py ../shared/data/caltech101 ../shared/data/clothing \
        -o src/vizsla/embed/int8_ranges.json
    python benchmarks/int8_ranges.py ../shared/data/caltech101 ../shared/data/clothing --scores

The range of an activation leaves out 1 value in 10,000 on either side, so that it depends on no
single photo. Photos are drawn from the training images that a training would not hold out.
`--scores` validates on those that it would: in fp32, with the ranges of all data sets, with those
of the other data sets alone (a user's photos are of none of these sets), and with half of the
ranges, as a broken network. It prints top-1, mAP, and cosines to fp32: of all images, and of what
the first batch is checked with.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vizsla import storage
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Split, held_out
from vizsla.embed import converted_runtimes
from vizsla.embed.compute import Compute, runtime_package
from vizsla.embed.quantisation import activation_input, convolutions_of, quantise
from vizsla.embed.runtime import Runtime
from vizsla.model.embedder import Embedder
from vizsla.model.weights import digest_of, without_counters
from vizsla.run.config import RunConfig
from vizsla.run.inputs import training_images
from vizsla.score.embedder_validation import Validation

SEED = 0
OUTSIDE = 1e-4  # share of the values below a range, and of those above it
BINS, LIMIT = 2**16, 128.0  # of the histograms, from -LIMIT to LIMIT


def photos_of(folder: Path, kind: str, n: int) -> tuple[ImageSet, Split, list[Path]]:
    """The training images, how they are held out, and n files of those that are not."""
    options: dict[str, Any] = {"data": str(folder), "tuning": {"validate_on": kind}}
    images, target = training_images(options["data"])
    split = held_out(images, RunConfig(**options).training, target)
    drawn = np.random.default_rng(SEED).permutation(split.training)[:n]
    return images, split, [images.path(int(i)) for i in drawn]


def histograms_of(embedder: Embedder, photos: Sequence[Path]) -> np.ndarray:
    """(convolutions, BINS): how often the values of each one's input occur on these photos."""
    model = converted_runtimes.openvino_model(embedder)
    inputs = [activation_input(one).get_source_output() for one in convolutions_of(model)]
    model.add_outputs(inputs)
    network, found = compiled(model), np.zeros((len(inputs), BINS))
    for photo in photos:
        _, *values = network({0: embedder.preprocess.framing.read(photo)[None]}).to_tuple()
        for counts, one in zip(found, values, strict=True):
            counts += np.histogram(one, BINS, (-LIMIT, LIMIT))[0]
    return found


def ranges_in(histograms: Sequence[np.ndarray]) -> np.ndarray:
    """(convolutions, 2): the ranges of what was counted in these together, to four digits."""
    total = np.sum(histograms, axis=0)
    below = np.cumsum(total, axis=1) / total.sum(axis=1, keepdims=True)
    edges = np.linspace(-LIMIT, LIMIT, BINS + 1)
    low = edges[(below < OUTSIDE).sum(axis=1)]
    high = edges[(below < 1 - OUTSIDE).sum(axis=1) + 1]
    return np.vectorize(lambda value: float(f"{value:.4g}"))(np.stack([low, high], axis=1))


def compiled(model: Any) -> Any:
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return runtime_package("openvino").Core().compile_model(model, "CPU", options)


class Scored:
    """Scores of an embedder on held-out images, by its network in fp32 or quantised."""

    def __init__(self, embedder: Embedder, images: ImageSet, split: Split) -> None:
        compute = Compute("cpu", "fp32", 32, 1, "openvino")
        self.embedder, self.validation = embedder, Validation(images, split, compute)
        self.fp32 = self.validation.held_out.vectors(embedder)
        self.batches = self.validation.held_out._batches(embedder)  # kept there as pixels

    def __call__(self, vectors: np.ndarray) -> dict[str, float]:
        self.validation.held_out.vectors = lambda _: vectors  # type: ignore[method-assign]
        self.validation(self.embedder)
        cosines = (vectors * self.fp32).sum(axis=1)
        means = self.validation.means
        found = {"top1": means["top1"], "map": means["map"],
                 "lowest cosine": cosines.min(), "mean cosine": cosines.mean()}  # fmt: skip
        return {key: round(float(value), 4) for key, value in found.items()}

    def quantised(self, ranges: np.ndarray) -> dict[str, Any]:
        """Scores in int8, and the cosines of what the first batch is checked with."""
        model = converted_runtimes.openvino_model(self.embedder)
        quantise(model, ranges.tolist())
        network = compiled(model)
        vectors = np.concatenate([network({0: one.numpy()})[0] for one in self.batches])
        torch_runtime = Runtime(self.embedder, Compute("cpu", "fp32", 32, 1))
        few = torch_runtime._partly_noise(self.batches[0])
        checked = (network({0: few.numpy()})[0] * torch_runtime.submit(few).result()).sum(axis=1)
        return {
            **self(vectors[: len(self.fp32)]),
            "noise": round(float(checked[::2].min()), 4),
            "first batch": round(float(checked[1::2].min()), 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+", help="folders in the contest's layout")
    parser.add_argument("--seen-classes", nargs="*", default=["clothing"],
                        help="data sets whose test classes are those of training")  # fmt: skip
    parser.add_argument("--models", nargs="+",
                        default=[f"efficientnet-lite{i}" for i in range(3)])  # fmt: skip
    parser.add_argument("--images", type=int, default=300, help="of each data set")
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    sets = {
        folder.name: photos_of(
            folder, f"{'seen' if folder.name in args.seen_classes else 'new'}-classes", args.images
        )
        for folder in args.data
    }
    networks = {}
    for name in args.models:
        embedder = Embedder.build(name)
        found = {key: histograms_of(embedder, photos) for key, (_, _, photos) in sets.items()}
        ranges = ranges_in(list(found.values()))
        networks[name] = {
            "weights": digest_of(without_counters(embedder.backbone.state_dict())),
            "image_size": embedder.preprocess.size[0],
            "ranges": ranges.tolist(),
        }
        for key, (images, split, _) in sets.items() if args.scores else ():
            scored = Scored(embedder, images, split)
            others = [one for other, one in found.items() if other != key]
            rows = {
                "fp32": scored(scored.fp32),
                "all": scored.quantised(ranges),
                "others": scored.quantised(ranges_in(others)),
                "halved": scored.quantised(ranges / 2),
            }
            for row, figures in rows.items():
                about = {"model": name, "data": key, "ranges": row}
                print(json.dumps({**about, **figures}), flush=True)
    if args.out:
        photos = f"{args.images} training photos of each of {', '.join(sets)}, seed {SEED}"
        storage.write_json(args.out, {"photos": photos, "networks": networks})


if __name__ == "__main__":
    main()
