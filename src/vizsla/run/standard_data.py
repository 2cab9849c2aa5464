"""A published data set on disk → a data folder of two tables, which every command reads.

No image is copied or opened, and nothing is fetched: `SETS` says what to download and from where.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from vizsla import storage
from vizsla.data import standard_layouts as layouts
from vizsla.data.data_folders import DataFolders, open_data
from vizsla.data.listing import list_images
from vizsla.data.regions import BOX_COLUMNS
from vizsla.data.standard_layouts import GALLERY, QUERY, Rows, existing
from vizsla.data.table_folder import DATA_FORM, DATA_JSON
from vizsla.errors import DataError, UsageError
from vizsla.score.grade_table import read_grade_table

log = logging.getLogger("vizsla.data")


@dataclass(frozen=True)
class StandardSet:
    """One data set. layout: what the folder holds. download: what to fetch, and from where.

    protocol: by which papers score it, as `vizsla evaluate --protocol` takes it; None: plainly.
    """

    title: str
    read: Callable[[Path], Rows]
    layout: str
    download: str
    protocol: str | None = None


def buildings(folder: Path) -> Rows:
    """Oxford or Paris, plain or revisited: gnd_*.json or .pkl has queries and gallery; the images
    are in jpg/."""
    truths = sorted([*folder.glob("gnd_*.json"), *folder.glob("gnd_*.pkl")])
    path = truths[0] if truths else existing(folder, "gnd_*.json", "gnd_*.pkl", what="the truth")
    truth = read_grade_table(path)
    found = Rows(next((folder / n for n in ("jpg", "images") if (folder / n).is_dir()), folder))
    files = {Path(name).stem: name for name in list_images(found.images).ids}
    absent = [name for name in (*truth.queries, *(truth.gallery or ())) if name not in files]
    if absent:
        raise DataError(
            f"{found.images} lacks {len(absent)} images of {path.name} ({absent[0]}, …): give the "
            f"folder that holds {path.name} and the images in jpg/"
        )
    for query in truth.queries:
        sides = zip(BOX_COLUMNS, truth.boxes.get(query, ()), strict=False)
        found.add(QUERY, files[query], None, **dict(sides))
    for name in truth.gallery or ():
        found.add(GALLERY, files[name], None)
    if not any(truth.levels):
        found.notes.append(
            "a plain truth has no levels, and its AP is the interpolated one: score by --metrics "
            "'AP(interpolated)'"
        )
    found.judged = [
        {"query": files[query], "image": files[name], "grade": grade, "level": level or None}
        for level, grades in truth.levels.items()
        for query, row in grades.items()
        for name, grade in row.items()
    ]
    return found


_CARS_LAYOUT = (
    "cars_annos.mat and car_ims/; or devkit/, cars_train/, cars_test/ and "
    "cars_test_annos_withlabels.mat; or anno_train.csv, anno_test.csv, names.csv and car_data/"
)
_CARS_FROM = (
    "the author's page is gone: the mirrors jutrera/stanford-car-dataset-by-classes-folder, or "
    "jessicali9530/stanford-cars-dataset, on https://www.kaggle.com/datasets; the second lacks "
    "devkit/ and cars_test_annos_withlabels.mat (https://github.com/pytorch/vision/issues/7545)"
)
SETS: dict[str, StandardSet] = {
    "cub": StandardSet(
        "CUB-200-2011: 11,788 photos of 200 species of birds", layouts.cub,
        "images.txt, classes.txt, image_class_labels.txt, images/",
        "CUB_200_2011.tgz (1.1 GB) from https://data.caltech.edu/records/65de6-vp158", "cub",
    ),
    "cub-all": StandardSet(
        "CUB-200-2011 by its own split: both parts have all 200 species",
        partial(layouts.cub, all_classes=True),
        "images.txt, classes.txt, image_class_labels.txt, train_test_split.txt, images/",
        "CUB_200_2011.tgz (1.1 GB) from https://data.caltech.edu/records/65de6-vp158", "cub",
    ),
    "sop": StandardSet(
        "Stanford Online Products: 120,053 photos of 22,634 products", layouts.sop,
        "Ebay_train.txt, Ebay_test.txt, bicycle_final/, …",
        "Stanford_Online_Products.zip (2.9 GB) from https://cvgl.stanford.edu/projects/lifted_struct",
        "sop",
    ),
    "cars": StandardSet(
        "Cars196: 16,185 photos of 196 models of cars", layouts.cars, _CARS_LAYOUT, _CARS_FROM,
        "cars",
    ),
    "cars-all": StandardSet(
        "Cars196 by its own split: both parts have all 196 models",
        partial(layouts.cars, all_classes=True), _CARS_LAYOUT, _CARS_FROM, "cars",
    ),
    "inshop": StandardSet(
        "DeepFashion In-Shop: 52,712 photos of 7,982 clothes", layouts.inshop,
        "list_eval_partition.txt (or in Eval/ or Anno/), img/",
        "In-shop Clothes Retrieval Benchmark (img.zip, list_eval_partition.txt; an agreement is "
        "needed) from https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html", "inshop",
    ),
    "oxford": StandardSet(
        "Oxford 5k, plain or revisited: 5,063 photos of buildings", buildings,
        "gnd_roxford5k.pkl (or .json), jpg/",
        "oxbuild_images from https://www.robots.ox.ac.uk/~vgg/data/oxbuildings, and "
        "gnd_roxford5k.pkl from http://cmp.felk.cvut.cz/revisitop", "oxford-medium",
    ),
    "paris": StandardSet(
        "Paris 6k, plain or revisited: 6,392 photos of buildings", buildings,
        "gnd_rparis6k.pkl (or .json), jpg/",
        "paris_1.tgz and paris_2.tgz from https://www.robots.ox.ac.uk/~vgg/data/parisbuildings, "
        "and gnd_rparis6k.pkl from http://cmp.felk.cvut.cz/revisitop", "oxford-medium",
    ),
    "gldv2": StandardSet(
        "Google Landmarks v2, retrieval: 761,757 gallery photos", layouts.landmarks,
        "index.csv, retrieval_solution_v2.1.csv, index/, test/; to train, train_clean.csv or "
        "train.csv and train/",
        "the index and test parts and their csv files as "
        "https://github.com/cvdfoundation/google-landmark describes it", "gldv2",
    ),
    "market": StandardSet(
        "Market-1501: 32,668 boxes of 1,501 persons by 6 cameras", layouts.market,
        "bounding_box_train/, query/, bounding_box_test/",
        "Market-1501-v15.09.15.zip (146 MB) from https://zheng-lab.cecs.anu.edu.au", "reid",
    ),
    "inaturalist": StandardSet(
        "iNaturalist, any year: photos of thousands of species", layouts.inaturalist,
        "train*.json and val*.json with their folders of images",
        "train_mini, val and their json files from https://github.com/visipedia/inat_comp",
    ),
    "coco": StandardSet(
        "COCO, or any JSON of its form: photos with several labels each", layouts.coco,
        "annotations/instances_train*.json, instances_val*.json, train*/, val*/; or one .json",
        "train2017.zip, val2017.zip, annotations_trainval2017.zip from https://cocodataset.org",
    ),
    "omniglot": StandardSet(
        "Omniglot: 32,460 drawings of 1,623 characters", layouts.omniglot,
        "images_background/, images_evaluation/",
        "images_background.zip and images_evaluation.zip from https://github.com/brendenlake/omniglot",
    ),
    "wildlife": StandardSet(
        "any data set of wildlife-datasets: photos of individual animals", layouts.wildlife,
        "metadata.csv with path, identity and split, and the images",
        "WildlifeReID-10k from https://www.kaggle.com/datasets/wildlifedatasets/wildlifereid-10k, "
        "or another one as https://github.com/WildlifeDatasets/wildlife-datasets describes it",
        "animals",
    ),
    "imagefolder": StandardSet(
        "a data set in Hugging Face's imagefolder form", layouts.image_folder,
        "train/ and test/ (or validation/) with class folders or metadata.csv",
        "any data set of this form from https://huggingface.co/datasets",
    ),
}  # fmt: skip


def standard_set(name: str) -> StandardSet:
    """The data set of this name; UsageError for an unknown one."""
    if name not in SETS:
        raise UsageError(f"no data set {name!r} is known: choose one of {', '.join(SETS)}")
    return SETS[name]


def write_data_folder(name: str, source: Path, out: Path, *, crop: bool = False) -> DataFolders:
    """Writes a data folder for the files in `source`, and opens it.

    It holds labels.parquet (role, file, label, …), data.json, and truth.parquet if the data set
    lists what is relevant. crop: each image is cut to the box of its object when it is read; where
    images show several, each object is an image of its own, a link in objects/. DataError: the
    layout is another one, none of the images is there, or there are no boxes.
    """
    known = standard_set(name)
    if not source.is_dir():
        raise DataError(
            f"{source} is no folder: give the one that holds {known.layout}. To get it: "
            f"{known.download}"
        )
    storage.require_local(out)
    found = _read(known, source)
    if crop:
        found = _cut_to_boxes(found, out)
    roles: dict[str, set[str]] = {QUERY: set(), GALLERY: set()}
    for row in found.rows:
        roles.setdefault(row["role"], set()).add(row["file"])
    plain = known.read is buildings and not any(row["level"] for row in found.judged)
    content: dict[str, Any] = {
        "form": DATA_FORM,
        "name": known.title,
        "images": str(found.images.absolute()),
        "one_set": roles[QUERY] == roles[GALLERY],
        "protocol": None if plain else known.protocol,
    }
    out.mkdir(parents=True, exist_ok=True)
    _write(found.rows, out / "labels.parquet")
    if found.judged:
        content["truth"] = "truth.parquet"
        _write(found.judged, out / "truth.parquet")
    storage.write_json(out / DATA_JSON, content)
    for note in found.notes:
        log.info("%s", note)
    return open_data(out)


def _read(known: StandardSet, source: Path) -> Rows:
    """What the layout lists, also where the folder only holds the one of the archive."""
    try:
        found = known.read(source)
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{source} does not have the layout {known.layout} ({error!r})") from error
    except DataError:
        folders = [path for path in source.iterdir() if path.is_dir()]
        if len(folders) != 1 or any(path.is_file() for path in source.iterdir()):
            raise
        return _read(known, folders[0])
    if not found.rows:
        raise DataError(f"{source} lists no images: expected {known.layout}")
    return found


def _cut_to_boxes(found: Rows, out: Path) -> Rows:
    """The same with the columns x0, y0, x1, y1, to which images are cut."""
    if found.objects:
        return _objects(found, out / "objects")
    whole = sum("object_box" not in row for row in found.rows)
    if whole == len(found.rows):
        raise DataError("its lists have no boxes of objects: leave out --crop")
    for row in found.rows:
        box = row.pop("object_box", None)
        if box is not None:
            row.update(zip(BOX_COLUMNS, map(float, box.split()), strict=True))
    if whole:
        found.notes.append(f"without a box, so whole: {whole:,} of {len(found.rows):,} rows")
    return found


def _objects(found: Rows, folder: Path) -> Rows:
    """A link to its image for each object, so that each has a name: dogs_1.jpg, dogs_2.jpg, …"""
    cut, numbers = Rows(folder, notes=found.notes), Counter[str]()
    for roles, file, label, box in found.objects:
        numbers[file] += 1
        path = Path(file)
        name = str(path.with_name(f"{path.stem}_{numbers[file]}{path.suffix}"))
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath((found.images / file).absolute(), link.parent.absolute()))
        sides = dict(zip(BOX_COLUMNS, map(float, box.split()), strict=True))
        cut.add(roles, name, label, whole_image=file, **sides)
    return cut


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    """All columns that any row has; one without any value is left out."""
    counts = Counter(name for row in rows for name, value in row.items() if value is not None)
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if counts[name]]
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    storage.write_table(path, table)
