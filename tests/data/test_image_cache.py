"""Images are decoded once where they fit, read again where they do not, and never too large."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vizsla.data.image_cache import ImageCache, available_memory
from vizsla.data.imageset import ImageSet
from vizsla.errors import ImageError


@pytest.fixture
def images(tmp_path: Path, paint: Callable[..., Path]) -> ImageSet:
    for i in range(3):
        paint(f"{i}.png", (i, 0, 0), (40, 20))
    return ImageSet.from_folder(tmp_path)


def test_what_fits_is_read_once(images: ImageSet) -> None:
    pictures = ImageCache(images)
    first = pictures[1].tobytes()
    images.path(1).unlink()
    assert pictures[1].tobytes() == first
    assert pictures[1].getpixel((0, 0)) == (1, 0, 0)


def test_what_does_not_fit_is_read_again(images: ImageSet) -> None:
    pictures = ImageCache(images, max_bytes=40 * 20 * 3)
    for i in range(3):
        assert pictures[i].size == (40, 20)
        images.path(i).unlink()
    assert pictures[0].size == (40, 20)
    with pytest.raises(ImageError):
        pictures[1]


def test_large_ones_are_kept_smaller_and_small_ones_as_they_are(images: ImageSet) -> None:
    assert ImageCache(images, short_side=10)[0].size == (20, 10)
    assert ImageCache(images, short_side=30)[0].size == (40, 20)


def test_a_part_takes_its_pictures_along(images: ImageSet) -> None:
    pictures = ImageCache(images)
    for i in range(3):
        assert pictures[i]
    part = pictures.subset(images.subset([2]))
    images.path(2).unlink()
    assert part[0].getpixel((0, 0)) == (2, 0, 0)


def test_free_memory_is_known_here() -> None:
    free = available_memory()
    assert free is None or free > 2**20
