"""The files of a published data set, as they are on disk → rows of role, name, label, attributes.

One function for each layout. Opens lists and tables only, no image. Each says in a DataError which
file it expected, and in which form.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.data.label_sets import join_labels
from vizsla.data.listing import list_images
from vizsla.errors import DataError

QUERY, GALLERY, TRAINING = "query", "gallery", "training"
TEST = (QUERY, GALLERY)  # both: queries and gallery are one set


@dataclass(eq=False)
class Rows:
    """images: the folder that names are relative to. rows: role, file, label and other columns.

    judged: query → gallery image → grade, if the data set lists them. objects: (roles, file, label,
    box) of images that may show several; those of one have the column `object_box`. notes: what a
    reader of the original should know.
    """

    images: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    judged: list[dict[str, Any]] = field(default_factory=list)
    objects: list[tuple[str | tuple[str, ...], str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, roles: str | Iterable[str], file: str, label: str | None, **more: Any) -> None:
        """One row for each role; values that are None are left out."""
        known = {name: value for name, value in more.items() if value is not None}
        for role in (roles,) if isinstance(roles, str) else roles:
            self.rows.append({"role": role, "file": file, "label": label, **known})


Reader = Callable[[Path], Rows]


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def existing(folder: Path, *names: str, what: str) -> Path:
    """The first of these files or folders that exists."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    here = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
    raise DataError(
        f"{folder} has no {' or '.join(names)} ({what}); it holds {', '.join(here) or 'nothing'}: "
        "give the folder that the archive was unpacked into"
    )


def _fields(path: Path, n: int, *, skip: int = 0) -> Iterator[list[str]]:
    """The lines of a list, split at white space (blanks or tabs) into n fields; the last may have
    blanks in it."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        if number <= skip or not line.strip():
            continue
        found = line.split(None, n - 1)
        if len(found) != n:
            raise DataError(f"{path}, line {number}: {len(found)} fields, expected {n}")
        yield [part.strip() for part in found]


def _csv(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file that has these columns."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in columns if name not in (reader.fieldnames or [])]
        if lacking:
            raise DataError(
                f"{path} has the columns {', '.join(reader.fieldnames or []) or 'none'}: expected "
                f"{', '.join(columns)}"
            )
        yield from reader


def _json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict) or not all(key in content for key in keys):
        raise DataError(f"{path}: expected one object with the keys {', '.join(keys)}")
    return content


def box_text(values: Iterable[Any], *, has_size: bool = False) -> str:
    """`left top right bottom` in pixels; has_size: from left, top, width, height."""
    left, top, x, y = (float(value) for value in values)
    box = (left, top, left + x, top + y) if has_size else (left, top, x, y)
    return " ".join(f"{value:g}" for value in box)


# ── metric learning ──────────────────────────────────────────────────────────────────────────────


def cub(folder: Path, *, all_classes: bool = False) -> Rows:
    """Classes 1 to 100 are trained on, 101 to 200 tested; train_test_split.txt is another split.

    all_classes: that split, of which each part has images of all classes.
    """
    lists = folder if (folder / "images.txt").exists() else folder / "CUB_200_2011"
    images = existing(lists, "images.txt", what="the names of the images")
    found = Rows(existing(lists, "images", what="the folder of the images"))
    # The ids of images.txt need not be the lines of the other lists.
    class_of = dict(_fields(existing(lists, "image_class_labels.txt", what="their classes"), 2))
    names = dict(_fields(existing(lists, "classes.txt", what="the names of the classes"), 2))
    boxes, split = lists / "bounding_boxes.txt", {}
    box_of = dict(_fields(boxes, 2)) if boxes.exists() else {}
    if all_classes:
        split = dict(_fields(existing(lists, "train_test_split.txt", what="the parts"), 2))
    for image, file in _fields(images, 2):
        number = class_of[image]
        box = box_text(box_of[image].split(), has_size=True) if image in box_of else None
        trained = split[image] == "1" if all_classes else int(number) <= 100
        found.add(TRAINING if trained else TEST, file, names[number], object_box=box)
    return found


def sop(folder: Path) -> Rows:
    """Ebay_train.txt and Ebay_test.txt: image_id class_id super_class_id path."""
    found = Rows(folder)
    for name, roles in (("Ebay_train.txt", TRAINING), ("Ebay_test.txt", TEST)):
        path = existing(folder, name, what="the list of images")
        for _, label, _, file in _fields(path, 4, skip=1):
            found.add(roles, file, label, category=file.partition("/")[0].removesuffix("_final"))
    return found


# (part, file, class, box): part is "train", "test", or the folder that the file's name has
Cars = Iterator[tuple[str, str, int, str]]


def cars(folder: Path, *, all_classes: bool = False) -> Rows:
    """Classes 1 to 98 are trained on, 99 to 196 tested, whatever the annotations call test.

    all_classes: the annotations' own parts, of which each has images of all classes.
    """

    def place(*names: str) -> Path | None:
        below = (folder, folder / "devkit", folder / "car_devkit/devkit", folder / "car_devkit")
        return next((p / n for p in below for n in names if (p / n).exists()), None)

    meta = place("names.csv", "cars_meta.mat")
    rows: list[tuple[str, str, int, str]] = []
    if (folder / "car_ims").is_dir():
        meta = existing(folder, "cars_annos.mat", what="the annotations of car_ims/")
        rows = [*_cars_in_mat(meta, "")]
    elif (train := place("anno_train.csv")) and (test := place("anno_test.csv")):
        rows = [*_cars_in_csv(train, "train"), *_cars_in_csv(test, "test")]
    else:
        train = place("cars_train_annos.mat")
        test = place("cars_test_annos_withlabels.mat", "cars_test_annos_withlabels (1).mat")
        if train is None or test is None:
            lacking = "cars_test_annos_withlabels.mat" if train else "cars_train_annos.mat"
            raise DataError(
                f"{folder} has no {lacking}, also not in devkit/: it takes the classes of both "
                "parts, since half of the images of the test classes are in cars_test. "
                "cars_test_annos.mat has no classes, and cars_annos.mat numbers the images of "
                "car_ims/, which are in another order"
            )
        rows = [*_cars_in_mat(train, "train"), *_cars_in_mat(test, "test")]
    titles = _car_titles(meta)
    found, files = Rows(folder), {part: _car_files(folder, part) for part in ("train", "test")}
    for part, name, number, box in rows:
        file = files[part].get(name, name) if name.count("/") == 0 else name
        trained = part == "train" if all_classes else number <= 98
        label = f"{number:03d} {titles.get(number, '')}".strip()
        found.add(TRAINING if trained else TEST, file, label, object_box=box)
    return found


def _cars_in_mat(path: Path, part: str) -> Cars:
    from scipy.io import loadmat

    content = loadmat(path, squeeze_me=True, struct_as_record=False)
    for one in np.atleast_1d(content["annotations"]):
        file = str(getattr(one, "relative_im_path", None) or one.fname)
        sides = [getattr(one, f"bbox_{side}") for side in ("x1", "y1", "x2", "y2")]
        own = part or ("test" if getattr(one, "test", 0) else "train")
        yield own, file, int(getattr(one, "class")), box_text(sides)


def _cars_in_csv(path: Path, part: str) -> Cars:
    """Lines as `00001.jpg,39,116,569,375,14`, with or without a header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if len(row) != 6:
                raise DataError(f"{path}, line {number}: {len(row)} fields, expected 6")
            if row[5].strip().isdecimal():
                yield part, row[0].strip(), int(row[5]), box_text(row[1:5])


def _car_titles(path: Path | None) -> dict[int, str]:
    """The names of the classes, from 1 on."""
    if path is None:
        return {}
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {i: row[0].strip() for i, row in enumerate(csv.reader(file), 1) if row}
    from scipy.io import loadmat

    names = np.atleast_1d(loadmat(path, squeeze_me=True).get("class_names", []))
    return {i: str(name) for i, name in enumerate(names, 1)}


def _car_files(folder: Path, part: str) -> dict[str, str]:
    """Name → path of the images of a part, which people unpack in several ways."""
    places = f"cars_{part}", f"car_data/car_data/{part}", f"car_data/{part}", part
    root = next((place for place in places if (folder / place).is_dir()), None)
    if root is None:
        return {}
    return {file.rpartition("/")[2]: f"{root}/{file}" for file in list_images(folder / root).ids}


_BOXES = "list_bbox_inshop.txt"  # image_name clothes_type pose_type x_1 y_1 x_2 y_2


def inshop(folder: Path) -> Rows:
    """list_eval_partition.txt: a count, a header, then image_name item_id evaluation_status."""
    path = existing(
        folder, "list_eval_partition.txt", "Eval/list_eval_partition.txt",
        "Anno/list_eval_partition.txt", what="the three parts",
    )  # fmt: skip
    rows = list(_fields(path, 3, skip=2))
    places = (folder, folder / "Img", folder / "Img/img")
    found = Rows(next((p for p in places if rows and (p / rows[0][0]).exists()), folder))
    lists = path.parent, folder, folder / "Anno"
    boxes = next((p / _BOXES for p in lists if (p / _BOXES).exists()), None)
    box_of = {row[0]: box_text(row[3:]) for row in _fields(boxes, 7, skip=2)} if boxes else {}
    roles = {"train": TRAINING, "query": QUERY, "gallery": GALLERY}
    for file, label, part in rows:
        if part not in roles:
            raise DataError(f"{path}: {file} is in the part {part}, expected {', '.join(roles)}")
        category = "/".join(file.split("/")[1:3]) or None
        found.add(roles[part], file, label, category=category, object_box=box_of.get(file))
    return found


def omniglot(folder: Path) -> Rows:
    """images_background is trained on, images_evaluation tested; labels are alphabet/character."""
    found = Rows(folder)
    for name, roles in (("images_background", TRAINING), ("images_evaluation", TEST)):
        part = existing(folder, name, what="alphabets with a folder for each character")
        for file in list_images(part).ids:
            found.add(roles, f"{name}/{file}", file.rpartition("/")[0])
    return found


# ── re-identification ────────────────────────────────────────────────────────────────────────────

_PERSON = re.compile(r"(-?\d+)_c(\d+)(?:s(\d+))?_")  # DukeMTMC has no sequences


def market(folder: Path) -> Rows:
    """Names such as 0002_c1s1_000451_03.jpg: person, camera, sequence. -1 is junk, 0000 a
    distractor."""
    found = Rows(folder)
    parts = (("bounding_box_train", TRAINING), ("query", QUERY), ("bounding_box_test", GALLERY))
    for name, role in parts:
        for file in list_images(existing(folder, name, what="a part of Market-1501")).ids:
            match = _PERSON.match(file.rpartition("/")[2])
            if match is None:
                raise DataError(
                    f"{folder / name / file}: expected a name as 0002_c1s1_000451_03.jpg"
                )
            person, camera, sequence = match.groups()
            found.add(
                role, f"{name}/{file}", person, camera=int(camera),
                sequence=None if sequence is None else int(sequence),
            )  # fmt: skip
    found.notes.append(
        "images of the same camera, and those named -1, are junk: --protocol reid removes them"
    )
    return found


def wildlife(folder: Path) -> Rows:
    """metadata.csv: path, identity, and a split if there is one, with the training images as the
    gallery."""
    path = existing(folder, "metadata.csv", what="the table of wildlife-datasets")
    roles = {
        "train": (TRAINING, GALLERY), "database": (TRAINING, GALLERY),
        "test": QUERY, "query": QUERY,
    }  # fmt: skip
    found = Rows(folder)
    kept = ("species", "orientation", "date", "dataset")
    for row in _csv(path, "path", "identity"):
        split = (row.get("split") or "").strip().lower()
        if split and split not in roles:
            raise DataError(
                f"{path}: {row['path']} is in the split {split}, expected train or test"
            )
        identity = row["identity"].strip()
        box = re.findall(r"[-\d.]+", row.get("bbox") or "")
        found.add(
            roles[split] if split else TEST, row["path"],
            None if identity in ("", "unknown") else identity,
            object_box=box_text(box, has_size=True) if len(box) == 4 else None,
            **{name: row.get(name) or None for name in kept},
        )  # fmt: skip
    return found


# ── landmarks and species ────────────────────────────────────────────────────────────────────────


def landmarks(folder: Path) -> Rows:
    """train.csv (id, landmark_id), index.csv (id) and retrieval_solution (id, images): an image
    abc….jpg lies in a/b/c/ of its part."""

    def at(part: str, image: str) -> str:
        return f"{part}/{image[0]}/{image[1]}/{image[2]}/{image}.jpg"

    found = Rows(folder)
    clean, plain = folder / "train_clean.csv", folder / "train.csv"
    if clean.exists():
        for row in _csv(clean, "landmark_id", "images"):
            for image in row["images"].split():
                found.add(TRAINING, at("train", image), row["landmark_id"])
    elif plain.exists():
        for row in _csv(plain, "id", "landmark_id"):
            found.add(TRAINING, at("train", row["id"]), row["landmark_id"])
    for row in _csv(existing(folder, "index.csv", what="the gallery's images"), "id"):
        found.add(GALLERY, at("index", row["id"]), None)
    solution = existing(
        folder, "retrieval_solution_v2.1.csv", "retrieval_solution_v2.csv", what="the truth"
    )
    for row in _csv(solution, "id", "images"):
        if row.get("Usage") == "Ignored":
            continue
        query = at("test", row["id"])
        found.add(QUERY, query, None, usage=row.get("Usage") or None)
        found.judged += [
            {"query": query, "image": at("index", image), "grade": 1}
            for image in row["images"].split()
        ]
    return found


def inaturalist(folder: Path) -> Rows:
    """train*.json is trained on, val*.json tested; the label is the path of the taxonomy."""
    ranks = ("kingdom", "phylum", "class", "order", "family", "genus", "specific_epithet")
    return _coco_parts(
        folder,
        lambda one: (
            "/".join(str(one[r]) for r in ranks)
            if all(one.get(r) for r in ranks)
            else "/".join(str(part) for part in (one.get("supercategory"), one["name"]) if part)
        ),
    )


def coco(folder: Path) -> Rows:
    """annotations/*train*.json is trained on, *val*.json tested; images have several labels."""
    return _coco_parts(folder, lambda one: str(one["name"]))


def _coco_parts(folder: Path, label: Callable[[dict[str, Any]], str]) -> Rows:
    """One JSON file for each part: images (id, file_name), annotations, categories."""
    found = Rows(folder)
    files = sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    files = [path for path in files if not path.stem.startswith("captions")]  # no categories
    parts: list[tuple[Path, str | tuple[str, ...]]] = []
    wanted: list[tuple[str, str | tuple[str, ...]]] = [("train", TRAINING), ("val", TEST)]
    for word, roles in wanted:
        named = [path for path in files if re.search(rf"(^|[_-]){word}", path.stem)]
        parts += [(path, roles) for path in named[:1]]  # instances before person_keypoints
    if not parts and len(files) == 1:
        parts = [(files[0], TEST)]
    if not parts:
        existing(folder, "train.json", "annotations/instances_train2017.json", what="the images")
    for path, roles in parts:
        content = _json(path, "images", "annotations", "categories")
        names = {one["id"]: label(one) for one in content["categories"]}
        labels: dict[Any, set[str]] = {}
        for one in content["annotations"]:
            labels.setdefault(one["image_id"], set()).add(names[one["category_id"]])
        place = _place_of(folder, path, [one["file_name"] for one in content["images"][:1]])
        file_of = {one["id"]: place + str(one["file_name"]) for one in content["images"]}
        for image, file in file_of.items():
            found.add(roles, file, join_labels(labels.get(image, ())))
        for one in content["annotations"]:
            box = one.get("bbox") or ()
            if len(box) == 4 and min(box[2:]) >= 1 and not one.get("iscrowd"):
                label_of = names[one["category_id"]]
                text = box_text(box, has_size=True)
                found.objects.append((roles, file_of[one["image_id"]], label_of, text))
    return found


def _place_of(folder: Path, path: Path, names: list[str]) -> str:
    """Where the images of a part lie: below the folder, or below one named after the part."""
    part = path.stem.rpartition("_")[2]
    places = ["", f"{part}/", "images/", f"images/{part}/"]
    return next((p for p in places if names and (folder / p / names[0]).exists()), places[0])


# ── Hugging Face ─────────────────────────────────────────────────────────────────────────────────


def image_folder(folder: Path) -> Rows:
    """train/ is trained on, test/ (or validation/) tested: a folder for each class, or a
    metadata.csv or .jsonl with file_name and label."""
    found = Rows(folder)
    tested = next(
        (n for n in ("test", "validation", "valid", "val") if (folder / n).is_dir()), None
    )
    parts: list[tuple[str, str | tuple[str, ...]]] = []
    parts += [("train", TRAINING)] if (folder / "train").is_dir() else []
    parts += [(tested, TEST)] if tested else []
    if not parts:
        parts = [("", TEST)]
    for name, roles in parts:
        below = f"{name}/" if name else ""
        for file, label, more in _labelled_images(folder / name):
            found.add(roles, below + file, label, **more)
    return found


def _labelled_images(folder: Path) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    from vizsla.data.imageset import ImageSet

    images = ImageSet.from_folder(folder)
    table = images.attributes.to_pylist() if images.attributes.num_columns else [{}] * len(images)
    for file, row in zip(images.ids, table, strict=True):
        label = row.get("label") or (file.partition("/")[0] if "/" in file else None)
        yield file, label, {name: value for name, value in row.items() if name != "label"}
