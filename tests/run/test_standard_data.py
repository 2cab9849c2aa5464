"""Miniatures of published data sets, with the traps of the originals → data folders."""

import csv
import json
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.data.data_folders import DataFolders, open_data
from vizsla.data.fingerprint import fingerprint
from vizsla.data.images import read_image
from vizsla.errors import DataError, ImageError, UsageError
from vizsla.run.standard_data import SETS, write_data_folder
from vizsla.score.grade_table import read_grade_table
from vizsla.score.truth import truth_of_folders


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def labels(folders: DataFolders) -> dict[str, dict[str, str | None]]:
    """Role → image → label, the truth of the test part included."""
    truth = truth_of_folders(folders)
    found = {} if truth is None else {"query": {**truth.query}, "gallery": {**truth.gallery}}
    if folders.training is not None:
        found["training"] = dict(
            zip(folders.training.ids, folders.training.labels or [], strict=True)
        )
    return found


# ── metric learning ──────────────────────────────────────────────────────────────────────────────


def make_cub(root: Path) -> Path:
    """Ids out of order, which differ between lists, and a split that papers do not use."""
    base = root / "CUB_200_2011"
    files = {
        "3": ("001.Albatross/A_1.jpg", "1"), "1": ("150.Wren/W_1.jpg", "150"),
        "2": ("150.Wren/W_2.jpg", "150"), "4": ("100.Pelican/P_1.jpg", "100"),
    }  # fmt: skip
    for file, _ in files.values():
        photo(base / "images" / file)
    write(base / "images.txt", *(f"{i} {file}" for i, (file, _) in files.items()))
    write(base / "image_class_labels.txt", *(f"{i} {files[i][1]}" for i in sorted(files)))
    write(base / "classes.txt", "1 001.Albatross", "100 100.Pelican", "150 150.Wren")
    write(base / "bounding_boxes.txt", *(f"{i} 2.0 3.0 5.0 6.0" for i in sorted(files)))
    write(base / "train_test_split.txt", "1 1", "2 0", "3 0", "4 0")
    return root


def test_cub_splits_by_class_and_follows_ids(tmp_path: Path) -> None:
    folders = write_data_folder("cub", make_cub(tmp_path / "cub"), tmp_path / "out")
    assert labels(folders) == {
        "training": {
            "001.Albatross/A_1.jpg": "001.Albatross", "100.Pelican/P_1.jpg": "100.Pelican",
        },
        "query": {"150.Wren/W_1.jpg": "150.Wren", "150.Wren/W_2.jpg": "150.Wren"},
        "gallery": {"150.Wren/W_1.jpg": "150.Wren", "150.Wren/W_2.jpg": "150.Wren"},
    }  # fmt: skip
    assert folders.one_set and folders.protocol == "cub"
    assert folders.query.attributes["object_box"].to_pylist() == ["2 3 7 9"] * 2
    assert "label" not in folders.query.attributes.column_names  # the truth is for scoring only


def test_cub_by_its_own_split(tmp_path: Path) -> None:
    found = labels(write_data_folder("cub-all", make_cub(tmp_path / "cub"), tmp_path / "out"))
    assert found["training"] == {"150.Wren/W_1.jpg": "150.Wren"}
    assert len(found["query"]) == 3 and found["query"] == found["gallery"]


def make_sop(root: Path) -> Path:
    head = "image_id class_id super_class_id path"
    write(
        root / "Ebay_train.txt",
        head,
        "1 1 1 bicycle_final/1_0.JPG",
        "2\t1\t1\tbicycle_final/1_1.JPG",
    )
    write(
        root / "Ebay_test.txt",
        head,
        "3\t11319\t2\tchair_final/2_0.JPG",
        "4 11319 2 chair_final/2_1.JPG",
    )
    for name in ("bicycle_final/1_0", "bicycle_final/1_1", "chair_final/2_0", "chair_final/2_1"):
        photo(root / f"{name}.JPG")
    return root


def test_sop_has_blanks_or_tabs(tmp_path: Path) -> None:
    folders = write_data_folder("sop", make_sop(tmp_path / "sop"), tmp_path / "out")
    found = labels(folders)
    assert found["training"] == {"bicycle_final/1_0.JPG": "1", "bicycle_final/1_1.JPG": "1"}
    assert found["query"] == found["gallery"] == {
        "chair_final/2_0.JPG": "11319", "chair_final/2_1.JPG": "11319"
    }  # fmt: skip
    assert folders.query.attributes["category"].to_pylist() == ["chair", "chair"]


def annotations(key: str, rows: list[tuple[str, int, int | None]]) -> np.ndarray:
    kinds: list[tuple[str, Any]] = [(key, object)]
    kinds += [(f"bbox_{side}", object) for side in ("x1", "y1", "x2", "y2")]
    kinds += (
        [("class", object), ("test", object)] if rows[0][2] is not None else [("class", object)]
    )
    found = np.empty((1, len(rows)), dtype=kinds)
    for i, (name, label, test) in enumerate(rows):
        found[0, i] = (name, 1, 2, 11, 9, label) + ((test,) if test is not None else ())
    return found


@pytest.mark.parametrize("form", ["one file", "devkit", "Kaggle", "Kaggle's tables"])
def test_cars_splits_by_class_whatever_is_called_test(tmp_path: Path, form: str) -> None:
    root = tmp_path / "cars"
    titles = np.array([f"Car {i}" for i in range(1, 197)], dtype=object)
    if form == "one file":
        files = ["car_ims/000001.jpg", "car_ims/000002.jpg", "car_ims/000003.jpg"]
        for file in files:
            photo(root / file)
        rows = list(zip(files, (98, 99, 99), (1, 0, 1), strict=True))
        savemat(root / "cars_annos.mat", {
            "annotations": annotations("relative_im_path", rows), "class_names": titles
        })  # fmt: skip
    elif form == "Kaggle's tables":  # class folders, not always named as names.csv has it
        base = "car_data/car_data"
        files = [f"{base}/train/Car 98/00001.jpg", f"{base}/test/Car 9-9/00001.jpg",
                 f"{base}/train/Car 9-9/00002.jpg"]  # fmt: skip
        for file in files:
            photo(root / file)
        write(root / "anno_train.csv", "00001.jpg,1,2,11,9,98", "00002.jpg,1,2,11,9,99")
        write(root / "anno_test.csv", "00001.jpg,1,2,11,9,99")
        write(root / "names.csv", *titles)
    else:
        twice, devkit = form == "Kaggle", root / "devkit"
        parts = ("cars_train", "cars_train", "cars_test")
        names = ("00001.jpg", "00002.jpg", "00001.jpg")
        files = [f"{p}/{p}/{n}" if twice else f"{p}/{n}" for p, n in zip(parts, names, strict=True)]
        for file in files:
            photo(root / file)
        if twice:  # the file beside them is about other images
            devkit = root / "car_devkit/devkit"
            other = annotations("relative_im_path", [("car_ims/000001.jpg", 5, 1)])
            savemat(root / "cars_annos.mat", {"annotations": other, "class_names": titles})
        devkit.mkdir(parents=True)
        train = annotations("fname", [("00001.jpg", 98, None), ("00002.jpg", 99, None)])
        savemat(devkit / "cars_train_annos.mat", {"annotations": train})
        savemat(devkit / "cars_meta.mat", {"class_names": titles})
        with pytest.raises(DataError, match=r"cars_test_annos\.mat has no classes"):
            write_data_folder("cars", root, tmp_path / "out")
        test = annotations("fname", [("00001.jpg", 99, None)])
        known = "cars_test_annos_withlabels (1).mat" if twice else "cars_test_annos_withlabels.mat"
        savemat(root / known, {"annotations": test})
    folders = write_data_folder("cars", root, tmp_path / "out")
    found = labels(folders)
    assert found["training"] == {files[0]: "098 Car 98"}
    assert found["query"] == dict.fromkeys(sorted(files[1:]), "099 Car 99")
    assert folders.query.attributes["object_box"].to_pylist() == ["1 2 11 9"] * 2
    own = labels(write_data_folder("cars-all", root, tmp_path / "all"))
    in_test = files[{"one file": 0, "Kaggle's tables": 1}.get(form, 2)]
    assert in_test in own["query"] and in_test not in own["training"]


def make_inshop(root: Path) -> Path:
    files = {
        "img/WOMEN/Dresses/id_00000002/02_1_front.jpg": ("id_00000002", "train"),
        "img/MEN/Pants/id_00000003/02_1_front.jpg": ("id_00000003", "query"),
        "img/MEN/Pants/id_00000003/02_2_side.jpg": ("id_00000003", "gallery"),
    }
    for file in files:
        photo(root / "Img" / file)
    rows = (f"{file:<70} {item:<12} {part}" for file, (item, part) in files.items())
    write(root / "Eval/list_eval_partition.txt", "3", "image_name item_id evaluation_status", *rows)
    boxes = (f"{file:<70} 1 2 004 003 010 011" for file in files)
    head = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
    write(root / "Anno/list_bbox_inshop.txt", "3", head, *boxes)
    return root


def test_inshop_has_three_parts_after_a_count_and_a_header(tmp_path: Path) -> None:
    folders = write_data_folder("inshop", make_inshop(tmp_path / "inshop"), tmp_path / "out")
    pants = "img/MEN/Pants/id_00000003"
    assert labels(folders) == {
        "training": {"img/WOMEN/Dresses/id_00000002/02_1_front.jpg": "id_00000002"},
        "query": {f"{pants}/02_1_front.jpg": "id_00000003"},
        "gallery": {f"{pants}/02_2_side.jpg": "id_00000003"},
    }
    assert not folders.one_set
    assert folders.query.attributes["object_box"].to_pylist() == ["4 3 10 11"]


def test_omniglot_has_alphabets_with_characters_of_one_name(tmp_path: Path) -> None:
    root = tmp_path / "omniglot"
    for alphabet in ("Greek", "Latin"):
        photo(root / "images_background" / alphabet / "character01/0001_01.png")
        photo(root / "images_evaluation" / alphabet / "character01/0002_01.png")
    found = labels(write_data_folder("omniglot", root, tmp_path / "out"))
    assert {*found["training"].values()} == {"Greek/character01", "Latin/character01"}
    assert len(found["query"]) == 2


# ── re-identification ────────────────────────────────────────────────────────────────────────────


def make_market(root: Path) -> Path:
    for name in (
        "bounding_box_train/0002_c1s1_000451_03.jpg", "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/0001_c1s1_002301_02.jpg", "bounding_box_test/0001_c2s1_000301_00.jpg",
        "bounding_box_test/-1_c3s2_010000_04.jpg", "bounding_box_test/0000_c6s3_094992_01.jpg",
    ):  # fmt: skip
        photo(root / name)
    (root / "bounding_box_test/Thumbs.db").write_bytes(b"x")
    return root


def test_market_knows_persons_cameras_junk_and_distractors(tmp_path: Path) -> None:
    make_market(tmp_path / "market/Market-1501-v15.09.15")
    folders = write_data_folder("market", tmp_path / "market", tmp_path / "out")
    (tmp_path / "market/Market-1501-v15.09.15").rename(tmp_path / "unpacked")
    (tmp_path / "market").rmdir()
    (tmp_path / "unpacked").rename(tmp_path / "market")
    found = labels(folders)
    assert found["training"] == {"bounding_box_train/0002_c1s1_000451_03.jpg": "0002"}
    assert sorted(str(label) for label in found["gallery"].values()) == [
        "-1",
        "0000",
        "0001",
        "0001",
    ]
    assert folders.gallery.attributes["camera"].to_pylist() == [3, 6, 1, 2]
    assert folders.protocol == "reid"
    photo(tmp_path / "market/query/0003_c5_f0046182.jpg")  # as DukeMTMC names them
    query = write_data_folder("market", tmp_path / "market", tmp_path / "duke").query
    assert query.attributes["camera"].to_pylist() == [1, 5]
    assert query.attributes["sequence"].to_pylist() == [1, None]
    photo(tmp_path / "market/query/unnamed.jpg")
    with pytest.raises(DataError, match="expected a name as 0002_c1s1"):
        write_data_folder("market", tmp_path / "market", tmp_path / "out")


def test_wildlife_searches_the_training_images_for_the_test_images(tmp_path: Path) -> None:
    root = tmp_path / "wild"
    rows = [
        ("image_id", "identity", "path", "bbox", "split"),
        ("1", "Ada", "images/a.jpg", "[1, 2, 3, 4]", "train"),
        ("2", "Ada", "images/b.jpg", "", "test"), ("3", "unknown", "images/c.jpg", "", "test"),
    ]  # fmt: skip
    for row in rows[1:]:
        photo(root / row[2])
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    folders = write_data_folder("wildlife", root, tmp_path / "out")
    assert labels(folders) == {
        "training": {"images/a.jpg": "Ada"}, "gallery": {"images/a.jpg": "Ada"},
        "query": {"images/b.jpg": "Ada", "images/c.jpg": None},
    }  # fmt: skip
    assert folders.gallery.attributes["object_box"].to_pylist() == ["1 2 4 6"]


def test_queries_whose_animals_are_secret_are_not_scored(tmp_path: Path) -> None:
    root = tmp_path / "wild"
    photo(root / "a.jpg")
    photo(root / "b.jpg")
    write(root / "metadata.csv", "image_id,identity,path,split", "1,Ada,a.jpg,database",
          "2,,b.jpg,query")  # fmt: skip
    folders = write_data_folder("wildlife", root, tmp_path / "out")
    assert folders.query.ids == ["b.jpg"] and folders.labels_file is None
    assert truth_of_folders(folders) is None


# ── landmarks, species, objects ──────────────────────────────────────────────────────────────────


def test_gldv2_lists_lie_three_folders_deep(tmp_path: Path) -> None:
    root = tmp_path / "gldv2"
    for name in ("train/a/b/c/abc1", "index/d/e/f/def2", "index/0/0/1/0012", "test/9/8/7/9873"):
        photo(root / f"{name}.jpg")
    photo(root / "test/1/1/1/1114.jpg")
    write(root / "train_clean.csv", "landmark_id,images", "7,abc1")
    write(root / "index.csv", "id", "def2", "0012")
    write(
        root / "retrieval_solution_v2.1.csv", "id,images,Usage",
        "9873,def2 0012,Public", "1114,None,Ignored",
    )  # fmt: skip
    folders = write_data_folder("gldv2", root, tmp_path / "out")
    assert folders.training is not None and folders.training.labels == ["7"]
    assert folders.query.ids == ["test/9/8/7/9873.jpg"]
    assert folders.gallery.ids == ["index/0/0/1/0012.jpg", "index/d/e/f/def2.jpg"]
    assert folders.truth_file == tmp_path / "out/truth.parquet"


@pytest.mark.parametrize("form", ["json", "pkl"])
def test_oxford_has_levels_and_queries_that_are_regions(tmp_path: Path, form: str) -> None:
    root = tmp_path / "oxford"
    names = ["all_souls_1", "bodleian_2", "junk_3", "query_4"]
    for i, name in enumerate(names):
        photo(root / "jpg" / f"{name}.jpg", seed=i)
    entry = {"bbx": [1.5, 2.0, 9.0, 8.0], "easy": [0], "hard": [1], "junk": [2]}
    gnd = {"imlist": names[:3], "qimlist": names[3:], "gnd": [entry]}
    content = json.dumps(gnd).encode() if form == "json" else pickle.dumps(gnd)
    (root / f"gnd_roxford5k.{form}").write_bytes(content)
    folders = write_data_folder("oxford", root, tmp_path / "out")
    assert (folders.training, folders.query.ids, len(folders.gallery)) == (None, ["query_4.jpg"], 3)
    assert read_image(folders.query.file(0)).size == (7, 6)
    assert folders.truth_file is not None and folders.protocol == "oxford-medium"
    levels = read_grade_table(folders.truth_file).levels
    assert levels["hard"]["query_4.jpg"] == {
        "junk_3.jpg": -1, "all_souls_1.jpg": -1, "bodleian_2.jpg": 1
    }  # fmt: skip
    words = ["--weights", "random", "-k", "1", "--protocol", "oxford-easy", "--json"]
    words += ["--home", str(tmp_path)]
    run = json.loads(vizsla("run", str(tmp_path / "out"), *words))
    assert run["scores"]["metrics"]["AP(interpolated)"]["mean"] == 1.0  # the others are junk
    again = json.loads(vizsla("evaluate", run["run"], "--protocol", "oxford-easy", "--json"))
    ranking = str(Path(run["run"]) / "ranking.parquet")
    words = ["--data", str(tmp_path / "out"), "--protocol", "oxford-easy", "--json"]
    assert again["metrics"] == json.loads(vizsla("evaluate", ranking, *words))["metrics"]
    (root / "jpg/junk_3.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 images of gnd_roxford5k"):
        write_data_folder("oxford", root, tmp_path / "out")


def test_a_plain_oxford_has_no_levels_and_no_protocol(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["all_souls_1", "bodleian_2", "junk_3"]
    for i, name in enumerate(names):
        photo(tmp_path / "oxford/jpg" / f"{name}.jpg", seed=i)
    gnd = [{"bbx": [1.5, 2.0, 9.0, 8.0], "ok": [0, 1], "junk": [2]}]
    content = {"imlist": names, "qimlist": names[:1], "gnd": gnd}
    (tmp_path / "oxford/gnd_oxford5k.json").write_text(json.dumps(content))
    with caplog.at_level("INFO", "vizsla.data"):
        folders = write_data_folder("oxford", tmp_path / "oxford", tmp_path / "out")
    assert folders.protocol is None and "--metrics 'AP(interpolated)'" in caplog.text


def coco_file(path: Path, images: dict[str, list[int]], categories: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(images)],
        "annotations": [
            {"id": i * 100 + j, "image_id": 10 + i, "category_id": c}
            for i, found in enumerate(images.values()) for j, c in enumerate(found)
        ],
        "categories": categories,
    }  # fmt: skip
    path.write_text(json.dumps(content))


def test_coco_images_have_all_their_categories(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    categories = [{"id": 18, "name": "dog"}, {"id": 90, "name": "cat"}]  # ids have gaps
    coco_file(root / "annotations/instances_train2017.json", {"1.jpg": [18, 90, 18]}, categories)
    coco_file(root / "annotations/instances_val2017.json", {"2.jpg": [90], "3.jpg": []}, categories)
    coco_file(root / "annotations/person_keypoints_val2017.json", {"2.jpg": []}, categories)
    for part in ("train2017", "val2017"):  # in the same archive, and first by name
        captions = {"images": [], "annotations": [{"id": 1, "image_id": 10, "caption": "a cat"}]}
        (root / f"annotations/captions_{part}.json").write_text(json.dumps(captions))
    for name in ("train2017/1.jpg", "val2017/2.jpg", "val2017/3.jpg"):
        photo(root / name)
    folders = write_data_folder("coco", root, tmp_path / "out")
    assert labels(folders)["training"] == {"train2017/1.jpg": "cat¦dog"}
    assert labels(folders)["query"] == {"val2017/2.jpg": "cat", "val2017/3.jpg": None}


def test_each_object_of_coco_is_an_image_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(Path("coco/val2017/1.jpg"))
    photo(Path("coco/val2017/2.jpg"), seed=1)
    boxes = [(1, [2, 1, 5, 6], 0), (1, [0, 0, 16, 12], 0), (2, [3, 4, 8, 8], 0),
             (2, [0, 0, 9, 9], 1), (2, [0, 0, 0.4, 5], 0)]  # fmt: skip
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": n % 2, "bbox": box, "iscrowd": crowd}
            for n, (image, box, crowd) in enumerate(boxes)
        ],
        "categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}],
    }
    write(Path("coco/annotations/instances_val2017.json"), json.dumps(content))
    for _ in range(2):  # a second time over the first
        vizsla("data", "coco", "--from", "coco", "--crop", "-o", "out")
    folders = open_data("out")
    assert labels(folders)["query"] == {
        "val2017/1_1.jpg": "dog", "val2017/1_2.jpg": "cat", "val2017/2_1.jpg": "dog",
    }  # fmt: skip
    assert folders.one_set
    assert [read_image(folders.query.file(i)).size for i in range(3)] == [(5, 6), (16, 12), (8, 8)]
    assert len(vizsla("check", "out")) > 0
    Path("coco").rename("moved")
    with pytest.raises(DataError, match="none of the 3 files"):
        open_data("out")


def test_an_image_is_cut_to_the_box_of_its_object(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "cub")
    lines = (root / "CUB_200_2011/bounding_boxes.txt").read_text().splitlines()
    write(root / "CUB_200_2011/bounding_boxes.txt", *lines[:-1])  # one has none
    folders = write_data_folder("cub", root, tmp_path / "out", crop=True)
    assert "object_box" not in folders.query.attributes.column_names
    assert [read_image(folders.query.file(i)).size for i in range(2)] == [(5, 6)] * 2
    whole = write_data_folder("cub", root, tmp_path / "whole")
    assert fingerprint(whole.query) != fingerprint(folders.query)
    assert folders.training is not None
    assert {read_image(folders.training.file(i)).size for i in range(2)} == {(5, 6), (16, 12)}
    with pytest.raises(DataError, match="no boxes of objects: leave out crop"):
        write_data_folder("sop", make_sop(tmp_path / "sop"), tmp_path / "none", crop=True)


def test_inaturalist_labels_are_paths(tmp_path: Path) -> None:
    root = tmp_path / "inat"
    ranks = ("kingdom", "phylum", "class", "order", "family", "genus", "specific_epithet")
    words = ("Animalia", "Chordata", "Aves", "Passeriformes", "Troglodytidae", "Troglodytes", "x")
    full = [{"id": 0, "name": "Troglodytes x", **dict(zip(ranks, words, strict=True))}]
    short = [{"id": 5, "name": "Apis mellifera", "supercategory": "Insecta"}]
    coco_file(root / "train_mini.json", {"train_mini/0/a.jpg": [0]}, full)
    coco_file(root / "val.json", {"val/0/b.jpg": [5]}, short)
    photo(root / "train_mini/0/a.jpg")
    photo(root / "val/0/b.jpg")
    found = labels(write_data_folder("inaturalist", root, tmp_path / "out"))
    assert found["training"] == {"train_mini/0/a.jpg": "/".join(words)}
    assert found["gallery"] == {"val/0/b.jpg": "Insecta/Apis mellifera"}


@pytest.mark.parametrize("form", ["folders", "metadata"])
def test_imagefolder(tmp_path: Path, form: str) -> None:
    root = tmp_path / "hf"
    for part in ("train", "validation"):
        rows = []
        for label in ("cat", "dog"):
            name = f"{label}/1.png" if form == "folders" else f"{label}1.png"
            photo(root / part / name)
            rows.append(f"{name},{label},7")
        if form == "metadata":
            write(root / part / "metadata.csv", "file_name,label,shelf", *rows)
    folders = write_data_folder("imagefolder", root, tmp_path / "out")
    assert {*labels(folders)["training"].values()} == {"cat", "dog"}
    assert {*labels(folders)["query"].values()} == {"cat", "dog"} and folders.one_set
    if form == "metadata":
        assert folders.gallery.attributes["shelf"].to_pylist() == [7, 7]


# ── what a person does next ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SETS)
def test_a_folder_of_another_layout_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    write(tmp_path / "other/readme.txt", "nothing")
    with pytest.raises(DataError) as error:
        write_data_folder(name, tmp_path / "other", tmp_path / "out")
    assert "other" in str(error.value) and not (tmp_path / "out/data.json").exists()
    with pytest.raises(DataError, match="To get it"):
        write_data_folder(name, tmp_path / "none", tmp_path / "out")


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose one of cub, cub-all, sop"):
        write_data_folder("imagenet", tmp_path, tmp_path / "out")


def vizsla(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout


def test_the_commands_read_what_data_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_cub(tmp_path / "cub-files")
    assert "Next: vizsla run cub --protocol cub" in vizsla("data", "cub", "--from", "cub-files")
    found = json.loads(vizsla("run", "cub", "-k", "1", "--weights", "random", "--json"))
    assert found["scores"]["metrics"]["top_k_accuracy@1"]["mean"] == 1.0  # not the query itself
    folder = Path(found["run"])
    lists = json.loads(Path(found["submission"]).read_text())
    assert lists["150.Wren/W_1.jpg"] == ["150.Wren/W_2.jpg"]
    again = json.loads(vizsla("evaluate", str(folder), "--json"))
    assert again["metrics"] == found["scores"]["metrics"]
    ranking = str(folder / "ranking.parquet")
    by_data = json.loads(vizsla("evaluate", ranking, "--data", "cub", "-k", "1", "--json"))
    assert by_data["metrics"]["map"]["mean"] == 1.0
    vizsla("embed", "cub", "--role", "gallery", "--weights", "random", "-o", "g.emb")
    result = CliRunner().invoke(app, ["embed", "cub", "-o", "h.emb"])
    assert "no --role was given" in str(result.exception)
    assert "3 images" not in vizsla("check", "cub")
    assert "download" in vizsla("data", "sop") and "market" in vizsla("data")


def test_the_commands_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_cub(tmp_path / "CUB_200_2011")
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
    [block] = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in block.splitlines():
        if " train " not in line:  # of two images: nothing can be held out
            vizsla(*shlex.split(line)[1:])
    with pytest.raises(DataError, match="to hold one out"):  # it got as far as the split
        CliRunner().invoke(
            app, ["train", "cub", "--finetune", "head", "-o", "tuned"], catch_exceptions=False
        )
    first = "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))
    assert set(SETS) == set(re.findall(r"`([\w-]+)`", first)) - {"name"}


def test_an_image_with_a_box_is_cut_to_it(tmp_path: Path) -> None:
    for name in ("q.png", "g.png"):
        photo(tmp_path / "images" / name, seed=len(name))
    write(tmp_path / "data/data.json", '{"images": "../images"}')
    write(
        tmp_path / "data/labels.csv", "role,file,label,x0,y0,x1,y1",
        "query,q.png,a,2,3,90,9.4", "gallery,g.png,a,,,,",
    )  # fmt: skip
    folders = open_data(tmp_path / "data")
    whole = np.asarray(Image.open(tmp_path / "images/q.png"))
    assert (np.asarray(read_image(folders.query.file(0))) == whole[3:9, 2:]).all()
    cut = fingerprint(folders.query)
    write(
        tmp_path / "data/labels.csv", "role,file,label,x0,y0,x1,y1",
        "query,q.png,a,20,3,90,9", "gallery,g.png,a,,,,",
    )  # fmt: skip
    outside = open_data(tmp_path / "data").query
    assert fingerprint(outside) != cut
    with pytest.raises(ImageError, match="outside the image of 16 × 12"):
        outside.file(0)
    assert folders.gallery.folder is not None


def test_the_folder_may_be_moved_with_its_images(tmp_path: Path) -> None:
    write_data_folder("sop", make_sop(tmp_path / "sop"), tmp_path / "out")
    content = json.loads((tmp_path / "out/data.json").read_text())
    (tmp_path / "out/data.json").write_text(json.dumps({**content, "images": "../sop"}))
    assert len(open_data(tmp_path / "out").query) == 2
    (tmp_path / "out/labels.parquet").unlink()
    with pytest.raises(DataError, match=r"has no labels.csv"):
        open_data(tmp_path / "out")
