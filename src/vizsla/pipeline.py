"""`run`, the main job: a folder of images → ranking, submission, metrics, pictures.

Stage after stage, each leaving its artefact in the run's folder, where the next one reads it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import vizsla
from vizsla import storage
from vizsla.data.demo import make_demo
from vizsla.data.imageset import (
    DataFolders,
    ImageSet,
    labels_for,
    labels_from_pattern,
    open_data,
    read_exclude,
    read_labels,
)
from vizsla.data.remote import image_set_at, is_url
from vizsla.data.splits import Target
from vizsla.data.webdataset import image_set_in_tars, is_tars
from vizsla.errors import DataError, ModelError, StorageError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.embeddings import Embeddings
from vizsla.model.inference import MAX_PIXELS, Compute, embed, fingerprint, resolve_compute
from vizsla.model.microbatch import Processes, open_processes
from vizsla.model.shared import key_of, lent
from vizsla.model.training import TrainResult, training_compute
from vizsla.output import html, material
from vizsla.output.figures import draw_ranking, pick_queries
from vizsla.output.submission import write_submission
from vizsla.output.why import draw_why
from vizsla.runs import Messages, Run, create_run, is_run, log_to, open_run
from vizsla.score.calibration import Calibration, calibrate_on_split, share_like
from vizsla.score.embedded import evaluate_ranked
from vizsla.score.relevance import Truth
from vizsla.score.scores import Scores, evaluate, result_record
from vizsla.score.truth import truth_of_folders
from vizsla.search import exact
from vizsla.search.ranking import Ranking
from vizsla.tuning import TuneConfig, held_out, target_of, training_part, tune

log = logging.getLogger("vizsla.run")

Progress = Callable[[str, int, int], None]  # (stage, images done, images in all)


@dataclass(frozen=True)
class RunConfig:
    """What `vizsla run` was asked. Paths are made absolute and every `auto` resolved in the run."""

    data: str
    model: str = "dinov2-s14"
    weights: str = "pretrained"
    pooling: str | None = None  # None: the model's default
    image_size: int | None = None  # None: the weights' own
    top_k: int = 10
    labels: str | None = None  # None: DATA/labels.csv where there is one
    labels_from: str | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 32
    workers: int | None = None
    seed: int = 0
    exclude: str | None = None
    max_pixels: int = MAX_PIXELS
    follow_links: bool = False
    figures: int = 20  # 0: none, -1: one for every query
    home: str = "."
    tuning: dict[str, Any] | None = None  # options of TuneConfig; None: run frozen
    model_id: str | None = None  # what --again must find; None: anything
    cache: str | None = None  # a folder of embeddings that runs share; None: each makes its own


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
            "seconds": round(self.seconds, 2),
            "warnings": self.warnings,
        }


def run(config: RunConfig, progress: Progress | None = None) -> RunResult:
    """The whole main job in the starting document's layout; see RunConfig."""
    with Messages() as messages:
        return _run(config, messages, progress)


def _run(config: RunConfig, messages: Messages, progress: Progress | None) -> RunResult:
    started = time.monotonic()
    data = _read_data(config)
    truth = _truth(config, data)
    check_top_k(config.top_k, len(data.gallery))
    embedder = load_embedder(
        config.model,
        weights=config.weights,
        pooling=config.pooling,
        image_size=config.image_size,
        seed=config.seed,
    )
    _require_same_model(embedder, config)
    compute = resolve_compute(
        device=config.device,
        precision=config.precision,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    resolved = _resolved(config, embedder, compute, data)
    this = _interrupted(config, resolved, embedder.name) or create_run(config.home)
    with log_to(this.folder / "log.txt", earlier=messages.records):
        this.write_config(resolved)
        tuned = _tune(data, truth, embedder, this, config, progress)
        embedder = tuned.embedder if tuned else embedder
        embedder.save(this.folder / "embedder")
        queries = _embed(data.query, "query", embedder, this, config, compute, progress)
        gallery = _embed(data.gallery, "gallery", embedder, this, config, compute, progress)
        ranking = exact.rank(queries, gallery, device=_search_device(compute))
        ranking.save(this.folder / "ranking.parquet")
        scores = _evaluate(this, ranking, truth, queries, gallery, config)
        figures = _draw(this, ranking, truth, scores, data, embedder.name, config)
        submission = this.submission_path(embedder.name)
        _hand_in(submission, ranking, data, queries, gallery, config.top_k)
        seconds = time.monotonic() - started
        result = this.result_path(embedder.name)
        record = _record(this, scores, embedder, data, config, seconds, messages.warnings, tuned)
        storage.write_sealed_json(result, record)
        log.info("done in %.1f s", seconds)
    return RunResult(
        this, embedder.name, ranking, scores, result, submission, figures, seconds,
        messages.warnings,
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
            if earlier.config == resolved and not earlier.result_path(model_name).exists():
                log.info("going on with the interrupted run %s", earlier.id)
                return earlier
    return None


def train(
    config: RunConfig, out: str | Path, *, devices: int = 1, progress: Progress | None = None
) -> TrainResult | None:
    """Tunes a model into the folder `out`. `data` has the layout, or is a folder of classes.

    devices: processes on this machine. None in all of them but the first.
    """
    processes = open_processes(devices, config.device)
    images, target = _training_set(config)
    embedder = load_embedder(
        config.model,
        weights=config.weights,
        pooling=config.pooling,
        image_size=config.image_size,
        seed=config.seed,
    )
    result = _tuned(
        training_part(images, config.data), embedder, Path(out), target, config, progress,
        processes=processes,
    )  # fmt: skip
    return result if processes.rank == 0 else None


def _training_set(config: RunConfig) -> tuple[ImageSet | None, Target | None]:
    """The labelled images of a data folder, of a folder of classes, or of one with a labels file;
    and what is known of the test part."""
    data = Path(config.data)
    if config.labels or config.labels_from:
        return image_set(data, labels=config.labels, labels_from=config.labels_from), None
    if (data / "training").is_dir() and (data / "test").is_dir():
        folders = open_data(data, follow_links=config.follow_links)
        return folders.training, target_of(folders.query, folders.gallery)
    below = data / "training"
    root = below if below.is_dir() else data
    return ImageSet.from_class_folders(root, follow_links=config.follow_links), None


def again(folder: str | Path, *, data: str | Path | None = None) -> RunConfig:
    """The configuration of an earlier run, as it was resolved then. data: where it lies now."""
    recorded = open_run(folder).config
    known = {f.name for f in dataclasses.fields(RunConfig)}
    asked = {key: value for key, value in recorded["options"].items() if key in known}
    asked["model_id"] = recorded["embedder"]["model_id"]
    if data is not None:
        before, now = Path(asked["data"]), Path(data).absolute()
        asked["data"] = str(now)
        for key in ("labels", "exclude"):  # those that lay inside moved along
            if asked[key] and Path(asked[key]).is_relative_to(before):
                asked[key] = str(now / Path(asked[key]).relative_to(before))
    return RunConfig(**asked)


def _require_same_model(embedder: Embedder, config: RunConfig) -> None:
    """ModelError where a repeated run would use other weights than the run that it repeats."""
    if config.model_id not in (None, embedder.model_id):
        raise ModelError(
            f"{config.model} with weights {config.weights} is now another model "
            f"({embedder.model_id}) than in the run to repeat ({config.model_id}): restore the "
            "weights, or start a new run without --again"
        )


def load_embedder(
    model: str,
    *,
    weights: str = "pretrained",
    pooling: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Embedder:
    """From a backbone's name, a saved embedder's folder or a run's folder."""
    folder = Path(model)
    if not folder.is_dir():
        return Embedder.build(
            model, weights=weights, pooling=pooling, image_size=image_size, seed=seed
        )
    if weights != "pretrained" or pooling is not None or image_size is not None:
        raise UsageError(
            f"{model} is a saved embedder: its weights, pooling and image size are fixed. "
            "Leave out --weights, --pooling and --image-size, or name a backbone"
        )
    return Embedder.load(folder / "embedder" if is_run(folder) else folder)


def image_set(
    source: str | Path,
    *,
    labels: str | Path | None = None,
    labels_from: str | None = None,
    class_folders: bool = False,
    role: str | None = None,
    exclude: str | Path | None = None,
    follow_links: bool = False,
) -> ImageSet:
    """The images of a folder, a table, tar files or a URL, labels from the one place named."""
    if sum(map(bool, (labels, labels_from, class_folders))) > 1:
        raise UsageError("--labels, --labels-from and --class-folders exclude each other: give one")
    if is_tars(str(source)):
        if class_folders:
            raise UsageError("tar files carry their labels in them: leave out --class-folders")
        images = image_set_in_tars(str(source))
    elif is_url(str(source)):
        images = image_set_at(str(source), class_folders=class_folders)
    elif Path(source).is_file():
        images = ImageSet.from_table(source, role=role)
    elif class_folders:
        images = ImageSet.from_class_folders(source, follow_links=follow_links)
    else:
        images = ImageSet.from_folder(source, follow_links=follow_links)
    if labels:
        images = images.with_labels(labels_for(images.ids, read_labels(labels), role))
    elif labels_from:
        images = images.with_labels(labels_from_pattern(images.ids, labels_from))
    if exclude:
        names = read_exclude(exclude)
        images = images.without({name.removeprefix(f"{role}/") for name in names})
    return images


def check_top_k(top_k: int, gallery_size: int) -> None:
    """DataError before the work starts, not after it."""
    exact.check_k(top_k, gallery_size)


def _read_data(config: RunConfig) -> DataFolders:
    data = open_data(config.data, follow_links=config.follow_links)
    if config.exclude:
        excluded = {name.removeprefix("test/") for name in read_exclude(config.exclude)}
        _warn_of_unknown(excluded, data, config.exclude)
        data = dataclasses.replace(
            data,
            query=_without(data.query, "query", excluded),
            gallery=_without(data.gallery, "gallery", excluded),
            training=data.training and _without(data.training, "training", excluded),
        )
    return data


def _warn_of_unknown(excluded: set[str], data: DataFolders, source: str) -> None:
    known = {f"query/{name}" for name in data.query.ids}
    known |= {f"gallery/{name}" for name in data.gallery.ids}
    known |= {f"training/{name}" for name in (data.training.ids if data.training else [])}
    if unknown := sorted(excluded - known):
        log.warning(
            "%d of %d names in %s are no images here and exclude nothing (%r, …): expected such as "
            "gallery/a.jpg, query/b.jpg, training/class/c.jpg",
            len(unknown), len(excluded), source, unknown[0],
        )  # fmt: skip


def _without(images: ImageSet, role: str, excluded: set[str]) -> ImageSet:
    gone = {name.removeprefix(f"{role}/") for name in excluded if name.startswith(f"{role}/")}
    kept = images.without(gone)
    if len(kept) < len(images):
        log.info("%d of %d %s images excluded", len(images) - len(kept), len(images), role)
    return kept


def _truth(config: RunConfig, data: DataFolders) -> Truth | None:
    return truth_of_folders(data, labels=config.labels, labels_from=config.labels_from)


def truth_of_run(folder: str | Path) -> Truth | None:
    """The truth that a run was scored with; None where it had none."""
    config = again(folder)
    return _truth(config, _read_data(config))


def _tune(
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
    gallery_labels = [truth.gallery.get(name) for name in data.gallery.ids] if truth else None
    target = target_of(data.query, data.gallery, gallery_labels)
    return _tuned(images, embedder, this.folder / "training", target, config, progress)


def _tuned(
    images: ImageSet,
    embedder: Embedder,
    out: Path,
    target: Target | None,
    config: RunConfig,
    progress: Progress | None,
    *,
    processes: Processes | None = None,
) -> TrainResult:
    """Other trainings with the same images held out lend the vectors of the frozen model."""
    chosen = tune_config(config, config.tuning or {})
    splitting = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)}
    splitting["max_pixels"] = chosen.train.max_pixels
    splitting["train"], splitting["target"] = chosen.train.seed, target and str(target)
    compute = training_compute(chosen.train)
    key = key_of(embedder, images, compute, **splitting) if config.cache else ""
    with lent(out / "features", config.cache, key):
        return tune(
            images, embedder, chosen, out, target=target, processes=processes, progress=progress
        )


def tune_config(config: RunConfig, options: dict[str, Any]) -> TuneConfig:
    """The options of training, with what it shares with the run."""
    shared = {
        "seed": config.seed,
        "device": config.device,
        "precision": config.precision,
        "workers": config.workers,
        "max_pixels": config.max_pixels,
        "real_weights": config.weights != "random",
    }
    return TuneConfig.from_options({**shared, **options})


def _embed(
    images: ImageSet,
    role: str,
    embedder: Embedder,
    this: Run,
    config: RunConfig,
    compute: Compute,
    progress: Progress | None,
) -> Embeddings:
    def report(done: int, total: int) -> None:
        if progress:
            progress(f"embedding {role}", done, total)

    folder = this.folder / "embeddings" / role
    cached = config.cache is not None
    key = key_of(embedder, images, compute, max_pixels=config.max_pixels) if cached else ""
    with lent(folder, config.cache, key):
        return embed(
            images, embedder, folder, compute=compute, max_pixels=config.max_pixels, progress=report
        )


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
            "%d broken queries (%s, …) stand in the submission with the list of an average query",
            len(missing), missing[0],
        )  # fmt: skip
    lacking = top_k - len(gallery)
    if lacking > 0:
        last = [name for name, _ in gallery.broken][:lacking]
        lists = {query: [*row, *last] for query, row in lists.items()}
        log.warning(
            "only %d gallery images can be read: %d broken ones stand last in every list of the "
            "submission", len(gallery), lacking,
        )  # fmt: skip
    write_submission(lists, path, k=top_k, queries=data.query.ids, gallery=data.gallery.ids)


def _evaluate(
    this: Run,
    ranking: Ranking,
    truth: Truth | None,
    queries: Embeddings,
    gallery: Embeddings,
    config: RunConfig,
) -> Scores | None:
    """Scores over the whole gallery, however deep the ranking is; None without labels."""
    if truth is None:
        log.info("no labels are known: scores are null")
        return None
    ks = sorted({1, 5, 10, config.top_k})
    scores = evaluate_ranked(
        ranking, truth, queries, gallery, ks=ks, top_k=config.top_k, seed=config.seed
    )
    scores.save(this.folder / "scores.json")
    return scores


def _draw(
    this: Run,
    ranking: Ranking,
    truth: Truth | None,
    scores: Scores | None,
    data: DataFolders,
    model_name: str,
    config: RunConfig,
) -> list[Path]:
    """Sheets of the worst queries and of some at random; at random alone without the truth."""
    if config.figures == 0:
        return []
    judged = judge_rows(ranking, truth, scores, config.top_k)
    rows = pick_rows(judged, len(ranking), config.figures, config.seed)
    return draw_ranking(
        ranking, data.query.root, data.gallery.root, this.figures_folder(model_name),
        k=config.top_k, pick=rows, **judged, max_pixels=config.max_pixels,
    )  # fmt: skip


def judge_rows(
    ranking: Ranking, truth: Truth | None, scores: Scores | None, k: int
) -> dict[str, Any]:
    """What `draw_ranking` and `pick_queries` know of each row: hits, judged, AP and labels."""
    if truth is None:
        return {}
    query = [truth.query.get(name) for name in ranking.queries]
    gallery = np.array([truth.gallery.get(name) for name in ranking.gallery] + [None], dtype=object)
    found = gallery[ranking.positions[:, :k]]  # (Q, k), None at -1
    asked = np.array(query, dtype=object)[:, None]
    known = (found != None) & (asked != None)  # noqa: E711 (elementwise)
    ap = np.full(len(ranking), np.nan)
    if scores is not None and "map" in scores.metrics:
        values = dict(zip(scores.queries, scores.per_query("map"), strict=True))
        ap = np.array([values.get(name) for name in ranking.queries], dtype=float)  # None → nan
    return {
        "hits": known & (found == asked),
        "judged": known,
        "ap": ap,
        "query_labels": truth.query,
        "gallery_labels": truth.gallery,
    }


def show(
    ranking: Ranking,
    data: DataFolders,
    truth: Truth | None,
    out: str | Path,
    *,
    k: int = 10,
    worst: int | None = None,
    only_wrong: bool = False,
    random: int | None = None,
    seed: int = 0,
    why: Embedder | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """A sheet for each query, or for those that were asked for; the paths of the PNGs.

    why: the embedder behind the ranking, to draw which parts of the pictures it found alike.
    """
    scores = None
    if truth is not None:
        scores = evaluate(ranking, truth, ks=[k])
    judged = judge_rows(ranking, truth, scores, k)
    known = {key: judged[key] for key in ("hits", "judged", "ap")} if judged else {}
    rows = pick_queries(
        len(ranking), **known, k=k, only_wrong=only_wrong, worst=worst, random=random, seed=seed
    )
    draw = draw_ranking if why is None else functools.partial(draw_why, embedder=why)
    return draw(
        ranking, data.query.root, data.gallery.root, out,
        k=k, pick=rows, **judged, progress=progress,
    )  # fmt: skip


def report(
    folder: str | Path, out: str | Path, *, data: str | Path | None = None, projection: str = "tsne"
) -> Path:
    """One self-contained page about a run. data: where its images lie now, if elsewhere."""
    config = again(folder)
    if data is not None:  # a labels file that lay there has moved with it
        labels = config.labels if config.labels and Path(config.labels).exists() else None
        config = dataclasses.replace(config, data=str(data), labels=labels)
    folders = _read_data(config)
    found = material.gather(open_run(folder), folders, _truth(config, folders))
    storage.write_text(out, html.report(found, projection=projection))
    return Path(out)


def judge_run(folder: str | Path, **options: Any) -> tuple[Ranking, Truth, Scores]:
    """A run's ranking, its truth, and its scores with other options of `evaluate`."""
    truth = truth_of_run(folder)
    if truth is None:
        raise DataError(
            f"{folder} has no scores, since no labels were known: give --labels, --labels-from, "
            "--qrels or --data DATA with a labels.csv in it"
        )
    return rescore(folder, truth, **options)


def rescore(folder: str | Path, truth: Truth, **options: Any) -> tuple[Ranking, Truth, Scores]:
    """The same by another truth; a ranking that ends early is completed from the embeddings."""
    ranking = Ranking.load(Path(folder) / "ranking.parquet")
    parts = (Embeddings.open(Path(folder) / "embeddings" / role) for role in ("query", "gallery"))
    return ranking, truth, evaluate_ranked(ranking, truth, *parts, **options)


def calibrate_run(
    folder: str | Path,
    *,
    precision: float = 0.95,
    validate_on: str | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """The cut-off of a run, learned on a validation part of its training images.

    A tuned run uses the images that its training held out: others the model has seen. A frozen one
    may use nearly all. The vectors go into the run's folder, so that a second time costs nothing.
    """
    config = again(folder)
    data = _read_data(config)
    truth = _truth(config, data)
    tuning = tune_config(config, config.tuning or {})
    if config.tuning is not None and validate_on not in (None, tuning.validate_on):
        raise UsageError(
            f"{folder} was tuned with {tuning.validate_on} held out, and has seen all else: "
            f"leave out --validate-on {validate_on}"
        )
    images = training_part(data.training, config.data)
    labels = [truth.gallery.get(name) for name in data.gallery.ids] if truth else None
    target = target_of(data.query, data.gallery, labels)
    tuning = dataclasses.replace(tuning, validate_on=validate_on or tuning.validate_on)
    if config.tuning is None:
        tuning = dataclasses.replace(tuning, share=share_like(images, target))
    parts = held_out(images, tuning, target)
    compute = resolve_compute(
        device=config.device, precision=config.precision, batch_size=config.batch_size,
        workers=config.workers,
    )  # fmt: skip
    embedder = Embedder.load(Path(folder) / "embedder")
    job = (images.subset(parts.held_out), f"validation-{tuning.validate_on}", embedder)
    try:
        vectors = _embed(*job, open_run(folder), config, compute, progress)
    except DataError:  # those of an earlier call, on other images or by other software
        shutil.rmtree(Path(folder) / "embeddings" / job[1], ignore_errors=True)
        vectors = _embed(*job, open_run(folder), config, compute, progress)
    return calibrate_on_split(
        vectors, images, parts, precision=precision, source=f"{config.data}/training"
    )


def pick_rows(judged: dict[str, Any], n: int, figures: int, seed: int) -> np.ndarray:
    """Half of `figures` the worst, half at random; -1: all rows."""
    if figures < 0 or figures >= n:
        return np.arange(n)
    if not judged or not judged["judged"].any():
        return pick_queries(n, random=figures, seed=seed)
    ordered = {key: judged[key] for key in ("hits", "judged", "ap")}
    worst = pick_queries(n, **ordered, worst=max(1, figures // 2))
    others = np.setdiff1d(np.arange(n), worst)
    dice = np.random.default_rng(seed)
    more = np.sort(dice.choice(others, figures - len(worst), replace=False))
    return np.concatenate([worst, more])


def _record(
    this: Run,
    scores: Scores | None,
    embedder: Embedder,
    data: DataFolders,
    config: RunConfig,
    seconds: float,
    warnings: list[str],
    tuned: TrainResult | None = None,
) -> dict[str, Any]:
    classes = set(data.training.labels or []) - {None} if data.training else None
    trained = tuned.record() if tuned else {}
    return result_record(
        scores,
        model_name=embedder.name,
        run_id=this.id,
        top_k=config.top_k,
        batch_size=config.batch_size,
        is_finetuned=trained.get("is_finetuned", False),
        num_classes=None if classes is None else len(classes),
        loss_function=trained.get("loss_function"),
        num_epochs=trained.get("num_epochs"),
        final_train_loss=trained.get("final_train_loss"),
        runtime_seconds=round(seconds, 2),
        pooling=embedder.pooling,
        data={
            "name": Path(config.data).resolve().name,
            "queries": len(data.query),
            "gallery": len(data.gallery),
            "id": data_id(data),
        },
        model_id=embedder.model_id,
        weights=config.weights if config.weights in ("pretrained", "random") else "file",
        image_size=list(embedder.preprocess.size),
        warnings=warnings,
        vizsla_version=vizsla.__version__,
        **({"training": trained["training"]} if trained else {}),
    )


def data_id(data: DataFolders) -> str:
    """The same for the same query and gallery images: scores on others do not compare."""
    both = fingerprint(data.query) + fingerprint(data.gallery)
    return hashlib.sha256(both.encode()).hexdigest()[:16]


def _resolved(
    config: RunConfig, embedder: Embedder, compute: Compute, data: DataFolders
) -> dict[str, Any]:
    """What `--again` reads: every path absolute, every `auto` decided."""

    def absolute(path: str | None) -> str | None:
        return str(Path(path).absolute()) if path and Path(path).exists() else path

    tuning = config.tuning
    if tuning is not None:  # its own `auto`: training may use another precision than embedding
        compute_of_training = training_compute(tune_config(config, tuning).train)
        tuning = {**tuning, "precision": compute_of_training.precision}
    options = dataclasses.replace(
        config,
        tuning=tuning,
        data=str(Path(config.data).absolute()),
        model=str(absolute(config.model)) if Path(config.model).is_dir() else config.model,
        weights=str(absolute(config.weights)),
        pooling=None if Path(config.model).is_dir() else embedder.pooling,
        labels=absolute(_labels_used(config, data)),
        exclude=absolute(config.exclude),
        home=str(Path(config.home).absolute()),
        cache=None,  # whoever repeats this run need not have it
        device=compute.device,
        precision=compute.precision,
        workers=compute.workers,
    )
    names = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "pillow", "pyarrow")
    return {
        "form": "run/1",
        "options": dataclasses.asdict(options),
        "embedder": {"name": embedder.name, "model_id": embedder.model_id},
        "compute_id": compute.id,
        "versions": {
            "vizsla": vizsla.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in names},
        },
    }


def _labels_used(config: RunConfig, data: DataFolders) -> str | None:
    """The labels file of this run, so that --again does not find another one."""
    if config.labels_from or config.labels:
        return config.labels
    return None if data.labels_file is None else str(data.labels_file)


# ── the demo ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Demo:
    """What `vizsla demo` did: a run for each row of its table."""

    folder: Path
    rows: dict[str, RunResult]

    def text(self) -> str:
        keys = {"top_k_accuracy@1": "top-1", "top_k_accuracy@10": "top-10", "map": "mAP"}
        lines = [f"{'':<22}" + "".join(f"{title:>8}" for title in keys.values())]
        for title, result in self.rows.items():
            figures = [f"{value:>8.3f}" for value in _means(result, keys)]
            lines.append(f"{title:<22}" + "".join(figures))
        last = list(self.rows.values())[-1]
        return "\n".join(
            [
                *lines,
                "",
                f"metrics     {last.result_path}",
                f"submission  {last.submission_path}",
                f"figures     {last.run.figures_folder(last.model_name)}",
                "",
                "Next, on this data with a real model (fetches its weights), or on your own:",
                f"  vizsla run {self.folder / 'data'} --model dinov2-s14",
                "  vizsla run YOUR_DATA",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        return {title: result.to_dict() for title, result in self.rows.items()}


def _means(result: RunResult, keys: Iterable[str]) -> list[float]:
    assert result.scores is not None  # the demo's data set has labels
    return [result.scores.mean(key) or 0.0 for key in keys]


DEMO_TUNING = {
    "finetune": "full",
    "loss": "cross-entropy+0.5*supcon",
    "augment": "light",
    "epochs": 14,
    "learning_rate": 2e-3,  # from scratch: all layers alike, and batch norms learn with them
    "head_learning_rate": 2e-3,
    "layer_decay": 1.0,
    "batch_norm": "trained",
    "validate_on": "seen-classes",
    "query_domain": "photo",
    "gallery_domain": "drawn",
}


def demo(folder: str | Path, *, seed: int = 0, progress: Progress | None = None) -> Demo:
    """Generates a small cross-domain data set in `folder` and does the main job on it, twice:
    with an untrained network, and after training it."""
    folder = Path(folder)
    make_demo(folder / "data", seed=seed)
    untrained = RunConfig(
        data=str(folder / "data"),
        model="tiny",
        weights="random",
        image_size=64,
        seed=seed,
        home=str(folder),
    )
    trained = dataclasses.replace(untrained, tuning=DEMO_TUNING)
    rows = {"untrained": run(untrained, progress), "trained": run(trained, progress)}
    return Demo(folder, rows)
