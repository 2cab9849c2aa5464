"""When, where and by which camera: from the EXIF of files that Pillow wrote, and of odd ones."""

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import ExifTags, Image

from vizsla.data.exif import COLUMNS, Exif, exif_table
from vizsla.data.images import read_header
from vizsla.errors import ImageError


def tags(taken: str = "2024:05:01 10:20:30", **more: object) -> Image.Exif:
    """A block such as a phone writes it; more: tags of the main table."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Canon\0", "Canon EOS R5"
    exif.get_ifd(ExifTags.IFD.Exif).update(
        {ExifTags.Base.DateTimeOriginal: taken, ExifTags.Base.SubsecTimeOriginal: "25"}
    )
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {1: "S", 2: (33.0, 51.0, 24.0), 3: "E", 4: (151.0, 12.0, 54.0)}
    )
    for name, value in more.items():
        exif[ExifTags.Base[name]] = value
    return exif


def written(folder: Path, exif: Image.Exif, name: str = "a.jpg") -> Exif:
    Image.new("RGB", (8, 6)).save(folder / name, exif=exif.tobytes())
    return read_header(folder / name).exif


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif"])
def test_time_camera_and_place_are_read(tmp_path: Path, name: str) -> None:
    found = written(tmp_path, tags(), name)
    assert found.taken == datetime(2024, 5, 1, 10, 20, 30, 250_000)
    assert found.camera == "Canon EOS R5"
    assert found.place == pytest.approx((-33.8567, 151.2150), abs=1e-4)


def test_the_make_is_named_where_the_model_does_not(tmp_path: Path) -> None:
    assert written(tmp_path, tags(Make="NIKON CORPORATION", Model="D70")).camera == (
        "NIKON CORPORATION D70"
    )
    assert written(tmp_path, tags(Make="NIKON CORPORATION", Model="Nikon D70")).camera == (
        "Nikon D70"
    )


@pytest.mark.parametrize("time", ["0000:00:00 00:00:00", "    :  :     :  :  ", "yesterday", ""])
def test_an_impossible_time_is_none(tmp_path: Path, time: str) -> None:
    assert written(tmp_path, tags(time)).taken is None


def test_days_of_other_programs_and_fractions_of_other_times(tmp_path: Path) -> None:
    for day in ("2024-05-01", "2024/05/01"):
        found = written(tmp_path, tags(f"{day} 10:20:30")).taken
        assert found == datetime(2024, 5, 1, 10, 20, 30, 250_000)
    digitised = tags("0000:00:00 00:00:00")
    digitised.get_ifd(ExifTags.IFD.Exif).update(
        {ExifTags.Base.DateTimeDigitized: "2024:05:02 01:02:03"}
    )
    assert written(tmp_path, digitised).taken == datetime(2024, 5, 2, 1, 2, 3)
    odd = tags()
    odd.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.SubsecTimeOriginal] = "\u0665x"
    assert written(tmp_path, odd).taken == datetime(2024, 5, 1, 10, 20, 30)


def test_an_image_without_exif_has_none_of_it(tmp_path: Path) -> None:
    assert written(tmp_path, Image.Exif()) == Exif()


def test_the_place_zero_zero_or_out_of_range_is_none(tmp_path: Path) -> None:
    for latitude in ((0.0, 0.0, 0.0), (95.0, 0.0, 0.0)):
        exif = tags()
        exif.get_ifd(ExifTags.IFD.GPSInfo).update({2: latitude, 4: (0.0, 0.0, 0.0)})
        assert written(tmp_path, exif).place is None


def test_odd_files_of_other_programs_raise_nothing_new(shared: Path) -> None:
    read = 0
    for path in sorted((shared / "data/edge").rglob("*")):
        try:
            read += read_header(path).exif is not None
        except ImageError:
            continue
    assert read > 40


def test_columns_are_typed_and_unknown_values_null() -> None:
    table = exif_table([Exif(datetime(2024, 5, 1), "X", (1.5, 2.5)), Exif()])
    assert table.column_names == list(COLUMNS)
    assert table["taken"].type == pa.timestamp("us")
    assert table.to_pylist()[0] == {
        "taken": datetime(2024, 5, 1), "camera": "X", "latitude": 1.5, "longitude": 2.5,
    }  # fmt: skip
    assert set(table.to_pylist()[1].values()) == {None}
