"""`run`, the main job: a folder of images → ranking, submission, metrics, pictures.

Stage after stage, each leaving its artefact in the run's folder, where the next one reads it.
"""

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import vizsla
from vizsla import storage
from vizsla.choose.fusion_weights import WeightsChoice
from vizsla.choose.refinement import STAGE, RefinementChoice, choose_chain_on_images
from vizsla.choose.validation import mean_nearest_cosine
from vizsla.data.fingerprint import fingerprint
from vizsla.data.imageset import (
    DataFolders,
    ImageSet,
)
from vizsla.data.listing import few
from vizsla.data.splits import Target
from vizsla.embed.auto_compute import resolve_compute, written_compute
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.embed.shared_vectors import key_of, lent
from vizsla.embed.torch_runtime import Network
from vizsla.errors import ModelError, StorageError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.projection import WHITENINGS
from vizsla.output import charts
from vizsla.output.sheet_selection import draw_sample, with_unanswered
from vizsla.output.submission import write_submission
from vizsla.run.config import REFINEMENT, RunConfig, compute_for, resolved, tune_config
from vizsla.run.inputs import load_embedder, open_folders, training_images, whiten_embedder
from vizsla.score.evaluate import evaluate
from vizsla.score.result_file import result_record
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth, truth_of_folders
from vizsla.score.whole_gallery import evaluate_ranked
from vizsla.search import exact
from vizsla.search.chain import Chain, check_uses, parse_chain, rank_refined
from vizsla.search.knn_graph import GraphFolder
from vizsla.search.ranking import Ranking
from vizsla.train.batch_gradient import Processes
from vizsla.train.job import training_compute
from vizsla.train.loop import SHORT_FOLDER, read_log
from vizsla.train.selection import TrainResult
from vizsla.train.training import fine_tune, options_given, target_of, training_part
from vizsla.workspace import Messages, Run, create_run, is_run, log_to, open_run

log = logging.getLogger("vizsla.run")

Progress = Callable[[str, int, int], None]  # (stage, images done, images in all)


@dataclass(frozen=True)
class RunResult:
    """scores is None where no labels are known. warnings: what was logged as such."""

    run: Run
    model_name: str
    ranking: Ranking
    scores: Scores | None
    result_path: Path
    submission_path: Path
    figure_paths: list[Path]
    seconds: float
    warnings: list[str] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)
    choice: RefinementChoice | None = None  # of the chain, where it was `auto`
    tuned: TrainResult | None = None  # where training was asked for
    members: list["RunResult"] = field(default_factory=list)  # of several models (ensemble.py)
    weights: WeightsChoice | None = None  # of their fusion, where they were `auto`
    fusion: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run.folder),
            "model_name": self.model_name,
            "queries": len(self.ranking),
            "gallery": self.ranking.gallery_size,
            "scores": self.scores and self.scores.to_dict(),
            "result": str(self.result_path),
            "submission": str(self.submission_path),
            "figures": [str(path) for path in self.figure_paths],
            "refine": refine_record(self.chain, self.choice),
            "seconds": round(self.seconds, 2),
            "warnings": self.warnings,
            **({"fusion": self.fusion} if self.fusion else {}),
            **({"members": [one.to_dict() for one in self.members]} if self.members else {}),
        }


def run(config: RunConfig, progress: Progress | None = None) -> RunResult:
    """The whole main job in the starting document's layout; see RunConfig."""
    with Messages() as messages:
        return _run(config, messages, progress)


def _run(config: RunConfig, messages: Messages, progress: Progress | None) -> RunResult:
    started = time.monotonic()
    data = folders_of(config)
    truth = truth_in(config, data)
    exact.check_k(config.top_k, len(data.gallery))
    _check_options(config, data)
    embedder = load_embedder(config, seed=config.seed)
    _require_same_model(embedder, config)
    compute = compute_for(config, embedder, data)
    written = resolved(config, embedder, compute, data)
    earlier = _interrupted(config, written, embedder.name)
    if earlier is not None:  # whether it pays may look otherwise now: what is written stands
        written = earlier.config
        on = written["options"].get("compiling") == "on"
        compute = dataclasses.replace(compute, compiled=on)
    this = earlier or create_run(config.home)
    with log_to(this.folder / "log.txt", earlier=messages.records):
        this.write_config(written)
        tuned = _train_in_run(data, truth, embedder, this, config, progress)
        embedder = tuned.embedder if tuned else embedder
        embedder = _whitened(data, embedder, this, config, compute, progress)
        embedder.save(this.folder / "embedder")
        network = Network(embedder, compute)
        queries = embed_role(data.query, "query", network, this, config, progress)
        gallery = embed_role(data.gallery, "gallery", network, this, config, progress)
        nearest_cosine = mean_nearest_cosine(queries.vectors, gallery.vectors)
        chain, choice = _refinement(
            data, truth, nearest_cosine, network, this, config, tuned, progress
        )
        ranking = rank_refined(
            queries, gallery, chain, device=_search_device(compute),
            graphs=GraphFolder(this.folder / "graphs"),
        )  # fmt: skip
        ranking.save(this.folder / "ranking.parquet")
        scores = score_run(this, ranking, truth, config, (queries, gallery))
        drawn = with_unanswered(ranking, [name for name, _ in queries.broken])
        figures = draw_sheets(this, drawn, truth, scores, data, embedder.name, config)
        submission = this.submission_path(embedder.name)
        _hand_in(submission, ranking, data, queries, gallery, config.top_k)
        seconds = time.monotonic() - started
        result = this.result_path(embedder.name)
        record = _record(this, scores, network, data, config, seconds, messages.warnings, tuned)
        record["refine"] = refine_record(chain, choice)
        storage.write_sealed_json(result, record)
        log.info("done in %.1f s", seconds)
    return RunResult(
        this, embedder.name, ranking, scores, result, submission, figures, seconds,
        messages.warnings, chain, choice, tuned,
    )  # fmt: skip


def _interrupted(config: RunConfig, resolved: dict[str, Any], model_name: str) -> Run | None:
    """The latest run of the same command whose training was begun and that left no result."""
    if config.tuning is None:
        return None
    for folder in sorted((Path(config.home) / "runs").glob("*/training"), reverse=True):
        if not is_run(folder.parent):
            continue
        with contextlib.suppress(StorageError):
            earlier = open_run(folder.parent)
            same = _but_for_compiling(earlier.config) == _but_for_compiling(resolved)
            if same and not earlier.result_path(model_name).exists():
                log.info("going on with the interrupted run %s", earlier.id)
                return earlier
    return None


def _but_for_compiling(written: dict[str, Any]) -> dict[str, Any]:
    options = {k: v for k, v in written["options"].items() if k != "compiling"}
    return {**written, "options": options, "compute_id": None}


def train(
    config: RunConfig, out: str | Path, *, progress: Progress | None = None
) -> TrainResult | None:
    """Tunes a model into the folder `out`. `data` has the layout, or is a folder of classes."""
    return train_on(training_material(config), config, out, progress=progress)


Material = tuple[ImageSet, Embedder, Target | None]


def training_material(config: RunConfig) -> Material:
    """What a training starts from: labelled images, a model, and what is known of the test part."""
    _check_compute(config)
    images, target = training_images(
        config.data,
        labels=config.labels,
        labels_from=config.labels_from,
        exclude=config.exclude,
        follow_links=config.follow_links,
    )
    embedder = load_embedder(config, seed=config.seed)
    return training_part(images, config.data), embedder, target


def train_on(
    material: Material,
    config: RunConfig,
    out: str | Path,
    *,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> TrainResult | None:
    """The same on what `training_material` gave. None in all processes but the first."""
    images, embedder, target = material
    result = _train_and_plot(
        images, embedder, Path(out), target, config, progress, processes=processes
    )
    return result if processes is None or processes.rank == 0 else None


def _require_same_model(embedder: Embedder, config: RunConfig) -> None:
    """ModelError where a repeated run would use other weights than the run that it repeats."""
    if config.model_id not in (None, embedder.model_id):
        raise ModelError(
            f"{config.model} with weights {config.weights} is now another model "
            f"({embedder.model_id}) than in the run to repeat ({config.model_id}): restore the "
            "weights, or start a new run without --again"
        )


def folders_of(config: RunConfig) -> DataFolders:
    return open_folders(config.data, exclude=config.exclude, follow_links=config.follow_links)


def truth_in(config: RunConfig, data: DataFolders) -> Truth | None:
    return truth_of_folders(data, labels=config.labels, labels_from=config.labels_from)


def _train_in_run(
    data: DataFolders,
    truth: Truth | None,
    embedder: Embedder,
    this: Run,
    config: RunConfig,
    progress: Progress | None,
) -> TrainResult | None:
    """Trains on the training folder, where training was asked for; the test part stays unseen."""
    if config.tuning is None:
        return None
    images = training_part(data.training, config.data)
    target = target_in(data, truth)
    return _train_and_plot(images, embedder, this.folder / "training", target, config, progress)


def target_in(data: DataFolders, truth: Truth | None) -> Target:
    """What validation is to imitate: of the truth only how many gallery images a class has."""
    gallery_labels = [truth.gallery.get(name) for name in data.gallery.ids] if truth else None
    return target_of(data.query, data.gallery, gallery_labels)


def _whitened(
    data: DataFolders,
    embedder: Embedder,
    this: Run,
    config: RunConfig,
    compute: Compute,
    progress: Progress | None,
) -> Embedder:
    """The embedder with a whitening, or a PCA, that was learned on the training folder."""
    if config.whiten == "none" and config.dim is None:
        return embedder
    images = training_part(data.training, config.data, "--whiten and --dim")
    network = Network(embedder, compute)
    training = embed_role(images, "training", network, this, config, progress)
    return whiten_embedder(embedder, training, config.whiten, config.dim)


def _train_and_plot(
    images: ImageSet,
    embedder: Embedder,
    out: Path,
    target: Target | None,
    config: RunConfig,
    progress: Progress | None,
    *,
    processes: Processes | None = None,
) -> TrainResult:
    """Trains into `out`; the frozen model's vectors come from the cache where they are there.

    Trainings with the same images held out share them.
    """
    chosen = tune_config(config, config.tuning or {})
    key = ""
    if config.cache:
        decides = ("validate_on", "query_domain", "gallery_domain", "draws", "share", "seed",
                   "max_pixels")  # fmt: skip
        split = {name: getattr(chosen, name) for name in decides}
        split["target"] = target and str(target)
        key = key_of(embedder, images, training_compute(chosen), **split)
    with lent(out / "features", config.cache, key):
        result = fine_tune(
            images, embedder, chosen, out, target=target, processes=processes, progress=progress
        )
    if processes is None or processes.rank == 0:
        charts.training_curve(
            out / "curve.png",
            read_log(out),
            chosen.loss,
            short=read_log(out / SHORT_FOLDER),
        )
    return result


def network_of_run(this: Run, config: RunConfig) -> Network:
    """A finished run's embedder, ready to embed more images as the run did."""
    compute = resolve_compute(
        device=config.device, precision=config.precision, compiling=config.compiling,
        batch_size=config.batch_size, workers=config.workers,
        written=written_compute(this.folder / "embeddings" / "gallery"),
    )  # fmt: skip
    return Network(Embedder.load(this.folder / "embedder"), compute)


def embed_role(
    images: ImageSet,
    role: str,
    network: Network,
    this: Run,
    config: RunConfig,
    progress: Progress | None,
) -> Embeddings:
    def report(done: int, total: int) -> None:
        if progress:
            progress(f"embedding {role}", done, total)

    return embed(
        images, network.embedder, this.folder / "embeddings" / role, network=network,
        max_pixels=config.max_pixels, cache=config.cache, progress=report,
    )  # fmt: skip


def _check_options(config: RunConfig, data: DataFolders) -> None:
    """Before the work: whether they can be read, and have the training images that they need."""
    _check_compute(config)
    if config.whiten not in WHITENINGS:
        raise UsageError(f"--whiten {config.whiten}: choose one of {', '.join(WHITENINGS)}")
    if config.whiten != "none" or config.dim is not None:
        training_part(data.training, config.data, "--whiten and --dim")
    if config.refine != "auto":
        parse_chain(config.refine, uses=config.refine_uses)
    else:
        check_uses(config.refine_uses)
        training_part(data.training, config.data, "--refine auto")


def _check_compute(config: RunConfig) -> None:
    """Before any model is loaded: whether the machine has the device, and training the settings."""
    resolve_compute(device=config.device, precision=config.precision)
    if config.tuning is not None:
        tune_config(config, config.tuning)


def _refinement(
    data: DataFolders,
    truth: Truth | None,
    nearest_cosine: float,
    network: Network,
    this: Run,
    config: RunConfig,
    tuned: TrainResult | None,
    progress: Progress | None,
) -> tuple[Chain, RefinementChoice | None]:
    """The chain that was given, or the one that does best on validation."""
    if config.refine != "auto":
        return parse_chain(config.refine), None
    choice = choose_chain_on_images(
        training_part(data.training, config.data),
        tune_config(config, config.tuning or config.validating or {}),
        target_in(data, truth),
        frozen=tuned is None or not tuned.is_finetuned,
        embed=lambda images: embed_role(images, "validation", network, this, config, progress),
        nearest_cosine=nearest_cosine,
        uses=config.refine_uses,
        progress=progress and (lambda done, total: progress(STAGE, done, total)),
    )
    choice.save(this.folder / REFINEMENT)
    return choice.chain, choice


def refine_record(chain: Chain, choice: RefinementChoice | None) -> dict[str, Any]:
    """For result files: the chain, what it uses of the other test images, how it was chosen."""
    return {**chain.record(), "chosen_on": choice and choice.record()}


def _search_device(compute: Compute) -> str:
    return "cpu" if compute.device.startswith("mps") else compute.device  # mps has no float64


def _hand_in(
    path: Path,
    ranking: Ranking,
    data: DataFolders,
    queries: Embeddings,
    gallery: Embeddings,
    top_k: int,
) -> None:
    """The submission. A broken query gets what the average query gets: a list must be there."""
    lists = ranking.to_lists(top_k)
    missing = [name for name in data.query.ids if name not in lists]
    if missing:
        middle = queries.vectors.mean(axis=0, keepdims=True)
        length = float(np.linalg.norm(middle))
        middle = middle / length if length > 1e-6 else queries.vectors[:1]
        positions, _ = exact.top_k(middle, gallery.vectors, min(top_k, len(gallery)))
        lists |= {name: [gallery.ids[p] for p in positions[0]] for name in missing}
        log.warning(
            "broken queries stand in the submission with the list of an average query: %s",
            few(missing),
        )
    lacking = top_k - len(gallery)
    if lacking > 0:
        last = [name for name, _ in gallery.broken][:lacking]
        lists = {query: [*row, *last] for query, row in lists.items()}
        log.warning(
            "only %d gallery images can be read: %d broken ones stand last in every list of the "
            "submission", len(gallery), lacking,
        )  # fmt: skip
    write_submission(lists, path, k=top_k, queries=data.query.ids, gallery=data.gallery.ids)


def score_run(
    this: Run,
    ranking: Ranking,
    truth: Truth | None,
    config: RunConfig,
    vectors: tuple[Embeddings, Embeddings] | None = None,
) -> Scores | None:
    """Scores, over the whole gallery where the vectors that made the ranking are given; None
    without labels."""
    if truth is None:
        log.info("no labels are known: scores are null")
        return None
    options: dict[str, Any] = {
        "ks": sorted({1, 5, 10, config.top_k}), "top_k": config.top_k, "seed": config.seed,
    }  # fmt: skip
    if vectors is None:
        scores = evaluate(ranking, truth, **options)
    else:
        scores = evaluate_ranked(ranking, truth, *vectors, **options)
    scores.save(this.folder / "scores.json")
    for doubt in scores.doubts:
        log.warning("%s", doubt)
    return scores


def draw_sheets(
    this: Run,
    ranking: Ranking,
    truth: Truth | None,
    scores: Scores | None,
    data: DataFolders,
    model_name: str,
    config: RunConfig,
) -> list[Path]:
    """Sheets of the worst queries and of some at random, as many as the configuration says."""
    if config.figures == 0:
        return []
    return draw_sample(
        ranking, data, truth, scores, this.figures_folder(model_name),
        k=config.top_k, figures=config.figures, seed=config.seed, max_pixels=config.max_pixels,
    )  # fmt: skip


def _record(
    this: Run,
    scores: Scores | None,
    network: Network,
    data: DataFolders,
    config: RunConfig,
    seconds: float,
    warnings: list[str],
    tuned: TrainResult | None = None,
) -> dict[str, Any]:
    embedder = network.embedder
    told: dict[str, Any] = embedder.origin.record()
    if training := _training(embedder, tuned, config):
        told["training"] = training
    classes = set(data.training.labels or []) - {None} if data.training else None
    return result_record(
        scores,
        model_name=embedder.name,
        run_id=this.id,
        top_k=config.top_k,
        batch_size=network.compute.batch_size,
        num_classes=None if classes is None else len(classes),
        runtime_seconds=round(seconds, 2),
        pooling=embedder.pooling,
        **told,
        data={
            "name": Path(config.data).resolve().name,
            "queries": len(data.query),
            "gallery": len(data.gallery),
            "id": data_id(data),
        },
        model_id=embedder.model_id,
        image_size=list(embedder.preprocess.size),
        interpolation=embedder.preprocess.interpolation,
        views=None if embedder.views is None else str(embedder.views),
        whiten=config.whiten,
        dim=embedder.dim,
        warnings=warnings,
        vizsla_version=vizsla.__version__,
    )


def _training(embedder: Embedder, tuned: TrainResult | None, config: RunConfig) -> dict[str, Any]:
    """What the embedder's folder tells of its training, and what this run's own training tells."""
    kept = embedder.origin.training or {}
    if tuned is None:
        return kept
    here = tuned.record()["training"]
    if tuned.is_finetuned:
        return {**here, **kept}
    asked = options_given(tune_config(config, config.tuning or {}))
    before = {"before": kept["options"]} if kept else {}
    return {**kept, **here, "options": {**asked, **before}}


def data_id(data: DataFolders) -> str:
    """The same for the same query and gallery images: scores on others do not compare."""
    both = fingerprint(data.query) + fingerprint(data.gallery)
    return hashlib.sha256(both.encode()).hexdigest()[:16]
