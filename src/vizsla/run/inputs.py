"""Paths and options of a command → images, folders, the truth."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from vizsla import storage
from vizsla.data.data_folders import DataFolders, has_layout, open_data
from vizsla.data.image_sources import image_set, without_excluded
from vizsla.data.imageset import ImageSet
from vizsla.data.listing import few
from vizsla.data.names import match_names
from vizsla.data.splits import Target, target_of
from vizsla.data.tables import read_names
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.projection import composed, whitening
from vizsla.run.config import RunConfig
from vizsla.score.by_item import require_columns
from vizsla.score.grade_table import read_grade_table
from vizsla.score.metrics.metric_names import parse_metrics
from vizsla.score.protocols import parse_protocol
from vizsla.score.truth import Truth, named_as, truth_of_folders
from vizsla.search.exact import require_comparable
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.run")


def whiten_embedder(
    embedder: Embedder, training: Embeddings, kind: str, dim: int | None
) -> Embedder:
    """The same, its vectors whitened (or only reduced) by those of training images. In place.

    training: embedded by this embedder as it is. DataError: by another one, or too few.
    """
    require_comparable(embedder.model_id, training.model_id, embedder.dim, training.dim)
    projection = whitening(training.vectors, kind, dim)
    embedder.projection = composed(embedder.projection, projection)
    log.info(
        "%s of %d dimensions, learned on %d training images",
        "PCA" if kind == "none" else f"{kind} whitening", projection.outputs, len(training),
    )  # fmt: skip
    return embedder


def open_folders(
    path: str | Path, *, exclude: str | Path | None = None, follow_links: bool = False
) -> DataFolders:
    """A data folder without the images that the file `exclude` lists."""
    data = open_data(path, follow_links=follow_links)
    if exclude:
        names = read_names(exclude)
        sets = [("query", data.query), ("gallery", data.gallery), ("training", data.training)]
        known = {f"{role}/{name}" for role, one in sets if one for name in one.ids}
        found = match_names(names, known, roles=["test"] * len(names), origin=str(exclude))
        unknown = sorted(n for n, image in zip(names, found, strict=True) if image is None)
        if unknown:
            log.warning(
                "%d of %d names in %s are not images here and exclude nothing (%s): expected, for "
                "example, gallery/a.jpg, query/b.jpg, training/class/c.jpg",
                len(unknown), len(names), exclude, few(unknown),
            )  # fmt: skip
        gone = {name for name in found if name is not None}
        data = dataclasses.replace(
            data,
            query=_without(data.query, "query", gone),
            gallery=_without(data.gallery, "gallery", gone),
            training=data.training and _without(data.training, "training", gone),
        )
    return data


def folders_of(config: RunConfig) -> DataFolders:
    """The data folder of a run, without the images that it excludes."""
    data = open_folders(config.data, exclude=config.exclude, follow_links=config.follow_links)
    training = data.training and data.training.with_split_labels(config.label_separator)
    if config.domains and training:
        training = with_domains(training, config.domains)
    return dataclasses.replace(data, training=training)


def with_domains(training: ImageSet, file: str) -> ImageSet:
    """Training images with the domains that a run has assigned to them and kept in a file."""
    domain_of = storage.read_sealed_json(file)["domain_of"]
    return training.with_attribute("domain", [domain_of.get(name) for name in training.ids])


def truth_in(config: RunConfig, data: DataFolders) -> Truth | None:
    """The truth of a run's data, by its protocol if it has one; None if no labels are known.

    UsageError for metrics or a protocol that are not understood.
    """
    parse_metrics(config.metrics or ())
    protocol = parse_protocol(config.protocol) if config.protocol else None
    truth = truth_of_folders(data, labels=config.labels, labels_from=config.labels_from)
    truth = truth and truth.with_label_options(
        separator=config.label_separator, level=config.label_level, grades_from=config.grades_from
    )
    truth_file = config.truth or (None if truth else data.truth_file)
    if truth_file:
        table = read_grade_table(truth_file).named_as({*data.query.ids, *data.gallery.ids})
        truth = table.truth(config.truth_level, labels=truth)
        none = np.empty((len(data.query), 0), dtype=np.int64)
        images = Ranking(data.query.ids, data.gallery.ids, none, gallery_size=len(data.gallery))
        truth = named_as(truth, images)
    if protocol is None or truth is None:
        return truth
    return protocol.judging(truth, data.query.ids)


def check_items(config: RunConfig, truth: Truth | None) -> None:
    """DataError, before the work, if items are to be scored and their columns are not known."""
    if not config.items:
        return
    if truth is None:
        raise DataError(
            "--group-by and --query-group score items, and no labels are known: give --labels or "
            "--labels-from, or put a labels.csv into the data folder"
        )
    require_columns(truth, group_by=config.group_by, query_group=config.query_group)


def target_in(data: DataFolders, truth: Truth | None) -> Target:
    """What validation is to imitate; of the truth only how many gallery images a class has."""
    gallery_labels = [truth.gallery.get(name) for name in data.gallery.ids] if truth else None
    return target_of(data.query, data.gallery, gallery_labels)


def training_images(
    path: str | Path,
    *,
    labels: str | Path | None = None,
    labels_from: str | None = None,
    exclude: str | Path | None = None,
    follow_links: bool = False,
    label_separator: str | None = None,
) -> tuple[ImageSet | None, Target | None]:
    """The labelled images of a data folder, of a folder of classes, or of one with a labels file;
    and what is known of the test part, which is never among them.

    UsageError for labels beside a data folder's own: they would reach into the test part.
    """
    if has_layout(path):
        if labels or labels_from:
            raise UsageError(
                f"{path} has training/<class>/ and test/: the folders of training/ are its labels, "
                "so leave out --labels and --labels-from, or give a folder of images without test/"
            )
        data = open_folders(path, exclude=exclude, follow_links=follow_links)
        training = data.training and data.training.with_split_labels(label_separator)
        return training, target_of(data.query, data.gallery)
    if labels or labels_from:
        images = image_set(path, labels=labels, labels_from=labels_from, follow_links=follow_links)
    else:
        below = Path(path) / "training"
        root = below if below.is_dir() else path
        images = ImageSet.from_class_folders(root, follow_links=follow_links)
    return without_excluded(images, exclude, "training") if exclude else images, None


def _without(images: ImageSet, role: str, excluded: set[str]) -> ImageSet:
    kept = images.without({name for name in images.ids if f"{role}/{name}" in excluded})
    if len(kept) < len(images):
        log.info("%d of %d %s images excluded", len(images) - len(kept), len(images), role)
    return kept
