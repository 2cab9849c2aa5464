"""Boxes in pixels and in fractions, cut out of upright pictures, and what is no box."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vizsla.data.decoded import upright
from vizsla.data.query_box import QueryBox
from vizsla.errors import DataError, UsageError


def test_pixels_and_fractions_name_the_same_part() -> None:
    image = Image.fromarray(np.arange(60 * 80, dtype=np.uint32).astype(np.uint8).reshape(60, 80))
    for given in ("8,6,40,30", (8, 6, 40, 30), "0.1, 0.1,0.5,.5", [0.1, 0.1, 0.5, 0.5]):
        box = QueryBox.of(given)
        assert box is not None and box.pixels(image.size) == (8, 6, 48, 36)
        np.testing.assert_array_equal(np.asarray(box.cut(image)), np.asarray(image)[6:36, 8:48])
    assert QueryBox.of(None) is None
    assert str(QueryBox.of("0.10,0.2,0.5,0.25")) == "0.1,0.2,0.5,0.25"


def test_a_tiny_part_has_a_pixel_and_the_whole_picture_is_a_part() -> None:
    assert QueryBox(0, 0, 1, 1).pixels((30, 20)) == (0, 0, 30, 20)
    assert QueryBox(0.999, 0.999, 0.001, 0.001).pixels((30, 20)) == (29, 19, 30, 20)
    assert QueryBox(0.3333, 0.0, 0.6668, 1).pixels((3000, 10)) == (1000, 0, 3000, 10)


def test_a_box_in_pixels_is_scaled_to_a_picture_that_is_shown_smaller() -> None:
    box = QueryBox(100, 50, 200, 100).in_fractions_of((400, 200))
    assert box.pixels((40, 20)) == (10, 5, 30, 15)
    with pytest.raises(DataError, match=r"100,50,200,100 reaches beyond .* 250 × 200 pixels"):
        QueryBox(100, 50, 200, 100).in_fractions_of((250, 200))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1,2,3", "'1,2,3': expected left, top, width, height"),
        ("a,b,c,d", "'a,b,c,d': expected left"),
        ((1, 2, None, 4), r"\(1, 2, None, 4\): expected left"),
        (7, "7: expected left"),
        ("0,0,0,5", "0,0,0,5 has no area"),
        ("-4,0,9,5", "-4,0,9,5: a number below 0"),
        ("nan,0,9,5", "nan,0,9,5: a number below 0 or none"),
        ("0.5,10,20,20", "0.5,10,20,20: pixels are whole numbers"),
        ("0.5,0,0.6,1", "0.5,0,0.6,1 reaches beyond the picture, whose sides are 1"),
    ],
)
def test_what_is_no_box_is_named(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QueryBox.of(given)


def test_a_box_beyond_the_picture_is_an_error_with_its_size() -> None:
    with pytest.raises(DataError, match="5,5,30,10 reaches beyond the picture, which is 30 × 20"):
        QueryBox(5, 5, 30, 10).pixels((30, 20))


def test_a_picture_is_turned_before_it_is_cut(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10] = 255  # on the left as stored, at the top once it is upright
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    for image in (
        tmp_path / "a.png",
        (tmp_path / "a.png").read_bytes(),
        Image.open(tmp_path / "a.png"),
    ):
        part = QueryBox(0, 0, 20, 10).cut(upright(image))
        assert part.size == (20, 10) and np.asarray(part).min() == 255
