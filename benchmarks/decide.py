"""--accept: half of the test classes are taken out of the gallery, in many draws.

    python benchmarks/decide.py --shared ../shared --cache /tmp/decide -o decide.json
    python benchmarks/decide.py --shared ../shared --cache /tmp/decide --data clothing
    python benchmarks/decide.py --shared ../shared --cache /tmp/decide --fusion clothing
    python benchmarks/decide.py --speed

Calibrations are learned on the training part alone, before the test part is ranked, which decides
nothing. Embeddings and the tuned embedder are made in the cache, or found there. Precision is that
of all accepted matches, which --accept bounds, and that of queries, each counted once. --without
leaves a class out of what is learned from: `Faces_easy` of caltech101 are the heads of `Faces`.
Runs also decide by the neighbours that images share; --scores-alone is without them.
--fusion compares the ways to fuse two models, with the whole gallery of a data set; `by chance` is
the calibration error of a draw that probabilities would have if they were true.

Columns: `best fixed k` is the F1 of lists of one length, the best in hindsight, and `as sure` of
those whose precision is SURE in 19 of 20 draws; `best cut-off` that of the best cut-off in
hindsight of such a precision, on the estimates, and `on scores` on the scores alone.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.optimize import isotonic_regression

import vizsla
from vizsla import storage
from vizsla.data.data_folders import DataFolders, open_data
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import NEW, SEEN, Target
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.embed.projected import fitted_projection, projected
from vizsla.errors import DataError, StorageError
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import load_embedder
from vizsla.model.projection import project, whitening
from vizsla.options import ModelChoice
from vizsla.run.accepting import ClosedForm, Model, learn_calibration
from vizsla.run.config import RunConfig
from vizsla.run.train import train
from vizsla.score.calibration import SHOWN_RANKS, Calibration
from vizsla.score.calibration_draws import calibrate_on_training
from vizsla.score.evaluate import evaluate
from vizsla.score.metrics.decision_metrics import calibration_error, measure_decisions
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.text_table import Table
from vizsla.score.truth import Truth, truth_of_folders
from vizsla.search import exact
from vizsla.search.evidence import NEAR, with_evidence
from vizsla.search.fusion import fused, joined
from vizsla.search.index import in_memory
from vizsla.search.ranking import Ranking

NAME, DRAWS = "caltech101", 20
SURES = (0.8, 0.9, 0.95)
STEPS = np.linspace(0, 1, 400)  # of cut-offs
LISTS = 100  # the longest fixed list that is tried
FUSED = ["lite0", "mobilenetv2"]
HEADS = {"caltech101": ("whitened 0.9", NEW), "clothing": ("classes 0.3", SEEN)}

Vectors = Sequence[Embeddings]
Rank = Callable[[Vectors, Vectors], Ranking]


class Bench:
    """The data set, and its embeddings by each model."""

    def __init__(
        self, shared: Path, cache: Path, name: str = NAME, *, without: str | None = None
    ) -> None:
        self.folder, self.cache, self.without = shared / "data" / name, cache / name, without
        self.weights = str(shared / "weights/mobilenetv2_100.safetensors")
        self.data: DataFolders = open_data(self.folder)
        truth = truth_of_folders(self.data)
        assert truth is not None and self.data.training is not None
        self.truth: Truth = truth
        self.training: ImageSet = self.data.training
        classes = len({*truth.gallery.values()})
        per_class = len(truth.gallery) / classes
        size = round(classes // 2 * per_class)  # half of them are in the gallery
        self.target = Target(len(self.data.query), size, per_class)
        self.head, validate_on = HEADS[name]
        tuning = {"finetune": "head", "validate_on": validate_on}
        self.config = RunConfig(data=str(self.folder), tuning=tuning)

    def embedder(self, model: str) -> Embedder:
        """By the name of the model: lite0, mobilenetv2 or tuned."""
        if model == "lite0":
            return load_embedder(ModelChoice())
        if model == "mobilenetv2":
            return load_embedder(ModelChoice(model=model, weights=self.weights, pooling="gap"))
        out = self.cache / "tuned-for-new-classes"
        if not (out / "embedder").is_dir():
            train(self.config, out)
        return Embedder.load(out / "embedder")

    def embedded(self, model: str, role: str) -> Embeddings:
        """By a model, or by the `head` of joined vectors."""
        if model == "head":
            part, training = (
                joined([self.embedded(name, of) for name in FUSED]) for of in (role, "training")
            )
            return projected(part, fitted_projection(training, self.head), self.head)
        folder = self.cache / model / f"{role}.emb"
        with contextlib.suppress(DataError, StorageError):  # there are none, or not all yet
            return Embeddings.open(folder)
        images = {"query": self.data.query, "gallery": self.data.gallery}.get(role, self.training)
        embedder = self.embedder(model)
        compute = resolve_compute(embedder=embedder, images=len(images), sample=images.file)
        return embed(images, embedder, folder, compute=compute)

    def calibration(self, models: Sequence[str], rank: Rank) -> Calibration:
        """Learned as `run` does, on images that none of the models was trained on."""
        kept = np.flatnonzero(np.array(self.training.labels) != self.without)
        data = replace(self.data, training=self.training.subset(kept))
        parts = [self.fitted_again(model) for model in models]
        return learn_calibration(
            self.config, data, self.target, parts,
            tuned="tuned" in models and not isinstance(parts[0], ClosedForm),
            sure=SURES[0], rank=rank,
        )  # fmt: skip

    def fitted_again(self, model: str) -> Model:
        """The projection of `tuned` or of the `head`, if there is one, or what gives vectors."""
        if model == "head":
            model_id = self.embedded("head", "query").model_id
            return ClosedForm(self.head, model_id, partial(self.vectors_of, models=FUSED))
        if model == "tuned":
            frozen = partial(self.vectors_of, models=["lite0"])
            found = ClosedForm.of(self.embedder("tuned"), self.config, frozen)
            assert found is not None or self.without is None  # it saw the class left out
            if found is not None:
                return found
        return partial(self.vectors_of, models=[model])

    def vectors_of(self, images: ImageSet, models: Sequence[str]) -> Embeddings:
        """Of these training images."""
        parts = [self.embedded(model, "training") for model in models]
        return (parts[0] if len(parts) == 1 else joined(parts)).of_images(images.ids)

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


def with_shared_neighbours(
    queries: Vectors, gallery: Vectors, *, rank: Rank, near: float | None
) -> Ranking:
    """As a run decides."""
    return with_evidence(rank(queries, gallery), joined(queries), joined(gallery), near=near)


def fused_by(queries: Vectors, gallery: Vectors, *, method: str) -> Ranking:
    parts = [exact.rank(q, g) for q, g in zip(queries, gallery, strict=True)]
    return fused(parts, method=method)


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


def best_fixed_list_as_sure(tests: Sequence[Relevance], sure: float) -> float:
    """The mean F1 of the best k among those whose precision is `sure` in 19 of 20 draws; 0 if none
    is."""
    found, longest = [], min(judged.hits.shape[1] for judged in tests)
    for judged in tests:
        right = judged.hits[:, : min(LISTS, longest)].sum(axis=0).cumsum()
        k = np.arange(1, len(right) + 1) * len(judged)
        found.append((right / k, 2 * right / (k + judged.n_relevant.sum())))
    precision, f1 = np.array(found).transpose(1, 0, 2)
    allowed = (precision < sure).mean(axis=0) <= 1 / 20
    return float(f1.mean(axis=0)[allowed].max(initial=0))


def best_cutoff(tests: Sequence[Relevance], sure: float) -> float:
    """The mean F1 of the cut-off on scores that is best in hindsight, among those with which
    precision is `sure` in all draws but one in twenty."""
    cuts = np.unique(np.quantile(np.concatenate([t.scores[:, 0] for t in tests]), STEPS))
    precision, f1 = np.zeros((2, len(tests), len(cuts)))
    for i, judged in enumerate(tests):
        at = np.searchsorted(cuts, judged.scores, side="right")  # so many cut-offs accept it
        number, right = (
            np.bincount(at[~np.isnan(judged.scores)], w, minlength=len(cuts) + 1)[::-1].cumsum()
            for w in (None, judged.hits[~np.isnan(judged.scores)])
        )
        number, right = number[::-1][1:], right[::-1][1:]
        precision[i] = right / np.maximum(number, 1)
        f1[i] = 2 * right / (number + judged.n_relevant.sum())
    allowed = (precision < sure).mean(axis=0) <= 1 / 20
    return float(f1.mean(axis=0)[allowed].max(initial=0))


def measured(calibration: Calibration, tests: list[tuple[Ranking, Truth]]) -> dict[str, Any]:
    """Means over the draws, how often precision is below what was asked, and the worst."""
    rows, fixed = [], []
    by_estimate: list[Relevance] = []
    chances: list[np.ndarray] = []  # (Q, SHOWN_RANKS) each
    hits: list[np.ndarray] = []
    for ranking, truth in tests:
        judged = relevance(calibration.decide(ranking), truth)
        values = {
            key: np.nan if metric.mean is None else metric.mean
            for key, metric in measure_decisions(judged).items()
        }
        assert judged.accepted is not None and judged.scores is not None
        known = judged.n_relevant > 0
        scores, evidence = (
            None if values is None else values[:, :LISTS]
            for values in (judged.scores, judged.evidence)
        )
        scores = calibration.model.log_odds(scores, evidence=evidence)
        by_estimate.append(replace(judged, scores=scores, hits=judged.hits[:, :LISTS]))
        values["known_answered"] = float(judged.accepted.any(axis=1)[known].mean())
        rows.append(values)
        assert judged.probability is not None
        chances.append(judged.probability[:, :SHOWN_RANKS])
        hits.append(judged.hits[:, :SHOWN_RANKS].astype(float))
        fixed.append(best_of_fixed_lists(judged))
    means = {key: _mean([row[key] for row in rows]) for key in rows[0]}
    precision, by_query = (
        np.array([row[key] for row in rows])
        for key in ("accepted_precision", "accepted_precision_by_query")
    )
    every = np.concatenate(chances), np.concatenate(hits)
    return {
        "error_together": error_of(*every),
        "error_of_perfect": error_of_a_perfect_forecaster(*every, len(chances[0])),
        "cutoff": calibration.cutoff and calibration.cutoff.score,
        **means,
        "below": float((precision < calibration.sure).mean()),
        "below_by_query": float((by_query < calibration.sure).mean()),
        "lowest": float(np.nanmin(precision)) if calibration.cutoff else None,
        "best_fixed_f1": float(np.mean(fixed)),
        "best_fixed_f1_as_sure": best_fixed_list_as_sure(by_estimate, calibration.sure),
        "best_score_f1": best_cutoff([relevance(r, t) for r, t in tests], calibration.sure),
        "best_f1": best_cutoff(by_estimate, calibration.sure),
    }


def error_of(probability: np.ndarray, right: np.ndarray) -> float:
    """The calibration error of these ranks, (Q, K) each, nan where there is none."""
    there = ~np.isnan(probability)
    queries = np.zeros(int(there.sum()), np.int64)
    return float(calibration_error(probability[there], right[there], queries)(np.ones(1)))


def error_of_a_perfect_forecaster(
    probability: np.ndarray, right: np.ndarray, queries: int, *, times: int = 200
) -> float:
    """The mean calibration error of so many queries, drawn from all of them, by probabilities that
    are true over all (their isotonic regression): what chance alone makes of a draw."""
    there = ~np.isnan(probability)
    _, at, weights = np.unique(probability[there], return_inverse=True, return_counts=True)
    shares = np.bincount(at, right[there]) / weights
    true = np.full(probability.shape, np.nan)
    true[there] = isotonic_regression(shares, weights=weights).x[at]
    rng = np.random.default_rng(0)
    rows = rng.integers(len(true), size=(times, queries))
    return float(np.mean([error_of(true[some], right[some]) for some in rows]))


def _mean(values: list[float]) -> float | None:
    """None where nothing was accepted in any draw."""
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else None


def concatenated(training: Embeddings) -> Rank:
    """By the vectors of all models, whitened by those of the training images."""
    projection = whitening(training.vectors, "shrunk")

    def rank(queries: Vectors, gallery: Vectors) -> Ranking:
        both = [joined(parts) for parts in (queries, gallery)]
        white = [replace(one, vectors=project(projection, one.vectors).numpy()) for one in both]
        return exact.rank(*white)

    return rank


def compared_fusions(bench: Bench) -> Table:
    """Scores of two models alone and fused, with the whole gallery, and the calibration error of
    each in draws where half of the classes are absent."""
    models = FUSED
    learned = [bench.calibration([model], cosine) for model in models]
    training = joined([bench.embedded(model, "training") for model in models])
    ways: dict[str, tuple[list[str], Rank]] = {model: ([model], cosine) for model in models}
    for method in ("zscore", "minmax", "rrf"):
        ways[method] = models, partial(fused_by, method=method)
    ways |= {
        "calibrated": (models, calibrated_by(learned)),
        "concat": (models, concatenated(training)),
    }
    rows = []
    for name, (used, rank) in ways.items():
        parts = ([bench.embedded(m, role) for m in used] for role in ("query", "gallery"))
        scores = evaluate(rank(*parts), bench.truth, ks=[1, 10])
        decided = measured(bench.calibration(used, rank), bench.judged(used, rank, DRAWS))
        errors = [
            decided[key] for key in ("calibration_error", "error_of_perfect", "error_together")
        ]
        rows.append([name, scores.mean("top_k_accuracy@1"), scores.mean("map"), *errors])
    columns = ["fusion", "top-1", "mAP", "calibration error", "by chance", "all draws together"]
    return Table(columns, rows, digits=4)


def compared_speed(images: int = 100_000, dim: int = 256, searches: int = 110) -> Table:
    """The CPU time of a search without and with a cut-off, in turn: medians, and their ratio."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(images // 50, dim))

    def embeddings(n: int) -> Embeddings:
        """n images, 50 or fewer of each class."""
        classes = np.sort(rng.integers(max(20, n // 50), size=n))
        vectors = centres[classes] + rng.normal(size=(n, dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        labels = pa.table({"label": classes.astype(str)})
        return Embeddings([f"{i}.jpg" for i in range(n)], vectors.astype(np.float32), labels, "m")

    index, queries = in_memory(embeddings(images)), embeddings(searches)
    calibration = calibrate_on_training(embeddings(2_000), sure=0.9)
    assert calibration.cutoff is not None
    seconds = []
    for i in range(searches):
        query = queries.subset([i])
        times = [time.process_time()]
        plain = vizsla.search(index, query, top_k=10)
        times.append(time.process_time())
        deep = vizsla.search(index, query, top_k=LISTS)
        times.append(time.process_time())
        decided = calibration.decide(deep).head(10)
        times.append(time.process_time())
        assert decided.row(0) == plain.row(0)
        seconds.append(np.diff(times))
    plain_ms, deep_ms, cut_ms = 1000 * np.median(seconds[10:], axis=0)
    cells = [plain_ms, deep_ms, cut_ms, (deep_ms + cut_ms) / plain_ms]
    columns = ["ten images, ms", "a hundred, ms", "the cut-off, ms", "both against ten images"]
    return Table(columns, [cells], digits=3)


ROWS: dict[str, tuple[list[str], Rank]] = {
    "lite0": (["lite0"], cosine),
    "mobilenetv2": (["mobilenetv2"], cosine),
    "tuned": (["tuned"], cosine),
    "fused": (FUSED, partial(fused_by, method="zscore")),
    "calibrated": (FUSED, cosine),
    "head": (["head"], cosine),
}
SHOWN = {
    "precision": "accepted_precision", "lowest": "lowest", "draws below": "below",
    "each query once": "accepted_precision_by_query", "below once": "below_by_query",
    "known answered": "known_answered", "unknown answered": "unknown_answered",
    "F1": "accepted_f1", "best fixed k": "best_fixed_f1", "as sure": "best_fixed_f1_as_sure",
    "best cut-off": "best_f1", "on scores": "best_score_f1",
    "AUROC": "known_auroc", "calibration error": "calibration_error",
}  # fmt: skip


def table_of(rows: list[dict[str, Any]]) -> Table:
    """One row for each ranking and each SURE."""
    cells = [[row["ranking"], row["sure"], *(row[key] for key in SHOWN.values())] for row in rows]
    return Table(["ranking", "sure", *SHOWN], cells, digits=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--data", default=NAME)
    parser.add_argument("--without")
    parser.add_argument("--scores-alone", action="store_true", help="as searches decide")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--fusion", metavar="DATA")
    parser.add_argument("--speed", action="store_true", help="of a search in 100,000 vectors")
    options = parser.parse_args()
    if options.speed:
        print(compared_speed().text())
        return
    if options.shared is None or options.cache is None:
        parser.error("give --shared and --cache")
    if options.fusion:
        print(compared_fusions(Bench(options.shared, options.cache, options.fusion)).text())
        return
    bench, found = Bench(options.shared, options.cache, options.data, without=options.without), []
    for name in options.rows.split(","):
        models, rank = ROWS[name]
        if name == "calibrated":
            rank = calibrated_by([bench.calibration([model], cosine) for model in models])
        plain = rank
        if not options.scores_alone:
            rank = partial(with_shared_neighbours, rank=plain, near=None)
        tests = bench.judged(models, rank, options.draws)
        if not options.scores_alone:
            near = float(np.mean([ranking.origin[NEAR] for ranking, _ in tests]))
            rank = partial(with_shared_neighbours, rank=plain, near=near)
        learned = bench.calibration(models, rank)
        for sure in SURES:
            row = measured(learned.with_sure(sure), tests)
            found.append({"ranking": name, "sure": sure, **row})
        print(table_of([row for row in found if row["ranking"] == name]).text(), flush=True)
    if options.out:
        storage.write_json(options.out, found)


if __name__ == "__main__":
    main()
