"""The commands that compute, as functions: embed, run, best, train, search.

Each takes the options of its command under their names, and returns the noun that it prints.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vizsla.data.exif_columns import with_exif
from vizsla.data.image_sources import image_set
from vizsla.data.imageset import ImageSet
from vizsla.data.query_box import GivenBox
from vizsla.data.splits import AUTO
from vizsla.embed import inference
from vizsla.embed.auto_compute import compute_of
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import UsageError
from vizsla.keyword_options import with_keywords
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import as_embedder
from vizsla.option_fields import REQUIRED, Options, option, same
from vizsla.options import (
    DEFAULT_BACKBONE,
    BestOptions,
    ComputeChoice,
    ExifColumns,
    FusionOptions,
    GalleryOptions,
    ImageOptions,
    ImageTable,
    ModelChoice,
    Reporting,
    RunOptions,
    SearchOptions,
    SeveralLabels,
    ShownColumns,
    TableImages,
    TrainConfig,
    TuneConfig,
    VectorFiles,
)
from vizsla.progress import reporting
from vizsla.run import pipeline
from vizsla.run import train as training
from vizsla.run.best.result import BestResult
from vizsla.run.best.search import best as search_best
from vizsla.run.best.search import best_config
from vizsla.run.config import RunConfig
from vizsla.run.finish import RunResult
from vizsla.run.gallery_search import search_gallery
from vizsla.run.several_models import configs_to_repeat, new_configs, run_models
from vizsla.run.tile_choice import embedder_with_chosen_tiles
from vizsla.search.filters import no_attribute
from vizsla.search.ranking import Ranking
from vizsla.train.selection import TrainResult

MODEL = "A model's name (`vizsla models` lists them), a saved embedder, a run, or an Embedder"


@dataclass(frozen=True)
class EmbedArguments(
    ImageTable, TableImages, SeveralLabels, ExifColumns, ComputeChoice, VectorFiles, Reporting
):
    """What `vizsla.embed` takes."""

    images: str | Path | ImageSet = option(
        REQUIRED, "A folder, a table, tar files or a URL; or an ImageSet.", "Data"
    )
    embedder: str | Path | Embedder = option(DEFAULT_BACKBONE, MODEL, "Model")
    out: str | Path | None = option(
        None, "The folder to write, or to continue; None: in memory only.", "Output"
    )
    _: KW_ONLY
    class_folders: bool = same(GalleryOptions, "class_folders")
    role: str | None = option(None, "Use only the table's rows of this role.", "Data")
    tiles: str | None = same(ModelChoice, "tiles")
    shard_images: int = option(1024, "Images in one file of the result.", "Output", minimum=1)
    overwrite: bool = option(False, "Start over.", "Output")
    compute: Compute | None = option(None, "In place of device, precision, …", "Speed")


OF_IMAGES = ("labels", "labels_from", "class_folders", "role", "exclude", "follow_links",
             "label_separator", "root")  # fmt: skip


@with_keywords(EmbedArguments)
def embed(given: EmbedArguments, names: frozenset[str]) -> Embeddings:
    """The embeddings of images. With `out` they are also written, shard by shard, and the same call
    continues after an interruption. Broken images are left out and listed in `broken`.

    UsageError, DataError: wrong arguments; all images are broken; `out` holds other embeddings.
    """
    if isinstance(given.images, ImageSet):
        if of_path := sorted(names.intersection(OF_IMAGES)):
            raise UsageError(f"{', '.join(of_path)}: for a folder or table, not for an ImageSet")
        images = given.images
    else:
        images = image_set(given.images, **{name: getattr(given, name) for name in OF_IMAGES})
    if given.exif:
        images = with_exif(images)
    embedder = as_embedder(given.embedder, ModelChoice())
    if given.tiles == AUTO:
        embedder = embedder_with_chosen_tiles(
            embedder, images, ModelChoice(tiles=AUTO), partial(compute_of, given, images=images),
            max_pixels=given.max_pixels, cache=given.cache,
        )  # fmt: skip
    elif given.tiles is not None:
        embedder = copy.copy(embedder).with_tiles(given.tiles)
    compute = given.compute or compute_of(given, embedder, images)
    with tempfile.TemporaryDirectory(prefix="vizsla-embed-") as scratch:
        return inference.embed(
            images, embedder, given.out or scratch, compute=compute, store=given.store,
            shard_images=given.shard_images, max_pixels=given.max_pixels,
            overwrite=given.overwrite, cache=given.cache, progress=given.progress,
            kept=given.out is not None,
        )  # fmt: skip


@dataclass(frozen=True)
class RunArguments(FusionOptions, RunOptions, TuneConfig, Reporting):
    """What `vizsla.run` takes."""

    data: str | Path | None = option(
        None, "The folder with test/query, test/gallery, and training/ or not.", "Data"
    )
    _: KW_ONLY
    model: Any = option(DEFAULT_BACKBONE, f"{MODEL}; several are fused.", "Model")
    weights: str | list[str] = same(  # type: ignore[assignment]
        ModelChoice, "weights", help="pretrained, random or a file; for each of several models."
    )
    again: Path | None = option(None, "Repeat runs/ID from its configuration.", "Data")
    finetune: str = same(TuneConfig, "finetune", "none")
    batch_size: int | str = same(ComputeChoice, "batch_size")  # type: ignore[assignment]
    dim: int | None = same(RunOptions, "dim")
    precision: str = same(ComputeChoice, "precision")
    training_batch_size: int = same(TuneConfig, "batch_size")
    training_dim: int | None = same(TuneConfig, "dim")
    training_precision: str = same(TuneConfig, "precision")

    def __post_init__(self) -> None:
        Options.__post_init__(self)


SHARED = ("device", "workers", "max_pixels", "seed")  # by a run and its training
OF_TRAINING = {
    **{f.name: f.name for f in dataclasses.fields(TuneConfig)},
    **{name: f"training_{name}" for name in ("batch_size", "dim", "precision")},
}


@with_keywords(RunArguments)
def run(given: RunArguments, names: frozenset[str]) -> RunResult:
    """Does the whole job in a data folder: embed, rank, score, write the submission, draw.

    `result.scores`, `result.ranking`, `result.run.folder` and the paths of what was written. A
    network of your own is given as `model=Embedder.from_module(…)`.
    """
    own = given.model if isinstance(given.model, Embedder) else None
    if given.again is not None:
        others = sorted(names - {"again", "data", "figures", "progress"})
        if others:
            raise UsageError(f"again repeats a run as it was: leave out {', '.join(others)}")
        figures = given.figures if "figures" in names else None
        configs, fusion = configs_to_repeat(given.again, data=given.data, figures=figures)
    elif given.data is None:
        raise UsageError("run needs data, the folder with test/query and test/gallery")
    else:
        options = {f.name: getattr(given, f.name) for f in dataclasses.fields(RunOptions)}
        tuning = {
            name: getattr(given, argument)
            for name, argument in OF_TRAINING.items()
            if argument in names and name not in SHARED
        }
        weights = [given.weights] if isinstance(given.weights, str) else given.weights
        models = _names_of(given.model)
        configs, fusion = new_configs(
            given.data, models, weights, options, tuning,
            FusionOptions(
                fusion=given.fusion, fusion_weights=given.fusion_weights,
                fusion_whiten=given.fusion_whiten,
            ) if names & {"fusion", "fusion_weights", "fusion_whiten"} else None,
        )  # fmt: skip
    if own is not None:
        return pipeline.run(configs[0], given.progress, embedder=own)
    with reporting(given.progress) as report:
        return run_models(configs, fusion, report)


def _names_of(model: Any) -> list[str]:
    """The models by name; an Embedder by its own, which its run only shows."""
    several = model if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    names = [one.name if isinstance(one, Embedder) else one for one in several]
    if not names or not all(isinstance(name, str | Path) for name in names):
        raise UsageError(f"model is of type {type(model).__name__}: expected {MODEL}, or a list")
    if len(names) > 1 and any(isinstance(one, Embedder) for one in several):
        raise UsageError("model: several are given by name or folder: save an Embedder first")
    return [str(name) for name in names]


@dataclass(frozen=True)
class BestArguments(BestOptions, Reporting):
    """What `vizsla.best` takes."""

    data: str | Path = option(
        REQUIRED, "The folder with training/, test/query and test/gallery.", "Data"
    )
    _: KW_ONLY
    budget: float | str = same(  # type: ignore[assignment]
        BestOptions, "budget", help="Seconds for everything, or a time such as 10m."
    )


@with_keywords(BestArguments)
def best(given: BestArguments, names: frozenset[str]) -> BestResult:
    """Searches models, training, fusion and refinement for the best ranking in the time there is.

    `result.run` is the best complete run, `result.scores` its scores where labels are known,
    `result.steps` what was tried. The same call continues after an interruption, or with more time.
    Without labelled training images nothing can be chosen: the result is a run of the first model.
    """
    return search_best(best_config(given.data, given), given.progress)


@dataclass(frozen=True)
class TrainArguments(ModelChoice, ImageOptions, SeveralLabels, TuneConfig, Reporting):
    """What `vizsla.train` takes."""

    data: str | Path = option(
        REQUIRED, "A data folder with training/, or a folder of class folders.", "Data"
    )
    out: str | Path = option(REQUIRED, "The folder for log, checkpoint and embedder.", "Output")
    _: KW_ONLY
    model: Any = option(DEFAULT_BACKBONE, MODEL, "Model")
    overwrite: bool = option(False, "Start over and replace an earlier training.", "Output")

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)


@with_keywords(TrainArguments)
def train(given: TrainArguments, names: frozenset[str]) -> TrainResult | training.Finished:
    """Fine-tunes a model on labelled images; `out/embedder` is a model like any other.

    The frozen model is kept unless a held-out part of the images is sure of a better one. A
    finished training of the same settings in `out` is kept; UsageError: its settings were others.
    """
    own = given.model if isinstance(given.model, Embedder) else None
    choice = {
        f.name: getattr(given, f.name)
        for cls in (ModelChoice, ImageOptions, SeveralLabels)
        for f in dataclasses.fields(cls)
    }
    tuning = {f.name: getattr(given, f.name) for f in dataclasses.fields(TuneConfig)
              if f.name in names and f.name not in SHARED}  # fmt: skip
    config = RunConfig(
        **{**choice, "model": _names_of(given.model)[0]}, data=str(given.data),
        device=given.device, workers=given.workers, seed=given.seed, precision=given.precision,
        tuning=tuning,
    )  # fmt: skip
    result = training.train(
        config, given.out, overwrite=given.overwrite, progress=given.progress, embedder=own
    )
    assert result is not None  # only a process that helps the first one has none
    return result


@dataclass(frozen=True)
class SearchArguments(SearchOptions, Reporting):
    """What `vizsla.search` takes."""

    gallery: Any = option(REQUIRED, "A run, an index or embeddings, or the path of one.", "Data")
    queries: Any = option(
        REQUIRED, "An image (a path or a PIL image), a text, a list of these, a folder of images, "
        "Embeddings or their folder, or vectors (Q, D).", "Data",
    )  # fmt: skip
    _: KW_ONLY
    box: GivenBox = same(SearchOptions, "box")  # type: ignore[assignment]
    show: tuple[str, ...] = same(
        ShownColumns, "show", shown="all",
        help="A column of each result in `results` and `to_pandas`, such as price; or several.",
    )  # fmt: skip
    model: str | Path | Embedder = option(  # type: ignore[assignment]
        DEFAULT_BACKBONE, f"{MODEL}, if the gallery does not record its own", "Model"
    )


@with_keywords(SearchArguments)
def search(given: SearchArguments, names: frozenset[str]) -> Ranking:
    """The gallery ranked for each query, by cosine or refined.

    `ranking.row(0)` has the ids for the first query, `ranking.results(0)` also scores and columns.
    DataError: the queries are of another model or dimension than the gallery; no such column.
    """
    with reporting(given.progress) as report:
        done = search_gallery(given.gallery, given.queries, given, report)
    if not given.show:
        return done.ranking
    known = done.gallery.attributes_of([]).column_names
    if unknown := [name for name in given.show if name not in known]:
        raise no_attribute(unknown[0], known)
    return dataclasses.replace(
        done.ranking,
        attributes_of=lambda ids: done.gallery.attributes_of(ids).select(list(given.show)),
    )
