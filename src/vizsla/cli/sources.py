"""What paths and flags name → rankings, truths, names, galleries, queries, engines."""

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizsla.errors import DataError, UsageError
from vizsla.option_fields import option, same
from vizsla.options import (
    ComputeChoice,
    GradedTruth,
    ImageOptions,
    JudgedLabels,
    ModelChoice,
    RunOptions,
)

if TYPE_CHECKING:
    from vizsla.data.imageset import DataFolders, ImageSet
    from vizsla.embed.compute import Compute
    from vizsla.embed.compute_shards import Engine
    from vizsla.embed.embeddings import Embeddings
    from vizsla.model.embedder import Embedder
    from vizsla.score.truth import Truth
    from vizsla.search.index import Index
    from vizsla.search.ranking import Ranking


def names_in(data: Path | None) -> tuple[list[str] | None, list[str] | None]:
    """The query and gallery names of a data folder, to check a submission against."""
    from vizsla.data.imageset import open_data

    folders = open_data(data) if data else None
    return (folders.query.ids, folders.gallery.ids) if folders else (None, None)


def read_ranking(path: Path, known: Collection[str] = ()) -> "Ranking":
    """From a run's folder, a ranking or a submission in any form. known: as `read_submission`."""
    from vizsla.output.submission import read_submission
    from vizsla.search.ranking import Ranking
    from vizsla.workspace import is_run, ranking_in, submission_in

    if path.is_dir() or not path.suffix:
        path = ranking_in(path) if is_run(path) else submission_in(path)
    return Ranking.load(path) if path.suffix == ".parquet" else read_submission(path, known=known)


def top_k_of(source: Path, given: int | None) -> int:
    """The k that was given; without one a run's own, and of other sources the default of `run`."""
    from vizsla.run.config import again
    from vizsla.workspace import is_run

    if given is not None:
        return given
    return again(source).top_k if is_run(source) else RunOptions.top_k


def images_of_source(
    source: Path, ranking: "Ranking", data: Path | None
) -> "tuple[DataFolders, Ranking]":
    """The images that a run, a ranking or a submission is about, and the ranking with their names.

    A run knows where its images are. DataError if `data` lacks some.
    """
    from vizsla.data.imageset import open_data
    from vizsla.data.listing import few
    from vizsla.data.names import match_names
    from vizsla.run import finished_run
    from vizsla.workspace import is_run

    if is_run(source):
        return finished_run.data_of_run(source, data), ranking
    if data is None:
        raise UsageError(f"{source} does not record where its images are: give --data DATA")
    folders = open_data(data)
    named = []
    for role, names, images in (
        ("query", ranking.queries, folders.query),
        ("gallery", ranking.gallery, folders.gallery),
    ):
        found = match_names(names, images.ids, roles=[role] * len(names), origin=str(source))
        if lost := [name for name, image in zip(names, found, strict=True) if image is None]:
            raise DataError(
                f"{len(lost)} of the {len(names)} {role} images that {source} names are not in "
                f"{images.root} ({few(lost)}): give the data that it is about"
            )
        named.append([name for name in found if name is not None])
    return folders, dataclasses.replace(ranking, queries=named[0], gallery=named[1])


@dataclass(frozen=True, kw_only=True)
class TruthOptions(JudgedLabels, GradedTruth):
    """The options that name the truth of rankings."""

    labels: Path | None = same(ImageOptions, "labels", shown="labels.csv in --data")
    labels_from: str | None = same(ImageOptions, "labels_from")
    data: Path | None = option(
        None, "The data folder, for the whole gallery and labels.csv.", "Data", usual=True
    )
    qrels: Path | None = option(None, "TREC judgements in place of labels.", "Data")

    @property
    def is_given(self) -> bool:
        """Whether any of them names the truth of a ranking."""
        return bool(self.labels or self.labels_from or self.data or self.qrels or self.truth)

    def read(self, truth: "Truth") -> "Truth":
        """The truth with several labels an image, or with paths as labels, if they are such."""
        return truth.read_as(
            separator=self.label_separator, level=self.label_level, grades_from=self.grades_from
        )


def names_in_truth(truth_options: TruthOptions) -> set[str]:
    """The names of images that --data or --labels gives, as they are written."""
    from vizsla.data.tables import read_labels, texts

    if truth_options.data:
        queries, gallery = names_in(truth_options.data)
        return {*(queries or ()), *(gallery or ())}
    return {*texts(read_labels(truth_options.labels), "file")} if truth_options.labels else set()


def read_truth(
    ranking: "Ranking", truth_options: TruthOptions, *, same_set: bool = False
) -> "Truth":
    """The truth of --truth, --qrels, --labels, --labels-from, or the labels file in --data."""
    from vizsla.data.imageset import open_data
    from vizsla.output.trec import read_qrels
    from vizsla.score.grade_table import read_grade_table
    from vizsla.score.truth import Truth, named_as, truth_of_folders

    if truth_options.labels and truth_options.labels_from:
        raise UsageError("--labels and --labels-from are mutually exclusive: give one")
    if truth_options.truth and truth_options.qrels:
        raise UsageError("--truth and --qrels are mutually exclusive: give one")
    one_set = same_set or bool(ranking.origin.get("same_set"))
    labels = None
    truth_file: str | Path | None = truth_options.truth
    if truth_options.data:
        folders = open_data(truth_options.data)
        if not (truth_options.labels or truth_options.labels_from or truth_options.qrels):
            truth_file = truth_file or folders.truth_file
        labels = truth_of_folders(
            folders,
            labels=truth_options.labels,
            labels_from=truth_options.labels_from,
            one_set=one_set,
        )
    elif truth_options.labels_from:
        labels = Truth.from_pattern(ranking, truth_options.labels_from, one_set=one_set)
    elif truth_options.labels is not None:
        images = ranking.queries, ranking.gallery
        labels = Truth.from_file(truth_options.labels, one_set=one_set, images=images)
    if truth_file is not None:
        known = {*ranking.queries, *ranking.gallery}
        table = read_grade_table(truth_file).named_as(known)
        found = table.truth(truth_options.truth_level, labels=labels, one_set=one_set)
        return named_as(found, ranking)
    if truth_options.qrels is not None:
        known = {*ranking.queries, *ranking.gallery}
        grades = read_qrels(truth_options.qrels, known=known)
        return named_as(Truth.from_grades(grades, labels=labels, one_set=one_set), ranking)
    if labels is None:
        raise UsageError(
            "the truth is needed: --labels FILE, --labels-from '{label}_{n}', --qrels FILE, "
            "--truth FILE, or --data DATA with a labels.csv in it"
        )
    return truth_options.read(named_as(labels, ranking))


def open_gallery(path: str, device: str) -> "Index":
    """An index, or embeddings as an exact one in memory."""
    from vizsla.embed.embeddings import Embeddings
    from vizsla.search.index import in_memory, open_index
    from vizsla.search.index_files import is_index
    from vizsla.search.milvus_index import is_milvus

    if is_milvus(path) or is_index(path):
        return open_index(path, device=device)
    return in_memory(Embeddings.open(path), device=device)


def require_all_weights(chosen: Iterable[tuple[str, str]]) -> None:
    """ModelError if the weights of one (model, weights) would have to be downloaded and cannot be.

    Before images are listed and torch is imported: then this takes no time.
    """
    from vizsla.model.hub import require_weights

    for model, weights in chosen:
        require_weights(model, weights)


def embedded_queries(
    sources: list[Path],
    found: "Index",
    *,
    choice: ModelChoice,
    seed: int,
    device: str,
    progress: Callable[[int, int], None],
) -> "Embeddings":
    """One folder of embeddings as it is; images and texts by the model of the gallery."""
    from vizsla.embed.embeddings import Embeddings, is_embeddings
    from vizsla.search.queries import encoded, is_text

    texts = [path for path in sources if not path.is_dir() and is_text(str(path))]
    folders = [path for path in sources if path.is_dir()]
    if len(sources) > 1 and folders:
        raise UsageError(f"{folders[0]}: several queries must all be image files")
    if is_embeddings(sources[0]):
        return Embeddings.open(sources[0])
    from vizsla.data.imageset import ImageSet
    from vizsla.embed import inference
    from vizsla.embed.auto_compute import resolve_compute

    embedder = embedder_of(found, choice, seed)
    if texts and not embedder.reads_text:
        raise DataError(
            f"there is no file {texts[0]}, and {embedder.name} reads no text: queries are "
            "embeddings, a folder of images, images, or words for a CLIP, SigLIP or PE model"
        )
    if texts:
        return encoded([str(path) for path in sources], embedder.to(device))
    if folders:
        images = ImageSet.from_folder(sources[0])
    else:
        names = dict.fromkeys(path.as_posix() for path in sources)
        images = ImageSet(Path(), sorted(names, key=str.encode))
    with tempfile.TemporaryDirectory(prefix="vizsla-queries-") as folder:
        compute = resolve_compute(
            device=device, embedder=embedder, images=len(images), sample=images.file
        )
        if compute.kind == "cpu":  # a lone query is not one of 32
            compute = dataclasses.replace(compute, batch_size=min(len(images), compute.batch_size))
        return inference.embed(images, embedder, folder, compute=compute, progress=progress)


def embedded_folder(
    images: "ImageSet",
    embedder: "Embedder",
    scratch: str,
    compute: ComputeChoice,
    *,
    max_pixels: int,
    progress: Callable[[str, int, int], None],
) -> Path:
    """The embeddings of images, in the folder `scratch`."""
    from vizsla.embed.auto_compute import resolve_compute
    from vizsla.embed.inference import write_embeddings

    resolved = resolve_compute(
        device=compute.device, precision=compute.precision, runtime=compute.runtime,
        batch_size=compute.batch_size, workers=compute.workers, embedder=embedder,
        images=len(images), sample=images.file,
    )  # fmt: skip
    write_embeddings(
        images, embedder, scratch, compute=resolved, max_pixels=max_pixels, cache=compute.cache,
        progress=lambda done, total: progress("embedding", done, total),
    )  # fmt: skip
    return Path(scratch)


def embedder_of(found: "Index", choice: ModelChoice, seed: int) -> "Embedder":
    """The model of a gallery: the one that it records, unless another one was chosen."""
    from vizsla.model.open_model import is_chosen, load_embedder, rebuilt

    if found.source.model is not None and not is_chosen(choice):
        return rebuilt(found.source.model, found.model_id, "the gallery")
    require_all_weights([(choice.model, choice.weights)])
    embedder = load_embedder(choice, seed=seed)
    if embedder.model_id != found.model_id:
        raise DataError(
            f"{choice.model} is model {embedder.model_id} here, the gallery was embedded by "
            f"{found.model_id}: give the --model, --weights, --pooling and --image-size of the "
            "gallery"
        )
    return embedder


@contextmanager
def open_engine(
    name: str, address: str | None, **options: Any
) -> "Iterator[tuple[Compute, Engine | None]]":
    """What `embed` computes with, and where. options: those of `resolve_compute`."""
    if name == "local" and address is not None:
        raise UsageError("--address names a Ray cluster: add --engine ray")
    if name == "local":
        from vizsla.embed.auto_compute import resolve_compute

        yield resolve_compute(**options), None
        return
    from vizsla.embed import ray_engine

    with ray_engine.connected(address) as ray:
        yield ray_engine.resolve_compute_on(ray, **options), ray_engine.ray_engine(ray)
