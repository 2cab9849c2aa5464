"""A file of judgements → a Truth: a table `query, image, grade`, or the truth of Oxford and Paris.

The table may have a column `level` (several truths of one set) and boxes: x0, y0, x1, y1 of the
part of the query image that is searched for. Oxford's and Paris's truth is read as JSON, or as the
published pickle by an unpickler that allows no classes, so that no code in it can run.
"""

import io
import logging
import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.data.names import normalized_name
from vizsla.data.regions import BOX_COLUMNS, Box
from vizsla.data.table_files import read_rows, read_text
from vizsla.errors import DataError, UsageError
from vizsla.score.truth import Truth

log = logging.getLogger("vizsla.names")

Grades = dict[str, dict[str, int]]
IMAGE_COLUMNS = ("image", "gallery", "gallery_image", "file", "path", "id")
# of the revisited Oxford and Paris: level → the lists that are right, and those that are junk
OXFORD = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True)
class GradeTable:
    """The judgements of a file. levels: name → query → image → grade; a file without levels has
    one, named "". boxes: of queries that are a part of their image. gallery: all its images, if the
    file lists them."""

    levels: dict[str, Grades]
    boxes: dict[str, Box] = field(default_factory=dict)
    gallery: list[str] | None = None

    @property
    def queries(self) -> list[str]:
        """Every query, in the file's order."""
        return list(dict.fromkeys(query for grades in self.levels.values() for query in grades))

    def named_as(self, images: Collection[str]) -> "GradeTable":
        """The same with the names of these images, for names that have no extension, another one,
        or another spelling (data/names.py). A name as it is written comes first; a name without its
        extension is usual in such files, all else is reported.
        """
        judged = {name for of in self.levels.values() for row in of.values() for name in row}
        written = judged.union(self.queries, self.gallery or ())
        files: dict[str, list[str]] = {}
        plain: dict[str, list[str]] = {}
        for name in set(images) - written:
            files.setdefault(_stem(name), []).append(name)
            plain.setdefault(normalized_name(_stem(name)), []).append(name)
        corrected: dict[str, str] = {}

        def file_of(name: str) -> str:
            if name in images:
                return name
            if len(files.get(name, ())) == 1:
                return files[name][0]
            normal = normalized_name(name)
            for fits in (files.get(_stem(name)), plain.get(normal), plain.get(_stem(normal))):
                if fits and len(fits) == 1:
                    corrected[name] = fits[0]
                    return fits[0]
            return name

        levels = {
            level: {
                file_of(query): {file_of(name): grade for name, grade in row.items()}
                for query, row in grades.items()
            }
            for level, grades in self.levels.items()
        }
        boxes = {file_of(query): box for query, box in self.boxes.items()}
        gallery = None if self.gallery is None else [file_of(name) for name in self.gallery]
        if corrected:
            log.warning(
                "the truth: %d names differ from those of their images in the extension or the "
                "spelling (%a for %a)", len(corrected), *next(iter(corrected.items()))
            )  # fmt: skip
        return GradeTable(levels, boxes, gallery)

    def truth(
        self, level: str | None = None, *, labels: Truth | None = None, one_set: bool = False
    ) -> Truth:
        """The truth at a level; without one, at the only level or at `medium`.

        labels: of the images, for slices. UsageError: there are several levels, and none is given.
        """
        if level is None:
            usual = [name for name in ("", "medium") if name in self.levels]
            level = next(iter(usual or (self.levels if len(self.levels) == 1 else [])), None)
        if level is None or level not in self.levels:
            raise UsageError(
                f"the truth has the levels {', '.join(self.levels)}: give one of them with "
                "--truth-level"
            )
        one = Truth.from_grades(self.levels[level], labels=labels, one_set=one_set)
        named = {name: grades for name, grades in self.levels.items() if name}
        gallery = one.gallery or dict.fromkeys(self.gallery or ())
        return Truth(
            one.query, gallery, gallery_complete=False, one_set=one_set, junk=one.junk,
            attributes=one.attributes, gallery_attributes=one.gallery_attributes,
            relevant=one.relevant, grades=one.grades, levels=named,
        )  # fmt: skip


def _stem(name: str) -> str:
    """The name without its extension."""
    return name.rpartition(".")[0] or name


def read_grade_table(path: str | Path) -> GradeTable:
    """Reads a table, or the truth of Oxford and Paris (.json, .pkl). DataError: neither."""
    path = Path(path)
    if path.suffix.lower() in (".pkl", ".pickle"):
        return _oxford_truth(_read_pickle(path), path)
    if path.suffix.lower() == ".json" and '"gnd"' in read_text(path):
        return _oxford_truth(storage.read_json(path), path)
    return _from_rows(path)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def _from_rows(path: Path) -> GradeTable:
    table = read_rows(path)
    columns = {name.lower(): table[name].to_pylist() for name in table.column_names}
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    if "query" not in columns or image is None:
        raise DataError(
            f"{path} has the columns {', '.join(table.column_names)}: expected query and image, "
            "and, where they are known, grade, level and x0, y0, x1, y1"
        )
    grades, levels = columns.get("grade"), columns.get("level")
    found: dict[str, Grades] = {}
    boxes: dict[str, Box] = {}
    for i, (query, name) in enumerate(zip(columns["query"], columns[image], strict=True)):
        where = f"{path}: row {i + 1} below the header"
        if query is None:
            raise DataError(f"{where} names no query")
        level = "" if levels is None or levels[i] is None else str(levels[i])
        row = found.setdefault(level, {}).setdefault(str(query), {})
        grade = _whole(1 if grades is None else grades[i], where)
        if name is not None and row.setdefault(str(name), grade) != grade:
            raise DataError(
                f"{where} grades {name} {grade} for {query}, an earlier one {row[name]}"
            )
        values = [columns[key][i] for key in BOX_COLUMNS if key in columns]
        if len(values) == len(BOX_COLUMNS) and None not in values:
            box = _box(values, where)
            if boxes.setdefault(str(query), box) != box:
                raise DataError(f"{where} gives {query} another box than an earlier one")
    if not found:
        raise DataError(f"{path} holds no judgements: expected rows of query, image and grade")
    if len(found) > 1 and "" in found:
        raise DataError(f"{path}: some rows have a level and others have none: give all one")
    return GradeTable(found, boxes)


def _whole(value: Any, where: str) -> int:
    try:
        if int(value) == float(value):
            return int(value)
    except (TypeError, ValueError):
        pass
    raise DataError(f"{where} has the grade {value!r}: expected a whole number")


def _box(values: Sequence[Any], where: str) -> Box:
    try:
        left, top, right, bottom = map(float, values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {values} is no box of x0, y0, x1, y1 in pixels") from error
    if not (left < right and top < bottom):
        raise DataError(f"{where}: the box {values} has no area: expected x0 < x1 and y0 < y1")
    return left, top, right, bottom


# ── Oxford and Paris ─────────────────────────────────────────────────────────────────────────────


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers; refuses every class and function."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(
            f"it asks for {module}.{name}, and only lists, dicts, texts and numbers are read: "
            "convert it to JSON where you trust it"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("it refers to objects outside of the file")


def _read_pickle(path: Path) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(storage.read_bytes(path)), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{path} is no pickle that can be read ({error!r})") from error


def _oxford_truth(content: Any, path: Path) -> GradeTable:
    expected = "expected imlist, qimlist and gnd, with easy, hard and junk for each query"
    try:
        gallery, queries = list(map(str, content["imlist"])), list(map(str, content["qimlist"]))
        gnd: list[Mapping[str, Any]] = list(content["gnd"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no truth of Oxford or Paris: {expected}") from error
    if len(gnd) != len(queries) or len({*queries}) != len(queries):
        raise DataError(f"{path}: {len(gnd)} judgements for {len({*queries})} queries")
    levels = {"": (("ok",), ("junk",))} if gnd and "ok" in gnd[0] else OXFORD
    found: dict[str, Grades] = {name: {} for name in levels}
    boxes: dict[str, Box] = {}
    for query, entry in zip(queries, gnd, strict=True):
        try:
            for level, (right, junk) in levels.items():
                row = dict.fromkeys(_names(entry, junk, gallery), -1)
                found[level][query] = {**row, **dict.fromkeys(_names(entry, right, gallery), 1)}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{path}: query {query} ({error!r}): {expected}") from error
        if entry.get("bbx") is not None:
            boxes[query] = _box(entry["bbx"], f"{path}: query {query}")
    return GradeTable(found, boxes, gallery)


def _names(entry: Mapping[str, Any], lists: Sequence[str], gallery: Sequence[str]) -> list[str]:
    at = np.concatenate([np.asarray(entry[name], dtype=np.int64).ravel() for name in lists])
    if len(at) and (at.min() < 0 or at.max() >= len(gallery)):
        raise IndexError(f"index beyond the {len(gallery)} images")
    return [gallery[i] for i in at]
