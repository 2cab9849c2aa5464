"""Each refinement alone, and the chain chosen on validation, on the test parts of two data sets.

    python benchmarks/refine.py --shared ../shared --cache /tmp/refined -o refine.json

Frozen MobileNetV2, average pooling, fp32. The test parts are scored after all choices are made,
and decide nothing. Embeddings are made in the cache, or found there:
<set>/{training,query,gallery}.emb, and those of other views beside them. --parts leaves some of
the rows out.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.choose.refinement import choose_chain_on_images
from vizsla.choose.validation import mean_nearest_cosine
from vizsla.data.data_folders import DataFolders, open_data
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import target_of
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings, is_embeddings
from vizsla.embed.inference import embed
from vizsla.model.open_model import load_embedder
from vizsla.model.projection import whitening
from vizsla.options import ModelChoice, TuneConfig
from vizsla.score.evaluate import evaluate
from vizsla.score.text_table import Table
from vizsla.score.truth import Truth, truth_of_folders
from vizsla.search.chain import Chain, parse_chain, rank_refined
from vizsla.train.heads import project

SETS = {"caltech101": "new-classes", "clothing": "seen-classes"}
ALONE = (
    "aqe(n=3)", "aqe(n=3,alpha=3)", "dba(n=3)", "dba(n=3,alpha=3)", "dba(n=3)+aqe(n=3,alpha=3)",
    "kreciprocal(k1=20,k2=6,weight=0.3)", "kreciprocal(k1=20,k2=6,weight=0.3,together=false)",
    "diffusion",
)  # fmt: skip
WHITENINGS = (("none", 512), ("plain", None), ("shrunk", None), ("shrunk", 512), ("shrunk", 128))
VIEWS = ("flip", "1,0.7,1.4", "flip,1,0.7,1.4")
KEYS = {"top-1": "top_k_accuracy@1", "mAP": "map", "P@10": "precision@10"}

Pair = tuple[Embeddings, Embeddings]


class Bench:
    def __init__(self, shared: Path, cache: Path, name: str, interpolation: str | None) -> None:
        self.folder, self.cache, self.name = shared / "data" / name, cache / name, name
        self.interpolation = interpolation
        self.weights = shared / "weights/mobilenetv2_100.safetensors"
        self.data: DataFolders = open_data(self.folder)
        truth = truth_of_folders(self.data)
        assert truth is not None and self.data.training is not None
        self.truth: Truth = truth
        self.training: ImageSet = self.data.training

    def embedded(self, role: str, views: str | None = None) -> Embeddings:
        images = {"query": self.data.query, "gallery": self.data.gallery}.get(role, self.training)
        name = role if views is None else f"{role}-{views.replace(',', '_')}"
        if self.interpolation:
            name += f"-{self.interpolation}"
        folder = self.cache / f"{name}.emb"
        if is_embeddings(folder):
            return Embeddings.open(folder)
        embedder = load_embedder(
            ModelChoice(model="mobilenetv2", weights=str(self.weights), pooling="gap", views=views)
        )
        if self.interpolation:
            embedder = embedder.with_interpolation(self.interpolation)
        return embed(images, embedder, folder, compute=resolve_compute(precision="fp32"))

    def test(self, views: str | None = None) -> Pair:
        return self.embedded("query", views), self.embedded("gallery", views)

    def row(self, title: str, pair: Pair, chain: Chain | None = None) -> dict[str, Any]:
        chain = chain or Chain()
        started = time.monotonic()
        ranking = rank_refined(*pair, chain)
        seconds = time.monotonic() - started
        scores = evaluate(ranking, self.truth, ks=(1, 5, 10))
        figures = {key: round(scores.mean(name) or 0.0, 4) for key, name in KEYS.items()}
        found = {"data": self.name, "refinement": title, **figures, "uses": chain.uses,
                 "seconds": round(seconds, 2)}  # fmt: skip
        print(found, flush=True)
        return found


def whitened(pair: Pair, training: Embeddings, kind: str, dim: int | None) -> Pair:
    projection = whitening(training.vectors, kind, dim)
    one, other = (
        Embeddings(e.ids, project(projection, e.vectors).numpy(), e.attributes, f"{kind}{dim}")
        for e in pair
    )
    return one, other


def chosen(bench: Bench, uses: str) -> tuple[Chain, dict[str, Any]]:
    """As `vizsla run --refine auto` chooses it."""
    labels = [bench.truth.gallery.get(name) for name in bench.data.gallery.ids]
    whole = bench.embedded("training")
    place = {name: i for i, name in enumerate(whole.ids)}

    def vectors(images: ImageSet) -> Embeddings:
        rows = np.array([place[name] for name in images.ids if name in place])
        ids = [whole.ids[i] for i in rows]
        return Embeddings(ids, whole.vectors[rows], images.attributes, whole.model_id)

    query, gallery = bench.test()
    started = time.monotonic()
    choice = choose_chain_on_images(
        bench.training,
        TuneConfig(validate_on=SETS[bench.name]),
        target_of(bench.data.query, bench.data.gallery, labels),
        frozen=True, embed=vectors,
        nearest_cosine=mean_nearest_cosine(query.vectors, gallery.vectors), uses=uses,
    )  # fmt: skip
    print("\n".join(choice.lines()), flush=True)
    return choice.chain, {**choice.record(), "seconds": round(time.monotonic() - started, 1)}


def measure(bench: Bench, parts: set[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    pair = bench.test()
    rows = [bench.row("none", pair)]
    choices: dict[str, Any] = {}
    if "chains" in parts:
        rows += [bench.row(text, pair, parse_chain(text)) for text in ALONE]
    if "whiten" in parts:
        training = bench.embedded("training")
        for kind, dim in WHITENINGS:
            title = f"{'PCA' if kind == 'none' else kind + ' whitening'}, {dim or 'all'} dimensions"
            rows.append(bench.row(title, whitened(pair, training, kind, dim)))
    if "views" in parts:
        rows += [bench.row(f"views {views}", bench.test(views)) for views in VIEWS]
    if "auto" in parts:
        for uses in ("queries", "gallery"):
            chain, choices[uses] = chosen(bench, uses)
            rows.append(bench.row(f"auto ({uses}): {chain}", pair, chain))
    return rows, choices


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--parts", default="chains,whiten,views,auto")
    parser.add_argument("--interpolation", help="resize by another one than the model's own")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    every, choices = [], {}
    for name in options.sets.split(","):
        rows, choices[name] = measure(
            Bench(options.shared, options.cache, name, options.interpolation),
            set(options.parts.split(",")),
        )
        every += rows
    print(Table(list(every[0]), [list(row.values()) for row in every]).text())
    if options.out:
        storage.write_json(options.out, {"rows": every, "choices": choices})


if __name__ == "__main__":
    main()
