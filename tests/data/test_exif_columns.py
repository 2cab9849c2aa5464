"""EXIF as columns of an image set, and groups by session and by place."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vizsla.data.exif_columns import grouped_by, with_exif
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import split
from vizsla.errors import DataError, UsageError
from vizsla.search.filters import Filter

START = datetime(2024, 5, 1, 10)


def photos(folder: Path, minutes: list[int | None]) -> ImageSet:
    """`a/0.jpg`, `b/1.jpg`, …, taken so many minutes after the start; None: without EXIF."""
    for i, minute in enumerate(minutes):
        exif = Image.Exif()
        if minute is not None:
            exif[271], exif[272] = "Canon", "R5"
            time = START + timedelta(minutes=minute)
            exif.get_ifd(0x8769)[36867] = time.strftime("%Y:%m:%d %H:%M:%S")
            exif.get_ifd(0x8825).update(
                {1: "N", 2: (48.0, 0.0, minute / 10), 3: "E", 4: (2.0, 0.0, 0.0)}
            )
        path = folder / "ab"[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, exif=exif.tobytes())
    return ImageSet.from_class_folders(folder)


def test_columns_of_exif_are_typed_and_filters_take_them(tmp_path: Path) -> None:
    images = photos(tmp_path, [0, 45, None])
    (tmp_path / "b/broken.jpg").write_bytes(b"\xff\xd8")
    images = with_exif(ImageSet.from_class_folders(tmp_path))
    assert images.attributes.column_names == ["label", "taken", "camera", "latitude", "longitude"]
    by_name = dict(zip(images.ids, images.attributes["taken"].to_pylist(), strict=True))
    assert by_name == {
        "a/00.jpg": START, "b/01.jpg": START + timedelta(minutes=45),
        "a/02.jpg": None, "b/broken.jpg": None,
    }  # fmt: skip
    for text, names in (("taken>2024-05-01T10:30", ["b/01.jpg"]), ("latitude<48.001", ["a/00.jpg"]),
                        ("camera=Canon R5", ["a/00.jpg", "b/01.jpg"])):  # fmt: skip
        mask = Filter.parse([text]).mask(images.ids, images.attributes)
        assert [name for name, kept in zip(images.ids, mask, strict=True) if kept] == names


def test_a_column_that_is_there_is_kept(tmp_path: Path) -> None:
    images = photos(tmp_path, [0, 1]).with_attribute("camera", ["mine", "yours"])
    assert with_exif(images).attributes["camera"].to_pylist() == ["mine", "yours"]


def test_images_of_a_session_are_one_group_and_others_stay_alone(tmp_path: Path) -> None:
    images = photos(tmp_path, [0, 10, 100, None, 110, None])
    group = dict(zip(images.ids, grouped_by(images, "time").attributes["group"].to_pylist(),
                     strict=True))  # fmt: skip
    assert group["a/00.jpg"] == group["b/01.jpg"] != group["a/02.jpg"] == group["a/04.jpg"]
    assert len({*group.values()}) == 4
    placed = grouped_by(images, "place").attributes["group"].to_pylist()
    assert len({*placed}) == 4  # a minute is 31 m to the north here


def test_groups_that_are_there_are_joined_with_the_sessions(tmp_path: Path) -> None:
    images = photos(tmp_path, [0, 10, 100, None])
    given = {"a/00.jpg": "x", "a/02.jpg": "x", "b/03.jpg": "y"}
    images = images.with_attribute("group", [given.get(name) for name in images.ids])
    group = grouped_by(images, "time").attributes["group"].to_pylist()
    assert len({*group}) == 2 and group[images.ids.index("b/03.jpg")] not in group[:3]


def test_without_any_time_it_is_an_error_and_columns_come_before_exif(tmp_path: Path) -> None:
    images = photos(tmp_path, [None, None])
    with pytest.raises(DataError, match="none of the 2 images has taken"):
        grouped_by(images, "time")
    with pytest.raises(UsageError, match="choose time or place"):
        grouped_by(images, "camera")
    times = pa.chunked_array([pa.array([START, START], pa.timestamp("us"))])
    assert len({*grouped_by(images.with_attribute("taken", times), "time").attributes["group"]
                .to_pylist()}) == 1  # fmt: skip
    with pytest.raises(DataError, match="the column taken"):
        grouped_by(images.with_attribute("taken", ["soon", "later"]), "time")


def test_a_split_by_time_keeps_sessions_whole() -> None:
    minutes = np.arange(240) // 4 * 60 + np.arange(240) % 4  # 60 sessions of four shots
    taken = [START + timedelta(minutes=int(m)) for m in minutes]
    labels = [f"c{i // 4 % 10}" for i in range(240)]
    table = pa.table({"label": labels, "taken": pa.array(taken, pa.timestamp("us"))})
    images = ImageSet(Path("nowhere"), [f"{i:03d}.jpg" for i in range(240)], table)
    session = np.arange(240) // 4
    found = split(images, "seen-classes", split_by="time")
    assert not {*session[found.training]} & {*session[found.held_out]}
    plain = split(images, "seen-classes")
    assert {*session[plain.training]} & {*session[plain.held_out]}
