import csv
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vizsla.data import demo
from vizsla.data.data_folders import DataFolders, open_data
from vizsla.data.demo import make_demo
from vizsla.data.images import read_image
from vizsla.data.tables import labels_for, read_labels
from vizsla.errors import DataError, StorageError


@pytest.fixture(scope="module")
def data(demo_folder: Path) -> DataFolders:
    return open_data(demo_folder)


def test_it_has_the_layout_and_both_styles(data: DataFolders) -> None:
    assert data.training is not None and data.labels_file is not None
    classes = set(data.training.labels or [])
    assert len(classes) == 24 and classes == set(demo.things())
    each = Counter(zip(data.training.labels or [], domains(data, "training"), strict=True))
    assert set(each.values()) == {demo.TRAINING_EACH} and len(each) == 48
    assert set(domains(data, "query")) == {"photo"}
    assert set(domains(data, "gallery")) == {"drawn"}
    assert data.query.labels is None and data.gallery.labels is None
    for role, count in (("query", demo.QUERIES_EACH), ("gallery", demo.GALLERY_EACH)):
        assert Counter(truth(data, role)) == dict.fromkeys(classes, count)


def test_every_picture_can_be_read(data: DataFolders) -> None:
    assert data.training is not None
    for images in (data.training, data.query, data.gallery):
        for i in range(0, len(images), 7):
            assert read_image(images.path(i)).size == (96, 96)


def test_names_of_the_test_part_do_not_tell_the_class(data: DataFolders) -> None:
    for role, images in (("query", data.query), ("gallery", data.gallery)):
        assert all(re.fullmatch(rf"{role}_\d{{4}}\.(jpg|png)", name) for name in images.ids)
        labels = truth(data, role)
        alike = np.mean([a == b for a, b in pairwise(labels)])
        assert alike < 0.15  # neighbours by name are no kin


def test_one_seed_gives_one_set_of_pictures(data: DataFolders, tmp_path: Path) -> None:
    for label, domain, i in (("key", "photo", 3), ("key", "drawn", 3), ("umbrella", "drawn", 0)):
        extension = "jpg" if domain == "photo" else "png"
        again = tmp_path / f"again.{extension}"
        demo._demo_image(label, domain, 0, i).save(again, quality=90)
        assert data.training is not None
        made = data.training.root / label / f"{domain}_{i:03d}.{extension}"
        assert made.read_bytes() == again.read_bytes()
        demo._demo_image(label, domain, 1, i).save(again, quality=90)
        assert made.read_bytes() != again.read_bytes()


def test_training_and_test_pictures_differ(data: DataFolders) -> None:
    assert data.training is not None
    paths = [s.path(i) for s in (data.training, data.query, data.gallery) for i in range(len(s))]
    assert len({path.read_bytes() for path in paths}) == len(paths)


def test_pixels_alone_do_not_find_the_class(data: DataFolders) -> None:
    for side in (8, 16, 32):
        query, gallery = (
            np.array([grey(image, side) for image in pictures(data, role)])
            for role in ("query", "gallery")
        )
        assert top_1(data, query, gallery) < 0.3
        assert top_1(data, -query, gallery) < 0.3


def test_colour_does_not_tell_the_class(data: DataFolders) -> None:
    photos = np.array([np.asarray(image)[24:72, 24:72].mean((0, 1)) for image in pictures(data)])
    photos -= photos.mean(0)
    near = photos @ photos.T / np.outer(*[np.linalg.norm(photos, axis=1)] * 2)
    np.fill_diagonal(near, -1)
    labels = np.array(truth(data, "query"))
    assert np.mean(labels[near.argmax(1)] == labels) < 0.2


@pytest.mark.slow
def test_edges_find_the_class(data: DataFolders) -> None:
    """The shape is there in both styles: or there would be nothing for a network to learn."""
    gallery = np.array([edges(image) for image in pictures(data, "gallery")])
    cosines = [
        np.array([edges(turned(image, angle, mirrored)) for image in pictures(data)]) @ gallery.T
        for angle in range(-45, 46, 15)
        for mirrored in (False, True)
    ]
    assert top_1_of(data, np.max(cosines, axis=0)) > 0.8


def test_it_writes_over_its_own_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "things", lambda: {"key": THING})
    folder = tmp_path / "new" / "data"
    assert make_demo(folder, seed=1) == folder
    before = (folder / "training" / "key" / "photo_000.jpg").read_bytes()
    make_demo(folder, seed=2)
    assert (folder / "training" / "key" / "photo_000.jpg").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(DataError, match="is not empty and was not made by the demo"):
        make_demo(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="is a file"):
        make_demo(tmp_path / "mine" / "thesis.txt")


def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "things", lambda: {"key": THING})
    make_demo(tmp_path / "data")
    photo = tmp_path / "data" / "training" / "key" / "photo_000.jpg"
    photo.unlink()
    photo.mkdir()
    with pytest.raises(StorageError, match="a file was expected"):
        make_demo(tmp_path / "data")


def test_labels_file_is_the_contests(data: DataFolders) -> None:
    assert data.labels_file is not None
    with data.labels_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["role", "file", "label", "domain"]
    assert {row["role"] for row in rows} == {"training", "query", "gallery"}
    for row in rows:
        below = "training" if row["role"] == "training" else f"test/{row['role']}"
        assert (data.folder / below / row["file"]).is_file()


# ── what the tests measure with ──────────────────────────────────────────────────────────────────

THING = demo.things()["key"]


def truth(data: DataFolders, role: str) -> list[str]:
    assert data.labels_file is not None
    ids = {"query": data.query.ids, "gallery": data.gallery.ids}[role]
    labels = labels_for(ids, read_labels(data.labels_file), role)
    assert all(labels)
    return [str(label) for label in labels]


def domains(data: DataFolders, role: str) -> list[str]:
    images = {"query": data.query, "gallery": data.gallery, "training": data.training}[role]
    assert images is not None
    found: list[str] = images.attributes["domain"].to_pylist()
    return found


def pictures(data: DataFolders, role: str = "query") -> list[Image.Image]:
    images = {"query": data.query, "gallery": data.gallery}[role]
    return [read_image(images.path(i)) for i in range(len(images))]


def top_1(data: DataFolders, query: np.ndarray, gallery: np.ndarray) -> float:
    return top_1_of(data, query @ gallery.T)


def top_1_of(data: DataFolders, cosines: np.ndarray) -> float:
    query_labels, there = np.array(truth(data, "query")), np.array(truth(data, "gallery"))
    return float(np.mean(there[cosines.argmax(1)] == query_labels))


def grey(image: Image.Image, side: int) -> np.ndarray:
    """Grey pixels, mean removed, length 1."""
    pixels = np.asarray(image.convert("L").resize((side, side)), np.float64).ravel()
    pixels -= pixels.mean()
    return pixels / np.linalg.norm(pixels)


def turned(image: Image.Image, angle: int, mirrored: bool) -> Image.Image:
    """The same size, continued by reflection at the borders."""
    wide = np.pad(np.asarray(image), ((24, 24), (24, 24), (0, 0)), mode="reflect")
    whole = Image.fromarray(wide[:, ::-1] if mirrored else wide)
    return whole.rotate(angle, Image.Resampling.BILINEAR).crop((24, 24, 120, 120))


def edges(image: Image.Image, cells: int = 12, turns: int = 6) -> np.ndarray:
    """How strong edges are in each cell, by direction (without sign), length 1."""
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float64)
    down, right = np.gradient(pixels, axis=(0, 1))
    strongest = np.hypot(down, right).argmax(2)[..., None]
    down, right = (np.take_along_axis(g, strongest, 2)[..., 0] for g in (down, right))
    strength = np.hypot(down, right)
    strength = np.sqrt(np.minimum(strength / np.percentile(strength, 95), 1))
    direction = (np.arctan2(down, right) % np.pi) / np.pi * turns
    bins = []
    for turn in range(turns):
        near = np.maximum(0, 1 - np.abs((direction - turn + turns / 2) % turns - turns / 2))
        part = Image.fromarray((near * strength).astype(np.float32))
        bins.append(np.asarray(part.resize((cells, cells), Image.Resampling.BOX)))
    found = np.stack(bins).ravel()
    return found / np.linalg.norm(found)
