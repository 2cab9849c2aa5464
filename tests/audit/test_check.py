"""The whole check, from Python and from the command line."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vizsla.audit.check import check, image_sets, labelled_sets
from vizsla.audit.duplicates import Pair
from vizsla.audit.embedding_checks import Suspect
from vizsla.audit.findings import CheckReport
from vizsla.cli.main import app, main
from vizsla.data.data_folders import open_data
from vizsla.data.imageset import ImageSet
from vizsla.data.tables import read_names
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.run.inputs import image_set

Photo = Callable[..., Image.Image]
CLASSES = ("cat", "dog", "bird")


@pytest.fixture(scope="session")
def clean(photo: Photo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, nothing wrong with them. Tests copy it."""
    folder = tmp_path_factory.mktemp("clean") / "data"
    rows = []
    for k, label in enumerate(CLASSES):
        for role, n in (("training", 4), ("query", 2), ("gallery", 3)):
            for i in range(n):
                below = f"training/{label}" if role == "training" else f"test/{role}"
                path = folder / below / f"{label}-{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                photo(1000 * k + 100 * len(role) + i).save(path)
                if role != "training":
                    rows.append([role, path.name, label])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["role", "file", "label"], *rows])
    return folder


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def messy(data: Path, photo: Photo) -> Path:
    """`data` with one of each fault."""
    training, test = data / "training", data / "test"
    Image.open(test / "query/cat-0.png").convert("RGB").save(training / "cat/leak.jpg", quality=60)
    Image.open(test / "gallery/dog-1.png").save(test / "query/dog-9.bmp")
    Image.open(training / "cat/cat-0.png").resize((90, 70)).save(training / "cat/small.png")
    shutil.copy(training / "dog/dog-0.png", training / "bird/wrong.png")
    (training / "bird/broken.png").write_bytes(b"\x89PNG\r\n")
    (training / "Cat").mkdir()
    photo(77).save(training / "Cat/one & <b>.png")
    (training / "none").mkdir()
    Image.new("RGB", (20, 90), "red").save(training / "dog/line\nbreak.png")
    with (data / "labels.csv").open("a", newline="") as file:
        csv.writer(file).writerows([["query", "dog-9.bmp", "fish"]])
    return data


def checked(folder: Path, **options: Any) -> CheckReport:
    return check(folder, labelled_sets(open_data(folder)), **options)


def vizsla(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, words)], catch_exceptions=False)


# ── what is found ────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_found_in_clean_data(data: Path) -> None:
    report = checked(data)
    assert report.pairs == [] and report.broken == [] and report.excluded() == {}
    assert report.class_findings == {} and report.odd() == {} and report.suspects is None
    alarms, notes = report.remarks()
    assert alarms == [] and len(notes) == 2 and "--model" in notes[1]
    assert notes[0].startswith("nothing to fix: ") and "all readable" in notes[0]
    assert report.class_table().rows == [
        ["bird", 4, 2, 3], ["cat", 4, 2, 3], ["dog", 4, 2, 3], ["all", 12, 6, 9],
    ]  # fmt: skip


def test_every_fault_is_found_and_only_those(messy: Path) -> None:
    report = checked(messy, workers=2)
    found = report.to_dict()
    pairs = {tuple(pair["images"]): pair for pair in found["pairs"]}
    assert {names: pair["how"] for names, pair in pairs.items()} == {
        ("training/cat/leak.jpg", "query/cat-0.png"): "near",
        ("query/dog-9.bmp", "gallery/dog-1.png"): "same picture",
        ("training/cat/cat-0.png", "training/cat/small.png"): "near",
        ("training/bird/wrong.png", "training/dog/dog-0.png"): "same file",
    }
    assert [pair["leak"] for pair in pairs.values()].count(True) == 2
    assert {pair["labels"][0] for pair in pairs.values() if pair["conflict"]} == {"bird", "fish"}
    assert [entry["image"] for entry in found["broken"]] == ["training/bird/broken.png"]
    assert found["odd"] == {
        kind: ["training/dog/line\nbreak.png"] for kind in ("tiny", "thin", "one colour")
    }
    assert found["class_findings"] == {
        "empty": ["none"], "one image": ["Cat"], "similar names": ["Cat/cat"],
        "not in the gallery": ["fish"],
    }  # fmt: skip
    assert found["images"] == {"training": 18, "query": 7, "gallery": 9}
    assert found["classes"]["fish"] == {"training": 0, "query": 1, "gallery": 0}
    assert found["suspects"] is None and len(found["groups"]) == 4
    assert found["exclude"].keys() == {
        "training/cat/leak.jpg", "training/cat/small.png", "training/bird/wrong.png",
        "training/dog/dog-0.png", "training/bird/broken.png",
    }  # fmt: skip
    text = "\n".join([report.text(), *report.remarks()[0], *report.remarks()[1]])
    rows = [line.split() for line in text.splitlines()]
    assert ["training/cat/leak.jpg", "query/cat-0.png", "near", "in", "two", "parts:", "training,",
            "query"] in rows  # fmt: skip
    assert ["training/bird/wrong.png", "training/dog/dog-0.png", "same", "file", "labels", "bird",
            "and", "dog"] in rows  # fmt: skip
    for words in (
        "Copies (4):", "Broken images (1):", r"line\nbreak.png", "tiny, thin, one colour",
        "1 training image is also in the query part",
        "1 query image is also in the gallery part", "2 pairs of copies with different labels",
        "1 image cannot be read", "tiny (", "Cat/cat", "5 training images should be left out",
    ):  # fmt: skip
        assert words in text


def test_a_report_shows_itself_in_three_lines(messy: Path) -> None:
    shown = repr(checked(messy))
    found = "34 images, broken images 1, groups of copies 4, copies 4, odd images 1, odd classes 4"
    assert " ".join(shown.split()).endswith(found) and shown.count("\n") < 3


def test_without_labels_there_are_no_conflicts(messy: Path) -> None:
    (messy / "labels.csv").unlink()
    report = checked(messy)
    assert [pair.how for pair in report.conflicts()] == ["same file"]
    assert "not in the gallery" not in report.class_findings
    assert report.class_table().rows[-2] == ["no label", 0, 7, 9]


def test_labels_of_another_folder_are_an_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("role,file,label\nquery,elsewhere.png,cat\n")
    with pytest.raises(DataError, match="label for none of the 6 query images"):
        labelled_sets(open_data(data), tmp_path / "other.csv")


def test_a_folder_without_training_images_is_checked_too(data: Path) -> None:
    shutil.rmtree(data / "training")
    (data / "test/query/broken.png").write_bytes(b"")
    report = checked(data)
    assert report.class_table().columns == ["class", "query", "gallery"]
    assert len(report.broken) == 1 and report.excluded() == {}


def test_a_folder_of_classes_and_a_flat_one_are_checked_as_they_are(
    messy: Path, tmp_path: Path, photo: Photo
) -> None:
    report = check(messy / "training", image_sets(messy / "training"))
    assert report.class_table().columns == ["class", "images"]
    names = {report.facts[i].name for pair in report.conflicts() for i in (pair.a, pair.b)}
    assert names == {"bird/wrong.png", "dog/dog-0.png"} and report.leaks() == []
    assert report.excluded().keys() == {"cat/small.png", "bird/broken.png", *names}
    assert report.class_findings["empty"] == ["none"]
    for i in (1, 2):
        photo(i).save(tmp_path / f"{i}.png")
    shutil.copy(tmp_path / "1.png", tmp_path / "3.png")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in tmp_path.glob("*.png"):
        shutil.move(path, flat)
    done = vizsla(flat, "-q", "--write-exclude", tmp_path / "out.txt")
    assert done.exit_code == 0 and ["1.png", "3.png", "same", "file"] in [
        line.split() for line in done.stdout.splitlines()
    ]
    assert "no label       3" in done.stdout and "training" not in done.stdout
    assert f"`vizsla embed {flat} --exclude {tmp_path / 'out.txt'}` leaves it out" in done.stdout
    images = image_set(flat, exclude=tmp_path / "out.txt")
    assert len(images) == 2 and "2.png" in images.ids
    (flat / "labels.csv").write_text("image,class\n1.png,a\n3.png,b\n")
    report = check(flat, image_sets(flat))
    assert [report.facts[i].label for i in range(3)] == ["a", None, "b"]
    assert len(report.conflicts()) == 1


def test_groups_name_the_image_to_keep_in_text_and_json(data: Path, tmp_path: Path) -> None:
    cat = data / "training/cat"
    picture = Image.open(cat / "cat-0.png")
    picture.resize((320, 240)).save(cat / "large.jpg", quality=90)
    picture.resize((100, 75)).save(cat / "small.png")
    done = vizsla(data, "--json", "-q", "--keep", "lossless")
    assert json.loads(done.stdout)["groups"] == [
        {"keep": "training/cat/cat-0.png",
         "images": [f"training/cat/{name}" for name in ("cat-0.png", "large.jpg", "small.png")]},
    ]  # fmt: skip
    done = vizsla(data, "-q", "--write-exclude", tmp_path / "out.txt")
    row = ["training/cat/large.jpg", "320", "×", "240", "JPEG", "3"]
    assert any(line.split()[:6] == row for line in done.stdout.splitlines())
    assert read_names(tmp_path / "out.txt") == ["training/cat/cat-0.png", "training/cat/small.png"]


def test_shots_of_one_moment_in_two_parts_are_reported(data: Path, photo: Photo) -> None:
    for name, second in (("training/cat/a.jpg", "07"), ("test/query/b.jpg", "11"),
                         ("training/cat/c.jpg", "55")):  # fmt: skip
        exif = Image.Exif()
        exif[271], exif[272] = "Canon", "Canon R5"
        exif.get_ifd(0x8769)[36867] = f"2024:05:01 10:20:{second}"
        photo(int(second) + 3000).save(data / name, exif=exif)
    report = checked(data)
    found = report.to_dict()
    assert found["moments"] == [{"images": ["training/cat/a.jpg", "query/b.jpg"], "seconds": 4.0}]
    (entry,) = (file for file in found["files"] if file["image"] == "query/b.jpg")
    assert entry["taken"] == "2024-05-01T10:20:11" and entry["camera"] == "Canon R5"
    assert "latitude" not in entry and 0 < entry["blur"] < 2.2 and entry["brightness"] > 0.3
    assert (
        "1 pair of shots of one moment in two parts, by one camera within 10 s: Canon R5"
        in (report.remarks()[0])
    )
    assert "Shots of one moment in two parts (1)" in report.text()
    (row,) = [line for line in report.text().splitlines() if line.startswith("training/cat/a.jpg")]
    assert row.split() == ["training/cat/a.jpg", "query/b.jpg", "4", "s"]


def test_nothing_to_fix_is_said_only_where_no_label_is_in_doubt(data: Path) -> None:
    clean = checked(data)
    some = replace(clean, suspects=[Suspect(0, "bird", 0.01, "cat", 0.9, 4.0)])
    none = replace(clean, suspects=[])
    assert some.remarks()[1] == [
        "1 label in doubt: look at them, the first ones above all; many of the later ones are right"
    ]
    assert "no doubtful labels" in none.remarks()[1][0]
    copied = Pair(0, 1, "near", 0.9)
    assert not any("nothing" in line for line in replace(clean, pairs=[copied]).remarks()[1])


def test_with_embeddings_swapped_labels_and_near_pairs_are_found(data: Path) -> None:
    sets = labelled_sets(open_data(data))
    (data / "training/bird/broken.png").write_bytes(b"")
    swapped = data / "training/dog/cat-0-again.png"
    shutil.move(data / "training/cat/cat-0.png", swapped)
    requested = []

    def embed(role: str, images: ImageSet) -> Embeddings:
        requested.extend(images.ids)
        rng = np.random.default_rng(len(role))
        vectors = rng.normal(size=(len(images), 32))
        for i, name in enumerate(images.ids):
            vectors[i, CLASSES.index(Path(name).name.partition("-")[0])] += 4
        if role == "training":
            vectors[1] = vectors[0] + 0.001
        return Embeddings.from_arrays(vectors, images.ids)

    report = checked(data, embed=embed)
    assert len(requested) == sum(map(len, sets.values())) and "bird/broken.png" not in requested
    assert report.suspects is not None
    first = report.suspects[0]
    assert report.facts[first.i].name == "training/dog/cat-0-again.png"
    assert (first.label, first.other) == ("dog", "cat")
    (pair,) = report.pairs
    assert pair.how == "model" and report.facts[pair.a].name == "training/bird/bird-0.png"
    assert report.copies == [] and report.excluded().keys() == {"training/bird/broken.png"}
    assert "Doubtful labels" in report.text() and "cat-0-again.png" in report.text()


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def test_the_list_to_leave_out_is_one_that_run_reads(messy: Path, tmp_path: Path) -> None:
    (messy / "training/dog/a\nb.png").write_bytes(b"")
    done = vizsla(messy, "--write-exclude", tmp_path / "out.txt", "-q")
    assert done.stdout.splitlines()[-1] == f"exclude   {tmp_path / 'out.txt'}"
    assert done.exit_code == 0
    assert "--write-exclude" not in done.stdout
    assert f"`vizsla run DATA --exclude {tmp_path / 'out.txt'}` leaves them out" in done.stdout
    assert "--write-exclude FILE lists them" in vizsla(messy, "-q").stdout
    assert {*read_names(tmp_path / "out.txt")} == checked(messy).excluded().keys()
    assert "training/dog/a\nb.png" in read_names(tmp_path / "out.txt")
    left = open_data(messy).training
    assert left is not None
    gone = {name.removeprefix("training/") for name in read_names(tmp_path / "out.txt")}
    assert len(left.without(gone)) == len(left) - 6


def test_findings_are_no_failure_and_json_is_all_there_is_on_stdout(
    messy: Path, tmp_path: Path
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in messy.rglob("*"))
    done = vizsla(messy, "--json", "-o", tmp_path / "all.json", "--html", tmp_path / "page.html")
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "all.json").read_text())
    assert printed["pairs"] and (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert sorted((path, path.stat().st_mtime_ns) for path in messy.rglob("*")) == before


def test_the_summary_counts_classes_and_names_what_to_mend(messy: Path) -> None:
    done = vizsla(messy, "-q")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["class", "training", "query", "gallery"]
    assert ["all", "18", "7", "9"] in [line.split() for line in lines]
    assert any(line.startswith("! 1 training image is also in the query part") for line in lines)
    assert any(line.startswith("- doubtful labels") for line in lines)


def test_many_classes_are_shortened_on_the_terminal(data: Path) -> None:
    for i in range(60):
        shutil.copytree(data / "training/cat", data / f"training/class{i:02d}")
    text, _, copies = checked(data).text().partition("\n\nCopies (the first 20 of ")
    text = text.partition("\n\nGroups of copies")[0]
    assert len(text.splitlines()) < 30 and "more classes" in text and "class30" not in text
    assert len(copies.partition("\n\n")[0].splitlines()) == 22


@pytest.fixture
def catalogue(photo: Photo, tmp_path: Path) -> Path:
    """Three photos of shoe 7, one of them twice, and one of them also as that of shoe 8."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        photo(50 + i).save(folder / f"seven-{i}.png")
    for name in ("seven-3.png", "eight.png"):
        shutil.copy(folder / "seven-0.png", folder / name)
    table = [f"seven-{i}.png,7,9.90" for i in range(4)] + ["eight.png,8,9.90"]
    (tmp_path / "products.csv").write_text("\n".join(["file,product,price", *table]))
    return folder


def test_copies_between_two_products_are_named_and_each_product_keeps_its_image(
    catalogue: Path, tmp_path: Path
) -> None:
    excluded, html = tmp_path / "out.txt", tmp_path / "page.html"
    table = ("--labels", tmp_path / "products.csv")
    shown = vizsla(catalogue, *table, "--write-exclude", excluded, "--html", html, "-q").stdout
    assert "! 2 pairs of copies between different products: 7 and 8" in shown
    named = shown.partition("Copies between different products (2):")[2].splitlines()[1:4]
    assert named[0].split() == ["product", "other", "product", "image", "copy", "how"]
    assert {"7", "8", "eight.png"} <= {*named[1].split()}
    assert read_names(excluded) == ["seven-3.png"]
    assert "Copies between different products" in html.read_text()
    printed = json.loads(vizsla(catalogue, *table, "--json", "-q").stdout)
    assert printed["item_column"] == "product"
    assert [one["items"] for one in printed["pairs"] if one["between_items"]] == [["8", "7"]] * 2
    assert printed["groups"] == [{"keep": "seven-0.png", "images": ["seven-0.png", "seven-3.png"]}]


def test_the_column_of_the_product_is_named_or_asked_for(
    catalogue: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "products.csv"
    table.write_text(table.read_text().replace("product", "stock"))
    assert "between" not in vizsla(catalogue, "--labels", table, "-q").stdout
    assert "one of its columns (price, stock)" in caplog.text
    named = vizsla(catalogue, "--labels", table, "--group-by", "stock", "-q").stdout
    assert "2 pairs of copies between different stocks" in named
    for words, expected in (
        (("--labels", table, "--group-by", "sku"), "the images have the columns price, stock"),
        (("--group-by", "sku"), "no table says anything of the images: give --table"),
    ):
        with pytest.raises(DataError, match=expected):
            vizsla(catalogue, *words)


def test_products_are_told_apart_in_a_data_folder_too(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "test/gallery/cat-1.png", data / "test/gallery/cat-9.png")
    table = tmp_path / "products.csv"
    table.write_text("file,product\ncat-1.png,A\ncat-9.png,B\n")
    shown = vizsla(data, "--labels", table, "--group-by", "product", "-q").stdout
    assert "1 pair of copies between different products: A and B" in shown
    table.write_text("file,product\nnone.png,A\n")
    with pytest.raises(DataError, match="names none of the images"):
        vizsla(data, "--labels", table)


def test_a_model_from_the_command_line(data: Path, tmp_path: Path) -> None:
    done = vizsla(data, "--model", "tiny", "--weights", "random", "-q", "-o", tmp_path / "a.json")
    assert done.exit_code == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert isinstance(found["suspects"], list)


def test_what_cannot_be_checked_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(tmp_path / "nowhere")])
    assert stopped.value.code == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_check_without_a_model_starts_no_torch(data: Path) -> None:
    code = (
        "import sys, vizsla.cli.main\n"
        f"try: vizsla.cli.main.main(['check', {str(data)!r}, '--html', {str(data / 'p.html')!r}])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
