from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vizsla.data.query_regions import crop_queries
from vizsla.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3) % 251
    (tmp_path / "jpg").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "jpg" / name)
    return tmp_path / "jpg"


def test_a_region_is_cut_out_and_others_are_copied(images: Path, tmp_path: Path) -> None:
    paths = crop_queries(images, ["a", "b.png"], {"a": (2.4, 3.0, 12.6, 9.0)}, tmp_path / "out")
    assert [path.name for path in paths] == ["a.png", "b.png"]
    whole = np.asarray(Image.open(images / "a.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(paths[0])), whole[3:9, 2:13])
    assert paths[1].read_bytes() == (images / "b.png").read_bytes()


def test_a_missing_image_and_a_box_outside_are_errors(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 2 queries are not one image .* \(c\)"):
        crop_queries(images, ["a", "c"], {}, tmp_path / "out")
    with pytest.raises(DataError, match=r"is not inside of a.png \(30 × 20 pixels\)"):
        crop_queries(images, ["a"], {"a": (0, 0, 31, 5)}, tmp_path / "out")
