"""A data folder → DataFolders: its training images, queries and gallery. Opens no image.

It has the layout below, or a table (data/table_folder.py) in place of images.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from vizsla.data.imageset import ImageSet
from vizsla.data.listing import few
from vizsla.data.regions import regions_in
from vizsla.data.table_folder import LABELS, is_table_folder, read_table_folder
from vizsla.data.tables import attributes_for, read_labels
from vizsla.errors import DataError
from vizsla.notebook import Shown, Summary

log = logging.getLogger("vizsla.imageset")

LAYOUT = """\
  DATA/
  ├── training/<class>/…    labelled, one folder for each class (may be left out)
  ├── test/
  │   ├── query/…           the images to search with
  │   └── gallery/…         the images to search in
  └── labels.csv            role,file,label: the truth of the test part (may be left out)"""


@dataclass(frozen=True, eq=False, repr=False)
class DataFolders(Shown):
    """folder: the one that holds training/ and test/.

    All three sets have the columns (domain, group, …) of the labels file, but not its labels: query
    and gallery have none, unless a metadata file in their own folder gives them.

    one_set: query and gallery are the same images. truth_file: judgements in place of labels.
    protocol: by which papers score these images.
    """

    folder: Path
    training: ImageSet | None
    query: ImageSet
    gallery: ImageSet
    labels_file: Path | None
    one_set: bool = False
    truth_file: Path | None = None
    protocol: str | None = None

    def summary(self) -> Summary:
        """The three parts and the number of their images."""
        parts = {"training": self.training, "query": self.query, "gallery": self.gallery}
        sizes = {name: len(part) for name, part in parts.items() if part is not None}
        facts = [f"{size:,} {name}" for name, size in sizes.items()]
        labels = f"labels in {self.labels_file}" if self.labels_file else "no labels file"
        rows = list(sizes.items())
        return Summary(f"Data in {self.folder}", [*facts, labels], ["part", "images"], rows)


def open_data(folder: str | Path, *, follow_links: bool = False) -> DataFolders:
    """The sets of a folder with the layout above, or of its parent (`…/data`); or of one with a
    data.json and a labels file (docs/datasets.md).

    DataError if the layout differs: it shows what was expected and what was found.
    """
    if is_table_folder(folder):
        return _open_tables(Path(folder))
    data = _data_folder(Path(folder))
    training = data / "training"
    sets = {
        "training": ImageSet.from_class_folders(training, follow_links=follow_links)
        if training.is_dir()
        else None,
        "query": ImageSet.from_folder(data / "test" / "query", follow_links=follow_links),
        "gallery": ImageSet.from_folder(data / "test" / "gallery", follow_links=follow_links),
    }
    found = (place / name for place in (data, Path(folder)) for name in LABELS)
    labels_file = next((path for path in found if path.is_file()), None)
    if labels_file:
        sets = _with_columns_of(labels_file, sets)
    query, gallery = sets["query"], sets["gallery"]
    assert query is not None and gallery is not None
    return DataFolders(data, sets["training"], query, gallery, labels_file)


def has_layout(folder: str | Path) -> bool:
    """Whether `open_data` would find a training and a test part here, or in `…/data`."""
    places = Path(folder), Path(folder) / "data"
    return is_table_folder(folder) or any(
        _holds(place, "training") and _holds(place, "test") for place in places
    )


def image_part(folder: str | Path, role: str | None) -> ImageSet:
    """The images of one role, with their labels, of a data folder that is a table.

    Those with a box (x0, y0, x1, y1) are cut to it.
    """
    table = read_table_folder(folder)
    if role not in table.roles:
        given = "no --role was given" if role is None else f"not {role}"
        raise DataError(f"{folder} has images of the roles {', '.join(table.roles)}, {given}")
    images = ImageSet.from_table(table.labels, table.images, role=role)
    return replace(images, source=regions_in(images.root, images.ids, images.attributes))


def _open_tables(folder: Path) -> DataFolders:
    table = read_table_folder(folder)
    sets = {role: image_part(folder, role) for role in table.roles}
    labels = table.labels if all(any(sets[r].labels or []) for r in ("query", "gallery")) else None
    for role in ("query", "gallery"):  # only scoring may see the truth
        known = sets[role].attributes
        unlabelled = known.drop_columns([n for n in known.column_names if n == "label"])
        sets[role] = replace(sets[role], attributes=unlabelled)
    return DataFolders(
        folder, sets.get("training"), sets["query"], sets["gallery"], labels,
        one_set=table.one_set, truth_file=table.truth, protocol=table.protocol,
    )  # fmt: skip


def _with_columns_of(path: Path, sets: dict[str, ImageSet | None]) -> dict[str, ImageSet | None]:
    """Adds all columns but the labels: only scoring may see the truth."""
    try:
        table = read_labels(path)
        for role, images in sets.items():
            if images is not None:
                found = attributes_for(images.ids, table, role)
                known = [n for n in found.column_names if found[n].null_count < len(images)]
                sets[role] = images.with_columns(found.select(known))
    except DataError as error:  # scoring will fail on it, unless it is given another file
        log.warning("attributes are not read: %s", error)
    return sets


_OTHER_NAMES = {
    "training": ("train", "training_set", "train_set", "trainset"),
    "test": ("testing", "test_set", "testset", "val", "validation"),
    "query": ("queries", "query_images", "probe"),
    "gallery": ("galleries", "gallery_images", "galery", "database", "index"),
}  # our name → what others call it


def _data_folder(folder: Path) -> Path:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}, expected a folder with this layout:\n{LAYOUT}")
    data = folder
    if not _holds(folder, "training", "test") and _holds(folder / "data", "training", "test"):
        data = folder / "data"
    missing = [n for n in ("test/query", "test/gallery") if not (data / n).is_dir()]
    problems = [f"{' and '.join(missing)} missing"] if missing else []
    problems += _misnamed(data, "training", "test") + _misnamed(data / "test", "query", "gallery")
    if missing and _holds(data, "query", "gallery"):
        problems.append(
            f"{data} is the test part: give the folder above it"
            if data.name == "test"
            else "query/ and gallery/ belong in test/"
        )
    if problems:
        raise DataError(
            f"{data} does not have the expected layout: {'; '.join(problems)}. "
            f"Found there: {_contents(data)}. Expected:\n{LAYOUT}"
        )
    return data


def _holds(folder: Path, *names: str) -> bool:
    return any((folder / name).is_dir() for name in names)


def _misnamed(folder: Path, *expected: str) -> list[str]:
    """Sentences about folders that seem to be meant for one that is missing."""
    found = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    return [
        f"{name}/ should be named {wanted}/"
        for wanted in expected
        if not (folder / wanted).is_dir()
        for name in found
        if name.lower() == wanted or name.lower() in _OTHER_NAMES[wanted]
    ]


def _contents(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    inside = folder / "test"
    if inside.is_dir():
        names += sorted("test/" + p.name + "/" * p.is_dir() for p in inside.iterdir())
    return few(names, 8) if names else "nothing"
