"""A data folder that holds a table in place of images → where its images are, and what it says.

`data.json` has `images` (the folder that the names in the labels file are relative to), and may
have `one_set`, `truth` and `protocol`. Opens no image.
"""

from dataclasses import dataclass
from pathlib import Path

from vizsla import storage
from vizsla.data.tables import ROLES, read_labels, texts
from vizsla.errors import DataError

LABELS = ("labels.csv", "labels.parquet", "labels.tsv")
DATA_JSON, DATA_FORM = "data.json", "data/1"


@dataclass(frozen=True)
class TableFolder:
    """labels: the table. images: their folder. roles: those that the table has rows of.

    one_set: query and gallery are the same images. truth: judgements in place of labels. protocol:
    by which papers score these images.
    """

    labels: Path
    images: Path
    roles: tuple[str, ...]
    one_set: bool
    truth: Path | None
    protocol: str | None


def is_table_folder(folder: str | Path) -> bool:
    """Whether the folder describes images that lie elsewhere."""
    return (Path(folder) / DATA_JSON).is_file()


def read_table_folder(folder: str | Path) -> TableFolder:
    """What the folder says. DataError: data.json or the labels file lacks something."""
    folder = Path(folder)
    path = folder / DATA_JSON
    content = storage.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), str):
        raise DataError(f"{path}: expected an object with the folder of the images as `images`")
    labels = next((folder / name for name in LABELS if (folder / name).is_file()), None)
    if labels is None:
        raise DataError(f"{folder} has no {' or '.join(LABELS)}: expected role,file,label in one")
    table = read_labels(labels)
    found = set(texts(table, "role")) if "role" in table.column_names else set()
    if missing := [role for role in ("query", "gallery") if role not in found]:
        raise DataError(f"{labels} has no rows with the role {' or '.join(missing)}")
    truth = content.get("truth")
    return TableFolder(
        labels, folder / content["images"], tuple(role for role in ROLES if role in found),
        bool(content.get("one_set")), folder / str(truth) if truth else None,
        content.get("protocol"),
    )  # fmt: skip
