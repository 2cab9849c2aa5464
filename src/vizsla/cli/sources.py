"""What paths and flags name → rankings, truths, names, galleries, queries, engines."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizsla.errors import DataError, UsageError
from vizsla.option_fields import option, same
from vizsla.options import GradedTruth, ImageOptions, JudgedLabels, RunOptions

if TYPE_CHECKING:
    from vizsla.data.data_folders import DataFolders
    from vizsla.embed.compute import Compute
    from vizsla.embed.compute_shards import Engine
    from vizsla.score.truth import Truth
    from vizsla.search.ranking import Ranking


def names_in(data: Path | None) -> tuple[list[str] | None, list[str] | None]:
    """The query and gallery names of a data folder, to check a submission against."""
    from vizsla.data.data_folders import open_data

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
    from vizsla.run.config import recorded_config
    from vizsla.workspace import is_run

    if given is not None:
        return given
    return recorded_config(source).top_k if is_run(source) else RunOptions.top_k


def images_of_source(
    source: Path, ranking: "Ranking", data: Path | None
) -> "tuple[DataFolders, Ranking]":
    """The images that a run, a ranking or a submission is about, and the ranking with their names.

    A run knows where its images are. DataError if `data` lacks some.
    """
    from vizsla.data.data_folders import open_data
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

    def judging(self, truth: "Truth") -> "Truth":
        """The truth by --label-separator, --label-level and --grades-from."""
        return truth.with_label_options(
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
    from vizsla.data.data_folders import open_data
    from vizsla.output.trec import read_qrels
    from vizsla.score.grade_table import GradeTable, read_grade_table
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
    known = {*ranking.queries, *ranking.gallery}
    if truth_file is not None:
        table = read_grade_table(truth_file)
        found = table.named_as(known).truth(
            truth_options.truth_level, labels=labels, one_set=one_set
        )
        return named_as(found, ranking)
    if truth_options.qrels is not None:
        table = GradeTable({"": read_qrels(truth_options.qrels, known=known)}).named_as(known)
        return named_as(table.truth(labels=labels, one_set=one_set), ranking)
    if labels is None:
        raise UsageError(
            "the truth is needed: --labels FILE, --labels-from '{label}_{n}', --qrels FILE, "
            "--truth FILE, or --data DATA with a labels.csv in it"
        )
    return truth_options.judging(named_as(labels, ranking))


def require_all_weights(chosen: Iterable[tuple[str, str]]) -> None:
    """ModelError if the weights of one (model, weights) would have to be downloaded and cannot be.

    Before images are listed and torch is imported: then this takes no time.
    """
    from vizsla.model.hub import require_weights

    for model, weights in chosen:
        require_weights(model, weights)


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
