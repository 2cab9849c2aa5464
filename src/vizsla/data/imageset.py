"""Folders and tables → ImageSet: ids, labels and attributes, sorted by id. Opens no image.

Names in a table may be wrong, missing or repeated; the messages here say which.
"""

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from vizsla.data.file_hashes import current_state
from vizsla.data.label_sets import split_labels
from vizsla.data.listing import Listing, few, list_images
from vizsla.data.named_files import (
    base_of,
    report_corrections,
    resolved,
    root_of,
    warn_of_missing,
)
from vizsla.data.names import nfc
from vizsla.data.tables import (
    attributes_for,
    labelled_rows,
    names_of,
    origin_of,
    read_labels,
    read_table,
    row_of_each,
    rows_of_role,
    take_rows,
    texts,
)
from vizsla.errors import DataError
from vizsla.notebook import SHOWN, Shown, Summary, counted, data_frame

log = logging.getLogger("vizsla.imageset")

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # Hugging Face's image folders


class Source(Protocol):
    """Images that are not files on this machine: data/remote.py, data/webdataset.py."""

    @property
    def location(self) -> str:
        """As the user named it."""

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network: then many reads at once are faster."""

    def read(self, name: str) -> bytes:
        """ImageError if this one image cannot be read, StorageError if none can."""

    def version(self, name: str) -> bytes:
        """Bytes that change when the image does, found without reading all of it."""

    def states(self, names: Sequence[str], *, now: bool) -> list[int]:
        """Numbers that change when what holds an image does, as they are now or were when the
        images were listed; 0 where that is not known."""

    def subset(self, names: Sequence[str]) -> "Source":
        """Only these images: small enough to be sent to another machine."""

    def require_available(self) -> None:
        """DataError if all of it is gone."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet(Shown):
    """ids: N posix paths below root, sorted as UTF-8 bytes. attributes: N rows, or no columns.

    links_outside: links that lead out of the root and were not followed.
    source: gives the images if they are not files below `root`.
    """

    root: Path
    ids: list[str]
    attributes: pa.Table = field(default_factory=lambda: pa.table({}))
    links_outside: list[str] = field(default_factory=list)
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.attributes.num_columns and self.attributes.num_rows != len(self.ids):
            raise DataError(
                f"the attributes have {self.attributes.num_rows} rows, expected one for each of "
                f"the {len(self.ids)} images"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> list[str | None] | None:
        """N labels, None for an unknown one; None if there are no labels at all."""
        if "label" not in self.attributes.column_names:
            return None
        labels: list[str | None] = self.attributes["label"].to_pylist()
        return labels

    def summary(self) -> Summary:
        """The number of images and classes; a table of the largest classes."""
        facts, others = [counted(len(self), "image")], list(self.attributes.column_names)
        counts: dict[str | None, int] = {}
        if "label" in others:
            others.remove("label")
            found = self.attributes["label"].value_counts().to_pylist()
            counts = {entry["values"]: entry["counts"] for entry in found}
            unlabelled = counts.pop(None, 0)
            facts.append(counted(len(counts), "class", "classes"))
            facts += [f"{unlabelled:,} without a label"] * (unlabelled > 0)
        facts += [f"attributes {', '.join(others)}"] * bool(others) + [f"in {self.location}"]
        rows = sorted(counts.items(), key=lambda entry: (-entry[1], str(entry[0])))
        more = len(rows) - SHOWN
        return Summary(
            "ImageSet",
            facts,
            ["class", "images"] if rows else [],
            rows[:SHOWN],
            [count / rows[0][1] for _, count in rows[:SHOWN]],
            [f"… and {counted(more, 'more class', 'more classes')}"] * (more > 0),
        )

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each image: id, then the attributes."""
        table = self.attributes
        return data_frame(
            {"id": self.ids, **{name: table[name].to_pylist() for name in table.column_names}}
        )

    def path(self, i: int) -> Path:
        """The file of the i-th image; only without a source."""
        return self.root / self.ids[i]

    def path_text(self, i: int) -> str:
        """The path as text, for loops over all images: making a Path takes ten times as long."""
        return os.path.join(str(self.root), self.ids[i])  # noqa: PTH118

    def file(self, i: int) -> Path | bytes:
        """What `read_image` takes: the path, or the content of an image that is no file here."""
        return self.path(i) if self.source is None else self.source.read(self.ids[i])

    def states(self, positions: Sequence[int], *, now: bool = True) -> np.ndarray:
        """(n,) int64: see `file_hashes.state_of`, and `Source.states`."""
        if self.source is None:
            found = [current_state(self.path_text(i)) for i in positions]
        else:
            found = self.source.states([self.ids[i] for i in positions], now=now)
        return np.array(found, np.int64)

    @property
    def location(self) -> str:
        """The root, as the user named it."""
        return str(self.root) if self.source is None else self.source.location

    @property
    def folder(self) -> Path | None:
        """The root, if the images are files below it; else None."""
        return self.root if self.source is None else None

    def require_available(self) -> None:
        """DataError if the folder of images is gone, as when a disk was unmounted."""
        if self.source is not None:
            self.source.require_available()
        elif not self.root.is_dir():
            raise DataError(
                f"{self.root} is gone, so its images cannot be read: when it is back, run the "
                "same command again"
            )

    def for_worker(self, positions: range) -> "ImageSet":
        """Only these images, without attributes: small enough to be sent to another machine."""
        ids = self.ids[positions.start : positions.stop]
        root = Path(os.path.abspath(self.root))  # noqa: PTH100 (links stay as they are)
        return ImageSet(root, ids, source=self.source and self.source.subset(ids))

    @staticmethod
    def from_source(
        ids: list[str], source: Source, attributes: pa.Table | None = None
    ) -> "ImageSet":
        """Images that are not files on this machine; ids as the source names them, sorted."""
        table = pa.table({}) if attributes is None else attributes
        return ImageSet(Path(source.location), ids, table, source=source)

    def subset(self, indices: Iterable[int]) -> "ImageSet":
        """The images at these positions, in the order given."""
        kept = [int(i) for i in indices]
        rows = pa.array(kept, pa.int64())
        taken = self.attributes.take(rows) if self.attributes.num_columns else self.attributes
        return replace(self, ids=[self.ids[i] for i in kept], attributes=taken)

    def without(self, ids: Collection[str]) -> "ImageSet":
        """All images but these; unknown ids are ignored."""
        gone = set(ids)
        return self.subset(i for i, name in enumerate(self.ids) if name not in gone)

    def with_labels(self, labels: Sequence[str | None]) -> "ImageSet":
        """The same images with these N labels, None for an unknown one."""
        return self.with_attribute("label", [label and nfc(label) for label in labels])

    def with_split_labels(self, separator: str | None) -> "ImageSet":
        """The same images, each label as the several that this separates; None changes nothing."""
        if separator is None or "label" not in self.attributes.column_names:
            return self
        return self.with_attribute("label", split_labels(self.attributes["label"], separator))

    def with_labels_file(self, path: str | Path, role: str | None = None) -> "ImageSet":
        """The same images with the labels and all other columns of a table.

        A table without labels gives its other columns. DataError if it names none of the images, or
        has a label for none.
        """
        table = read_labels(path)
        if "label" in table.column_names:
            rows = labelled_rows(self.ids, table, role)
            known, what, of = rows["label"].null_count < len(self), "has a label", "for "
        else:
            rows = attributes_for(self.ids, table, role)
            named = set(names_of(table, self.ids, role))
            known, what, of = bool(rows.num_columns) and named != {None}, "names", ""
        if not known:
            raise DataError(
                f"{origin_of(table)} {what} {of}none of the {len(self)} images in {self.location} "
                f"({self.ids[0]}, …), but {of}{few(table['file'].to_pylist())}: expected names "
                "relative to that folder, and labels or other columns that are not empty"
            )
        return self.with_columns(rows)

    def with_attribute(
        self, name: str, values: Sequence[str | None] | pa.ChunkedArray
    ) -> "ImageSet":
        """The same images with a column of N values, strings unless Arrow's, added or replaced."""
        if len(values) != len(self.ids):
            raise DataError(
                f"{len(values)} values of {name} for {len(self.ids)} images: expected one each"
            )
        columns = {column: self.attributes[column] for column in self.attributes.column_names}
        typed = isinstance(values, pa.ChunkedArray)
        columns[name] = values if typed else pa.array(values, pa.string())
        return replace(self, attributes=pa.table(columns))

    def with_columns(self, table: pa.Table) -> "ImageSet":
        """The same images with all columns of a table of N rows added or replaced."""
        images = self
        for name in table.column_names:
            images = images.with_attribute(name, table[name])
        return images

    @staticmethod
    def from_class_folders(root: str | Path, *, follow_links: bool = False) -> "ImageSet":
        """One folder for each class: the label is the first folder below the root.

        Other columns come from a metadata file in the root, as in `from_folder`. Images directly in
        the root have no class: they are left out with a warning.
        """
        listing = _listed(root, follow_links)
        ids = [name for name in listing.ids if "/" in name]
        outside = [name for name in listing.ids if "/" not in name]
        if not ids:
            raise DataError(
                f"{root} holds {len(outside)} images but no class folders: expected "
                f"{Path(root).name}/<class>/… with the images of one class in each folder"
            )
        if outside:
            log.warning(
                "%s: %d images are outside the class folders and are left out (%s)",
                root, len(outside), few(outside),
            )  # fmt: skip
        labels = [name.partition("/")[0] for name in ids]
        _warn_of_classes(Path(root), set(labels))
        images = ImageSet(Path(root), ids, _metadata_of(root, ids), listing.links_outside)
        pairs = zip(images.labels or [], labels, strict=False)
        if any(label is not None and label != nfc(folder) for label, folder in pairs):
            log.warning("%s: the labels are the folders' names, not the metadata file's", root)
        return images.with_labels(labels)

    @staticmethod
    def from_folder(root: str | Path, *, follow_links: bool = False) -> "ImageSet":
        """All images of a flat or nested folder, without labels.

        A metadata.csv, .jsonl or .parquet in the folder, as Hugging Face has them, gives
        attributes: `file_name` names the image of a row, all other columns become attributes.
        """
        listing = _listed(root, follow_links)
        attributes = _metadata_of(root, listing.ids)
        return ImageSet(Path(root), listing.ids, attributes, listing.links_outside)

    @staticmethod
    def from_table(
        path: str | Path, root: str | Path | None = None, *, role: str | None = None
    ) -> "ImageSet":
        """The images that a CSV, TSV, JSONL or Parquet file names; other columns are attributes.

        Names are relative to `root` (default: the table's folder, or test/<role> beside it), or
        absolute. role: only the rows with this role or none. Files that do not exist are kept,
        with a warning, and are broken when they are read; DataError if none exists.
        """
        table = read_table(path)
        if role is not None:
            table = rows_of_role(table, role, path)
        if len(table) == 0:
            raise DataError(f"{path} names no images: it has a header but no rows")
        names = table["file"].to_pylist()
        base = base_of(path, root, role, names)
        files, exist = zip(*(resolved(base, name) for name in names), strict=True)
        report_corrections(base, names, files, exist, path)
        base = root_of(files, base, fixed=root is not None)
        ids = [file[len(base) :].lstrip(os.sep).replace(os.sep, "/") for file in files]
        warn_of_missing(
            [i for i, there in zip(ids, exist, strict=True) if not there], len(ids), path
        )
        rows = row_of_each(ids, table, str(path))
        order = sorted(rows)
        return ImageSet(Path(base), order, take_rows(table, [rows[name] for name in order]))


# ── folders ──────────────────────────────────────────────────────────────────────────────────────


def _listed(root: str | Path, follow_links: bool) -> Listing:
    listing = list_images(root, follow_links=follow_links)
    if listing.links_outside:
        log.warning(
            "%s: %d links lead out of it and are left out (%s); --follow-links includes them",
            root, len(listing.links_outside), few(listing.links_outside),
        )  # fmt: skip
    return listing


def _warn_of_classes(root: Path, labels: set[str]) -> None:
    folders = (p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    empty = sorted(set(folders) - labels)
    if empty:
        subject = "1 class folder holds" if len(empty) == 1 else f"{len(empty)} class folders hold"
        log.warning("%s: %s no images: %s", root, subject, few(empty))
    for same, what in (
        (nfc, "differ only in Unicode's form are one class"),
        (lambda name: nfc(name).casefold(), "differ only in case are kept apart"),
    ):
        groups: dict[str, list[str]] = {}
        for label in sorted(labels):
            groups.setdefault(same(label), []).append(label)
        twins = ["/".join(names) for names in groups.values() if len(names) > 1]
        if twins:
            log.warning("%s: classes that %s: %s", root, what, few(twins))
        labels = {*map(nfc, labels)}


def _metadata_of(root: str | Path, ids: list[str]) -> pa.Table:
    """N rows of the root's metadata file; no columns without one."""
    path = next((Path(root) / name for name in METADATA if (Path(root) / name).is_file()), None)
    if path is None:
        return pa.table({})
    table = read_table(path)
    names = names_of(table, ids)
    rows = row_of_each(names, table, origin_of(table))
    unknown = sorted(
        file for file, name in zip(texts(table, "file"), names, strict=True) if name is None
    )
    without = [name for name in ids if name not in rows]
    if not rows:
        raise DataError(
            f"{origin_of(table)} names none of the images in its folder, but {few(unknown)}"
        )
    if unknown:
        log.warning("%s names %d images that do not exist: %s", path, len(unknown), few(unknown))
    if without:
        log.warning("%s has no row for %d images: %s", path, len(without), few(without))
    return take_rows(table, [rows.get(name) for name in ids])
