"""--accept on caltech101: half of the test classes are taken out of the gallery, in many draws.

    python benchmarks/decide.py --shared ../shared --cache /tmp/decide -o decide.json

Calibrations are learned on the training part alone, before the test part is ranked, which decides
nothing. Embeddings and the tuned embedder are made in the cache, or found there. Precision is that
of the queries that are answered, each counted once, as --accept promises it; and of all matches.
"""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.data.absent_classes import draws_with_absent_classes
from vizsla.data.data_folders import DataFolders, open_data
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target, held_out
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.errors import DataError, StorageError
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import load_embedder
from vizsla.options import ModelChoice, TuneConfig
from vizsla.run.config import RunConfig
from vizsla.run.train import train
from vizsla.score.calibration import Calibration
from vizsla.score.calibration_draws import calibrate_on_draws
from vizsla.score.decision_metrics import measure_decisions
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.text_table import Table
from vizsla.score.truth import Truth, truth_of_folders
from vizsla.search import exact
from vizsla.search.fusion import fused
from vizsla.search.ranking import Ranking

NAME, PER_CLASS, DRAWS = "caltech101", 24, 20
SURES = (0.8, 0.9, 0.95)
LISTS = 100  # the longest fixed list that is tried

Vectors = Sequence[Embeddings]
Rank = Callable[[Vectors, Vectors], Ranking]


class Bench:
    """The data set, and its embeddings by each model."""

    def __init__(self, shared: Path, cache: Path) -> None:
        self.folder, self.cache = shared / "data" / NAME, cache / NAME
        self.weights = str(shared / "weights/mobilenetv2_100.safetensors")
        self.data: DataFolders = open_data(self.folder)
        truth = truth_of_folders(self.data)
        assert truth is not None and self.data.training is not None
        self.truth: Truth = truth
        self.training: ImageSet = self.data.training
        classes = len({*truth.gallery.values()})
        self.target = Target(len(self.data.query), classes // 2 * PER_CLASS, float(PER_CLASS))

    def embedder(self, model: str) -> Embedder:
        """By the name of the row: lite0, mobilenetv2 or tuned."""
        if model == "lite0":
            return load_embedder(ModelChoice())
        if model == "mobilenetv2":
            return load_embedder(ModelChoice(model=model, weights=self.weights, pooling="gap"))
        out = self.cache / "tuned-training"
        if not (out / "embedder").is_dir():
            train(RunConfig(data=str(self.folder), tuning={"finetune": "head"}), out)
        return Embedder.load(out / "embedder")

    def embedded(self, model: str, role: str) -> Embeddings:
        folder = self.cache / model / f"{role}.emb"
        with contextlib.suppress(DataError, StorageError):  # there are none, or not all yet
            return Embeddings.open(folder)
        images = {"query": self.data.query, "gallery": self.data.gallery}.get(role, self.training)
        embedder = self.embedder(model)
        compute = resolve_compute(embedder=embedder, images=len(images), sample=images.file)
        return embed(images, embedder, folder, compute=compute)

    def calibration(self, models: Sequence[str], rank: Rank) -> Calibration:
        """Learned on images that none of the models was trained on."""
        images = self.training
        if "tuned" in models:
            images = images.subset(held_out(images, TuneConfig(), self.target).held_out)
        vectors = [self.embedded(model, "training") for model in models]
        draws = draws_with_absent_classes(images, self.target)
        return calibrate_on_draws(vectors, images, draws, source="training", rank=rank)

    def judged(self, models: Sequence[str], rank: Rank, draws: int) -> list[tuple[Ranking, Truth]]:
        """The test part ranked, each time without other classes in the gallery."""
        queries, gallery = (
            [self.embedded(model, role) for model in models] for role in ("query", "gallery")
        )
        labels = np.array([str(self.truth.gallery[name]) for name in gallery[0].ids])
        classes = np.unique(labels)
        found = []
        for seed in range(draws):
            present = np.random.default_rng(seed).permutation(classes)[: len(classes) // 2]
            rows = np.flatnonzero(np.isin(labels, present))
            ranking = rank(queries, [one.subset(rows) for one in gallery])
            kept = {gallery[0].ids[i]: str(labels[i]) for i in rows}
            found.append((ranking, Truth(self.truth.query, kept)))
        return found


def cosine(queries: Vectors, gallery: Vectors) -> Ranking:
    return exact.rank(queries[0], gallery[0])


def zscore(queries: Vectors, gallery: Vectors) -> Ranking:
    return fused([exact.rank(q, g) for q, g in zip(queries, gallery, strict=True)])


def calibrated_by(learned: Sequence[Calibration]) -> Rank:
    """Fuses the probabilities of the models."""

    def rank(queries: Vectors, gallery: Vectors) -> Ranking:
        parts = [exact.rank(q, g) for q, g in zip(queries, gallery, strict=True)]
        chances = [one.probability for one in learned]
        return fused(parts, method="calibrated", probabilities=chances)

    return rank


def best_of_fixed_lists(judged: Relevance) -> float:
    """The F1 of the best k, the same for all queries, chosen in hindsight."""
    right = judged.hits[:, :LISTS].sum(axis=0).cumsum()  # right matches among the first k
    k = np.arange(1, len(right) + 1)
    return float((2 * right / (k * len(judged) + judged.n_relevant.sum())).max())


def measured(calibration: Calibration, tests: list[tuple[Ranking, Truth]]) -> dict[str, Any]:
    """Means over the draws, how often precision is below what was asked, and the worst."""
    rows, fixed = [], []
    for ranking, truth in tests:
        judged = relevance(calibration.decide(ranking), truth)
        values = {
            key: np.nan if metric.mean is None else metric.mean
            for key, metric in measure_decisions(judged).items()
        }
        assert judged.accepted is not None
        known = judged.n_relevant > 0
        values["known_answered"] = float(judged.accepted.any(axis=1)[known].mean())
        rows.append(values)
        fixed.append(best_of_fixed_lists(judged))
    means = {key: _mean([row[key] for row in rows]) for key in rows[0]}
    precision = np.array([row["accepted_precision_by_query"] for row in rows])
    matches = np.array([row["accepted_precision"] for row in rows])
    return {
        "cutoff": calibration.cutoff and calibration.cutoff.score,
        **means,
        "below": float((precision < calibration.sure).mean()),
        "matches_below": float((matches < calibration.sure).mean()),
        "lowest": float(np.nanmin(precision)) if calibration.cutoff else None,
        "best_fixed_f1": float(np.mean(fixed)),
    }


def _mean(values: list[float]) -> float | None:
    """None where nothing was accepted in any draw."""
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else None


ROWS: dict[str, tuple[list[str], Rank]] = {
    "lite0": (["lite0"], cosine),
    "mobilenetv2": (["mobilenetv2"], cosine),
    "tuned": (["tuned"], cosine),
    "fused": (["lite0", "mobilenetv2"], zscore),
    "calibrated": (["lite0", "mobilenetv2"], cosine),
}
SHOWN = {
    "precision, each query once": "accepted_precision_by_query", "lowest": "lowest",
    "draws below": "below", "of all matches": "accepted_precision",
    "known answered": "known_answered", "unknown answered": "unknown_answered",
    "F1": "accepted_f1", "best fixed k": "best_fixed_f1", "AUROC": "known_auroc",
    "calibration error": "calibration_error",
}  # fmt: skip


def table_of(rows: list[dict[str, Any]]) -> Table:
    """One row for each ranking and each SURE."""
    cells = [[row["ranking"], row["sure"], *(row[key] for key in SHOWN.values())] for row in rows]
    return Table(["ranking", "sure", *SHOWN], cells, digits=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    bench, found = Bench(options.shared, options.cache), []
    for name in options.rows.split(","):
        models, rank = ROWS[name]
        if name == "calibrated":
            rank = calibrated_by([bench.calibration([model], cosine) for model in models])
        learned = bench.calibration(models, rank)
        tests = bench.judged(models, rank, options.draws)
        for sure in SURES:
            row = measured(learned.with_sure(sure), tests)
            found.append({"ranking": name, "sure": sure, **row})
        print(table_of([row for row in found if row["ranking"] == name]).text(), flush=True)
    if options.out:
        storage.write_json(options.out, found)


if __name__ == "__main__":
    main()
