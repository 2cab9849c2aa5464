"""Paths and options of a command → images, folders, the truth, an embedder."""

import dataclasses
import logging
from pathlib import Path

from vizsla.data.imageset import DataFolders, ImageSet, has_layout, image_part, open_data
from vizsla.data.listing import few
from vizsla.data.names import match_names, path_below_role
from vizsla.data.remote import image_set_from_url, is_url
from vizsla.data.resize import INTERPOLATIONS
from vizsla.data.splits import Target, target_of
from vizsla.data.table_folder import is_table_folder
from vizsla.data.tables import (
    ROLES,
    labels_from_pattern,
    read_names,
)
from vizsla.data.webdataset import image_set_from_tars, is_tars
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.projection import composed, whitening
from vizsla.options import ModelChoice
from vizsla.run.config import RunConfig
from vizsla.score.truth import Truth, truth_of_folders
from vizsla.search.exact import require_comparable
from vizsla.workspace import is_run

log = logging.getLogger("vizsla.run")


def load_embedder(choice: ModelChoice, *, seed: int = 0) -> Embedder:
    """From a backbone's name, a saved embedder's folder or a run's folder.

    UsageError if an option would change what a saved embedder has fixed.
    """
    folder = Path(choice.model)
    if not folder.is_dir():
        embedder = Embedder.build(
            choice.model,
            weights=choice.weights,
            pooling=choice.pooling,
            image_size=choice.image_size,
            seed=seed,
        )
    elif choice.weights != "pretrained" or choice.pooling or choice.image_size:
        raise UsageError(
            f"{folder} is a saved embedder: its weights, pooling and image size are fixed. "
            "Leave out --weights, --pooling and --image-size, or name a backbone"
        )
    elif choice.interpolation:
        raise UsageError(f"{folder} is a saved embedder: leave out --interpolation")
    else:
        embedder = Embedder.load(folder / "embedder" if is_run(folder) else folder)
    if choice.interpolation is not None:
        if choice.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"--interpolation {choice.interpolation}: choose {', '.join(INTERPOLATIONS)}"
            )
        embedder = embedder.with_interpolation(choice.interpolation)
    return embedder if choice.views is None else embedder.with_views(choice.views)


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


def image_set(
    source: str | Path,
    *,
    labels: str | Path | None = None,
    labels_from: str | None = None,
    class_folders: bool = False,
    role: str | None = None,
    exclude: str | Path | None = None,
    follow_links: bool = False,
    label_separator: str | None = None,
) -> ImageSet:
    """The images of a folder, a table, tar files or a URL, labels from the one place named.

    A labels file gives its other columns too.
    """
    if sum(map(bool, (labels, labels_from, class_folders))) > 1:
        raise UsageError(
            "--labels, --labels-from and --class-folders are mutually exclusive: give one"
        )
    if is_tars(str(source)):
        if class_folders:
            raise UsageError("tar files carry their labels in them: leave out --class-folders")
        images = image_set_from_tars(str(source))
    elif is_url(str(source)):
        images = image_set_from_url(str(source), class_folders=class_folders)
    elif is_table_folder(source):
        if class_folders:
            raise UsageError(f"{source} has its labels in a table: leave out --class-folders")
        images = image_part(source, role)
    elif Path(source).is_file():
        images = ImageSet.from_table(source, role=role)
    elif class_folders:
        images = ImageSet.from_class_folders(source, follow_links=follow_links)
    else:
        images = ImageSet.from_folder(source, follow_links=follow_links)
    if labels:
        images = images.with_labels_file(labels, role)
    elif labels_from:
        images = images.with_labels(labels_from_pattern(images.ids, labels_from))
    images = images.with_split_labels(label_separator)
    return _less(images, exclude, role) if exclude else images


def _less(images: ImageSet, exclude: str | Path, role: str | None) -> ImageSet:
    """Without those that the file lists, by id or, as `vizsla check` writes them, after their role
    (by default the name of their folder); a warning of the names that are not here."""
    role = role or images.root.absolute().name
    names = read_names(exclude)
    found = match_names(names, images.ids, roles=[role] * len(names), origin=str(exclude))
    kept = images.without({name for name in found if name is not None})
    log.info("%d of %d images excluded", len(images) - len(kept), len(images))
    unknown = [
        name for name, image in zip(names, found, strict=True)
        if image is None
        and not any(path_below_role(name, other) for other in ROLES if other != role)
    ]  # fmt: skip
    if unknown or (names and len(kept) == len(images)):
        log.warning(
            "%s: %d of %d names are not images here and exclude nothing: %s; the images are such "
            "as %s", exclude, len(unknown or names), len(names), few(sorted(unknown or names)),
            images.ids[0],
        )  # fmt: skip
    if len(kept) == 0:
        raise DataError(f"{exclude} excludes all {len(images)} images of {images.root}")
    return kept


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
    return dataclasses.replace(data, training=training)


def truth_in(config: RunConfig, data: DataFolders) -> Truth | None:
    """The truth of a run's data; None if no labels are known."""
    truth = truth_of_folders(data, labels=config.labels, labels_from=config.labels_from)
    return truth and truth.read_as(separator=config.label_separator, level=config.label_level)


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
    images = images.with_split_labels(label_separator)
    return _less(images, exclude, "training") if exclude else images, None


def _without(images: ImageSet, role: str, excluded: set[str]) -> ImageSet:
    kept = images.without({name for name in images.ids if f"{role}/{name}" in excluded})
    if len(kept) < len(images):
        log.info("%d of %d %s images excluded", len(images) - len(kept), len(images), role)
    return kept
