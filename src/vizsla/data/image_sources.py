"""A folder, a table, tar files or a URL → ImageSet, with labels from one place, less exclusions."""

import logging
from pathlib import Path

from vizsla.data.data_folders import image_part
from vizsla.data.imageset import ImageSet
from vizsla.data.listing import few
from vizsla.data.names import match_names, path_below_role
from vizsla.data.remote import image_set_from_url, is_url
from vizsla.data.table_folder import is_table_folder
from vizsla.data.tables import ROLES, labels_from_pattern, read_names
from vizsla.data.webdataset import image_set_from_tars, is_tars
from vizsla.errors import DataError, UsageError

log = logging.getLogger("vizsla.run")


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
    root: str | Path | None = None,
) -> ImageSet:
    """The images of a folder, a table, tar files or a URL, labels from the one place named.

    A labels file gives its other columns too. root: the folder that the names in a table are
    relative to.
    """
    if sum(map(bool, (labels, labels_from, class_folders))) > 1:
        raise UsageError(
            "--table (or --labels), --labels-from and --class-folders are mutually exclusive: "
            "give one"
        )
    if root is not None and not (Path(source).is_file() and not is_tars(str(source))):
        raise UsageError(f"--root is for a table of images, and {source} is none: leave it out")
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
        images = ImageSet.from_table(source, root, role=role)
    elif class_folders:
        images = ImageSet.from_class_folders(source, follow_links=follow_links)
    else:
        images = ImageSet.from_folder(source, follow_links=follow_links)
    if labels:
        images = images.with_labels_file(labels, role)
    elif labels_from:
        images = images.with_labels(labels_from_pattern(images.ids, labels_from))
    images = images.with_split_labels(label_separator)
    return without_excluded(images, exclude, role) if exclude else images


def without_excluded(images: ImageSet, exclude: str | Path, role: str | None) -> ImageSet:
    """The images that the file does not list; warns of names in it that no image has.

    It has ids, or as `vizsla check` writes them role/id. role: by default the name of the folder.
    DataError: all images are excluded.
    """
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
